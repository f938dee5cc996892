"""Settings of the MinAtar study."""

import dataclasses
import difflib
from typing import Any

from experiments.record.flags import flag
from experiments.rl_study.cells import Cell
from experiments.rl_study.settings import StudySettings
from sparse_plugins import core
from sparse_plugins.rl.loops.config import FusedConfig

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
WARM_UP = 1_000
FAN_IN = "fan_in"
START_SPARSE = ("static_sparse", "set", "rigl", "srigl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig(StudySettings):
    """What is trained, how, and where the results go; checked when built.

    Raises:
        ValueError: as `StudySettings`, or there is no such game.
    """

    games: tuple[str, ...] = flag(f"of: {', '.join(GAMES)}", nargs="+", default=("Breakout",))
    algorithms: tuple[str, ...] = flag(
        f"of: {', '.join(core.all_algorithm_names())}; {', '.join(START_SPARSE)} also with :{FAN_IN}, so that initial"
        " weights are scaled to the inputs that are kept",
        nargs="+",
        default=StudySettings.algorithms,
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
        for name in ("curve_points", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}.")
        if self.steps < 2 * WARM_UP:
            raise ValueError(f"--steps must be {2 * WARM_UP} or more, twice the warm-up, got {self.steps}.")

    def updater(self, cell: Cell, rng_seed: Any = 0) -> core.BaseUpdater:
        """As of `StudySettings`; how weights are drawn is not the updater's part of an algorithm.

        Raises:
            ValueError: weights can't be drawn like that.
        """
        name, colon, weights = cell.algorithm.partition(":")
        if colon and (name not in START_SPARSE or weights != FAN_IN):
            raise ValueError(
                f"{cell.algorithm!r}: after a colon stands {FAN_IN}, and only what starts sparse may have it:"
                f" {', '.join(START_SPARSE)}."
            )
        return super().updater(cell._replace(algorithm=name), rng_seed)

    @property
    def loop(self) -> FusedConfig:
        """How the agent plays, remembers and learns: as in `sparse_plugins/rl/configs/minatar_dqn.gin`.

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
