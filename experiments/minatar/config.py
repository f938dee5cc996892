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
FAN_IN, PUBLISHED = "fan_in", "published"
VARIANTS = {FAN_IN: ("static_sparse", "set", "rigl", "srigl"), PUBLISHED: ("set", "rigl")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinAtarSettings(AgentSettings):
    """What is trained, how, and where the results go; checked when built.

    Raises:
        ValueError: as `AgentSettings`, or there is no such game.
    """

    games: tuple[str, ...] = flag(f"of: {', '.join(GAMES)}", nargs="+", default=("Breakout",))
    algorithms: tuple[str, ...] = flag(
        f"of: {', '.join(core.all_algorithm_names())}; behind {', '.join(VARIANTS[FAN_IN])} may stand :{FAN_IN}, so"
        f" that initial weights are scaled to the inputs that are kept, and behind {' and '.join(VARIANTS[PUBLISHED])}"
        f" :{PUBLISHED}, so that they exchange weights from the first step on as in JaxPruner's study",
        nargs="+",
        default=AgentSettings.algorithms,
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
        """As of `AgentSettings`, or for a variant as JaxPruner's gin file says of SET and RigL on MsPacman.

        Raises:
            ValueError: the algorithm has no such variant.
        """
        algorithm, colon, variant = cell.name.partition(":")
        if colon and algorithm not in VARIANTS.get(variant, ()):
            allowed = "; ".join(f":{name} behind {', '.join(own)}" for name, own in VARIANTS.items())
            raise ValueError(f"{cell.name!r} is no algorithm with a variant of it; allowed are {allowed}.")
        config = super().sparsity_config(cell._replace(name=algorithm))
        if variant == PUBLISHED:  # every 5,000 of 2.5 million optimizer steps, the last of them after four fifths
            first = self.loop.clock.environment_step(1)
            config |= {"update_start_step": first, "update_freq": max(self.steps // 500, 1), "drop_fraction": 0.3}
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
