"""What a run keeps in its folder: the settings it was started with, and checkpoints that are whole or not used."""

import fcntl
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dopamine.discrete_domains import checkpointer

from sparse_plugins.checkpoints import SettingsMismatchError
from sparse_plugins.core.storage.array_files import DamagedFileError, open_values, write_values
from sparse_plugins.core.storage.values import fields, whole
from sparse_plugins.rl.dopamine.checkpoints.replay_files import replay_file

__all__ = [
    "CheckpointError",
    "SealedCheckpointer",
    "check_settings",
    "hold_folder",
    "write_whole",
]

_SENTINEL = "sentinel_checkpoint_complete"
_NUMBER = "(0|[1-9][0-9]{0,17})"
_ENTRIES = ("iteration", "replay_checksum", "run")
# How long a run lasts and what it reports; everything else makes it another run.
_FREE = ("num_iterations", "log_every_n", "use_legacy_logger", "fine_grained_print_to_console")
_FREE_OWNERS = ("Checkpointer", "CollectorDispatcher", "IterationMetrics")
_SEEDS = "# seeds: "
_LARGEST_SETTINGS = 1 << 20
_HELD: dict[Path, int] = {}  # closing one would give the folder back


class CheckpointError(RuntimeError):
    """There are checkpoints, and the run can't go on from any of them."""


class SealedCheckpointer(checkpointer.Checkpointer):
    """Dopamine's checkpointer, but for what is in the files: numbers and text with checksums, and nothing pickled.

    A checkpoint is a folder with the replay memory, then a file with everything else, then a sentinel. The file knows
    the checksum of the replay memory.
    """

    def is_due(self, iteration: int) -> bool:
        """Whether there is to be a checkpoint after an iteration; see gin's `Checkpointer.checkpoint_frequency`."""
        return iteration % self._checkpoint_frequency == 0

    def newest(self) -> int:
        """The iteration of the newest checkpoint that was finished; -1 if there is none."""
        return max(self._finished(), default=-1)

    def save(self, iteration: int, run: Any) -> None:
        """Writes everything but the replay memory, which the agent has saved, and the sentinel.

        Args:
            iteration: Iteration that is done.
            run: Numbers and arrays for `write_values`.
        """
        checksum = _checksum(replay_file(self._folder, iteration))
        values = dict(zip(_ENTRIES, (iteration, checksum, run), strict=True))
        if self.is_due(iteration):
            self.save_checkpoint(iteration, values)
        else:  # out of turn, because the run stops here; Dopamine would write nothing
            _, file, sentinel = self._parts(iteration)
            self._save_data_to_file(values, str(file))
            sentinel.write_text("done")

    def restore_newest(self, restore: Callable[[int, Any], None]) -> int | None:
        """Restores the newest checkpoint that is whole; what was written after it is removed.

        One that was not finished is deleted. A damaged one is moved to the folder 'damaged' beside the checkpoints.
        A warning says what is lost.

        Args:
            restore: Takes the iteration and what `save` was given, as read from the file, and puts it in place. For a
                `DamagedFileError` of it, the checkpoint counts as damaged; it is called again with the one before.

        Returns:
            Its iteration; None if none was ever finished.

        Raises:
            CheckpointError: If all are damaged; nothing has been changed.
        """
        numbers = self._finished()
        damaged: dict[int, str] = {}
        for number in reversed(numbers):
            try:
                self._restore(number, restore)
            except DamagedFileError as error:
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
            number = -1
        for lost, problem in damaged.items():
            self._set_aside(lost, problem, number)
        self._remove_unfinished(number)
        return number if numbers else None

    @property
    def _folder(self) -> Path:
        return Path(self._base_directory)

    def _parts(self, number: int) -> list[Path]:
        names = (str(number), f"{self._checkpoint_file_prefix}.{number}", f"{_SENTINEL}.{number}")
        return [self._folder / name for name in names]

    def _finished(self) -> list[int]:
        found = (re.fullmatch(rf"{_SENTINEL}\.{_NUMBER}", path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _save_data_to_file(self, data: dict[str, Any], filename: str) -> None:
        write_values(filename, data)

    def _load_data_from_file(self, filename: str) -> Any:
        raise CheckpointError(f"{filename} is read by `restore_newest` alone; Dopamine would unpickle it.")

    def _restore(self, number: int, restore: Callable[[int, Any], None]) -> None:
        _, file, _ = self._parts(number)
        if not file.exists():
            raise DamagedFileError(f"has lost its file {file.name}")
        if _is_pickle(file):
            raise DamagedFileError(
                f"is a pickle of an earlier version ({file.name}), which is never read, as it can run anything. If you "
                f"wrote it yourself: python -m sparse_plugins.rl.dopamine.convert_old_run {self._folder.parent}"
            )
        try:
            with open_values(file) as values:
                iteration, checksum, run = fields(values, _ENTRIES, "the file")
                whole(iteration, number, number, "its iteration")
                replay = replay_file(self._folder, number)
                if not replay.exists() or _checksum(replay) != checksum:
                    raise DamagedFileError(f"missing or changed replay memory ({number}/{replay.name})")
                restore(number, run)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"was cut off, has changed, or is not one of this run ({file.name}: {error})"
            ) from error

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
        """All files and folders of checkpoints."""
        pattern = re.compile(rf"(?:{re.escape(self._checkpoint_file_prefix)}\.|{_SENTINEL}\.)?{_NUMBER}")
        found: dict[int, list[Path]] = {}
        for path in sorted(self._folder.iterdir()):
            if match := pattern.fullmatch(path.name):
                found.setdefault(int(match[1]), []).append(path)
        return found


def check_settings(folder: str | Path, settings: str, plan: str, seeds: str = "") -> None:
    """Records the settings of a run in `settings.gin`, or compares with those it was started with.

    How long the run lasts and what it reports may change; the file then follows.

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
        sparse_plugins.checkpoints.errors.SettingsMismatchError: .../settings.gin is that of another run:
        - JaxDQNAgent.gamma = 0.99
        + JaxDQNAgent.gamma = 0.9
        Give the run its old settings (-) again, or the new ones (+) another --base_dir.
    """
    path = Path(folder) / "settings.gin"
    lines = [*_bindings(settings), *(f"# {line}" for line in plan.splitlines())]
    if not path.exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join([f"{_SEEDS}{seeds}", *lines]) + "\n")
        return
    if path.stat().st_size > _LARGEST_SETTINGS:
        raise SettingsMismatchError(
            f"{path} is larger than settings are, so it is no run's; choose another --base_dir."
        )
    stored = path.read_text().splitlines()
    old, new = ([line for line in text if not _is_free(line)] for text in (stored, lines))
    if old == new:
        # The seeds stay those that the run began with: its checkpoints go on with these.
        lines = [*(line for line in stored if line.startswith(_SEEDS)), *lines]
        if lines != stored:
            write_whole(path, "\n".join(lines) + "\n")
    else:
        differing = [f"- {line}" for line in old if line not in new] + [f"+ {line}" for line in new if line not in old]
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


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"
