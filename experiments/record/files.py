"""Folders that are never overwritten and never worked on twice at once, and files written in one piece."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from experiments.record.surroundings import versions

T = TypeVar("T")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that whoever stops the process finds the one before or this one, never a half."""
    half = path.with_name(f"{path.name}.partial")
    half.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(half, path)


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


def read_record(folder: Path) -> dict[str, Any]:
    """What `config.json` of a study holds.

    Raises:
        FileNotFoundError: there is no study in the folder.
    """
    try:
        return json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} holds no study: it has no config.json. Start one without --resume."
        ) from error


def read_config(folder: Path, kind: type[T]) -> T:
    """The settings of a study, of which lists become tuples.

    Raises:
        FileNotFoundError: there is no study in the folder.
        ValueError: its settings are not those of this version.
    """
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in read_record(folder)["settings"].items()
    }
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"{folder}/config.json is of another version of this program: {error}") from error


def changed_packages(folder: Path, packages: Iterable[str]) -> list[str]:
    """Packages whose version is another than when the study began, on which bits may depend."""
    before = read_record(folder)["packages"]
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
