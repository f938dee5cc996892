"""What every study of sparse agents lets one choose."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from experiments.harness.cells import Cell, grid
from experiments.harness.settings import GridSettings, flag, seeds_flag
from sparse_plugins import core

MASK_CHANGES = 150  # in a million steps of a DQN that learns every 4, one every 1,000 optimizer steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentSettings(GridSettings):
    """A grid of games, algorithms and sparsities, each cell with the same seeds; checked when built.

    Raises:
        ValueError: a setting is out of its range, or an updater refuses it; the message says what is allowed.
    """

    games: tuple[str, ...] = flag("games to play, each named once", nargs="+", default=("Breakout",))
    seeds: tuple[int, ...] = seeds_flag(10)
    steps: int = flag("environment steps that each seed is trained for", int, default=1_000_000)
    evaluation_episodes: int = flag("episodes that each seed plays after training", int, default=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.each_once("games")
        self.at_least(1, "steps", "evaluation_episodes")
        for cell in self.cells():
            self.updater(cell)

    def cells(self) -> Iterator[Cell]:
        """Every cell of the grid."""
        return grid(self.algorithms, self.sparsities, self.games)

    def batches(self) -> Iterator[tuple[Cell, ...]]:
        """The cells, in groups that are trained together."""
        return ((cell,) for cell in self.cells())

    def updater(self, cell: Cell, rng_seed: Any = 0) -> core.BaseUpdater:
        """The sparsity algorithm of a cell.

        Args:
            cell: Cell of the grid.
            rng_seed: int or JAX key.
        """
        return core.create_updater_from_config(**self.sparsity_config(cell), rng_seed=rng_seed)

    def sparsity_config(self, cell: Cell) -> dict[str, Any]:
        """What a cell's updater is made of; masks change from 20 % to 80 % of training, in environment steps."""
        start, end = self.mask_changes
        return {
            "algorithm": cell.name,
            "sparsity": cell.sparsity,
            "dist_type": self.distribution,
            "step_unit": "environment step",
            "update_start_step": start,
            "update_end_step": end,
            "update_freq": max((end - start) // MASK_CHANGES, 1),
            "drop_fraction": self.drop_fraction,
        }

    @property
    def mask_changes(self) -> tuple[int, int]:
        """Environment steps of the first and the last mask change."""
        return mask_changes(self.steps)


def mask_changes(steps: int, until: float = 0.8) -> tuple[int, int]:
    """Steps of the first and the last mask change of a training of so many, the last after a part of it."""
    return steps // 5, int(until * steps)
