"""The runs of a study, each in a folder of its own, from its newest checkpoint to its end."""

import concurrent.futures
import dataclasses
import io
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.fed_emnist.config import Run, StudyConfig
from experiments.fed_emnist.record import Row, read_rows, write_rows
from experiments.fed_emnist.train import Evaluation, averaging, first_state, prepare, train
from experiments.files import csv_text, join_timings, write_whole
from sparse_plugins import fed
from sparse_plugins.core.trees import leaf_names
from sparse_plugins.fed.checkpoints import Checkpoints

RUNS = "runs"
CHECKPOINTS = "checkpoints"


def execute_all(config: StudyConfig, folder: Path) -> Iterator[str]:
    """Trains what is left to train and yields a line on each run as it ends."""
    left = [run for run in config.runs() if not has_ended(config, folder, run)]
    if config.jobs == 1:
        yield from (execute(config, folder, run) for run in left)
        return
    workers = concurrent.futures.ProcessPoolExecutor(
        config.jobs, multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    with workers:
        ends = [workers.submit(execute, config, folder, run) for run in left]
        yield from (end.result() for end in concurrent.futures.as_completed(ends))


def has_ended(config: StudyConfig, folder: Path, run: Run) -> bool:
    """Whether a run is finished or failed: its last row is the last thing that is written."""
    rows = read_rows(folder / RUNS / run.folder)
    return bool(rows) and (rows[-1].round == config.rounds or bool(rows[-1].failure))


def execute(config: StudyConfig, folder: Path, run: Run) -> str:
    """Trains one run and records it, whatever happens to it: one bad run must not cost the others.

    Returns:
        How it ended, in a line.

    Raises:
        CheckpointMismatchError: The run's checkpoint is none of this run.
    """
    own, task, ledger = folder / RUNS / run.folder, prepare(config), fed.Ledger()
    own.mkdir(parents=True, exist_ok=True)
    algorithm = averaging(config, run, task, ledger)
    checkpoints = Checkpoints(own / CHECKPOINTS)
    state, rows, seconds = _newest(checkpoints, first_state(run, task, algorithm), ledger)
    started = time.perf_counter() - seconds
    bar = tqdm(total=config.rounds, desc=str(run), unit="round", leave=False, disable=config.jobs > 1 or None)
    try:
        for step in train(config, run, task, algorithm, state):
            state, seconds = step.state, time.perf_counter() - started
            bar.update(state.round - bar.n)
            if step.evaluation is not None:
                rows.append(_row(run, step.evaluation, ledger))
                bar.set_postfix_str(_summary(rows[-1]))
                if state.round < config.rounds:  # The last row says that all other files are there.
                    write_rows(own, rows)
            if _is_checkpoint_due(config, state.round):
                checkpoints.save(state.round, state, _extra(rows, ledger, seconds))
        write_whole(own / "params.npz", _npz(state.params))
    except Exception as error:
        failure = " ".join(f"{type(error).__name__}: {error}".split())
        rows.append(Row(**run._asdict(), round=rows[-1].round if rows else 0, failure=failure))
    bar.close()
    _write_timing(own, run, seconds)
    ledger.save(own / "ledger.csv")
    write_rows(own, rows)
    shutil.rmtree(own / CHECKPOINTS, ignore_errors=True)
    return f"{run}: {_summary(rows[-1])}, {seconds:.0f} s"


def _newest(checkpoints: Checkpoints, first: Any, ledger: fed.Ledger) -> tuple[Any, list[Row], float]:
    """State, rows and seconds of the newest checkpoint, whose entries go into the ledger; the first state without."""
    saved = checkpoints.restore(like=first)
    if saved is None:
        return first, [], 0.0
    for entry in fed.Ledger.from_csv(saved.extra["ledger"]):
        ledger.add(entry)
    return saved.state, [Row(**row) for row in saved.extra["rows"]], saved.extra["seconds"]


def _extra(rows: list[Row], ledger: fed.Ledger, seconds: float) -> dict[str, Any]:
    return {"rows": [*map(dataclasses.asdict, rows)], "ledger": ledger.to_csv(), "seconds": seconds}


def _is_checkpoint_due(config: StudyConfig, finished: int) -> bool:
    return config.checkpoint_every > 0 and 0 < finished < config.rounds and finished % config.checkpoint_every == 0


def collect(config: StudyConfig, folder: Path) -> list[Row]:
    """Puts the files of the runs together as those of the study.

    Returns:
        All rows, in the order of the runs.
    """
    folders = [folder / RUNS / run.folder for run in config.runs()]
    rows = [row for own in folders for row in read_rows(own)]
    write_rows(folder, rows)
    join_timings(folder, folders)
    return rows


def _row(run: Run, evaluation: Evaluation, ledger: fed.Ledger) -> Row:
    total = ledger.total()
    return Row(**run._asdict(), **evaluation._asdict(), down_bytes=total.down, up_bytes=total.up + total.growth)


def _summary(row: Row) -> str:
    if row.failure:
        return f"failed: {row.failure}"
    return f"{row.test_accuracy:.1%} right, {row.measured_sparsity:.1%} zeros"


def _write_timing(own: Path, run: Run, seconds: float) -> None:
    line = {**run._asdict(), "seconds": round(seconds, 2)}
    write_whole(own / "timing.csv", csv_text([*line], [line]))


def _npz(params: Any) -> bytes:
    """The parameters in use by name, for `numpy.load`."""
    file = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True))
    np.savez(file, **arrays)
    return file.getvalue()


def _end_with_parent() -> None:
    """Lets no process go on writing after the one that started it was killed."""
    threading.Thread(target=_wait_for_the_end_of, args=(multiprocessing.parent_process(),), daemon=True).start()


def _wait_for_the_end_of(parent: Any) -> None:
    parent.join()
    os._exit(1)
