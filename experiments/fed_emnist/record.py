"""What a study leaves behind: its own folder, the settings and what surrounded them, a row per evaluation."""

import csv
import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from experiments.fed_emnist.config import StudyConfig

PACKAGES = ("jax", "jaxlib", "optax", "numpy", "fedjax", "dm-haiku", "scikit-learn", "sparse-plugins")


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
        seconds: since the run began, evaluations included.
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
    seconds: float | None = None
    failure: str = ""


class RowWriter:
    """Appends rows to an open file, each on the disk before the next is computed."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        """Appends one row."""
        self._writer.writerow(dataclasses.asdict(row))
        self._file.flush()


@contextmanager
def row_writer(folder: Path) -> Iterator[RowWriter]:
    """Opens `results.csv` in a study's new folder."""
    with (folder / "results.csv").open("x", newline="") as file:
        yield RowWriter(file)


def read_rows(folder: Path) -> list[Row]:
    """Reads `results.csv` back."""
    with (folder / "results.csv").open(newline="") as file:
        return [_row(fields) for fields in csv.DictReader(file)]


def _row(fields: dict[str, str]) -> Row:
    kinds: dict[str, Any] = {"algorithm": str, "failure": str, "seed": int, "round": int}
    given = {name: text for name, text in fields.items() if text}
    return Row(**{name: kinds.get(name, float)(text) for name, text in given.items()})


def create_folder(config: StudyConfig) -> Path:
    """Makes the study's folder.

    Raises:
        FileExistsError: there is one of this name; results are never overwritten.
    """
    folder = Path(config.output) / config.name
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise FileExistsError(f"{folder} exists and is never overwritten. Choose another --name.") from error
    return folder


def write_config(folder: Path, config: StudyConfig, command: str) -> None:
    """Writes `config.json`: the command, every setting, and what else the numbers may depend on."""
    record = {
        "command": command,
        "settings": dataclasses.asdict(config),
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "packages": {name: _version(name) for name in PACKAGES},
    }
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of this source, and whether it was changed since; None without a repository or a commit."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
