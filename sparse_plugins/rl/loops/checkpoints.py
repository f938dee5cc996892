"""A tree of arrays as one file: whole or not at all, with checksums, and with the one before kept.

The file is an ordinary .npz: a JSON manifest as bytes, then one array per leaf, each with the checksum that the zip
format has. Leaves are written and read one by one, so that a large replay never exists twice; nothing is pickled, and
a leaf is read only if it is of the shape and dtype that is asked for.
"""

import contextlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.storage.array_files import DamagedFileError, StoredArray, numbers, open_archive, read_bytes
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["CheckpointAccessError", "CheckpointMismatchError", "Checkpoints", "Saved"]

_MANIFEST = "manifest.npy"
_LARGEST_MANIFEST = 1 << 28  # curves of long runs, and the games of vectors of environments
_NUMBER = re.compile(r"0|[1-9][0-9]*")


class CheckpointMismatchError(ValueError):
    """A checkpoint is whole, but belongs to another run than the one that asks for it."""


class CheckpointAccessError(OSError):
    """A checkpoint could not be written or read for a reason outside it: no space, no memory, no permission.

    All checkpoints are still there; once the reason is gone, the run can go on.
    """


class Saved(NamedTuple):
    """What `Checkpoints.restore` found.

    Attributes:
        step: As given to `save`.
        tree: Tree of the structure that was asked for.
        extra: What was saved beside it, as JSON has it.
    """

    step: int
    tree: PyTree
    extra: Any


class Checkpoints:
    """A folder of the newest checkpoints of one run. Needs NumPy and JAX alone.

    Args:
        folder: Where they are; made when it is needed.
        keep: How many to keep, 1 or more. With 2, a damaged one costs the steps since the one before.

    Raises:
        ValueError: If `keep` is less than 1.

    Example:
        >>> import tempfile
        >>> state = {"key": jax.random.key(0), "frames": jnp.zeros((2, 3), jnp.uint8)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     checkpoints.save(7, state, extra={"returns": [1.5]})
        ...     found = checkpoints.restore(like=jax.eval_shape(lambda: state))
        >>> found.step, found.tree["frames"].shape, found.tree["key"] == state["key"], found.extra
        (7, (2, 3), Array(True, dtype=bool), {'returns': [1.5]})
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; give the number of checkpoints to keep, 1 or more.")
        self._folder, self._keep = Path(folder), keep

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
            tree: Tree of arrays: of JAX, typed keys included, or of NumPy.
            extra: Anything that JSON takes.

        Raises:
            CheckpointAccessError: If it can't be written, as on a full disk; those before it are as they were.
            FileExistsError: If there is one of this step or of a later one.
            TypeError: If a leaf is no array of numbers, or JSON can't take `extra`.
            ValueError: If `extra` is larger than what is read again, 256 MiB.
        """
        if (steps := self.steps()) and step <= steps[-1]:
            raise FileExistsError(
                f"{self._folder} has a checkpoint of step {steps[-1]}, and step {step} was to be saved: checkpoints "
                "are never overwritten. Call restore and go on from there, or choose another folder."
            )
        manifest = json.dumps({"leaves": _described(tree), "keys": _key_kinds(tree), "extra": extra}).encode()
        if len(manifest) > _LARGEST_MANIFEST:
            raise ValueError(f"extra has {len(manifest):,} bytes as JSON; {_LARGEST_MANIFEST:,} are read. Use leaves.")
        half = self._folder / f"{step}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with half.open("wb") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    _write(archive, _MANIFEST, np.frombuffer(manifest, np.uint8))
                    for i, leaf in enumerate(jax.tree.leaves(tree)):
                        _write(archive, f"{i}.npy", numbers(leaf))
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, self._path(step))
            _sync_folder(self._folder)
            for old in self.steps()[: -self._keep]:
                self._path(old).unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                half.unlink()
            raise CheckpointAccessError(
                f"the checkpoint of step {step} could not be written to {self._folder}, and those before it are as "
                f"they were. Make it writable, with space for a checkpoint, and go on ({_told(error)})."
            ) from error

    def restore(self, like: PyTree) -> Saved | None:
        """Reads the newest checkpoint that can be read.

        One whose bytes are wrong is renamed, not deleted, and a warning says what is lost with it.

        Args:
            like: Tree of the structure, shapes and dtypes to restore; `jax.eval_shape` makes one without memory. Where
                it has NumPy arrays, NumPy arrays come back.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            CheckpointAccessError: If it can't be read for a reason outside it, such as too many open files or too
                little memory; nothing is set aside.
            CheckpointMismatchError: If it is the checkpoint of something else; the message names the first leaf.
        """
        wanted, steps = _described(like), self.steps()
        while steps:
            step = steps.pop()
            what = f"the checkpoint of step {step} in {self._folder}"
            try:
                with open_archive(self._path(step)) as archive:
                    described, kinds, extra = _manifest(archive)
                    _check_same(what, described, wanted)
                    leaves = [*_restored(archive, kinds, jax.tree.leaves(like))]
            except DamagedFileError as error:
                self._set_aside(step, error, steps)
                continue
            except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
                raise CheckpointAccessError(
                    f"{what} can't be read now, though nothing shows that it is damaged: mend what keeps it from being "
                    f"read, such as too little memory, and go on ({_told(error)})."
                ) from error
            return Saved(step, jax.tree.unflatten(jax.tree.structure(like), leaves), extra)
        return None

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.npz"

    def _set_aside(self, step: int, error: Exception, older: list[int]) -> None:
        damaged = self._path(step).with_suffix(".damaged")
        os.replace(self._path(step), damaged)
        rest = f"the run goes on from step {older[-1]}" if older else "there is no other, so the run starts again"
        warnings.warn(
            f"the checkpoint of step {step} in {self._folder} is damaged and now called {damaged.name}; {rest}, and "
            f"steps after it are done again ({error})",
            RuntimeWarning,
            stacklevel=3,
        )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(tree: PyTree) -> list[list[Any]]:
    """Name, dtype and shape of every leaf."""
    described = []
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        if not hasattr(leaf, "shape") or not (_is_key(leaf) or leaf.dtype.isbuiltin) or leaf.dtype == object:
            raise TypeError(
                f"checkpoints hold arrays of numbers; {name!r} is {leaf!r}: make it one, or give it as extra."
            )
        described.append([name, str(leaf.dtype), [*leaf.shape]])
    return described


def _key_kinds(tree: PyTree) -> dict[str, str]:
    """By position, what makes random numbers of the words of a typed key."""
    return {str(i): str(jax.random.key_impl(leaf)) for i, leaf in enumerate(jax.tree.leaves(tree)) if _is_key(leaf)}


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(name, "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)


def _manifest(archive: zipfile.ZipFile) -> tuple[list[list[Any]], dict[str, str], Any]:
    """Descriptions of the leaves, kinds of keys by position, and what was saved beside the leaves."""
    try:
        match json.loads(read_bytes(archive, _MANIFEST, _LARGEST_MANIFEST)):
            case {"leaves": list(described), "keys": dict(kinds), "extra": extra} if all(
                map(_is_description, described)
            ):
                return described, kinds, extra
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"its manifest can't be read ({type(error).__name__}: {error})") from error
    raise DamagedFileError("its manifest is not that of a checkpoint")


def _is_description(leaf: Any) -> bool:
    match leaf:
        case [str(), str(), list()]:
            return True
    return False


def _restored(archive: zipfile.ZipFile, key_kinds: dict[str, str], like: list[Any]) -> Iterator[Any]:
    for i, leaf in enumerate(like):
        words = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        dtype = numbers(np.zeros(0, words.dtype)).dtype
        array = StoredArray(archive, f"{i}.npy", dtype, tuple(words.shape)).read()
        if _is_key(leaf):
            try:
                key = jax.random.wrap_key_data(jnp.asarray(array), impl=key_kinds[str(i)])
            except (ValueError, TypeError, KeyError) as error:
                raise DamagedFileError(f"the kind of key {i} can't be read ({error})") from error
            if key.dtype != leaf.dtype:
                raise DamagedFileError(f"key {i} is a {key.dtype}, where {leaf.dtype} belongs")
            yield key
        elif isinstance(leaf, np.ndarray | np.generic):
            yield array.view(leaf.dtype)
        else:
            yield jax.device_put(array.view(leaf.dtype))  # jnp.asarray would copy twice


def _check_same(what: str, stored: list[list[Any]], wanted: list[list[Any]]) -> None:
    if stored == wanted:
        return
    old, new = ({name: f"{dtype}{shape}" for name, dtype, shape in leaves} for leaves in (stored, wanted))
    names = dict.fromkeys([*new, *old])
    name = next((name for name in names if old.get(name) != new.get(name)), next(iter(names), ""))
    raise CheckpointMismatchError(
        f"{what} belongs to another run: {name!r} is {old.get(name, 'missing')} there and {new.get(name, 'missing')} "
        "here. Build what it was saved from, or choose another folder."
    )


def _told(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
