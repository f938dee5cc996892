"""What stops a study from outside is no run's result: a full disk, too many open files, a package that is missing."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments.harness import variants
from experiments.harness.cells import Cell, Run
from experiments.harness.command import explained, main
from experiments.harness.csv_files import read_lines
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.harness.loop import execute, run
from experiments.harness.recorder import Recorder, has_ended
from experiments.harness.study import Plan, Study
from experiments.harness.variants import VariantSettings
from experiments.registry import LAYOUTS
from sparse_plugins.checkpoints import CheckpointAccessError
from tests.disks import WAYS, little_space

RECORD = {"domain": "structures", "study": "rl", "title": "", "prediction": "", "command": "x", "packages": {}}
RECORD |= {"settings": {"only": [], "seeds": [0, 1], "sparsity": 0.5}, "cells": [["a"], ["b"]]}

OUTSIDE = [
    *(OSError(number, errno.errorcode[number]) for number in (errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.EIO)),
    *(OSError(number, errno.errorcode[number]) for number in (errno.EDQUOT, errno.EFBIG, errno.ENOMEM)),
    PermissionError(errno.EACCES, "Permission denied"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    CheckpointAccessError("the checkpoint of round 2 could not be written"),
    ImportError("no module named fedjax"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(RECORD))
    return tmp_path


def trained(recorder: Recorder) -> None:
    recorder.rewrite([recorder.row(9, score=0.5, sparsity=0.5, is_last=1)])


A, B = Cell("", "a", 0.5), Cell("", "b", 0.5)
STUDY = Study("structures", "", LAYOUTS["structures"], ())


def plan_of(train: Callable[..., bool], jobs: int = 1, seeds: int = 2) -> Plan:
    settings = VariantSettings(seeds=tuple(range(seeds)), sparsity=0.5, name="x")
    return Plan(settings, [A, B], train, "", jobs=jobs)


@pytest.mark.parametrize("error", OUTSIDE, ids=lambda error: f"{type(error).__name__} {error.args[0]}"[:24])
def test_an_error_of_the_system_keeps_the_run_and_its_checkpoints(error: Exception, folder: Path) -> None:
    def train(batch: Any) -> bool:
        (recorder,) = batch
        recorder.restart()
        recorder.add(3, score=0.1)
        recorder.scratch.mkdir()
        (recorder.scratch / "checkpoint").touch()
        raise error

    run_folder = folder / "runs/a/seed-0"
    with pytest.raises(type(error)):
        execute(folder, STUDY.layout, [Run(A, 0)], train, {}, ())
    assert not has_ended(run_folder)
    assert (run_folder / "training" / "checkpoint").exists()
    assert [line["failure"] for line in read_lines(run_folder / "results.csv")] == [""]


def test_an_error_of_the_run_itself_is_its_result(folder: Path) -> None:
    def train(batch: Any) -> bool:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    (line,) = execute(folder, STUDY.layout, [Run(A, 0)], train, {}, ()) or ()
    assert "failed: JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory" in line


def test_the_message_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(batch: Any) -> bool:
        if batch[0].run == Run(B, 0):
            raise OSError(errno.ENOSPC, "No space left on device")
        trained(batch[0])
        return True

    assert explained(lambda: run(STUDY, plan_of(full), folder, "x")) == 2
    told = capsys.readouterr().err
    assert "error: [Errno 28] No space left on device" in told
    assert f"go on with --resume {folder}" in told
    assert [has_ended(folder / f"runs/{cell}/seed-{seed}") for cell in "ab" for seed in (0, 1)] == [
        True,
        True,
        False,
        False,
    ]
    seen = []
    again = plan_of(lambda batch: (seen.append(batch[0].run), trained(batch[0]))[1] is None)
    assert explained(lambda: run(STUDY, again, folder, "x")) == 0
    assert seen == [Run(B, 0), Run(B, 1)]


def full_in_a_process(batch: Any) -> bool:
    (recorder,) = batch
    (recorder.folder / "begun").touch()
    raise CheckpointAccessError("the disk is full")


def test_in_several_processes_no_other_run_begins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = plan_of(full_in_a_process, jobs=2, seeds=8)
    assert explained(lambda: run(STUDY, many, folder, "x")) == 2
    assert "error: the disk is full" in capsys.readouterr().err
    assert len([*folder.glob("runs/*/*/begun")]) < len(many.runs), "those that had not begun"
    assert not [*folder.glob("runs/*/*/summary.json")]


def run_study(rows: int, arguments: list[str]) -> int:
    """A study whose runs leave so many rows."""

    def prepare(name: str) -> Any:
        def train(recorder: Recorder) -> None:
            common = {"loss": 1.0, "score": recorder.run.seed / 3, "sparsity": 0.5}
            for step in range(rows):
                recorder.add(step, **common)
            recorder.add(rows, **common, is_last=1)

        return train

    task = lambda settings: variants.plan_of(settings, ("dense", "good"), "", prepare)  # noqa: E731
    return main(STUDY._replace(layout=layout), VariantSettings, task, arguments)


def layout(record: Record) -> Layout:
    return variants.layout(record, Measure("accuracy, %", last("score"), 100))


@pytest.mark.parametrize("way", WAYS)
def test_a_supervised_study_goes_on_when_there_is_space_again(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--seeds", "3"]
    assert run_study(2000, [*command, f"--output={tmp_path}", "--name=whole"]) == 0
    size = (tmp_path / "whole" / "results.csv").stat().st_size
    with little_space(way, tmp_path / "disk", size // 2 if way == "disk" else size // 6) as grow:
        stopped = tmp_path / "disk" / "study"
        assert run_study(2000, [*command, f"--output={tmp_path / 'disk'}", "--name=study"]) == 2
        told = capsys.readouterr().err
        assert "No space left on device" in told or "File too large" in told
        assert f"go on with --resume {stopped}" in told
        ended = [*stopped.glob("runs/*/*/summary.json")]
        assert len(ended) < 6
        assert all(json.loads(file.read_text())["status"] == "finished" for file in ended)
        grow()
        assert run_study(2000, ["--resume", str(stopped)]) == 0
        assert (stopped / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
        assert not [*stopped.rglob("*.partial")]
