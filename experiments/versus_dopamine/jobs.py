"""The runs, each in a process: only these load Dopamine, with TensorFlow."""

import concurrent.futures
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.versus_dopamine.outcomes import DOPAMINE, OURS, REPAIRED, TASKS, Run


class End(NamedTuple):
    """How a run ended.

    Attributes:
        task: Name of its task.
        side: Of `SIDES`.
        seed: Of the run.
        result: What came of it, or what went wrong.
        seconds: Wall time; of runs that are computed together, of all of them.
        together: How many these are.
    """

    task: str
    side: str
    seed: int
    result: Run | Exception
    seconds: float
    together: int


def execute(tasks: Sequence[str], seeds: Sequence[int], scale: float, jobs: int, folder: Path) -> Iterator[End]:
    """All runs; our side first, with the machine to itself as Dopamine's has it by process.

    Args:
        tasks: Names of tasks.
        seeds: One run each.
        scale: Factor on the agent steps.
        jobs: Processes.
        folder: Where `log.txt` goes, with what libraries have to say.

    Yields:
        Each run when it is known how it ended; one that fails costs no other.
    """
    steps = {task: round(TASKS[task].steps * scale) for task in tasks}
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, spawn, _log_to, (folder / "log.txt",)) as workers:
        for task in tasks:
            results, seconds = workers.submit(_timed, _ours, task, tuple(seeds), steps[task]).result()
            for place, seed in enumerate(seeds):
                result = results if isinstance(results, Exception) else results[place]
                yield End(task, OURS, seed, result, seconds, len(seeds))
            theirs = [(task, side, seed) for side in (DOPAMINE, REPAIRED) for seed in seeds]
            ends = [workers.submit(_timed, _theirs, *run, steps[task]) for run in theirs]
            for run, end in zip(theirs, ends, strict=True):
                yield End(*run, *end.result(), 1)


def _timed(job: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a job gives back, or its error, and the seconds that it took."""
    started = time.perf_counter()
    try:
        result = job(*arguments)
    except OSError:
        raise  # of the machine, such as a full disk, and no run's result
    except Exception as error:
        result = RuntimeError(f"{type(error).__name__}: {error}")  # which every process can read
    return result, time.perf_counter() - started


def _log_to(path: Path) -> None:
    with path.open("a") as log:
        os.dup2(log.fileno(), 2)


def _ours(task: str, seeds: tuple[int, ...], steps: int) -> list[Run]:
    from experiments.versus_dopamine import our_side

    return our_side.run(task, seeds, steps)


def _theirs(task: str, side: str, seed: int, steps: int) -> Run:
    from experiments.versus_dopamine import dopamine_side

    return dopamine_side.run(task, side, seed, steps)
