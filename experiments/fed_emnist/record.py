"""What a study leaves behind: a folder for itself and one for each run, and every file written in one piece."""

import csv
import dataclasses
import fcntl
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.fed_emnist.config import Run, StudyConfig
from experiments.surroundings import surroundings, versions

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


_KINDS: dict[str, Any] = {"algorithm": str, "failure": str} | dict.fromkeys(
    ("seed", "round", "down_bytes", "up_bytes"), int
)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that whoever stops the process finds the one before or this one, never a half."""
    half = path.with_name(f"{path.name}.partial")
    half.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(half, path)


def write_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Writes `results.csv`."""
    names = [field.name for field in dataclasses.fields(Row)]
    write_whole(folder / "results.csv", csv_text(names, map(dataclasses.asdict, rows)))


def csv_text(names: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_rows(folder: Path) -> list[Row]:
    """Reads `results.csv` back; no rows without a file."""
    path = folder / "results.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [_row(fields) for fields in csv.DictReader(file)]


def _row(fields: dict[str, str]) -> Row:
    return Row(**{name: _KINDS.get(name, float)(text) for name, text in fields.items() if text})


def create_folder(config: StudyConfig, command: str) -> Path:
    """Makes the study's folder with its `config.json`, both at once.

    Raises:
        FileExistsError: there is one of this name; results are never overwritten.
    """
    folder = Path(config.output) / config.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent, ignore_cleanup_errors=True) as half:
            whole = Path(half) / "study"
            whole.mkdir()
            (whole / "config.json").write_text(
                json.dumps(surroundings(command, dataclasses.asdict(config), PACKAGES), indent=2) + "\n"
            )
            whole.rename(folder)
        return folder
    raise FileExistsError(
        f"{folder} exists and is never overwritten. Choose another --name, or go on with it: --resume {folder}"
    )


def read_config(folder: Path) -> StudyConfig:
    """The settings of a study.

    Raises:
        FileNotFoundError: there is no study in the folder.
        ValueError: its settings are not those of this version.
    """
    try:
        record = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} holds no study: it has no config.json. Start one without --resume."
        ) from error
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record["settings"].items()
    }
    try:
        return StudyConfig(**settings)
    except TypeError as error:
        raise ValueError(f"{folder}/config.json is of another version of this program: {error}") from error


def changed_packages(folder: Path) -> list[str]:
    """Packages whose version is another than when the study began, on which bits may depend."""
    before = json.loads((folder / "config.json").read_text())["packages"]
    now = versions(PACKAGES)
    return [f"{name} {before.get(name)} is now {now[name]}" for name in PACKAGES if before.get(name) != now[name]]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from going on with the same study.

    Raises:
        BlockingIOError: one does so now.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BlockingIOError(f"another process is at work on {folder}: wait for it, or stop it first.") from error
    try:
        yield
    finally:
        os.close(handle)
