"""Settings of the Atari study."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

from experiments.atari.layout import STEPS
from experiments.common.agents.settings import AgentSettings
from experiments.harness.cells import DENSE, Cell, grid
from experiments.harness.settings import flag, seeds_flag
from sparse_plugins import core
from sparse_plugins.rl.environments.atari.roms import game_name
from sparse_plugins.rl.loops.vector_step import VectorConfig

PRESETS: dict[str, dict[str, Any]] = {
    "mspacman": {
        "algorithms": (DENSE, "global_magnitude", "magnitude", "set", "rigl", "random", "static_sparse"),
        "sparsities": (0.98,),
        "network": "nature",
        "width": (1,),
    },
    "pruned": {"algorithms": (DENSE, "magnitude"), "sparsities": (0.95,), "network": "impala", "width": (1, 3)},
}
PERIOD = 4  # environment steps per optimizer step
TARGET_STEPS = 8_000  # environment steps between two copies to the target network
HALVES = 2
STACK = 4
_OF_PRESET: dict[str, Any] = {"default": None, "shown": "the preset's"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariSettings(AgentSettings):
    """What is trained, how, and where the results go; what is None is filled in when it is built.

    Raises:
        ValueError: as `AgentSettings`, there is no such game, or settings do not go together.
        ImportError: ale-py is missing.
    """

    preset: str = flag(
        "mspacman: the row of JaxPruner's table; pruned: wide Impala networks as in Obando-Ceron et al., 2024",
        choices=tuple(PRESETS),
        default="mspacman",
    )
    games: tuple[str, ...] = flag("to play, in any usual spelling", nargs="+", default=("MsPacman",))
    algorithms: tuple[str, ...] = flag(f"of: {', '.join(core.all_algorithm_names())}", nargs="+", **_OF_PRESET)
    sparsities: tuple[float, ...] = flag(
        "target fraction of zeros in the weight matrices, 0 to 1; each algorithm is trained at each",
        float,
        nargs="+",
        **_OF_PRESET,
    )
    seeds: tuple[int, ...] = seeds_flag(3)
    steps: int = flag("environment steps that each seed is trained for, of 4 frames", int, default=STEPS)
    network: str = flag("the convolutional network", choices=("nature", "impala"), **_OF_PRESET)
    width: tuple[int, ...] = flag("factors on the channels of Impala; each is trained", int, nargs="+", **_OF_PRESET)
    envs: int = flag(f"copies of the game per seed, a multiple of {HALVES}", int, default=16)
    capacity: int = flag("steps in the replay of a seed, 7 kB each", int, default=1_000_000)
    batch: int = flag("transitions of an optimizer step", int, default=32)
    warm_up: int = flag(
        "environment steps before the first optimizer step", int, default=None, shown="20,000, or 1/10 of --steps"
    )
    epsilon_decay: int = flag(
        "environment steps in which exploration falls to 1 %", int, default=None, shown="250,000, or 1/4 of --steps"
    )
    together: int = flag("cells of a game that are trained together", int, default=None, shown="as many as fit")
    memory_gb: float = flag(
        "memory for them, in GB",
        float,
        default=None,
        shown="four fifths of the device's",
    )
    as_matmuls: str = flag(
        "compute convolutions as matrix products; auto: on a CPU with several seeds",
        choices=("auto", "yes", "no"),
        default="auto",
    )
    reseed_after: int = flag(
        "steps after which a copy of the game gets a fresh seed, which costs 0.1 s; to resume, all steps since then are"
        " played again",
        int,
        default=20_000,
    )
    curve_points: int = flag("stretches of training with a row of results each", int, default=50)
    checkpoint_every: int = flag("stretches from one checkpoint to the next; it holds the replay", int, default=10)
    measure: float = flag(
        "train nothing, but time the parts of a step, each for so many seconds (10 if you give no number)",
        float,
        nargs="?",
        const=10.0,
        default=0.0,
        shown="off",
    )

    def __post_init__(self) -> None:
        self._fill_in()
        self.at_least(1, "curve_points", "checkpoint_every", "envs", "together", "reseed_after")
        if self.network == "nature" and self.width != (1,):
            raise ValueError(f"--width is for --network impala; nature has one width, got {list(self.width)}.")
        self.each_once("width")
        self.at_least(1, "width")
        if self.warm_up > self.steps // 5:
            raise ValueError(f"--warm-up is {self.warm_up}; give a fifth of --steps={self.steps} or less.")
        if not 0 <= self.measure < math.inf:
            raise ValueError(f"--measure takes seconds, got {self.measure}.")
        super().__post_init__()
        self.loop  # noqa: B018  built, and so checked

    def _fill_in(self) -> None:
        least = 2 * max(self.envs, 1)
        warm_up = math.ceil(max(min(20_000, self.steps // 10), least) / least) * least
        self.fill_in({**PRESETS[self.preset], "warm_up": warm_up, "epsilon_decay": min(250_000, self.steps // 4)})
        object.__setattr__(self, "games", tuple(map(_name, self.games)))

    def cells(self) -> Iterator[Cell]:
        """Every cell of the grid."""
        return grid(self.algorithms, self.sparsities, self.games, self.width)

    def batches(self) -> Iterator[tuple[Cell, ...]]:
        """The cells, in groups of one game that are trained together."""
        for game in self.games:
            cells = [cell for cell in self.cells() if cell.group == game]
            size = self.together or len(cells)
            yield from (tuple(cells[first : first + size]) for first in range(0, len(cells), size))

    @functools.cached_property
    def loop(self) -> VectorConfig:
        """How the agents play, remember and learn: as in `sparse_plugins/rl/dopamine/configs/mspacman_dqn.gin`."""
        vector_steps = PERIOD // math.gcd(self.envs, PERIOD)
        return VectorConfig(
            num_envs=self.envs,
            num_halves=HALVES,
            stack=STACK,
            vector_steps=vector_steps,
            updates=self.envs * vector_steps // PERIOD,
            capacity=min(self.capacity, self.steps),
            batch_size=self.batch,
            discount=0.99,
            warm_up=self.warm_up,
            epsilon_start=1.0,
            epsilon_end=0.01,
            epsilon_decay=self.epsilon_decay,
            clip_rewards=True,
        )

    def sparsity_config(self, cell: Cell) -> dict[str, Any]:
        """The papers' schedules, in optimizer steps, sooner and faster if training is shorter."""
        exchanges = cell.name in ("set", "rigl")
        start, end = self._first_and_last_change
        return {
            "algorithm": cell.name,
            "sparsity": cell.sparsity,
            "dist_type": self.distribution,
            "update_start_step": 1 if exchanges else start,
            "update_end_step": end,
            "update_freq": self._scaled(5_000 if exchanges else 1_000),
            "drop_fraction": self.drop_fraction,
        }

    @property
    def mask_changes(self) -> tuple[int, int]:
        """Environment steps of the first and the last change of a pruner."""
        start, end = map(self.loop.clock.environment_step, self._first_and_last_change)
        return start, end

    @property
    def _first_and_last_change(self) -> tuple[int, int]:
        return self._scaled(500_000), self._scaled(2_000_000)

    def _scaled(self, optimizer_steps: int) -> int:
        return max(round(optimizer_steps * min(self.steps / STEPS, 1.0)), 1)


def _name(game: str) -> str:
    """The name that papers use."""
    return "".join(part.capitalize() for part in game_name(game).split("_"))
