"""What both sides hand back; known without Dopamine, which takes seconds and a gigabyte to load."""

from typing import NamedTuple

DOPAMINE, REPAIRED, OURS = "dopamine", "dopamine, last transitions kept", "sparse-plugins"
SIDES = (DOPAMINE, REPAIRED, OURS)


class Task(NamedTuple):
    """What is learnt.

    Attributes:
        game: For readers.
        config: Dopamine's side: a gin file of the package.
        steps: Agent steps of a run.
        units: Units of each of CartPole's two hidden layers.
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


class End(NamedTuple):
    """How a run went.

    Attributes:
        last_return: Mean return of the episodes that ended in the last fifth of its steps, in which the agent learns
            and explores.
        episodes: How many these are.
        steps_per_cpu_second: Agent steps, learning included, after all is compiled; of seeds that are computed
            together, of all of them.
    """

    last_return: float
    episodes: int
    steps_per_cpu_second: float
