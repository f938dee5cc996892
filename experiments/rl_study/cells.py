"""The grid of a study: every cell is trained with all seeds."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.tables import percent

DENSE = "no_prune"


def label(algorithm: str) -> str:
    """An algorithm's name for readers."""
    return "dense" if algorithm == DENSE else algorithm


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
        at = "" if self.algorithm == DENSE else f" at {percent(self.sparsity)}"
        return f"{self.name}{at} on {self.game}"

    @property
    def name(self) -> str:
        """Algorithm and width, for readers."""
        return label(self.algorithm) + (f" (width {self.width})" if self.width > 1 else "")

    @property
    def folder(self) -> str:
        """Name of the folder of its files."""
        width = f"-x{self.width}" if self.width > 1 else ""
        return f"{self.game.replace('/', '-')}-{self.algorithm}{width}-{self.sparsity}"


def grid(
    games: Sequence[str], algorithms: Sequence[str], sparsities: Sequence[float], widths: Sequence[int] = (1,)
) -> Iterator[Cell]:
    """Every cell, game by game. Dense training has no sparsity, so it comes once per game and width."""
    for game, width, algorithm in itertools.product(games, widths, algorithms):
        for sparsity in (0.0,) if algorithm == DENSE else sparsities:
            yield Cell(game, algorithm, sparsity, width)
