"""A tree of arrays as one file.

The file is an ordinary .npz without compression: one array per leaf, each with the checksum that the zip format has,
then a JSON manifest as bytes, with the SHA-256 of every array. Leaves are written and read one by one, so that a large
replay never exists twice; nothing is pickled, and a leaf is read only if it is of the shape and dtype that is asked
for.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.checkpoints.errors import CheckpointMismatchError
from sparse_plugins.core.storage.array_files import DamagedFileError, StoredArray, numbers, open_archive, read_bytes
from sparse_plugins.core.trees import PyTree, leaf_names, names_of_today

__all__ = ["read_tree", "write_tree"]

_MANIFEST = "manifest.npy"
_LARGEST_MANIFEST = 1 << 28  # curves of long runs, and the games of vectors of environments
_PYTHON = {f"Python {python_type.__name__}": python_type for python_type in (bool, int, float)}

# Name, dtype or Python type, and shape.
_Description = tuple[str, str, list[int]]


def write_tree(file: BinaryIO, tree: PyTree, extra: Any, identity: str | None = None) -> None:
    """Writes a tree and what stands beside it.

    Args:
        file: Opened for writing.
        tree: Tree of arrays, typed keys among them, and of Python's ints, floats and bools.
        extra: Anything that JSON takes.
        identity: What the run's updater is and wants, if that is known.

    Raises:
        TypeError: If a leaf is none of these, or JSON can't take `extra`.
        ValueError: If `extra` is larger than what is read again, 256 MiB.
    """
    described, beside = _described(tree), json.dumps(extra)
    if len(beside) > _LARGEST_MANIFEST // 2:
        raise ValueError(
            f"extra has {len(beside):,} bytes as JSON; {_LARGEST_MANIFEST // 2:,} are allowed. Use leaves."
        )
    leaves = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for i, (description, leaf) in enumerate(zip(described, jax.tree.leaves(tree), strict=True)):
            if description[1] in _PYTHON:
                leaves.append([*description, leaf])
                continue
            array = numbers(leaf)
            array = np.ascontiguousarray(array).reshape(array.shape)
            leaves.append([*description, _digest(array)])
            _write(archive, f"{i}.npy", array)
            del array  # before the next one is fetched
        text = f'{{"leaves": {json.dumps(leaves)}, "updater": {json.dumps(identity)}, "extra": {beside}}}'
        _write(archive, _MANIFEST, np.frombuffer(text.encode(), np.uint8))


def read_tree(path: Path, like: PyTree, what: str) -> tuple[PyTree, Any, str | None]:
    """Reads what `write_tree` wrote.

    Args:
        path: The file.
        like: Tree of the structure, shapes and dtypes to restore.
        what: Name of the checkpoint, for messages.

    Returns:
        The tree, what was written beside it, and the identity of the updater, if the file has one.

    Raises:
        CheckpointMismatchError: If it holds other leaves.
        DamagedFileError: If it is not as it was written.
    """
    wanted = _described(like)
    with open_archive(path) as archive:
        described, contents, extra, identity = _manifest(archive)
        renamed = names_of_today([name for name, *_ in described], [name for name, *_ in wanted])
        described = [(name, dtype, shape) for name, (_, dtype, shape) in zip(renamed, described, strict=True)]
        if described != wanted:
            raise CheckpointMismatchError(_difference(what, described, wanted))
        places = enumerate(zip(jax.tree.leaves(like), contents, strict=True))
        leaves = [_restored(archive, i, leaf, content) for i, (leaf, content) in places]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), extra, identity


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(tree: PyTree) -> list[_Description]:
    named = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return [(name, _type_of(name, leaf), [*np.shape(leaf)]) for name, leaf in named]


def _type_of(name: str, leaf: Any) -> str:
    if type(leaf) in _PYTHON.values():
        return f"Python {type(leaf).__name__}"
    if hasattr(leaf, "shape") and (_is_key(leaf) or (leaf.dtype.isbuiltin and leaf.dtype != object)):
        return str(leaf.dtype)
    raise TypeError(
        f"checkpoints hold arrays of numbers, ints, floats and bools; {name!r} is {leaf!r}: make it one, or give it as "
        "extra."
    )


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()  # type: ignore[arg-type]


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(name, "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _manifest(archive: zipfile.ZipFile) -> tuple[list[_Description], list[Any], Any, str | None]:
    """Descriptions of the leaves, values of those of Python and digests of others, and what stands beside them."""
    try:
        match json.loads(read_bytes(archive, _MANIFEST, _LARGEST_MANIFEST)):
            case {"leaves": list(leaves), "extra": extra, **rest} if all(map(_is_leaf, leaves)):
                described = [(name, dtype, shape) for name, dtype, shape, _ in leaves]
                identity = rest.get("updater")  # older files have none
                return described, [leaf[3] for leaf in leaves], extra, identity if isinstance(identity, str) else None
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"its manifest can't be read ({type(error).__name__}: {error})") from error
    raise DamagedFileError("its manifest is not that of a checkpoint")


def _is_leaf(leaf: Any) -> bool:
    match leaf:
        case [str(), str(dtype), list(), content]:
            return type(content) is _PYTHON.get(dtype, str)
    return False


def _restored(archive: zipfile.ZipFile, i: int, leaf: Any, content: Any) -> Any:
    """A leaf as the one that is asked for: of its type, and where that is."""
    if type(leaf) in _PYTHON.values():
        return content
    words = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    dtype = numbers(np.zeros(0, words.dtype)).dtype
    array = StoredArray(archive, f"{i}.npy", dtype, tuple(words.shape)).read()
    if _digest(array) != content:
        raise DamagedFileError(f"leaf {i} does not have its checksum")
    array = array.view(words.dtype)
    if isinstance(leaf, np.ndarray | np.generic):
        return array if isinstance(leaf, np.ndarray) else array[()]
    placed = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    if _is_key(leaf):
        impl = jax.random.key_impl(jnp.empty(0, leaf.dtype))  # of a key, because `leaf` may be a shape alone
        return jax.device_put(jax.random.wrap_key_data(jnp.asarray(array), impl=impl), placed)
    # A Python number makes one of weak type again; jnp.asarray would copy others twice.
    return jax.device_put(array.item() if getattr(leaf, "weak_type", False) and not array.shape else array, placed)


def _difference(what: str, stored: list[_Description], wanted: list[_Description]) -> str:
    """What the leaves of a checkpoint that are others than those asked for have to say."""
    old, new = ({name: f"{dtype}{shape}" for name, dtype, shape in leaves} for leaves in (stored, wanted))
    if _has_masks(new) and not _has_masks(old):
        return (
            f"{what} is that of a dense run: it holds no masks, and a sparse run can't go on from it. Restore the "
            "sparse run's own, or start one from the dense parameters."
        )
    names = dict.fromkeys([*new, *old])
    name = next((name for name in names if old.get(name) != new.get(name)), next(iter(names), ""))
    return (
        f"{what} belongs to another model, optimizer, updater or environment: {name!r} is {old.get(name, 'missing')} "
        f"there and {new.get(name, 'missing')} here. Build what it was saved from, or choose another folder."
    )


def _has_masks(names: Iterable[str]) -> bool:
    return any("masks" in name.split("/") for name in names)
