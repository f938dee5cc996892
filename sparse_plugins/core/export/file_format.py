"""One file for sparse parameters and their masks: a bitmask and the kept values of every pruned leaf.

The file is an ordinary .npz of numbers (a JSON header as bytes, and arrays by leaf), so other programs can read it;
nothing in it is ever unpickled. Values are stored bit-exactly, dtypes that NumPy lacks as unsigned integers.
"""

import collections
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.export.array_formats import host_array, host_mask
from sparse_plugins.core.masks import NOT_PRUNED, is_pruned, pack
from sparse_plugins.core.storage.archives import Archive
from sparse_plugins.core.storage.array_files import DamagedFileError, damage
from sparse_plugins.core.trees import PyTree, aligned, leaf_names, names_of_today

__all__ = ["load_sparse", "save_sparse"]

FORMAT = "sparse_plugins parameters and masks"
VERSION = 1


class _Entry(NamedTuple):
    """What the header says of a leaf, which stands at a place in it."""

    place: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    pruned: bool
    crc32: int

    @classmethod
    def read(cls, place: int, entry: Mapping[str, Any]) -> "_Entry":
        """An entry as JSON gives it."""
        name, shape, dtype, pruned, crc32 = (entry[field] for field in cls._fields[1:])
        is_shape = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        if not is_shape or [*map(type, (name, dtype, pruned, crc32))] != [str, str, bool, int]:
            raise DamagedFileError(f"its header says of a leaf {entry!r:.200}")
        return cls(place, name, tuple(shape), dtype, pruned, crc32)


def save_sparse(
    path: str | os.PathLike, params: PyTree, masks: PyTree, *, compress: bool = False, overwrite: bool = False
) -> int:
    """Writes parameters and masks into one .npz file: a bit per entry, and the values that are kept.

    The file appears under its name only once it is complete.

    Args:
        path: File to write, usually `*.npz`; its folder has to exist.
        params: Parameters in use, 0 outside the masks.
        masks: Their masks, as in `SparseState.masks`.
        compress: Deflate: slower and a little smaller.
        overwrite: Replace a file that is there already.

    Returns:
        Bytes written.

    Raises:
        FileExistsError: If the file is there and `overwrite` is False.
        ValueError: Under jit, for leaves that are no numbers or share a path, if masks and parameters do not belong
            together, or if a weight outside its mask is not 0.

    Example:
        >>> import pathlib, tempfile
        >>> params, masks = {"w": jnp.array([0.0, 5.0])}, {"w": jnp.array([0, 1], jnp.uint8)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_sparse(pathlib.Path(folder, "model.npz"), params, masks)
        ...     load_sparse(pathlib.Path(folder, "model.npz"), params)[0]["w"].tolist()
        [0.0, 5.0]
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, remove it, or pass overwrite=True.")
    names = leaf_names(params)
    if shared := sorted(name for name, count in collections.Counter(names).items() if count > 1):
        raise ValueError(f"several leaves have the path {shared}; a file needs one path a leaf, so rename them.")
    entries: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for i, (name, param, mask) in enumerate(
        zip(names, jax.tree.leaves(params), aligned(params, masks, "masks"), strict=True)
    ):
        array = host_array(param, name)
        parts = {"values": array.view(native(array.dtype))}
        if is_pruned(mask):
            is_kept = host_mask(param, mask, name)
            if outside := int(np.count_nonzero(array[~is_kept])):
                raise ValueError(
                    f"{outside} of the {int(np.count_nonzero(~is_kept))} pruned weights of {name!r} are not 0, and a "
                    "file of what is kept would leave them out: save the parameters in use, "
                    "updater.pre_forward_update(params, state). Of an average of parameters mask the average: "
                    "core.apply_masks(average, masks)."
                )
            parts = {"mask": np.packbits(is_kept), "values": parts["values"][is_kept]}
        arrays |= {f"{i}.{part}": value for part, value in parts.items()}
        entry = {"name": name, "shape": array.shape, "dtype": array.dtype.name, "pruned": is_pruned(mask)}
        entries.append(entry | {"crc32": _checksum(parts)})
    header = json.dumps({"format": FORMAT, "version": VERSION, "leaves": entries}).encode()
    return _write(path, {"header": np.frombuffer(header, np.uint8), **arrays}, compress)


def native(dtype: np.dtype) -> np.dtype:
    """The dtype under which NumPy writes an array: unsigned integers for those that it lacks.

    Example:
        >>> native(jnp.dtype(jnp.bfloat16)).str, native(np.dtype(np.float32)).str
        ('<u2', '<f4')
    """
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


def _checksum(parts: Mapping[str, np.ndarray]) -> int:
    return zlib.crc32(b"".join(parts[part].tobytes() for part in sorted(parts)))


def _write(path: Path, arrays: Mapping[str, np.ndarray], compress: bool) -> int:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            save: Any = np.savez_compressed if compress else np.savez
            save(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return size


def load_sparse(path: str | os.PathLike, like: PyTree) -> tuple[PyTree, PyTree]:
    """Reads what `save_sparse` wrote.

    Args:
        path: The file.
        like: Parameters of the same model, or their shapes and dtypes (`jax.eval_shape` of its init).

    Returns:
        The parameters, the very bits of what was kept and +0 elsewhere, and their packed masks; both of the structure
        of `like`, on the default device. A dtype that JAX has switched off (float64) stays a NumPy array.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is not of this kind or version, or is not of that model; the message names
            the leaf.
    """
    with open(path, "rb") as file:
        try:
            archive = Archive(file)
            entries = _entries(path, archive, like)
            pairs = [
                _read_leaf(path, archive, entries[name], leaf)
                for name, leaf in zip(leaf_names(like), jax.tree.leaves(like), strict=True)
            ]
        except DamagedFileError as error:
            raise ValueError(
                f"{path} is damaged, or was not written by save_sparse ({error}). Copy it again from where it came "
                "from, or write it anew."
            ) from error
    treedef = jax.tree.structure(like)
    return jax.tree.unflatten(treedef, [p for p, _ in pairs]), jax.tree.unflatten(treedef, [m for _, m in pairs])


def _entries(path: Any, archive: Archive, like: PyTree) -> dict[str, _Entry]:
    """What the header says of each leaf, which are those of the model."""
    names = leaf_names(like)
    # Four times what the model's own header takes, so that the file of a larger one is still told by its leaves.
    text = archive.text("header", limit=(1 << 20) + 4 * sum(200 + 12 * len(name) for name in names))
    with damage():
        header = json.loads(text)
        if header["format"] != FORMAT:
            raise DamagedFileError(f"its format is {header['format']!r}")
        version = header["version"]
        listed = [_Entry.read(i, entry) for i, entry in enumerate(header["leaves"])] if version == VERSION else []
        entries = dict(zip(names_of_today([entry.name for entry in listed], names), listed, strict=True))
        if len(entries) < len(listed):
            raise DamagedFileError("its header lists a leaf twice")
    if version != VERSION:
        raise ValueError(
            f"{path} has format version {version!r}; this release reads version {VERSION}. Install the release that "
            "wrote it, or save it anew with this one."
        )
    missing, surplus = sorted(set(names) - set(entries)), sorted(set(entries) - set(names))
    if missing or surplus:
        raise ValueError(
            f"{path} is not of this model: it lacks the leaves {missing} and has {surplus} beyond. Pass parameters of "
            "the model that was saved."
        )
    return entries


def _read_leaf(path: Any, archive: Archive, entry: _Entry, leaf: Any) -> tuple[Any, Any]:
    name, shape, dtype = entry.name, entry.shape, entry.dtype
    expected = (tuple(np.shape(leaf)), str(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype))
    if expected != (shape, dtype):
        raise ValueError(
            f"leaf {name!r} of {path} is {dtype}{list(shape)}; the model has {expected[1]}{list(expected[0])}. Pass "
            "parameters of the model that was saved, in the dtype that it had."
        )
    stored, size = native(jnp.dtype(dtype)), math.prod(shape)
    if not entry.pruned:
        values = archive.array(f"{entry.place}.values", stored, shape)
        _check_sum(entry, {"values": values})
        return _device(values.view(jnp.dtype(dtype))), NOT_PRUNED
    bits = archive.array(f"{entry.place}.mask", np.dtype(np.uint8), (-(-size // 8),))
    is_kept = np.unpackbits(bits, count=size).astype(bool).reshape(shape)
    values = archive.array(f"{entry.place}.values", stored, (int(np.count_nonzero(is_kept)),))
    _check_sum(entry, {"mask": bits, "values": values})
    array = np.zeros(shape, jnp.dtype(dtype))
    array[is_kept] = values.view(jnp.dtype(dtype))
    return _device(array), pack(jnp.asarray(is_kept))


def _check_sum(entry: _Entry, parts: Mapping[str, np.ndarray]) -> None:
    if _checksum(parts) != entry.crc32:
        raise DamagedFileError(f"the checksum of leaf {entry.name!r} is wrong")


def _device(array: np.ndarray) -> Any:
    return jnp.asarray(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array
