"""The rows of a study: how every seed of every cell did, as it was trained and at its end."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from experiments import files
from experiments.rl_study.cells import Cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `results.csv`: a stretch of training, or how a run failed.

    Attributes:
        game: As given to the command line.
        algorithm: Name of the updater.
        sparsity: Target fraction of zeros, 0 for dense training.
        width: Factor on the channels of the network.
        seed: Of the run.
        step: Environment steps so far; of a failed run, those of its last row or of the stretch that broke it.
        episodes: That ended since the row before; empty if the run failed, like all measurements.
        training_return: Mean return of these episodes, in which the agent explores; empty if there were none.
        online_sparsity: Fraction of zeros in the weight matrices of the network that acts.
        target_sparsity: The same of the target network.
        final_return: Mean return of the evaluation after training; only in the last row of a run that finished.
        failure: Empty, or why the run ended early.
    """

    game: str
    algorithm: str
    sparsity: float
    width: int = 1
    seed: int
    step: int
    episodes: int | None = None
    training_return: float | None = None
    online_sparsity: float | None = None
    target_sparsity: float | None = None
    final_return: float | None = None
    failure: str = ""

    @property
    def cell(self) -> Cell:
        """The cell it belongs to."""
        return Cell(self.game, self.algorithm, self.sparsity, self.width)

    @property
    def is_last(self) -> bool:
        """Whether it says how its run ended."""
        return bool(self.failure) or self.final_return is not None


def write_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Writes `results.csv`."""
    files.write_rows(folder / "results.csv", Row, rows)


def read_rows(folder: Path) -> list[Row]:
    """Reads `results.csv` back; no rows without a file."""
    return files.read_rows(folder / "results.csv", Row)
