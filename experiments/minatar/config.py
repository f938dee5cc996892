"""Settings of the MinAtar study."""

import dataclasses
import difflib
import math
from collections.abc import Iterator
from typing import Any

from experiments.common.agents.settings import AgentSettings, mask_changes
from experiments.harness.cells import Cell, grid
from experiments.harness.settings import flag
from sparse_plugins import core
from sparse_plugins.rl.loops.config import FusedConfig
from sparse_plugins.rl.loops.pace import Pace
from sparse_plugins.rl.loops.pqn import PQNConfig

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
WARM_UP = 1_000
# The part of training after which set and rigl change masks again. Of DQN every 5,000 of 2.5 million optimizer steps,
# the last of them after four fifths, as in JaxPruner's gin file; PQN makes a sixteenth of DQN's optimizer steps.
CHANGES = {"dqn": 500, "pqn": 125}
# What may stand behind an algorithm and a colon, and behind which.
FAN_IN = "fan_in"
FROM_THE_START = ("static_sparse", "set", "rigl", "srigl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinAtarSettings(AgentSettings):
    """What is trained, how, and where the results go; checked when built.

    Raises:
        ValueError: as `AgentSettings`, or there is no such game.
    """

    games: tuple[str, ...] = flag(f"games to play, of: {', '.join(GAMES)}", nargs="+", default=("Breakout",))
    algorithms: tuple[str, ...] = flag(
        f"algorithms to train, of: {', '.join(core.all_algorithm_names())}; behind {', '.join(FROM_THE_START)} may"
        f" stand :{FAN_IN}, so that initial weights are scaled to the inputs that are kept",
        nargs="+",
        default=AgentSettings.algorithms,
    )
    agent: str = flag(
        "dqn, or pqn: parallelised Q-learning without replay and target network, at the settings of purejaxql",
        choices=("dqn", "pqn"),
        default="dqn",
    )
    width: tuple[int, ...] = flag(
        "factors on the channels and units of the network; each is trained", int, nargs="+", default=(1,)
    )
    exchange: str = flag(
        "when set and rigl drop and grow weights: from the first optimizer step on, as in JaxPruner's program, or late,"
        " while pruners prune",
        choices=("first", "late"),
        default="first",
    )
    masks_until: float = flag("part of training after which masks change no more, 0.2 to 1", float, default=0.8)
    curve_points: int = flag("stretches of training with a row of results each", int, default=50)
    checkpoint_every: int = flag("stretches from one checkpoint of a cell to the next", int, default=10)

    def __post_init__(self) -> None:
        for game in self.games:
            if game not in GAMES:
                near = difflib.get_close_matches(game, GAMES, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(GAMES)}."
                raise ValueError(f"MinAtar has no game {game!r}; {hint}")
        super().__post_init__()
        self.each_once("width")
        if not 0.2 < self.masks_until <= 1:
            raise ValueError(
                f"--masks-until must be above 0.2, when pruning begins, and at most 1, got {self.masks_until}."
            )
        self.at_least(1, "curve_points", "checkpoint_every", "width")
        self.at_least(2 * WARM_UP, "steps")

    def cells(self) -> Iterator[Cell]:
        """Every cell of the grid."""
        return grid(self.algorithms, self.sparsities, self.games, self.width)

    def sparsity_config(self, cell: Cell) -> dict[str, Any]:
        """As of `AgentSettings`, but SET and RigL begin as JaxPruner's gin file has it, unless they are late.

        Raises:
            ValueError: the algorithm has no such variant.
        """
        algorithm, colon, variant = cell.name.partition(":")
        if colon and (variant != FAN_IN or algorithm not in FROM_THE_START):
            allowed = f":{FAN_IN} behind {', '.join(FROM_THE_START)}"
            raise ValueError(f"{cell.name!r} is no algorithm with a variant of it; allowed is {allowed}.")
        config = super().sparsity_config(cell._replace(name=algorithm))
        if algorithm in ("set", "rigl") and self.exchange == "first":
            clock = self.loop.clock
            config |= {
                "update_start_step": clock.environment_step(1),
                "update_freq": max(self.steps // CHANGES[self.agent], math.ceil(2 * clock.period)),
            }
        return config

    @property
    def mask_changes(self) -> tuple[int, int]:
        """Environment steps of the first and the last mask change."""
        return mask_changes(self.steps, self.masks_until)

    @property
    def loop(self) -> Pace:
        """How the agent plays and learns.

        DQN as in `sparse_plugins/rl/dopamine/configs/minatar_dqn.gin`: an optimizer step for every four environment
        steps, here one of each of four environments, and exploration that falls within the same part of training. PQN
        as in purejaxql: 32 steps of 128 environments, then all of them twice in 32 minibatches.
        """
        if self.agent == "pqn":
            return PQNConfig(epsilon_decay=self.steps // 10)
        return FusedConfig(
            num_envs=4,
            capacity=min(100_000, self.steps),
            batch_size=32,
            discount=0.99,
            warm_up=WARM_UP,
            epsilon_start=1.0,
            epsilon_end=0.01,
            epsilon_decay=self.steps // 40,
        )
