"""What both sides hand back; known without Dopamine, which takes seconds and a gigabyte to load."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.statistics import interval, mean
from experiments.tables import markdown_table

DOPAMINE, REPAIRED, OURS = "dopamine", "dopamine, last transitions kept", "sparse-plugins"
SIDES = (DOPAMINE, REPAIRED, OURS)


class Task(NamedTuple):
    """What is learnt.

    Attributes:
        game: For readers.
        config: Dopamine's side: a gin file of the package.
        steps: Agent steps of a run.
        units: Of each of CartPole's two hidden layers.
    """

    game: str
    config: str
    steps: int
    units: int = 512


TASKS = {
    "cartpole": Task("CartPole-v1, 2 x 512 units", "cartpole_dqn", 20_000),
    "cartpole-small": Task("CartPole-v1, 2 x 64 units", "cartpole_dqn", 20_000, units=64),
    "breakout": Task("MinAtar Breakout", "minatar_dqn", 60_000),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """How a run went.

    Attributes:
        task: Name of its task.
        side: Of `SIDES`.
        seed: Of everything in it.
        last_return: Mean return of the episodes that ended in the last fifth of its steps, in which the agent learns
            and explores.
        episodes: How many these are.
        steps_per_cpu_second: Agent steps, learning included, after all is compiled; of seeds that are computed
            together, of all of them.
    """

    task: str
    side: str
    seed: int
    last_return: float
    episodes: int
    steps_per_cpu_second: float


def table(runs: Iterable[Run]) -> str:
    """A line per task and side: returns with 95 % intervals, how they differ, and agent steps per cpu-second."""
    found = list(runs)
    rows = []
    for task in dict.fromkeys(run.task for run in found):
        sides = {side: [run for run in found if (run.task, run.side) == (task, side)] for side in SIDES}
        pace = {side: float(np.median([run.steps_per_cpu_second for run in own])) for side, own in sides.items() if own}
        for side, own in sides.items():
            if own:
                low, high = interval([[run.last_return for run in own]], mean)
                rows.append(
                    (
                        f"{TASKS[task].game}, {side}",
                        str(len(own)),
                        f"{np.mean([run.last_return for run in own]):.2f}",
                        f"{low:.2f} to {high:.2f}",
                        difference(sides[OURS], own) if side != OURS else "",
                        f"{pace[side]:,.0f}",
                        f"{pace[side] / pace.get(DOPAMINE, math.nan):.1f}",
                    )
                )
    header = ("", "seeds", "return", "95 % interval", "ours less this", "agent steps per cpu-second", "ratio")
    return markdown_table(header, rows)


def difference(ours: Sequence[Run], theirs: Sequence[Run]) -> str:
    """Difference of the mean returns with its 95 % bootstrap interval; nothing if a side has no runs."""
    if not ours or not theirs:
        return ""
    random = np.random.default_rng(0)
    redrawn = []
    for runs in (ours, theirs):
        returns = np.array([run.last_return for run in runs])
        redrawn.append(returns[random.integers(returns.size, size=(2000, returns.size))].mean(axis=1))
    low, high = np.percentile(redrawn[0] - redrawn[1], [2.5, 97.5])
    centre = np.mean([run.last_return for run in ours]) - np.mean([run.last_return for run in theirs])
    return f"{centre:+.2f} ({low:+.2f} to {high:+.2f})"
