"""Deltas of weights as safetensors files, in the form that TRL has proposed for vLLM: positions and values.

`wire.delta` is a quarter of the size; this is for receivers that know no other form. A tensor `w` that changed is
`w.idx`, its flat positions, and `w.val`, what stands there now; in an anchor, for which no base is needed, it is `w`.
Positions are 'raw' (int32) or 'gap_delta': from one to the next, less one, as uint16, or uint32 where one does not
fit. Readers pass over metadata that they do not know: versions and digests are such, and are checked here.

Source: huggingface/trl, pull request 5937 (2026; closed without a merge, so the form may change); its values are
bfloat16, here they keep the dtype of the model.
"""

import json
import struct
from typing import Any

import numpy as np

from sparse_plugins.wire.bit_patterns import patterns
from sparse_plugins.wire.deltas import BaseMismatchError, weights_digest
from sparse_plugins.wire.leaves import Leaf, described_leaves, on_host
from sparse_plugins.wire.reader import Buffer, CodecError
from sparse_plugins.wire.trees import PyTree, named_leaves, with_leaves

__all__ = ["apply_safetensors", "safetensors_delta"]

Array = np.ndarray[Any, Any]

_Tensor = tuple[str, memoryview]  # dtype and bytes

_LENGTH = struct.Struct("<Q")
_TYPES = {
    **{
        f"{family}{bits}": f"{short}{bits}"
        for family, short in (("int", "I"), ("uint", "U"))
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{"bool": "BOOL", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}
_ENCODINGS = ("raw", "gap_delta")
_FORMAT = "sparse_weight_patch"
_INDEX_TYPES = {"raw": ("I32",), "gap_delta": ("U16", "U32")}


def safetensors_delta(
    new: PyTree, base: PyTree | None = None, *, version: int = 0, base_version: int = 0, encoding: str = "gap_delta"
) -> bytes:
    """Writes what makes `new` of `base` as a safetensors file.

    Args:
        new: Arrays of numbers; names of nested trees are joined by '/'.
        base: The receiver's arrays, of the same tree, shapes and dtypes; None writes an anchor, which needs none.
        version: A number for the result.
        base_version: The number of `base`.
        encoding: How positions are written: 'raw' or 'gap_delta'.

    Returns:
        The file.

    Raises:
        ValueError: If the trees are not alike, or an argument or a dtype has no place in such a file.

    Example:
        >>> base = {"w": np.zeros(1000, np.float32)}
        >>> new = {"w": np.where(np.arange(1000) % 100 == 7, 1, 0).astype(np.float32)}
        >>> patch = safetensors_delta(new, base, version=2, base_version=1)
        >>> bool((apply_safetensors(patch, base)["w"] == new["w"]).all())
        True
    """
    if encoding not in _ENCODINGS:
        raise ValueError(f"encoding is {encoding!r}; choose one of {', '.join(_ENCODINGS)}.")
    leaves = described_leaves(new)
    given = zip(leaves, named_leaves(new), strict=True)
    values = [on_host(value, leaf.name).astype(leaf.dtype, copy=False) for leaf, (_, value) in given]
    tensors: dict[str, Array] = {}
    changed = 0
    if base is None:
        tensors = {leaf.name: value for leaf, value in zip(leaves, values, strict=True)}
        changed = sum(leaf.size for leaf in leaves)
    else:
        _check_alike(leaves, described_leaves(base))
        for leaf, value, (_, old) in zip(leaves, values, named_leaves(base), strict=True):
            flat, before = value.reshape(-1), on_host(old, leaf.name).reshape(-1)
            places = np.flatnonzero(patterns(flat) != patterns(before.astype(leaf.dtype, copy=False)))
            if places.size:
                tensors[f"{leaf.name}.idx"] = _encoded(places, encoding)
                tensors[f"{leaf.name}.val"] = flat[places]
                changed += places.size
    total = sum(leaf.size for leaf in leaves)
    metadata = {
        "format": _FORMAT,
        "version": "1",
        "sparse": str(base is not None),
        "model_version": str(version),
        "num_changed_params": str(len(leaves)),
        "total_changed_elements": str(changed),
        "total_elements": str(total),
        "sparsity": str(1 - changed / max(total, 1)),
        "encoding": encoding,
        "base_version": str(base_version),
        "base_digest": "" if base is None else weights_digest(base).hex(),
        "digest": weights_digest(new).hex(),
    }
    return _file_of(tensors, metadata)


def apply_safetensors(patch: Buffer, base: PyTree) -> PyTree:
    """The weights that such a file makes of the receiver's, which are not touched.

    Args:
        patch: What `safetensors_delta` returned, or a file of the same form from elsewhere; digests are checked where
            it has them.
        base: The weights it builds on; for an anchor any tree of the model, `jax.ShapeDtypeStruct` leaves too.

    Returns:
        A tree of new NumPy arrays.

    Raises:
        BaseMismatchError: If `base` holds other weights than those that it builds on.
        CodecError: If it is damaged, of another form, or about another model.

    Example:
        >>> new = {"w": np.ones(3, np.float32)}
        >>> apply_safetensors(safetensors_delta(new), new)["w"].tolist()
        [1.0, 1.0, 1.0]
    """
    tensors, metadata = _opened(patch)
    leaves = described_leaves(base)
    is_sparse = metadata.get("sparse") == "True"
    if is_sparse and (wanted := metadata.get("base_digest")) and weights_digest(base).hex() != wanted:
        raise BaseMismatchError(
            f"these are other weights than version {metadata.get('base_version')}, on which this patch builds: apply "
            "those before it in their order, or ask for an anchor."
        )
    encoding = metadata.get("encoding", "")
    if is_sparse and encoding not in _ENCODINGS:
        raise CodecError(f"positions are written as {encoding!r}, and {', '.join(_ENCODINGS)} are read.")
    known = {f"{leaf.name}{end}" for leaf in leaves for end in ((".idx", ".val") if is_sparse else ("",))}
    if unknown := sorted(tensors.keys() - known):
        raise CodecError(f"this patch is about another model: it has {unknown[0]!r}, which is none of its tensors.")
    arrays = []
    for leaf, (_, old) in zip(leaves, named_leaves(base), strict=True):
        array = _patched(leaf, old, tensors, encoding) if is_sparse else _tensor(tensors, leaf.name, leaf, leaf.size)
        if array.dtype == np.bool_ and np.any(array.view(np.uint8) > 1):
            raise CodecError(f"tensor {leaf.name!r}: a truth value is neither 0 nor 1.")
        arrays.append(array.reshape(leaf.shape))
    result = with_leaves(base, arrays)
    if (wanted := metadata.get("digest")) and weights_digest(result).hex() != wanted:
        raise CodecError("the result is not what the sender had: the patch was damaged or forged.")
    return result


def _patched(leaf: Leaf, old: Any, tensors: dict[str, _Tensor], encoding: str) -> Array:
    array = np.array(on_host(old, leaf.name), leaf.dtype, order="C").reshape(-1)
    name = f"{leaf.name}.idx"
    if name not in tensors:
        if f"{leaf.name}.val" in tensors:
            raise CodecError(f"tensor {leaf.name!r} has values without positions.")
        return array
    dtype, content = tensors[name]
    if dtype not in _INDEX_TYPES[encoding]:
        raise CodecError(f"tensor {name!r} has dtype {dtype}; positions written as {encoding!r} never have.")
    places = np.frombuffer(content, f"<{dtype[0].lower()}{int(dtype[1:]) // 8}").astype(np.int64)
    if encoding == "gap_delta":
        places = np.cumsum(places + 1) - 1
    if places.size and (np.any(np.diff(places) <= 0) or places[0] < 0 or places[-1] >= leaf.size):
        raise CodecError(f"tensor {name!r}: its positions do not rise, or lead beyond {leaf.size} entries.")
    array[places] = _tensor(tensors, f"{leaf.name}.val", leaf, places.size)
    return array


def _tensor(tensors: dict[str, _Tensor], name: str, leaf: Leaf, count: int) -> Array:
    if name not in tensors:
        raise CodecError(f"tensor {name!r} is missing.")
    dtype, content = tensors[name]
    if dtype != _TYPES.get(leaf.dtype.name) or len(content) != count * leaf.dtype.itemsize:
        raise CodecError(
            f"tensor {name!r} has dtype {dtype} and {len(content)} bytes; {count} entries of {leaf.dtype} are due."
        )
    return np.frombuffer(content, np.uint8).view(leaf.dtype).copy()


def _encoded(places: Array, encoding: str) -> Array:
    if encoding == "raw":
        return places.astype(np.int32)
    gaps = np.diff(places, prepend=-1) - 1
    return gaps.astype(np.uint16 if gaps.max() < 1 << 16 else np.uint32)


def _check_alike(leaves: list[Leaf], others: list[Leaf]) -> None:
    of_new, of_base = ([(leaf.name, leaf.shape, leaf.dtype) for leaf in each] for each in (leaves, others))
    if of_new != of_base:
        raise ValueError(f"the new weights are {of_new} and base is {of_base}: give the weights of one model.")


def _file_of(tensors: dict[str, Array], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    contents, end = [], 0
    for name, array in tensors.items():
        if array.dtype.name not in _TYPES:
            raise ValueError(f"tensor {name!r} has dtype {array.dtype}, which safetensors has no name for.")
        content = array.tobytes()
        header[name] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + len(content)],
        }
        contents.append(content)
        end += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([_LENGTH.pack(len(text)), text, *contents])


def _opened(patch: Buffer) -> tuple[dict[str, _Tensor], dict[str, str]]:
    """Dtype and bytes of every tensor, and the metadata."""
    view = memoryview(patch).cast("B")
    length = _LENGTH.unpack_from(view)[0] if len(view) >= _LENGTH.size else len(view)
    if length > len(view) - _LENGTH.size:
        raise CodecError("this is no safetensors file, or it was cut off.")
    front = _LENGTH.size + length
    try:
        header = json.loads(bytes(view[_LENGTH.size : front]))
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        entries = [(name, str(entry["dtype"]), *map(int, entry["data_offsets"])) for name, entry in header.items()]
        places = {name: (dtype, start, end) for name, dtype, start, end in entries}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise CodecError(f"the header of this safetensors file can't be read: {error!r}.") from error
    if metadata.get("format") != _FORMAT:
        raise CodecError(f"this safetensors file says that it is {metadata.get('format')!r}, and {_FORMAT!r} is read.")
    room = len(view) - front
    for name, (_, start, end) in places.items():
        if not 0 <= start <= end <= room:
            raise CodecError(f"tensor {name!r} lies at {start} to {end} of {room} bytes: the file was cut off.")
    return {name: (dtype, view[front + start : front + end]) for name, (dtype, start, end) in places.items()}, metadata
