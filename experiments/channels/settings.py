"""Settings of the studies of channels, and the plan that they make of cells."""

import dataclasses
from collections.abc import Callable

from experiments.channels.studies import ONLY_AT
from experiments.harness.cells import Cell
from experiments.harness.recorder import Recorder
from experiments.harness.settings import flag
from experiments.harness.study import Plan, Variants
from experiments.harness.variants import DENSE, plan_of_cells
from experiments.vision.task import VisionSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelSettings(VisionSettings):
    """What is trained at every sparsity; checked when built.

    Raises:
        ValueError: as `VisionSettings`, or if a sparsity is not allowed.
    """

    sparsities: tuple[float, ...] = flag(
        "fractions of the channels, or of the weights, to prune", float, nargs="+", default=(0.25, 0.5, 0.75)
    )
    episodes: int = flag("rl: that each seed plays greedily after training", int, default=100)
    writers: int = flag("federated: that there are", int, default=200)
    clients_per_round: int = flag("federated: writers drawn in each round", int, default=10)
    client_steps: int = flag("federated: steps of each of them", int, default=8)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "episodes", "clients_per_round", "client_steps")
        self.at_least(self.clients_per_round, "writers")
        if not self.sparsities or not all(0 < sparsity < 1 for sparsity in self.sparsities):
            raise ValueError(f"--sparsities must be between 0 and 1, got {self.sparsities}.")

    def at(self, cell: Cell) -> "ChannelSettings":
        """Of a cell."""
        return dataclasses.replace(self, sparsity=cell.sparsity or 0.0)

    def plan_of(
        self, names: Variants, about: str, prepare: Callable[[Cell], Callable[[Recorder], None]], text: str = ""
    ) -> Plan:
        """A plan of cells of these names at all sparsities, trained one after the other, seed by seed.

        Args:
            names: Names of the cells.
            about: What is trained, in sentences.
            prepare: From a cell to what trains the run of a recorder.
            text: To print before, besides.
        """
        cells = [Cell("", DENSE, 0.0)] if DENSE in names else []
        for sparsity in self.sparsities:
            cells += [
                Cell("", name, sparsity) for name in names if name != DENSE and ONLY_AT.get(name, sparsity) == sparsity
            ]
        return plan_of_cells(self, cells, about, prepare, text)
