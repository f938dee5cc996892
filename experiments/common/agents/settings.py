"""What every study of sparse agents lets one choose."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from experiments.common.agents.cells import Cell, grid
from experiments.harness.cells import DENSE
from experiments.harness.settings import flag, flag_name
from sparse_plugins import core

MASK_CHANGES = 150  # in a million steps of a DQN that learns every 4, one every 1,000 optimizer steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySettings:
    """A grid of games, algorithms and sparsities, each cell with the same seeds; checked when built.

    Raises:
        ValueError: a setting is out of its range, or an updater refuses it; the message says what is allowed.
    """

    games: tuple[str, ...] = flag("to play; each once", nargs="+", default=("Breakout",))
    algorithms: tuple[str, ...] = flag(
        f"of: {', '.join(core.all_algorithm_names())}",
        nargs="+",
        default=(DENSE, "magnitude", "rigl", "set", "static_sparse", "random"),
    )
    sparsities: tuple[float, ...] = flag(
        "target fraction of zeros in the weight matrices, 0 to 1; each algorithm is trained at each",
        float,
        nargs="+",
        default=(0.5, 0.8, 0.9, 0.95, 0.98),
    )
    seeds: tuple[int, ...] = flag(
        "one number: so many, from 0 on; several: these. All seeds of a cell are trained at once",
        int,
        nargs="+",
        default=tuple(range(10)),
        read=lambda typed: tuple(range(typed[0])) if len(typed) == 1 else tuple(typed),
    )
    steps: int = flag("environment steps that each seed is trained for", int, default=1_000_000)
    distribution: str = flag("of the sparsity over the layers", choices=("erk", "uniform"), default="erk")
    drop_fraction: float = flag(
        "fraction of the weights that set and rigl exchange at first, 0 to 1; falls to 0 as a cosine",
        float,
        default=0.1,
    )
    evaluation_episodes: int = flag("that each seed plays after training", int, default=100)
    output: str = flag("folder that holds the results of every study", default="runs")
    name: str = flag("folder of this study in it; must not exist yet", shown="the study, date and time")

    def __post_init__(self) -> None:
        for field in ("games", "algorithms", "sparsities", "seeds"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{flag_name(field)} takes one value or more, each once, got {list(values)}.")
        if min(self.seeds) < 0:
            raise ValueError(f"--seeds must be 0 or more, got {min(self.seeds)}.")
        for field in ("steps", "evaluation_episodes"):
            if getattr(self, field) < 1:
                raise ValueError(f"{flag_name(field)} must be 1 or more, got {getattr(self, field)}.")
        for cell in self.cells():
            self.updater(cell)

    def cells(self) -> Iterator[Cell]:
        """Every cell of the grid."""
        return grid(self.games, self.algorithms, self.sparsities)

    def batches(self) -> Iterator[tuple[Cell, ...]]:
        """The cells, in groups that are trained together."""
        return ((cell,) for cell in self.cells())

    def updater(self, cell: Cell, rng_seed: Any = 0) -> core.BaseUpdater:
        """The sparsity algorithm of a cell.

        Args:
            cell: Of the grid.
            rng_seed: int or JAX key.
        """
        return core.create_updater_from_config(**self.sparsity_config(cell), rng_seed=rng_seed)

    def sparsity_config(self, cell: Cell) -> dict[str, Any]:
        """What a cell's updater is made of; masks change from 20 % to 80 % of training, in environment steps."""
        start, end = self.mask_changes
        return {
            "algorithm": cell.algorithm,
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


def mask_changes(steps: int) -> tuple[int, int]:
    """Steps of the first and the last mask change of a training of so many."""
    return steps // 5, 4 * steps // 5
