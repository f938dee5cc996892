"""Which entries of an array are meant, as bytes: one bit each, or Rice-coded gaps between the rarer kind.

A code starts with a tag: 0 for the bits themselves, 1 + p for gaps with Rice parameter p, of the entries that are
meant or, with `COMPLEMENT` added, of the others. Gaps are their number, the length of the first stream in bytes, and
the two streams of `rice_streams`.
"""

from typing import Any

import numpy as np

from sparse_plugins.wire.reader import CodecError, Reader, varint
from sparse_plugins.wire.rice_codes import num_bytes, read_rice, rice_parameter, rice_streams

__all__ = ["COMPLEMENT", "decode_places", "decode_positions", "encode_places", "encode_positions", "fewest_bytes"]

Array = np.ndarray[Any, Any]

BITMASK = 0
COMPLEMENT = 64


def encode_positions(chosen: Array) -> bytes:
    """The shorter of a bitmask and Rice-coded gaps.

    Args:
        chosen: bool[n].

    Returns:
        A code of at most 1 + ceil(n / 8) bytes, without n.

    Example:
        >>> chosen = np.zeros(1000, bool)
        >>> chosen[[3, 500]] = True
        >>> len(encode_positions(chosen)), len(encode_positions(np.arange(80) % 2 == 0))
        (6, 11)
    """
    rare, tag = (~chosen, COMPLEMENT) if 2 * np.count_nonzero(chosen) > chosen.size else (chosen, 0)
    gaps = _encode_gaps(np.flatnonzero(rare), tag)
    return gaps if len(gaps) <= num_bytes(chosen.size) else bytes([BITMASK]) + np.packbits(chosen).tobytes()


def fewest_bytes(n: int, count: int) -> int:
    """A bound below which no code of some positions goes, wherever they stand.

    Args:
        n: Number of entries.
        count: How many of them are meant.

    Example:
        >>> fewest_bytes(1000, 2), len(encode_positions(np.arange(1000) < 2))
        (4, 4)
    """
    rare = min(count, n - count)
    return min(1 + num_bytes(n), 2 + len(varint(rare)) + num_bytes(rare))


def encode_places(places: Array, n: int) -> bytes:
    """What `encode_positions` returns, from places instead of truth values.

    Args:
        places: int64[k], rising, in [0, n).
        n: Number of entries.

    Returns:
        A code of at most 1 + ceil(n / 8) bytes, without n.

    Example:
        >>> len(encode_places(np.array([3, 500]), 1000))
        6
    """
    if 2 * places.size <= n and len(gaps := _encode_gaps(places, 0)) <= num_bytes(n):
        return gaps
    chosen = np.zeros(n, np.bool_)
    chosen[places] = True
    return encode_positions(chosen)


def decode_positions(tag: int, reader: Reader, n: int) -> Array:
    """Reads what `encode_positions` wrote.

    Args:
        tag: First byte of the code.
        reader: Stands behind it.
        n: Number of entries, below 2**31.

    Returns:
        bool[n]. Time and memory are proportional to n, whatever the bytes say.

    Raises:
        CodecError: If this is no code of n entries.

    Example:
        >>> tag, *rest = encode_positions(np.array([False, True, False]))
        >>> decode_positions(tag, Reader(bytes(rest)), 3).tolist()
        [False, True, False]
    """
    if tag == BITMASK:
        bits = np.frombuffer(reader.take(num_bytes(n)), np.uint8)
        return np.unpackbits(bits, count=n).view(np.bool_)
    is_complement = tag >= COMPLEMENT
    chosen = np.full(n, is_complement)
    chosen[_decode_gaps(tag, reader, n)] = not is_complement
    return chosen


def decode_places(tag: int, reader: Reader, n: int) -> Array:
    """Reads what `encode_places` wrote.

    Args:
        tag: First byte of the code.
        reader: Stands behind it.
        n: Number of entries, below 2**31.

    Returns:
        int64[k], rising, in [0, n).

    Raises:
        CodecError: If this is no code of n entries.

    Example:
        >>> tag, *rest = encode_places(np.array([3, 500]), 1000)
        >>> decode_places(tag, Reader(bytes(rest)), 1000).tolist()
        [3, 500]
    """
    if BITMASK < tag < COMPLEMENT:
        return _decode_gaps(tag, reader, n)
    return np.flatnonzero(decode_positions(tag, reader, n))


def _encode_gaps(rare: Array, tag: int) -> bytes:
    gaps = np.diff(rare, prepend=-1) - 1
    parameter = rice_parameter(gaps)
    unary, planes = rice_streams(gaps, parameter)
    return bytes([tag + 1 + parameter]) + varint(gaps.size) + varint(len(unary)) + unary + planes


def _decode_gaps(tag: int, reader: Reader, n: int) -> Array:
    """The places of the rarer kind."""
    if tag >= 2 * COMPLEMENT:
        raise CodecError(f"there is no position code {tag}.")
    parameter = tag % COMPLEMENT - 1
    if not 0 <= parameter < max(n.bit_length(), 1):
        raise CodecError(f"no position code of {n} entries has Rice parameter {parameter}.")
    count = reader.varint(n // 2, "number of gaps")
    num_unary = reader.varint(num_bytes(n), "length of the unary stream")
    # A bitmask would have been shorter: refused before anything is unpacked, for that bounds memory.
    if num_unary + (num_planes := num_bytes(count * parameter)) > num_bytes(n):
        raise CodecError(f"{num_unary} + {num_planes} bytes of gaps for {n} entries are more than their bitmask.")
    gaps = read_rice(reader, parameter, count, num_unary, "gaps")
    if (covered := int(gaps.sum()) + count) > n:
        raise CodecError(f"the gaps lead to entry {covered} of {n}.")
    return np.cumsum(gaps + 1) - 1
