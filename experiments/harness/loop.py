"""The one loop of all studies: what has ended is never trained again, what failed stays visible, whatever stops it."""

import concurrent.futures
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.csv_files import joined
from experiments.harness.files import changed_packages, create_folder, locked, read_record, write_whole
from experiments.harness.layout import Layout, domain_of, layout_of
from experiments.harness.runs import RUNS, SCRATCH, Recorder, Run, check_ends, has_ended
from experiments.harness.surroundings import surroundings
from experiments.harness.tables import refresh
from experiments.harness.tables.stored import missing, read_study

STOPPED = 143  # exit status of a process that SIGTERM ended
JOINED = ("results.csv", "layers.csv", "measurements.csv", "timing.csv")
# Of the machine and never a run's result: a full disk, too many open files, a package that is missing.
OUTSIDE = (ImportError, OSError)

# Trains runs together, handing their rows over; False if it was told to stop, so that they will go on later.
Train = Callable[[Sequence[Recorder]], bool]


class Study(NamedTuple):
    """What a domain makes of a command line.

    Attributes:
        domain: Its module: `python -m experiments.<domain>`.
        settings: All of them, by name; `output` and `name` say where the folder goes.
        cells: Of the grid, as values of the layout's fields.
        batches: All runs, in groups that are trained together.
        train: Trains a batch; for several processes it has to be picklable.
        plan: What is about to happen, to print before.
        packages: Whose versions matter.
        record: What else `config.json` says, such as `about`, for reports.
        passes: Errors that are no run's own, besides `OUTSIDE`: they end the study, which can go on later.
        jobs: Batches that are trained at once, each in a process of its own.
    """

    domain: str
    settings: Mapping[str, Any]
    cells: Sequence[Sequence[Any]]
    batches: Sequence[Sequence[Run]]
    train: Train
    plan: str
    packages: Sequence[str]
    record: Mapping[str, Any] = {}
    passes: tuple[type[Exception], ...] = ()
    jobs: int = 1


def begin(study: Study, command: str) -> Path:
    """Makes the folder of a new study.

    Raises:
        FileExistsError: there is one of this name.
    """
    folder = Path(study.settings["output"]) / str(study.settings["name"]).replace(" ", "-")
    known = {"domain": study.domain, "cells": [list(cell) for cell in study.cells], **study.record}
    return create_folder(folder, {**known, **surroundings(command, study.settings, study.packages)})


def run(study: Study, folder: Path, command: str) -> int:
    """Trains what is left of a study and writes its files, the report last.

    Args:
        study: What to train.
        folder: Of the study.
        command: What was typed now, for the folders of runs.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, `STOPPED` if it was told to stop.

    Raises:
        ImportError: A package is missing.
        OSError: The system refused to write or read, as on a full disk. What was trained so far is still there.
        ValueError: the folder is another domain's, or was left unfinished by an older version, or a file in it is
            damaged.
    """
    try:
        return _run(study, folder, command)
    except OUTSIDE as error:
        error.add_note(f"No result was recorded of what this stopped; once it is mended, go on with --resume {folder}")
        raise


def _run(study: Study, folder: Path, command: str) -> int:
    with locked(folder):
        layout = layout_of(record := read_record(folder))
        runs = [one for batch in study.batches for one in batch]
        check_ends(folder)
        if _is_finished(folder, record, runs):
            print(f"{folder} is finished and left alone.\n\n{refresh.table(folder)}")
            return int(any(row.failure for row in read_study(folder).rows))
        _check_version(folder, record, study)
        for change in changed_packages(folder, study.packages):
            print(f"note: {change}; runs to come may differ in their last bits from those of a study without a stop.")
        print(study.plan, flush=True)
        left = [batch for batch in study.batches if not all(has_ended(folder, one) for one in batch)]
        for lines in _execute_all(study, layout, folder, left, surroundings(command, study.settings, study.packages)):
            if lines is None:
                print(f"Stopped in time; go on with --resume {folder}")
                return STOPPED
            print(*lines, sep="\n", flush=True)
            collect(folder, runs)
        collect(folder, runs)
        for one in runs:
            shutil.rmtree(folder / one.path / SCRATCH, ignore_errors=True)
        refresh.write(folder)
        print(f"\n{refresh.table(folder)}\n\nIn {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
        return int(any(row.failure for row in read_study(folder).rows))


def collect(folder: Path, runs: Sequence[Run]) -> None:
    """Puts the files of the runs that have ended together as those of the study."""
    for name, text in _collected(folder, runs).items():
        write_whole(folder / name, text)


def _collected(folder: Path, runs: Sequence[Run]) -> dict[str, str]:
    """Files of the study by name, as those of the runs that have ended make them; without any line there is none."""
    ended = [folder / one.path for one in runs if has_ended(folder, one)]
    texts = {name: joined([own / name for own in ended]) for name in JOINED}
    return {name: text for name, text in texts.items() if text}


def execute(
    folder: Path, batch: Sequence[Run], train: Train, record: Mapping[str, Any], passes: tuple[type[Exception], ...]
) -> list[str] | None:
    """Trains a batch and records it, whatever happens to it: a bad one must not cost the others.

    Returns:
        How each of its runs ended, in a line; None if it was told to stop.
    """
    layout = layout_of(read_record(folder))
    recorders = [Recorder(folder, layout, one, record) for one in batch]
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


def explained(call: Callable[[], int], *kinds: type[Exception]) -> int:
    """The exit status of a call; of what could not start or go on it says why, and it is 2.

    Args:
        call: What to do.
        *kinds: Errors that are explained, besides ImportError, OSError and ValueError.
    """
    caught: tuple[type[Exception], ...] = (ImportError, OSError, ValueError, *kinds)
    try:
        return call()
    except caught as error:
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 2


def _is_finished(folder: Path, record: Mapping[str, Any], runs: Sequence[Run]) -> bool:
    """Also where the folders of the runs are gone, as in results that are kept in a repository."""
    if not (folder / "results.md").exists():
        return False
    if "cells" in record and (folder / RUNS).exists():
        made = {name: text.encode() for name, text in _collected(folder, runs).items()}
        is_as_made = all((folder / name).exists() and (folder / name).read_bytes() == made[name] for name in made)
        if not is_as_made or not all(has_ended(folder, one) for one in runs):
            return False
    return not missing(read_study(folder))


def _check_version(folder: Path, record: Mapping[str, Any], study: Study) -> None:
    if domain_of(record) != study.domain:
        raise ValueError(
            f"{folder} is a study of {domain_of(record)}: go on with it by python -m experiments.{domain_of(record)}."
        )
    if "cells" not in record:
        commit = (record.get("git") or {}).get("commit", "unknown")
        raise ValueError(
            f"{folder} was begun by an older version, whose folders of runs are laid out otherwise: finish it with its"
            f" own commit, {commit}, or begin it anew under another --name."
        )


def _execute_all(
    study: Study, layout: Layout, folder: Path, left: Sequence[Sequence[Run]], record: Mapping[str, Any]
) -> Iterator[list[str] | None]:
    """Trains what is left to train and yields lines on each batch as it ends."""
    if study.jobs == 1:
        yield from (execute(folder, batch, study.train, record, study.passes) for batch in left)
        return
    workers = concurrent.futures.ProcessPoolExecutor(
        study.jobs, multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    with workers:
        ends = [workers.submit(execute, folder, batch, study.train, record, study.passes) for batch in left]
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
