"""What a study leaves behind: a folder that is never overwritten, rows, and every file written in one piece."""

import csv
import dataclasses
import fcntl
import io
import json
import os
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from experiments.surroundings import versions

T = TypeVar("T")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that whoever stops the process finds the one before or this one, never a half."""
    half = path.with_name(f"{path.name}.partial")
    half.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(half, path)


def csv_text(names: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_rows(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """Writes the rows of a dataclass as CSV; None is empty."""
    names = [field.name for field in dataclasses.fields(kind)]
    write_whole(path, csv_text(names, map(dataclasses.asdict, rows)))


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Reads them back; no rows without a file. What is empty gets the default of its field."""
    if not path.exists():
        return []
    hints = typing.get_type_hints(kind)
    parse = {name: (typing.get_args(hint) or (hint,))[0] for name, hint in hints.items()}  # of `int | None`, int
    with path.open(newline="") as file:
        return [
            kind(**{name: parse[name](text) for name, text in fields.items() if text})
            for fields in csv.DictReader(file)
        ]


def join_timings(folder: Path, parts: Iterable[Path]) -> None:
    """Puts the one line of each part's `timing.csv` into that of the study; parts without one are not finished."""
    timings = [(part / "timing.csv").read_text().splitlines() for part in parts if (part / "timing.csv").exists()]
    if timings:
        write_whole(folder / "timing.csv", "\n".join([timings[0][0], *(lines[1] for lines in timings), ""]))


def create_folder(folder: Path, record: Mapping[str, Any]) -> Path:
    """Makes a study's folder with its `config.json`, both at once.

    Args:
        folder: Where.
        record: What `surroundings` made of the study.

    Returns:
        The folder.

    Raises:
        FileExistsError: there is one of this name; results are never overwritten.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent, ignore_cleanup_errors=True) as half:
            whole = Path(half) / "study"
            whole.mkdir()
            (whole / "config.json").write_text(json.dumps(record, indent=2) + "\n")
            whole.rename(folder)
        return folder
    raise FileExistsError(
        f"{folder} exists and is never overwritten. Choose another --name, or go on with it: --resume {folder}"
    )


def read_config(folder: Path, kind: type[T]) -> T:
    """The settings of a study, of which lists become tuples.

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
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"{folder}/config.json is of another version of this program: {error}") from error


def changed_packages(folder: Path, packages: Iterable[str]) -> list[str]:
    """Packages whose version is another than when the study began, on which bits may depend."""
    before = json.loads((folder / "config.json").read_text())["packages"]
    now = versions(packages)
    return [f"{name} {before.get(name)} is now {new}" for name, new in now.items() if before.get(name) != new]


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
