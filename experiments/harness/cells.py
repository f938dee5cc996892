"""What is trained: cells of a study's grid, and runs, each a seed of a cell."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

DENSE = "no_prune"


class Cell(NamedTuple):
    """What all seeds of a line of a study's table have in common.

    Attributes:
        group: What its numbers are compared within, such as a game; empty if there is one group only.
        name: Name of the algorithm, or of whatever else the cells differ in.
        sparsity: Target fraction of zeros; None if the cell has none.
        width: Factor on the channels of the network.
    """

    group: str
    name: str
    sparsity: float | None = None
    width: int = 1

    @property
    def label(self) -> str:
        """Its name for readers."""
        width = f" (width {self.width})" if self.width > 1 else ""
        return ("dense" if self.is_dense else self.name) + width

    @property
    def is_dense(self) -> bool:
        """Whether it is dense training, of whatever width."""
        return self.name in (DENSE, "dense")

    def __str__(self) -> str:
        at = "" if not self.sparsity or self.is_dense else f" at {100 * self.sparsity:.4g} %"
        return f"{self.label}{at}" + (f" on {self.group}" if self.group else "")


class Run(NamedTuple):
    """One seed of one cell.

    Attributes:
        cell: What it shares with the other seeds.
        seed: Seed of everything that is random in the run.
    """

    cell: Cell
    seed: int

    def __str__(self) -> str:
        return f"{self.cell}, seed {self.seed}"


def grid(
    algorithms: Sequence[str], sparsities: Sequence[float], groups: Sequence[str] = ("",), widths: Sequence[int] = (1,)
) -> Iterator[Cell]:
    """Every algorithm at every sparsity, group by group; dense training has no sparsity, so it comes once in each.

    Example:
        >>> [str(cell) for cell in grid([DENSE, "set"], [0.5, 0.8])]
        ['dense', 'set at 50 %', 'set at 80 %']
    """
    for group, width, algorithm in itertools.product(groups, widths, algorithms):
        for sparsity in (0.0,) if algorithm == DENSE else sparsities:
            yield Cell(group, algorithm, sparsity, width)
