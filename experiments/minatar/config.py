"""Settings of the MinAtar study."""

import dataclasses
import difflib

from experiments.record.flags import flag
from experiments.rl_study.settings import StudySettings
from sparse_plugins.rl.loops.config import FusedConfig

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
WARM_UP = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig(StudySettings):
    """What is trained, how, and where the results go; checked when built.

    Raises:
        ValueError: as `StudySettings`, or there is no such game.
    """

    games: tuple[str, ...] = flag(f"of: {', '.join(GAMES)}", nargs="+", default=("Breakout",))
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
