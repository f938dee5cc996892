"""The runs, each in a process: only these load Dopamine, with TensorFlow."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

from experiments.versus_dopamine.outcomes import DOPAMINE, REPAIRED, TASKS, Run


def execute(tasks: Sequence[str], seeds: Sequence[int], scale: float, jobs: int, folder: Path) -> list[Run]:
    """All runs; our side first, with the machine to itself as Dopamine's has it by process.

    Args:
        tasks: Names of tasks.
        seeds: One run each.
        scale: Factor on the agent steps.
        jobs: Processes.
        folder: Where `log.txt` goes, with what libraries have to say.
    """
    steps = {task: round(TASKS[task].steps * scale) for task in tasks}
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, spawn, _log_to, (folder / "log.txt",)) as workers:
        found = []
        for task in tasks:
            found += workers.submit(_ours, task, tuple(seeds), steps[task]).result()
            theirs = [(task, side, seed, steps[task]) for side in (DOPAMINE, REPAIRED) for seed in seeds]
            for end in [workers.submit(_theirs, *run) for run in theirs]:
                found.append(end.result())
                print(f"{task}, seed {found[-1].seed}: {found[-1].last_return:.2f} by {found[-1].side}", flush=True)
    return found


def _log_to(path: Path) -> None:
    with path.open("a") as log:
        os.dup2(log.fileno(), 2)


def _ours(task: str, seeds: tuple[int, ...], steps: int) -> list[Run]:
    from experiments.versus_dopamine import our_side

    return our_side.run(task, seeds, steps)


def _theirs(task: str, side: str, seed: int, steps: int) -> Run:
    from experiments.versus_dopamine import dopamine_side

    return dopamine_side.run(task, side, seed, steps)
