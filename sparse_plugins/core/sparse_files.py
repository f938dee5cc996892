"""One file for sparse parameters and their masks: a bitmask and the kept values of every pruned leaf.

The file is an ordinary .npz of numbers (a JSON header as bytes, and arrays by leaf), so other programs can read it;
nothing in it is ever unpickled. Values are stored bit for bit, dtypes that NumPy lacks as unsigned integers.
"""

import collections
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.masks import NOT_PRUNED, is_pruned, pack
from sparse_plugins.core.sparse_forms import host_array, host_mask
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["load_sparse", "save_sparse"]

FORMAT = "sparse_plugins parameters and masks"
VERSION = 1
FIELDS = ("name", "shape", "dtype", "pruned", "crc32")


def save_sparse(
    path: str | os.PathLike, params: PyTree, masks: PyTree, *, compress: bool = False, overwrite: bool = False
) -> int:
    """Writes parameters and masks into one .npz file: a bit per entry, and the values that are kept.

    The file appears under its name only once it is complete.

    Args:
        path: File to write, usually `*.npz`; its folder has to exist.
        params: Parameters in use; what lies outside the masks is not stored.
        masks: Their masks, as in `SparseState.masks`.
        compress: Deflate: slower and a little smaller.
        overwrite: Replace a file that is there already.

    Returns:
        Bytes written.

    Raises:
        FileExistsError: If the file is there and `overwrite` is False.
        ValueError: Under jit, for leaves that are no numbers or share a path, or if masks and parameters do not
            belong together.

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
        parts = {"values": _native(array)}
        if is_pruned(mask):
            is_kept = host_mask(param, mask, name)
            parts = {"mask": np.packbits(is_kept), "values": parts["values"][is_kept]}
        arrays |= {f"{i}.{part}": value for part, value in parts.items()}
        entry = {"name": name, "shape": array.shape, "dtype": array.dtype.name, "pruned": is_pruned(mask)}
        entries.append(entry | {"crc32": _checksum(parts)})
    header = json.dumps({"format": FORMAT, "version": VERSION, "leaves": entries}).encode()
    return _write(path, {"header": np.frombuffer(header, np.uint8), **arrays}, compress)


def _native(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


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
    entries, arrays = _read(path)
    names, leaves = leaf_names(like), jax.tree.leaves(like)
    missing, surplus = sorted(set(names) - set(entries)), sorted(set(entries) - set(names))
    if missing or surplus:
        raise ValueError(
            f"{path} is not of this model: it lacks the leaves {missing} and has {surplus} beyond. Pass parameters of "
            "the model that was saved."
        )
    pairs = [_read_leaf(path, leaf, entries[name], arrays) for name, leaf in zip(names, leaves, strict=True)]
    treedef = jax.tree.structure(like)
    return jax.tree.unflatten(treedef, [p for p, _ in pairs]), jax.tree.unflatten(treedef, [m for _, m in pairs])


def _read(path: Any) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """What the header says of each leaf, and all arrays."""
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(arrays["header"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}")
            version = header["version"]
            listed = header["leaves"] if version == VERSION else ()
            entries = {entry["name"]: {key: entry[key] for key in FIELDS} | {"at": i} for i, entry in enumerate(listed)}
        except Exception as error:  # a damaged archive fails in many ways: zip, zlib, end of file, memory, JSON
            raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if version != VERSION:
        raise ValueError(
            f"{path} has format version {version!r}; this release reads version {VERSION}. Install the release that "
            "wrote it, or save it anew with this one."
        )
    return entries, arrays


def _read_leaf(path: Any, leaf: Any, entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    name, shape, dtype = entry["name"], tuple(entry["shape"]), entry["dtype"]
    own = (tuple(np.shape(leaf)), str(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype))
    if own != (shape, dtype):
        raise ValueError(
            f"leaf {name!r} of {path} is {dtype}{list(shape)}; the model has {own[1]}{list(own[0])}. Pass parameters "
            "of the model that was saved, in the dtype that it had."
        )
    wanted = ("mask", "values") if entry["pruned"] else ("values",)
    parts = {part: arrays[key] for part in wanted if (key := f"{entry['at']}.{part}") in arrays}
    if len(parts) < len(wanted) or _checksum(parts) != entry["crc32"]:
        raise _unreadable(path, f"the checksum of leaf {name!r} is wrong or part of it is missing")
    values = parts["values"].view(jnp.dtype(dtype))
    if not entry["pruned"]:
        return _device(values.reshape(shape)), NOT_PRUNED
    is_kept = np.unpackbits(parts["mask"], count=math.prod(shape)).astype(bool).reshape(shape)
    array = np.zeros(shape, values.dtype)
    array[is_kept] = values
    return _device(array), pack(jnp.asarray(is_kept))


def _device(array: np.ndarray) -> Any:
    return jnp.asarray(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array


def _unreadable(path: Any, why: str) -> ValueError:
    return ValueError(
        f"{path} is damaged, or was not written by save_sparse ({why}). Copy it again from where it came from, or "
        "write it anew."
    )
