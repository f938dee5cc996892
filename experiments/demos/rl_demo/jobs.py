"""The runs, each in a process: only these load Dopamine, with TensorFlow."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.demos.rl_demo.outcomes import DENSE, Frames, Outcome


def execute(
    pruner: str,
    seeds: Sequence[int],
    max_steps: int,
    bindings: Sequence[str],
    pong_steps: int,
    folder: Path,
    processes: int,
) -> tuple[list[Outcome], Frames]:
    """Solves CartPole dense and sparse with every seed, plays Pong, and writes the sparse policy's `policy.gif`.

    Args:
        pruner: Algorithm of the sparse policies.
        seeds: One run of each kind per seed; the first one's is that of Pong, too.
        max_steps: Agent steps after which a run gives up.
        bindings: Further gin bindings for CartPole.
        pong_steps: Agent steps on Pong.
        folder: Where the picture goes, and `log.txt` with what libraries have to say.
        processes: Runs side by side.

    Returns:
        Dense runs, sparse runs; what came of Pong.
    """
    spawn = multiprocessing.get_context("spawn")
    workers = concurrent.futures.ProcessPoolExecutor(processes, spawn, _log_to, (folder / "log.txt",))
    with workers:
        runs = [
            workers.submit(_solve, kind, seed, max_steps, tuple(bindings)) for seed in seeds for kind in (pruner, DENSE)
        ]
        pong = workers.submit(_play_pong, pong_steps, seeds[0])
        for end in concurrent.futures.as_completed(runs):
            outcome = end.result()
            verdict = "solved" if outcome.is_solved else "not solved"
            print(f"{outcome.label}, seed {outcome.seed}: {verdict}, {outcome.seconds:.0f} s", flush=True)
        outcomes = sorted((end.result() for end in runs), key=lambda outcome: outcome.pruner != DENSE)
        sparse = [outcome for outcome in outcomes if outcome.pruner != DENSE]
        shown = next((outcome for outcome in sparse if outcome.is_solved), sparse[0])
        workers.submit(_render, shown, folder / "policy.gif").result()
        return outcomes, pong.result()


def _log_to(path: Path) -> None:
    """Sends what TensorFlow writes past Python to a file; errors of a run reach the caller."""
    with path.open("a") as log:
        os.dup2(log.fileno(), 2)


def _solve(*arguments: Any) -> Outcome:
    from experiments.demos.rl_demo.cartpole import solve

    return solve(*arguments)


def _play_pong(steps: int, seed: int) -> Frames:
    from experiments.demos.rl_demo.pong import play

    return play(steps, seed)


def _render(outcome: Outcome, path: Path) -> float:
    from experiments.demos.rl_demo.render import render

    return render(outcome, path)
