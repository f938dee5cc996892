"""What a run keeps in its folder: the settings it was started with, and checkpoints that are whole or not used."""

import difflib
import fcntl
import hashlib
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dopamine.discrete_domains import checkpointer

from sparse_plugins.rl.dopamine import safe_pickle

__all__ = [
    "CheckpointError",
    "SealedCheckpointer",
    "SettingsMismatchError",
    "check_settings",
    "hold_folder",
    "write_whole",
]

_SENTINEL = "sentinel_checkpoint_complete"
_SEAL = b"sparse-plugins sha256 "
_REPLAY_SUMS = "replay_checksums"
# How long a run lasts and what it reports; everything else makes it another run.
_FREE = ("num_iterations", "log_every_n", "use_legacy_logger", "fine_grained_print_to_console")
_FREE_OWNERS = ("Checkpointer", "CollectorDispatcher", "IterationMetrics")
_SEEDS = "# seeds: "
_HELD: dict[Path, int] = {}  # closing one would give the folder back


class CheckpointError(RuntimeError):
    """There are checkpoints, and the run can't go on from any of them."""


class SettingsMismatchError(ValueError):
    """The folder belongs to a run with other settings."""


class SealedCheckpointer(checkpointer.Checkpointer):
    """Dopamine's checkpointer, with checksums; Dopamine itself reads what this one writes.

    A checkpoint is a folder with the replay memory, then a file with everything else, then a sentinel. The file ends
    with a digest of itself and knows the checksums of the replay memory.
    """

    def is_due(self, iteration: int) -> bool:
        """Whether there is to be a checkpoint after an iteration; see gin's `Checkpointer.checkpoint_frequency`."""
        return iteration % self._checkpoint_frequency == 0

    def save(self, iteration: int, data: dict[str, Any]) -> None:
        """Writes everything but the replay memory, which the agent has saved, and the sentinel."""
        self.save_checkpoint(iteration, data | {_REPLAY_SUMS: _checksums(self._folder / str(iteration))})

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is whole; what was written after it is removed.

        One that was not finished is deleted. A damaged one is moved to the folder 'damaged' beside the checkpoints.
        A warning says what is lost.

        Returns:
            Its iteration and what was saved; None if none was ever finished.

        Raises:
            CheckpointError: If all are damaged; nothing has been changed.
        """
        numbers = self._finished()
        damaged: dict[int, str] = {}
        for number in reversed(numbers):
            try:
                data = self._read(number)
            except _DamagedError as error:
                damaged[number] = str(error)
                continue
            break
        else:
            if damaged:
                what = "; ".join(f"that of iteration {number} {problem}" for number, problem in damaged.items())
                raise CheckpointError(
                    f"no checkpoint in {self._folder} can be used: {what}. Nothing has been changed. Put back a copy, "
                    "or start the run again in another --base_dir."
                )
            number, data = -1, {}
        for lost, problem in damaged.items():
            self._set_aside(lost, problem, number)
        self._remove_unfinished(number)
        return (number, data) if numbers else None

    @property
    def _folder(self) -> Path:
        return Path(self._base_directory)

    def _parts(self, number: int) -> list[Path]:
        names = (str(number), f"{self._checkpoint_file_prefix}.{number}", f"{_SENTINEL}.{number}")
        return [self._folder / name for name in names]

    def _finished(self) -> list[int]:
        return sorted(int(path.suffix[1:]) for path in self._folder.glob(f"{_SENTINEL}.*") if path.suffix[1:].isdigit())

    def _save_data_to_file(self, data: dict[str, Any], filename: str) -> None:
        content = safe_pickle.dumps(data)
        Path(filename).write_bytes(content + _SEAL + hashlib.sha256(content).digest())

    def _read(self, number: int) -> dict[str, Any]:
        replay, file, _ = self._parts(number)
        try:
            content, seal, digest = file.read_bytes().rpartition(_SEAL)
        except FileNotFoundError:
            raise _DamagedError(f"has lost its file {file.name}") from None
        if not seal:
            raise _DamagedError(f"was cut off, or is not one of a SparseRunner ({file.name} has no digest)")
        if hashlib.sha256(content).digest() != digest:
            raise _DamagedError(f"has changed since it was written ({file.name} does not match its digest)")
        data = safe_pickle.loads(content)
        for name, checksum in data[_REPLAY_SUMS].items():
            if not (replay / name).exists() or _checksum(replay / name) != checksum:
                raise _DamagedError(f"has a missing or changed replay memory ({replay.name}/{name})")
        return data

    def _set_aside(self, number: int, problem: str, used: int) -> None:
        folder = self._folder.parent / "damaged" / str(number)
        while folder.exists():
            folder = folder.with_name(f"{folder.name}-again")
        folder.mkdir(parents=True)
        for path in self._parts(number):
            if path.exists():
                shutil.move(path, folder / path.name)
        warnings.warn(
            f"the checkpoint of iteration {number} in {self._folder} {problem}; it is now in {folder}, the run goes on "
            f"from that of iteration {used}, and the iterations after it are done again.",
            RuntimeWarning,
            stacklevel=4,
        )

    def _remove_unfinished(self, newest: int) -> None:
        for number, paths in self._by_number().items():
            if number <= newest:
                continue
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            warnings.warn(
                f"the process ended while the checkpoint of iteration {number} in {self._folder} was written; it is "
                "removed, and the iteration is done again.",
                RuntimeWarning,
                stacklevel=4,
            )

    def _by_number(self) -> dict[int, list[Path]]:
        """All files and folders of checkpoints, Orbax's half-written ones included."""
        pattern = re.compile(rf"(?:{re.escape(self._checkpoint_file_prefix)}\.|{_SENTINEL}\.)?(\d+)(?:\.orbax.*)?")
        found: dict[int, list[Path]] = {}
        for path in sorted(self._folder.iterdir()):
            if match := pattern.fullmatch(path.name):
                found.setdefault(int(match[1]), []).append(path)
        return found


class _DamagedError(Exception):
    """Says what is wrong with a checkpoint."""


def check_settings(folder: str | Path, settings: str, plan: str, seeds: str = "") -> None:
    """Records the settings of a run in `settings.gin`, or compares with those it was started with.

    Args:
        folder: The run's folder.
        settings: gin's configuration, one binding to a line.
        plan: What the agent is going to do, in words.
        seeds: The seeds, recorded but not compared: a checkpoint has the random numbers themselves.

    Raises:
        SettingsMismatchError: If the folder has those of another run; the message names the lines.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_settings(folder, "JaxDQNAgent.gamma = 0.99", "dense")
        ...     check_settings(folder, "JaxDQNAgent.gamma = 0.9", "dense")
        Traceback (most recent call last):
        ...
        sparse_plugins.rl.dopamine.run_folder.SettingsMismatchError: .../settings.gin is that of another run:
        - JaxDQNAgent.gamma = 0.99
        + JaxDQNAgent.gamma = 0.9
        Give the run its old settings (-) again, or the new ones (+) another --base_dir.
    """
    path = Path(folder) / "settings.gin"
    lines = [f"{_SEEDS}{seeds}", *_bindings(settings), *(f"# {line}" for line in plan.splitlines())]
    if not path.exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join(lines) + "\n")
        return
    old, new = ([line for line in text if not _is_free(line)] for text in (path.read_text().splitlines(), lines))
    if old != new:
        differing = [line for line in difflib.ndiff(old, new) if line[:2] in ("- ", "+ ")]
        raise SettingsMismatchError(
            "\n".join(
                [
                    f"{path} is that of another run:",
                    *differing,
                    "Give the run its old settings (-) again, or the new ones (+) another --base_dir.",
                ]
            )
        )


def hold_folder(folder: str | Path) -> None:
    """Keeps a folder for this process, until it ends.

    Args:
        folder: The run's folder; made if it is missing.

    Raises:
        CheckpointError: If another process is at work there.
    """
    path = Path(folder).resolve() / ".lock"
    if path in _HELD:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise CheckpointError(
            f"another process is at work on {path.parent}; wait for it, or choose another --base_dir."
        ) from None
    _HELD[path] = handle


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that whoever stops the process finds the one before or this one, never a half."""
    half = path.with_name(f"{path.name}.partial")
    half.write_text(text)
    os.replace(half, path)


def _bindings(settings: str) -> Iterable[str]:
    return (line for line in settings.splitlines() if line and not line.startswith("#"))


def _is_free(line: str) -> bool:
    if line.startswith((_SEEDS, "import ", "from ")):  # what is bound counts, not who brought it in
        return True
    owner, _, parameter = line.partition(" = ")[0].rpartition(".")
    return parameter in _FREE or owner.rpartition(".")[2] in _FREE_OWNERS


def _checksums(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*.msgpack"))
    return {str(path.relative_to(folder)): _checksum(path) for path in files}


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
