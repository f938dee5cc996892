"""Folders that are never overwritten and never worked on twice at once, and files written in one piece."""

import fcntl
import json
import os
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from experiments.harness.surroundings import versions

T = TypeVar("T")

# What a study says of itself, where it says it; records of older versions say less.
_ENTRY_TYPES: dict[str, Any] = {
    **dict.fromkeys(("settings", "packages"), dict),
    **dict.fromkeys(("command", "domain", "study", "about", "title", "prediction"), str),
    **dict.fromkeys(("cells", "changes", "joined"), list),
    "git": (dict, type(None)),
}


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that whoever stops the process finds the one before or this one, never a half."""
    half = path.with_name(f"{path.name}.partial")
    half.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(half, path)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """What a JSON file holds by name.

    Args:
        path: The file.
        remedy: What to do if it is damaged, in a sentence.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged; the message names it and ends with the remedy.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}. {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__} in place of names and values. {remedy}")
    return found


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
        ValueError: the file is damaged.
    """
    path, remedy = folder / "config.json", "Copy it back from where it is whole; without it nothing can go on."
    try:
        record = read_json(path, remedy)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} holds no study: it has no config.json. Name the folder of one, or start one without --resume."
        ) from error
    record = {"command": "", "packages": {}, **record}
    wrong = _unreadable(record)
    if "joined" not in wrong and any(
        not isinstance(part, dict) or _unreadable(part) for part in record.get("joined", [])
    ):
        wrong.append("joined")
    if wrong:
        raise ValueError(f"{path} is damaged: its {', '.join(wrong)} can't be read. {remedy}")
    return record


def _unreadable(record: Mapping[str, Any]) -> list[str]:
    """Names of what is missing in a record, or not what it should be."""
    wrong = [
        name for name, value_type in _ENTRY_TYPES.items() if name in record and not isinstance(record[name], value_type)
    ]
    git = record.get("git")
    if isinstance(git, dict) and [type(git.get(name)) for name in ("commit", "changed")] != [str, bool]:
        wrong.append("git")
    return wrong if "settings" in record else [*wrong, "settings"]


def read_config(folder: Path, settings_type: type[T]) -> T:
    """The settings of a study, of which lists become tuples.

    Raises:
        FileNotFoundError: there is no study in the folder.
        ValueError: its settings are damaged, or not those of this version.
    """
    path = folder / "config.json"
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in read_record(folder)["settings"].items()
    }
    hints = typing.get_type_hints(settings_type)
    if wrong := [name for name, value in settings.items() if not _fits(value, hints.get(name, Any))]:
        told = ", ".join(f"{name} is {settings[name]!r:.50}" for name in wrong)
        raise ValueError(f"{path} is damaged, or of another version of this program: {told}.")
    try:
        return settings_type(**settings)
    except TypeError as error:
        raise ValueError(f"{path} is of another version of this program: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} holds settings that are refused: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field asks for."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    accepted = {float: (float, int), type(None): (type(None),)}.get(hint, (hint,))
    return not isinstance(hint, type) or type(value) in accepted


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
