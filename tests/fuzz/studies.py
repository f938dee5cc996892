"""Folders of studies as a fuzz target: any of their files may hold anything, and the others are as they should be."""

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.fed_emnist.config import FederatedSettings
from experiments.harness import csv_files as rows
from experiments.harness.cells import Cell, Run
from experiments.harness.files import read_config
from experiments.harness.layout import layout_of
from experiments.harness.recorder import Recorder
from experiments.harness.tables.report import report
from experiments.harness.tables.stored import check_complete, read_study
from experiments.registry import LAYOUTS
from sparse_plugins.fed.ledger import Entry, Ledger

SETTINGS: dict[str, Any] = {
    "dataset": "digits",
    "model": "dense",
    "algorithms": ("no_prune", "rigl"),
    "sparsities": (0.8,),
    "seeds": (0,),
    "num_writers": None,
    "distribution": "erk",
    "rounds": 4,
    "clients_per_round": 2,
    "client_learning_rate": 0.1,
    "server_learning_rate": 0.01,
    "server_schedule": "constant",
    "update_start": 1,
    "update_end": 3,
    "update_every": 1,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "name": "fuzzed",
}
RUNS = [Run(Cell("", "no_prune", 0.0), 0), Run(Cell("", "rigl", 0.8), 0)]
PATH = "runs/rigl-0.8/seed-0"
# An input begins with a byte that chooses the file which it is put into.
FILES = (
    "config.json",
    "results.csv",
    "layers.csv",
    "measurements.csv",
    f"{PATH}/summary.json",
    f"{PATH}/results.csv",
    f"{PATH}/ledger.csv",
)


@functools.cache
def study() -> dict[str, bytes]:
    """The files of a small federated study that has ended."""
    settings = dataclasses.asdict(FederatedSettings(**SETTINGS))
    record: dict[str, Any] = {
        "domain": "fed_emnist",
        "command": "x",
        "packages": {},
        "git": {"commit": "0" * 40, "changed": False},
    }
    record |= {"settings": settings, "cells": [["no_prune", 0.0], ["rigl", 0.8]]}
    layout = layout_of(json.loads(json.dumps(record)), LAYOUTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(record))
        for run in RUNS:
            recorder = Recorder(folder, layout, run, {})
            cell = dict(zip(layout.cell, layout.key(run.cell), strict=True))
            scores = {"test_accuracy": 0.5, "test_loss": 1.5, "train_loss": 1.0, "measured_sparsity": run.cell.sparsity}
            recorder.rewrite([recorder.row(n, **scores, down_bytes=9, up_bytes=9) for n in (2, 4)])
            line = {**cell, "seed": 0, "round": 4, "layer": "w", "size": 8, "kept": 2, "changed": None}
            rows.append_lines(recorder.folder / "layers.csv", list(line), [line])
            recorder.measure("w", "kept", 2.0)
            Ledger([Entry(3, "anna", 1, 2, 3)]).save(recorder.folder / "ledger.csv")
            recorder.end(1.0, 1)
        for name, text in rows.joined_files([folder / layout.path(run) for run in RUNS]).items():
            (folder / name).write_text(text)
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def corpus() -> Iterator[bytes]:
    """Every file as it should be."""
    for place, name in enumerate(FILES):
        yield bytes([place]) + study()[name]


def check(data: bytes) -> None:
    """Reads the study and reports on it with one file replaced by an input.

    Raises:
        AssertionError: If a file of a finished run was changed and nothing was said.
        Exception: Anything but OSError and ValueError: a finding.
    """
    place, content = FILES[data[0] % len(FILES)] if data else FILES[0], data[1:]
    if place.endswith("ledger.csv"):
        with contextlib.suppress(ValueError):
            Ledger.from_csv(content.decode(errors="replace"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file_name, whole in study().items():
            (folder / file_name).parent.mkdir(parents=True, exist_ok=True)
            (folder / file_name).write_bytes(whole)
        (folder / place).write_bytes(content)
        try:
            read_config(folder, FederatedSettings)
        except (OSError, ValueError) as error:
            if "config.json" not in str(error):
                raise AssertionError(f"an error that does not name the file: {error!r}") from error
        try:
            found = read_study(folder, LAYOUTS)
            check_complete(found)
            report(found)
        except (OSError, ValueError):
            return
        is_of_run = place.startswith("runs") and not place.endswith("summary.json")
        assert not is_of_run or content == study()[place], f"{place} was changed, and nobody noticed"
