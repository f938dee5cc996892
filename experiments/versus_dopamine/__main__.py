"""`python -m experiments.versus_dopamine`: trains one agent on both sides, with equal settings, and compares."""

import argparse
import datetime
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.harness.files import create_folder, read_record
from experiments.harness.layout import layout_of
from experiments.harness.loop import collect, explained
from experiments.harness.runs import Recorder, Run
from experiments.harness.surroundings import surroundings
from experiments.harness.tables import refresh
from experiments.versus_dopamine.jobs import execute
from experiments.versus_dopamine.outcomes import SIDES, TASKS

PACKAGES = ("dm-haiku", "dopamine-rl", "flax", "gymnasium", "gymnax", "jax", "jaxlib", "minatar", "numpy", "optax")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both sides.

    Returns:
        Exit status: 0, 1 if a run failed, or 2 if there is nowhere to write, or no space.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "experiments.versus_dopamine", *arguments])
    record = surroundings(command, vars(options), PACKAGES)
    cells = list(itertools.product(options.tasks, SIDES))
    known = {"domain": "versus_dopamine", "cells": cells, **record}
    try:
        folder = create_folder(Path(options.output) / options.name, known)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return explained(lambda: _execute(options, folder, cells, record))


def _execute(
    options: argparse.Namespace, folder: Path, cells: Sequence[tuple[str, str]], record: dict[str, Any]
) -> int:
    layout, has_failed = layout_of(read_record(folder)), False
    for end in execute(options.tasks, options.seeds, options.scale, options.jobs, folder):
        recorder = Recorder(folder, layout, Run((end.task, end.side), end.seed), record)
        if isinstance(end.result, Exception):
            recorder.fail(end.result)
            has_failed = True
        else:
            recorder.rewrite([end.result])
        print(recorder.end(end.seconds, end.together), flush=True)
    collect(folder, [Run(cell, seed) for cell in cells for seed in options.seeds])
    refresh.write(folder)
    print(f"\n{refresh.table(folder)}\n\nIn {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    return int(has_failed)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.versus_dopamine",
        description=__doc__.partition(": ")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what is learnt")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="a run per side and seed")
    made.add_argument("--scale", type=float, default=1.0, help="factor on the agent steps of every run")
    made.add_argument("--jobs", type=int, default=2, help="runs of Dopamine side by side, each in a process")
    made.add_argument("--output", default="runs", help="where the folder goes")
    made.add_argument("--name", default=f"versus-dopamine-{datetime.datetime.now():%Y%m%d-%H%M%S}", help="its name")
    return made


if __name__ == "__main__":
    sys.exit(main())
