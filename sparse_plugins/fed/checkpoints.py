"""Checkpoints from which a federated run goes on as if it had never stopped, bit for bit."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.storage.archives import damage
from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.core.trees import leaf_names
from sparse_plugins.missing import explain_import_error

__all__ = ["Checkpoint", "CheckpointAccessError", "CheckpointMismatchError", "Checkpoints"]

Arrays = dict[str, np.ndarray[Any, Any]]

_NUMBER = re.compile(r"0|[1-9][0-9]*")
_SUMS = "sha256.json"


class CheckpointMismatchError(ValueError):
    """A checkpoint is whole, but belongs to another model, optimizer or updater than the run that asks for it."""


class CheckpointAccessError(OSError):
    """A checkpoint could not be written or read for a reason outside it: no space, no memory, no permission.

    All checkpoints are still there; once the reason is gone, the run can go on.
    """


class Checkpoint(NamedTuple):
    """What `Checkpoints.restore` found.

    Attributes:
        round: Number of finished rounds, as given to `save`.
        state: Tree of the structure and types that were asked for.
        extra: What was saved beside it, as JSON has it: tuples come back as lists.
    """

    round: int
    state: Any
    extra: Any


class Checkpoints:
    """A folder of the newest checkpoints of one run.

    Each is written whole or not at all, carries checksums, and is never overwritten. Needs `orbax-checkpoint`.

    Args:
        folder: Where they are; made when it is needed.
        keep: How many finished ones to keep, 1 or more. With 2, a damaged one costs the rounds since the one before.

    Raises:
        ValueError: If `keep` is less than 1.

    Example:
        >>> import tempfile
        >>> state = {"w": jnp.arange(3.0), "round": 7}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     checkpoints.save(7, state, extra={"bytes": 120})
        ...     found = checkpoints.restore(like=state)
        >>> found.round, found.state["w"].tolist(), found.state["round"], found.extra
        (7, [0.0, 1.0, 2.0], 7, {'bytes': 120})
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; give the number of checkpoints to keep, 1 or more.")
        self._folder, self._keep = Path(folder).absolute(), keep

    def rounds(self) -> list[int]:
        """Numbers of the checkpoints there are, ascending; some may turn out to be damaged.

        Raises:
            NotADirectoryError: If the folder is a file.
        """
        entries = self._folder.iterdir() if self._folder.exists() else ()
        return sorted(int(entry.name) for entry in entries if _NUMBER.fullmatch(entry.name) and entry.is_dir())

    def save(self, round_number: int, state: Any, extra: Any = None) -> None:
        """Writes a checkpoint, then removes the oldest of more than `keep`.

        Args:
            round_number: Finished rounds, 0 or more and above those of all earlier checkpoints.
            state: Tree of arrays, random keys, and Python ints, floats and bools, such as a `SparseServerState`.
            extra: Anything that JSON takes, such as the CSV of a ledger.

        Raises:
            CheckpointAccessError: If it can't be written, as on a full disk; those before it are as they were.
            FileExistsError: If there is one of this round or of a later one.
            TypeError: If the state has leaves of other kinds, or JSON can't take `extra`.
        """
        if self.rounds() and round_number <= (newest := self.rounds()[-1]):
            raise FileExistsError(
                f"{self._folder} has a checkpoint of round {newest}, and round {round_number} was to be saved: "
                "checkpoints are never overwritten. Call restore and go on from there, or choose another folder."
            )
        arrays = _arrays(state)
        text = json.dumps({"leaves": _described(state), "digest": _digest(arrays), "extra": extra})
        ocp = _orbax()
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave({"text": text, "checksum": zlib.crc32(text.encode())}),
        )
        try:
            with self._manager(ocp) as manager:
                if not manager.save(round_number, args=items):
                    raise OSError("Orbax has left it out")
            _write_sums(self._folder / str(round_number))
        except Exception as error:  # a full disk is a ValueError of the libraries below
            for half in self._folder.glob(f"{round_number}.orbax-checkpoint-tmp*"):
                shutil.rmtree(half, ignore_errors=True)
            raise CheckpointAccessError(
                f"the checkpoint of round {round_number} could not be written to {self._folder}, and those before it "
                f"are as they were. Make it writable, with space for a checkpoint, and go on ({_told(error)})."
            ) from error

    def restore(self, like: Any) -> Checkpoint | None:
        """Reads the newest checkpoint that can be read.

        One whose files are not as they were written is renamed, not deleted, and a warning says what is lost with it.

        Args:
            like: A state of the structure, shapes and types to restore, such as that of the algorithm's `init`.

        Returns:
            The checkpoint, its arrays where those of `like` are; None if there is none.

        Raises:
            CheckpointAccessError: If a checkpoint can't be read for a reason outside its files, such as too many open
                files or too little memory; nothing is set aside.
            CheckpointMismatchError: If it is the checkpoint of another model or optimizer, or of a dense run.
            ImportError: Without `orbax-checkpoint`.
        """
        numbers = self.rounds()
        while numbers:
            number = numbers.pop()
            what = f"the checkpoint of round {number} in {self._folder}"
            try:
                record, arrays = self._read(number)
            except ImportError:
                raise
            except Exception as error:  # Damaged files make the libraries below raise anything, and so does the system.
                if not self._is_damaged(number, error):
                    raise CheckpointAccessError(
                        f"{what} can't be read, though nothing shows that its files have changed: mend what keeps it "
                        "from being read and go on, or move its folder away to go on from the one before "
                        f"({_told(error)})."
                    ) from error
                self._set_aside(number, error, numbers)
                continue
            _check_same(what, record["leaves"], like)
            try:
                state = _restored(what, like, arrays)
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                raise CheckpointAccessError(
                    f"{what} is whole, but the device has no room for it: free memory there and go on ({_told(error)})."
                ) from error
            return Checkpoint(number, state, record["extra"])
        return None

    def _manager(self, ocp: Any) -> Any:
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self._folder, options=options)

    def _read(self, number: int) -> tuple[Mapping[str, Any], Arrays]:
        ocp = _orbax()
        items = ocp.args.Composite(state=ocp.args.StandardRestore(), record=ocp.args.JsonRestore())
        with self._manager(ocp) as manager:
            found = manager.restore(number, args=items)
        if zlib.crc32(found["record"]["text"].encode()) != found["record"]["checksum"]:
            raise DamagedFileError("the record does not have its checksum")
        with damage():
            record = json.loads(found["record"]["text"])
            digest, leaves = record["digest"], record["leaves"]
            if "extra" not in record or any([*map(type, leaf)] != [str, str, list] for leaf in leaves):
                raise DamagedFileError("the record is none that save writes")
        if _digest(found["state"]) != digest:
            raise DamagedFileError("the arrays do not have their checksum")
        return record, found["state"]

    def _is_damaged(self, number: int, error: Exception) -> bool:
        """Whether files differ from those that were written; an OSError if they can't be read now."""
        try:
            return isinstance(error, DamagedFileError) or _has_changed(self._folder / str(number))
        except OSError as unread:
            raise CheckpointAccessError(
                f"the checkpoint of round {number} in {self._folder} can't be read now: mend that and go on "
                f"({_told(unread)})."
            ) from unread

    def _set_aside(self, number: int, error: Exception, older: list[int]) -> None:
        damaged = self._folder / f"{number}.damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        os.rename(self._folder / str(number), damaged)
        rest = f"the next is that of round {older[-1]}" if older else "there is no other, so the run starts again"
        warnings.warn(
            f"the checkpoint of round {number} in {self._folder} is damaged and now called {damaged.name}; {rest}, and "
            f"rounds after it are lost ({_told(error)})",
            RuntimeWarning,
            stacklevel=3,
        )


def _told(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _write_sums(folder: Path) -> None:
    """Notes the digest of every file of a checkpoint, so that damage can be told from a library that fails."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sums = {str(file.relative_to(folder)): _sum_of(file) for file in files}
    half = folder / f"{_SUMS}.partial"
    half.write_text(json.dumps(sums, indent=1))
    os.replace(half, folder / _SUMS)


def _has_changed(folder: Path) -> bool:
    """Whether a file is missing or not as it was; of checkpoints without digests nothing shows it."""
    if not (folder / _SUMS).exists():
        return False
    with contextlib.suppress(DamagedFileError), damage():
        sums = json.loads((folder / _SUMS).read_bytes())
        return any(not (folder / name).is_file() or _sum_of(folder / name) != known for name, known in sums.items())
    return True


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise explain_import_error(error, "Checkpoints", ("orbax",), '"sparse-plugins[fed]"') from error
    return ocp


def _kind(leaf: Any) -> str:
    if isinstance(leaf, bool | int | float):
        return type(leaf).__name__
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return str(leaf.dtype)
    raise TypeError(f"a state has arrays, ints, floats and bools; this one has a {type(leaf).__name__}: {leaf!r}.")


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(state: Any) -> list[list[Any]]:
    """Name, kind and shape of every leaf."""
    leaves = jax.tree.leaves(state)
    return [[name, _kind(leaf), [*np.shape(leaf)]] for name, leaf in zip(leaf_names(state), leaves, strict=True)]


def _arrays(state: Any) -> Arrays:
    """The leaves by their place; those without entries say all with their shape, and Orbax takes none."""
    leaves = (jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(state))
    return {str(i): array for i, leaf in enumerate(leaves) if (array := np.asarray(leaf)).size}


def _restored(what: str, like: Any, arrays: Arrays) -> Any:
    """A state from the arrays of its leaves; leaves without entries are as they are in `like`."""
    leaves, treedef = jax.tree.flatten(like)
    wanted = {str(i): spec for i, leaf in enumerate(leaves) if math.prod((spec := _stored(leaf))[0])}
    if wanted != {name: (tuple(array.shape), np.dtype(array.dtype)) for name, array in arrays.items()}:
        raise CheckpointMismatchError(f"{what} holds other arrays than its record says, so it is none of `save`.")
    return jax.tree.unflatten(
        treedef, [_as(leaf, arrays[str(i)]) if str(i) in arrays else leaf for i, leaf in enumerate(leaves)]
    )


def _stored(leaf: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype under which a leaf is stored."""
    array = jax.random.key_data(leaf) if _is_key(leaf) else leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return tuple(array.shape), np.dtype(array.dtype)


def _as(leaf: Any, array: np.ndarray[Any, Any]) -> Any:
    """The array as the kind of leaf it was."""
    if isinstance(leaf, bool | int | float):
        return type(leaf)(array.item())
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, np.ndarray | np.generic):
        return array if isinstance(leaf, np.ndarray) else array[()]
    if leaf.weak_type and not array.shape:  # A Python number makes one again.
        return jnp.asarray(array.item())
    return jax.device_put(array, leaf.sharding)


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_same(what: str, stored: list[list[Any]], like: Any) -> None:
    """Raises if the leaves of a checkpoint are others than those of a state."""
    if stored == (wanted := _described(like)):
        return
    old, new = ({name: (kind, shape) for name, kind, shape in leaves} for leaves in (stored, wanted))
    if _has_masks(new) and not _has_masks(old):
        raise CheckpointMismatchError(
            f"{what} is that of a dense run: it holds no masks, and a sparse run can't go on from it. Restore the "
            "sparse run's own, or start one from the dense parameters with algorithm.init(params)."
        )
    names = dict.fromkeys([*new, *old])
    name = next((name for name in names if old.get(name) != new.get(name)), next(iter(names), ""))
    raise CheckpointMismatchError(
        f"{what} belongs to another model, optimizer or updater: {name!r} is {_spelled(old.get(name))} there and "
        f"{_spelled(new.get(name))} here. Build what it was saved from, or choose another folder."
    )


def _has_masks(names: Iterable[str]) -> bool:
    return any("masks" in name.split("/") for name in names)


def _spelled(leaf: tuple[str, list[int]] | None) -> str:
    return "missing" if leaf is None else f"{leaf[0]}{leaf[1]}"
