"""Settings of the MinAtar study."""

import dataclasses
import difflib
from typing import Any

from experiments.common.agents.settings import AgentSettings
from experiments.harness.cells import Cell
from experiments.harness.settings import flag
from sparse_plugins import core
from sparse_plugins.rl.loops.config import FusedConfig

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
WARM_UP = 1_000
# What may stand behind an algorithm and a colon, and behind which.
FAN_IN = "fan_in"
FROM_THE_START = ("static_sparse", "set", "rigl", "srigl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinAtarSettings(AgentSettings):
    """What is trained, how, and where the results go; checked when built.

    Raises:
        ValueError: as `AgentSettings`, or there is no such game.
    """

    games: tuple[str, ...] = flag(f"of: {', '.join(GAMES)}", nargs="+", default=("Breakout",))
    algorithms: tuple[str, ...] = flag(
        f"of: {', '.join(core.all_algorithm_names())}; behind {', '.join(FROM_THE_START)} may stand :{FAN_IN}, so"
        " that initial weights are scaled to the inputs that are kept",
        nargs="+",
        default=AgentSettings.algorithms,
    )
    exchange: str = flag(
        "when set and rigl exchange weights: from the first optimizer step on, as in JaxPruner's program, or late,"
        " while pruners prune",
        choices=("first", "late"),
        default="first",
    )
    curve_points: int = flag("stretches of training with a row of results each", int, default=50)
    checkpoint_every: int = flag("stretches from one checkpoint of a cell to the next", int, default=10)

    def __post_init__(self) -> None:
        for game in self.games:
            if game not in GAMES:
                near = difflib.get_close_matches(game, GAMES, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(GAMES)}."
                raise ValueError(f"MinAtar has no game {game!r}; {hint}")
        super().__post_init__()
        self.at_least(1, "curve_points", "checkpoint_every")
        self.at_least(2 * WARM_UP, "steps")

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
            # Every 5,000 of 2.5 million optimizer steps, the last of them after four fifths.
            config |= {
                "update_start_step": self.loop.clock.environment_step(1),
                "update_freq": max(self.steps // 500, 2 * self.loop.num_envs),
            }
        return config

    @property
    def loop(self) -> FusedConfig:
        """How the agent plays, remembers and learns: as in `sparse_plugins/rl/dopamine/configs/minatar_dqn.gin`.

        An optimizer step for every four environment steps, here one of each of four environments. Exploration falls
        within the same part of training.
        """
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
