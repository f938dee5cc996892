"""The grid of a study: every cell is trained with all seeds."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.harness import cells
from experiments.harness.layout import Shown


class Cell(NamedTuple):
    """What all seeds of one place of the grid have in common.

    Attributes:
        game: As the environments name it.
        algorithm: Name of an updater.
        sparsity: Target fraction of zeros; 0 for dense training.
        width: Factor on the channels of the network.
    """

    game: str
    algorithm: str
    sparsity: float
    width: int = 1

    def __str__(self) -> str:
        return str(self.shown)

    @property
    def shown(self) -> Shown:
        """The cell for readers."""
        width = f" (width {self.width})" if self.width > 1 else ""
        return Shown(self.game, cells.label(self.algorithm) + width, self.sparsity)

    @property
    def name(self) -> str:
        """One word for it, of which the grid has no second one."""
        return f"{self.game.replace('/', '-')}-{self.algorithm}-{self.sparsity}-{self.width}"


def grid(
    games: Sequence[str], algorithms: Sequence[str], sparsities: Sequence[float], widths: Sequence[int] = (1,)
) -> Iterator[Cell]:
    """Every cell, game by game. Dense training has no sparsity, so it comes once per game and width."""
    for game, width in itertools.product(games, widths):
        for algorithm, sparsity in cells.grid(algorithms, sparsities):
            yield Cell(game, algorithm, sparsity, width)
