"""The one loop of all studies: what has ended is never trained again, what failed stays visible, whatever stops it."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.cells import Run
from experiments.harness.csv_files import joined_files
from experiments.harness.files import changed_packages, create_folder, locked, read_record, write_whole
from experiments.harness.layout import RUNS, Layout, Record, layout_of, name_of
from experiments.harness.recorder import SCRATCH, Recorder, check_ends, has_ended
from experiments.harness.study import Plan, Study, Train
from experiments.harness.surroundings import surroundings
from experiments.harness.tables import refresh, report
from experiments.harness.tables.stored import PARTS, missing, read_study

STOPPED, INTERRUPTED = 143, 130  # exit status of a process that SIGTERM ended, and Ctrl-C
# Of the machine and never a run's result: a full disk, too many open files, a package that is missing.
OUTSIDE = (ImportError, OSError)


def new_folder(study: Study, plan: Plan, command: str) -> Path:
    """Makes the folder of a new study.

    Raises:
        FileExistsError: there is one of this name.
    """
    record = {"domain": study.name, **plan.record, **_surroundings(study, plan, command)}
    layout, folder = study.layout(record), Path(plan.settings.output) / plan.settings.name.replace(" ", "-")
    return create_folder(folder, {**record, "cells": [list(layout.key(cell)) for cell in plan.cells]})


def run(study: Study, plan: Plan, folder: Path, command: str) -> int:
    """Trains what is left of a study and writes its files, the report last.

    Args:
        study: Its row in the registry.
        plan: What to train.
        folder: Folder of the study.
        command: What was typed now, for the folders of runs.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, `STOPPED` if it was told to stop.

    Raises:
        ImportError: A package is missing.
        OSError: The system refused to write or read, as on a full disk. What was trained so far is still there.
        ValueError: the folder is another study's, or was left unfinished by an older version, or a file in it is
            damaged.
    """
    outside: tuple[type[Exception], ...] = (*OUTSIDE, *plan.passes)
    try:
        return _run(study, plan, folder, command)
    except outside as error:
        error.add_note(f"No result was recorded of what this stopped; once it is mended, go on with --resume {folder}")
        raise


def _run(study: Study, plan: Plan, folder: Path, command: str) -> int:
    with locked(folder):
        record, layouts = read_record(folder), {study.name: study.layout}
        if name_of(record) != study.name:
            name = name_of(record)
            raise ValueError(f"{folder} is a study of {name}: go on with it by python -m experiments.{name}.")
        if PARTS in record:
            raise ValueError(
                f"{folder} is joined of several studies and goes on no more: train another and join it, too."
            )
        layout = layout_of(record, layouts)
        check_ends(folder)
        if _is_finished(plan, folder, layout, record):
            stored = read_study(folder, layouts)
            print(f"{folder} is finished and left alone.\n\n{report.tables(stored)}")
            return int(any(row.failure for row in stored.rows))
        _check_version(folder, record)
        for change in changed_packages(folder, study.packages):
            print(f"note: {change}; runs to come may differ in their last bits from those of a study without a stop.")
        print(plan.text, flush=True)
        for lines in _execute_all(study, plan, folder, command):
            if lines is None:
                print(f"Stopped in time; go on with --resume {folder}")
                return STOPPED
            print(*lines, sep="\n", flush=True)
            collect(folder, layout, plan.runs)
        collect(folder, layout, plan.runs)
        for run in plan.runs:
            shutil.rmtree(folder / layout.path(run) / SCRATCH, ignore_errors=True)
        stored = read_study(folder, layouts)
        refresh.write(stored)
        files = ", ".join(sorted(file.name for file in folder.iterdir()))
        print(f"\n{report.tables(stored)}\n\nIn {folder}: {files}")
        return int(any(row.failure for row in stored.rows))


def collect(folder: Path, layout: Layout, runs: Sequence[Run]) -> None:
    """Puts the files of the runs that have ended together as those of the study."""
    for name, text in _collected(folder, layout, runs).items():
        write_whole(folder / name, text)


def _collected(folder: Path, layout: Layout, runs: Sequence[Run]) -> dict[str, str]:
    """Files of the study by name, as those of the runs that have ended make them; without any line there is none."""
    ended = [place for place in (folder / layout.path(run) for run in runs) if has_ended(place)]
    return joined_files(ended)


def execute(
    folder: Path,
    read: Callable[[Record], Layout],
    batch: Sequence[Run],
    train: Train,
    record: Mapping[str, Any],
    passes: tuple[type[Exception], ...],
) -> list[str] | None:
    """Trains a batch and records it, whatever happens to it: a bad one must not cost the others.

    Returns:
        How each of its runs ended, in a line; None if it was told to stop.
    """
    layout = read(read_record(folder))
    recorders = [Recorder(folder, layout, run, record) for run in batch]
    started = time.perf_counter()
    outside: tuple[type[Exception], ...] = (*OUTSIDE, *passes)
    try:
        if not train(recorders):
            return None
    except outside:
        raise  # what was trained so far is still there
    except Exception as error:
        for recorder in recorders:
            recorder.fail(error)
    seconds = time.perf_counter() - started
    lines = [recorder.end(seconds, len(batch)) for recorder in recorders]
    for recorder in recorders:
        shutil.rmtree(recorder.scratch, ignore_errors=True)
    return lines


def _is_finished(plan: Plan, folder: Path, layout: Layout, record: Record) -> bool:
    """Also where the folders of the runs are gone, as in results that are kept in a repository."""
    if not (folder / "results.md").exists():
        return False
    if "cells" in record and (folder / RUNS).exists():
        made = {name: text.encode() for name, text in _collected(folder, layout, plan.runs).items()}
        is_as_made = all((folder / name).exists() and (folder / name).read_bytes() == made[name] for name in made)
        if not is_as_made or not all(has_ended(folder / layout.path(run)) for run in plan.runs):
            return False
    return not missing(read_study(folder, {name_of(record): lambda _: layout}))


def _check_version(folder: Path, record: Record) -> None:
    if "cells" not in record:
        commit = (record.get("git") or {}).get("commit", "unknown")
        raise ValueError(
            f"{folder} was begun by an older version, whose folders of runs are laid out otherwise: finish it with its"
            f" own commit, {commit}, or begin it anew under another --name."
        )


def _surroundings(study: Study, plan: Plan, command: str) -> dict[str, Any]:
    return surroundings(command, dataclasses.asdict(plan.settings), study.packages)


def _execute_all(study: Study, plan: Plan, folder: Path, command: str) -> Iterator[list[str] | None]:
    """Trains what is left to train and yields lines on each batch as it ends."""
    layout, record = study.layout(read_record(folder)), _surroundings(study, plan, command)
    left = [batch for batch in plan.batches if not all(has_ended(folder / layout.path(run)) for run in batch)]
    given = [(folder, study.layout, batch, plan.train, record, plan.passes) for batch in left]
    if plan.jobs == 1:
        yield from (execute(*arguments) for arguments in given)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(plan.jobs, spawn, initializer=_end_with_parent) as workers:
        ends = [workers.submit(execute, *arguments) for arguments in given]
        try:
            yield from (end.result() for end in concurrent.futures.as_completed(ends))
        finally:  # whatever stopped the study: those under way come to their end, no other begins
            workers.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Lets no process go on writing after the one that started it was killed."""
    threading.Thread(target=_wait_for_the_end_of, args=(multiprocessing.parent_process(),), daemon=True).start()


def _wait_for_the_end_of(parent: Any) -> None:
    parent.join()
    os._exit(1)
