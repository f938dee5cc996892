"""What a study leaves behind: a folder for itself and one for each run, with rows of evaluations."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from experiments import files
from experiments.fed_emnist.config import Run, StudyConfig
from experiments.surroundings import surroundings

PACKAGES = (
    "jax",
    "jaxlib",
    "optax",
    "numpy",
    "fedjax",
    "dm-haiku",
    "orbax-checkpoint",
    "scikit-learn",
    "sparse-plugins",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `results.csv`: an evaluation, or how a run failed.

    Attributes:
        algorithm: as given to the command line.
        sparsity: target fraction of zeros, 0 for dense training.
        seed: of the run.
        round: finished rounds; of a failed run, those of its last evaluation.
        test_accuracy: fraction of the test images, 0 to 1; empty if the run failed, like all measurements.
        test_loss: mean cross-entropy of the test images, in nats.
        train_loss: the same of the training images of the writers of the first round.
        measured_sparsity: fraction of zeros in the weight matrices that the clients get.
        down_bytes: sent to all clients so far.
        up_bytes: sent by all clients so far, growth signals included.
        failure: empty, or why the run ended early.
    """

    algorithm: str
    sparsity: float
    seed: int
    round: int
    test_accuracy: float | None = None
    test_loss: float | None = None
    train_loss: float | None = None
    measured_sparsity: float | None = None
    down_bytes: int | None = None
    up_bytes: int | None = None
    failure: str = ""

    @property
    def run(self) -> Run:
        """The run it belongs to."""
        return Run(self.algorithm, self.sparsity, self.seed)


def write_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Writes `results.csv`."""
    files.write_rows(folder / "results.csv", Row, rows)


def read_rows(folder: Path) -> list[Row]:
    """Reads `results.csv` back; no rows without a file."""
    return files.read_rows(folder / "results.csv", Row)


def create_folder(config: StudyConfig, command: str) -> Path:
    """Makes the study's folder with its `config.json`; an error if it exists."""
    record = surroundings(command, dataclasses.asdict(config), PACKAGES)
    return files.create_folder(Path(config.output) / config.name, record)
