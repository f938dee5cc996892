"""A folder of checkpoints: each whole or not at all, and with the one before kept."""

import contextlib
import copy
import os
import re
import warnings
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax

from sparse_plugins.checkpoints.errors import CheckpointAccessError
from sparse_plugins.checkpoints.sparse_runs import with_targets
from sparse_plugins.checkpoints.tree_file import read_tree, write_tree
from sparse_plugins.core.identity import identity
from sparse_plugins.core.restored import check_identity
from sparse_plugins.core.sparse_optimizer import updater_of
from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.core.trees import PyTree

__all__ = ["Checkpoints", "Saved"]

_NUMBER = re.compile(r"0|[1-9][0-9]*")
_HALF = "half.partial"  # one name, so that killed processes leave no more than one of them
# What keeps a file from being written or read and says nothing about the file.
_OUTSIDE = (OSError, MemoryError, jax.errors.JaxRuntimeError)


class Saved(NamedTuple):
    """What `Checkpoints.restore` found.

    Attributes:
        step: As given to `save`.
        tree: Tree of the structure that was asked for.
        extra: What was saved beside it, as JSON has it: tuples come back as lists.
    """

    step: int
    tree: PyTree
    extra: Any


class Checkpoints:
    """A folder of the newest checkpoints of one run. Needs NumPy and JAX alone.

    Each is one .npz file, written whole or not at all, carries checksums, and is never overwritten. Leaves are written
    and read one by one, so that a large replay never exists twice.

    Args:
        folder: Where they are; made when it is needed.
        keep: How many to keep, 1 or more. With 2, a damaged one costs the steps since the one before.
        updater: The updater of the run, or an optimizer or algorithm made with it. Recorded in every checkpoint and
            compared when one is read, since a state does not tell whether RigL or a static mask is to go on from it.

    Raises:
        ValueError: If `keep` is less than 1, or there is no updater in `updater`.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> state = {"key": jax.random.key(0), "frames": jnp.zeros((2, 3), jnp.uint8)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     checkpoints.save(7, state, extra={"returns": [1.5]})
        ...     found = checkpoints.restore(like=jax.eval_shape(lambda: state))
        >>> found.step, found.tree["frames"].shape, found.tree["key"] == state["key"], found.extra
        (7, (2, 3), Array(True, dtype=bool), {'returns': [1.5]})
    """

    unit: ClassVar[str] = "step"  # what a subclass counts, for messages

    def __init__(self, folder: str | Path, keep: int = 2, updater: Any = None) -> None:
        self._identity = None if updater is None else identity(updater_of(updater))
        if keep < 1:
            raise ValueError(f"keep is {keep}; give the number of checkpoints to keep, 1 or more.")
        self._folder, self._keep = Path(folder), keep

    def knowing(self, updater: Any, settings: str = "") -> Self:
        """The same folder for a front end that knows its run.

        Args:
            updater: As for the class, which may have been given one.
            settings: What else decides what is computed, in words; it is compared as the updater is.
        """
        known = copy.copy(self)
        of_updater = self._identity or identity(updater_of(updater))
        known._identity = f"{of_updater}; {settings}" if settings else of_updater
        return known

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending; some may turn out to be damaged.

        Raises:
            NotADirectoryError: If the folder is a file.
        """
        entries = self._folder.iterdir() if self._folder.exists() else ()
        files = (entry for entry in entries if entry.suffix == ".npz" and entry.is_file())
        return sorted(int(file.stem) for file in files if _NUMBER.fullmatch(file.stem))

    def save(self, step: int, tree: PyTree, extra: Any = None) -> None:
        """Writes a checkpoint, then removes the oldest of more than `keep`.

        Args:
            step: 0 or more, and above those of all earlier checkpoints.
            tree: Tree of arrays, of JAX, typed keys included, or of NumPy, and of Python's ints, floats and bools.
            extra: Anything that JSON takes.

        Raises:
            CheckpointAccessError: If it can't be written, as on a full disk; those before it are as they were.
            FileExistsError: If there is one of this step or of a later one.
            TypeError: If a leaf is of another type, or JSON can't take `extra`.
            ValueError: If `extra` is larger than what is read again, 128 MiB.
        """
        if (steps := self.steps()) and step <= steps[-1]:
            raise FileExistsError(
                f"{self._folder} has a checkpoint of {self.unit} {steps[-1]}, and {self.unit} {step} was to be saved: "
                "checkpoints are never overwritten. Call restore and go on from there, or choose another folder."
            )
        half = self._folder / _HALF
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with half.open("wb") as file:
                write_tree(file, tree, extra, self._identity)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, self._path(step))
            _sync_folder(self._folder)
            for old in self.steps()[: -self._keep]:
                self._path(old).unlink()
        except _OUTSIDE as error:
            raise CheckpointAccessError(
                f"the checkpoint of {self.unit} {step} could not be written to {self._folder}, and those before it are "
                f"as they were. Make it writable, with space for a checkpoint, and go on ({_told(error)})."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                half.unlink()

    def restore(self, like: PyTree, *, keep_targets: bool = True) -> Saved | None:
        """Reads the newest checkpoint that can be read.

        One whose bytes are wrong is renamed, not deleted, and a warning says what is lost with it.

        Args:
            like: Tree of the structure, shapes and dtypes to restore; `jax.eval_shape` makes one without memory. Where
                it has arrays of NumPy or Python's numbers, such come back; arrays that JAX has placed on devices come
                back there.
            keep_targets: True refuses a checkpoint of another updater (see the class), or whose layers end at other
                sparsities than those of `like`. False goes on from it on purpose, with the sparsities of `like`: masks
                that only move weights about, or never change, keep the number of weights that they have.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            CheckpointAccessError: If it can't be read for a reason outside it, such as too many open files or too
                little memory; nothing is set aside.
            CheckpointMismatchError: If it is the checkpoint of something else; the message names the first leaf.
        """
        steps = self.steps()
        while steps:
            step = steps.pop()
            what = f"the checkpoint of {self.unit} {step} in {self._folder}"
            try:
                tree, extra, stored = read_tree(self._path(step), like, what)
                if keep_targets:
                    check_identity(self._identity, stored, what)
                return Saved(step, with_targets(tree, like, what, keep_targets), extra)
            except DamagedFileError as error:
                self._set_aside(step, error, steps)
            except _OUTSIDE as error:
                raise CheckpointAccessError(
                    f"{what} can't be read now, though nothing shows that it is damaged: mend what keeps it from being "
                    f"read, such as too little memory, and go on ({_told(error)})."
                ) from error
        return None

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.npz"

    def _set_aside(self, step: int, error: Exception, older: list[int]) -> None:
        damaged = self._path(step).with_suffix(".damaged")
        os.replace(self._path(step), damaged)
        rest = (
            f"the run goes on from {self.unit} {older[-1]}" if older else "there is no other, so the run starts again"
        )
        warnings.warn(
            f"the checkpoint of {self.unit} {step} in {self._folder} is damaged and now called {damaged.name}; {rest}, "
            f"and {self.unit}s after it are done again ({error})",
            RuntimeWarning,
            stacklevel=3,
        )


def _told(error: BaseException) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
