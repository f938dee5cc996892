"""Values of one leaf as bytes: as they are, as a narrower float, or as 8-bit integers with a scale per 256."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from sparse_plugins.wire.reader import CodecError, Reader

__all__ = [
    "DTYPES",
    "PER_SCALE",
    "decode_values",
    "encode_values",
    "is_floating",
    "is_number",
    "sent_dtype",
    "values_size",
]

Array = np.ndarray[Any, Any]

DTYPES = ("float32", "bfloat16", "float16", "int8")
PER_SCALE = 256


def is_floating(dtype: np.dtype) -> bool:
    """Whether these are real floating-point numbers, those that NumPy alone does not know among them.

    Example:
        >>> [is_floating(np.dtype(name)) for name in ("float16", "bfloat16", "int32", "complex64")]
        [True, True, False, False]
    """
    return dtype.kind == "f" or (_is_of_ml_dtypes(dtype) and "float" in dtype.name)


def is_number(dtype: np.dtype) -> bool:
    """Whether these are numbers of any kind, or truth values.

    Example:
        >>> [is_number(np.dtype(name)) for name in ("bfloat16", "complex64", "bool", "datetime64[s]", "U1")]
        [True, True, True, False, False]
    """
    return dtype.kind in "biufc" or _is_of_ml_dtypes(dtype)


def _is_of_ml_dtypes(dtype: np.dtype) -> bool:
    return dtype.type.__module__ == ml_dtypes.__name__


def sent_dtype(native: npt.DTypeLike, dtype: str) -> np.dtype:
    """The dtype in which values travel: `dtype` if that is narrower than the leaf's own floating dtype, else its own.

    Args:
        native: Dtype of the leaf.
        dtype: One of `DTYPES`.

    Returns:
        A NumPy dtype; int8 for a floating leaf means integers with scales.

    Example:
        >>> [str(sent_dtype(native, "bfloat16")) for native in ("float32", "float16", "int32")]
        ['bfloat16', 'float16', 'int32']
    """
    native, wanted = np.dtype(native), np.dtype(dtype)
    narrower = is_floating(native) and wanted.itemsize < native.itemsize
    return wanted if narrower else native


def encode_values(values: Array, dtype: str, name: str, shuffled: bool) -> bytes:
    """Values of a leaf as bytes, lowest byte first.

    As int8, every 256 values share a float32 scale, the smallest with `127 * scale >= max(abs(values))`; a value
    is rounded to the nearest multiple of it (half to even). So the error is at most half a scale, but for the rounding
    to the leaf's own dtype, and zeros stay zeros, of positive sign.

    Args:
        values: [count] of the leaf's dtype.
        dtype: One of `DTYPES`.
        name: Path of the leaf, for the message.
        shuffled: All first bytes, then all second ones, and so on, which compresses better.

    Returns:
        The bytes; how many follows from count and dtypes.

    Raises:
        ValueError: If int8 would have to hold a value that is not finite, or a float one that is too large for it.

    Example:
        >>> encode_values(np.array([1.0, 2.0], np.float16), "float32", "w", shuffled=False).hex()
        '003c0040'
    """
    sent = sent_dtype(values.dtype, dtype)
    if sent == values.dtype:
        return _to_bytes(values, shuffled)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        parts = _quantized(values, name) if sent == np.int8 else [_narrowed(values, sent, name)]
    return b"".join(_to_bytes(part, shuffled) for part in parts)


def values_size(count: int, native: npt.DTypeLike, dtype: str) -> int:
    """How many bytes `encode_values` makes of so many values of a dtype.

    Example:
        >>> values_size(300, np.float32, "bfloat16"), values_size(300, np.float32, "int8")
        (600, 308)
    """
    sent = sent_dtype(native, dtype)
    scales = -(-count // PER_SCALE) if sent == np.int8 != np.dtype(native) else 0
    return count * sent.itemsize + scales * np.dtype(np.float32).itemsize


def decode_values(reader: Reader, count: int, native: npt.DTypeLike, dtype: str, shuffled: bool) -> Array:
    """Reads what `encode_values` wrote.

    Args:
        reader: Stands where the values start.
        count: How many there are.
        native: Dtype of the leaf.
        dtype: The dtype that was asked for.
        shuffled: As for `encode_values`.

    Returns:
        [count] of the dtype `native`.

    Raises:
        CodecError: If bytes are missing, a scale is no scale, or a truth value is neither 0 nor 1.

    Example:
        >>> decode_values(Reader(bytes.fromhex("003c0040")), 2, np.float16, "float32", shuffled=False).tolist()
        [1.0, 2.0]
    """
    native, sent = np.dtype(native), sent_dtype(native, dtype)
    if sent == np.int8 != native:
        scales = _from_bytes(reader, -(-count // PER_SCALE), np.dtype(np.float32), shuffled)
        integers = _from_bytes(reader, count, sent, shuffled)
        return _dequantize(scales, integers, native)
    if native == np.bool_:
        truth = _from_bytes(reader, count, np.dtype(np.uint8), shuffled)
        if np.any(truth > 1):
            raise CodecError("a truth value is neither 0 nor 1.")
        return truth.view(np.bool_)
    with np.errstate(invalid="ignore"):
        return _from_bytes(reader, count, sent, shuffled).astype(native, copy=False)


def _narrowed(values: Array, sent: np.dtype, name: str) -> Array:
    narrow = values.astype(sent)
    if np.any(np.isinf(narrow) & np.isfinite(values)):
        raise ValueError(
            f"leaf {name!r} has values of up to {np.max(np.abs(values[np.isfinite(values)])):g}, too large for {sent}; "
            "send a wider dtype (bfloat16 reaches as far as float32), or clip them."
        )
    return narrow


def _quantized(values: Array, name: str) -> list[Array]:
    """Scales, float32[ceil(count / 256)], and int8[count]."""
    blocks = _in_blocks(values.astype(np.float64))
    largest = np.max(np.abs(blocks), axis=1)
    nearest = (largest / 127).astype(np.float32)
    # Rounded up, for else the largest value would be 128 scales.
    scales = np.where(127.0 * nearest < largest, np.nextafter(nearest, np.float32(np.inf)), nearest)
    if not np.all(np.isfinite(scales)):
        raise ValueError(
            f"leaf {name!r} has values that are not finite or beyond float32; int8 has no code for them. Drop this "
            "update, or send a floating dtype."
        )
    steps = np.where(scales > 0, scales, 1).astype(np.float64)
    return [scales, np.rint(blocks / steps[:, None]).astype(np.int8).ravel()[: values.size]]


def _dequantize(scales: Array, integers: Array, native: np.dtype) -> Array:
    if not np.all(np.isfinite(scales) & (scales >= 0)):
        raise CodecError("a scale is negative or not finite.")
    exact, largest = np.promote_types(np.float32, f"f{native.itemsize}"), float(ml_dtypes.finfo(native).max)
    with np.errstate(over="ignore", under="ignore"):
        products = _in_blocks(integers.astype(exact)) * scales[:, None].astype(exact)
        # The scale was rounded up, so 127 of them may lie just beyond the largest value of the dtype.
        return np.clip(products.ravel()[: integers.size], -largest, largest).astype(native)


def _in_blocks(values: Array) -> Array:
    """[ceil(count / 256), 256], filled up with zeros."""
    return np.pad(values, (0, -values.size % PER_SCALE)).reshape(-1, PER_SCALE)


def _to_bytes(values: Array, shuffled: bool) -> bytes:
    octets = np.ascontiguousarray(values).view(np.uint8).reshape(values.size, values.dtype.itemsize)
    return (octets.T if shuffled else octets).tobytes()


def _from_bytes(reader: Reader, count: int, dtype: np.dtype, shuffled: bool) -> Array:
    octets = np.frombuffer(reader.take(count * dtype.itemsize), np.uint8)
    if shuffled:
        octets = np.ascontiguousarray(octets.reshape(dtype.itemsize, count).T)
    return octets.reshape(-1).view(dtype)
