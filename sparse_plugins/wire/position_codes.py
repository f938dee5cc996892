"""Which entries of an array are meant, as bytes: one bit each, or Rice-coded gaps between the rarer kind.

A code starts with a tag: 0 for the bits themselves, 1 + p for gaps with Rice parameter p, of the entries that are
meant or, with `COMPLEMENT` added, of the others. Gaps with parameter p (Rice, 1979) are their number, the length of the
first stream in bytes, and two streams: `gap >> p` in unary (zeros, then a one), and the p low bits, one plane of bits
after the other. Streams of one kind are coded all at once.
"""

from typing import Any

import numpy as np

from sparse_plugins.wire.reader import CodecError, Reader, varint

__all__ = ["COMPLEMENT", "decode_positions", "encode_positions", "rice_parameter"]

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
    bitmask = bytes([BITMASK]) + np.packbits(chosen).tobytes()
    return min(bitmask, _encode_gaps(rare, tag), key=len)


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
        bits = np.frombuffer(reader.take(_num_bytes(n)), np.uint8)
        return np.unpackbits(bits, count=n).view(np.bool_)
    if tag >= 2 * COMPLEMENT:
        raise CodecError(f"there is no position code {tag}.")
    rare = _decode_gaps(tag % COMPLEMENT - 1, reader, n)
    return ~rare if tag >= COMPLEMENT else rare


def rice_parameter(gaps: Array) -> int:
    """The parameter with which Rice codes of the gaps are shortest.

    Raising p to p + 1 costs a bit a gap and saves `ceil((gap >> p) / 2)` bits of each. The saving only falls with p,
    so the first p at which it does not pay is the best of all.

    Args:
        gaps: int64[k], 0 or more.

    Returns:
        The parameter; the smallest one if several are equal.

    Example:
        >>> rice_parameter(np.array([9, 12, 10]))
        3
    """
    parameter, quotients = 0, gaps
    while np.sum((quotients + 1) >> 1) > gaps.size:
        parameter, quotients = parameter + 1, quotients >> 1
    return parameter


def _encode_gaps(rare: Array, tag: int) -> bytes:
    gaps = np.diff(np.flatnonzero(rare), prepend=-1) - 1
    parameter = rice_parameter(gaps)
    ends = np.cumsum((gaps >> parameter) + 1)
    unary = np.zeros(ends[-1] if gaps.size else 0, np.uint8)
    unary[ends - 1] = 1
    planes = [(gaps >> place & 1).astype(np.uint8) for place in range(parameter)]
    streams = [np.packbits(unary).tobytes(), np.packbits(np.concatenate([*planes, unary[:0]])).tobytes()]
    return bytes([tag + 1 + parameter]) + varint(gaps.size) + varint(len(streams[0])) + b"".join(streams)


def _decode_gaps(parameter: int, reader: Reader, n: int) -> Array:
    if not 0 <= parameter < max(n.bit_length(), 1):
        raise CodecError(f"no position code of {n} entries has Rice parameter {parameter}.")
    count = reader.varint(n // 2, "number of gaps")
    num_unary, num_planes = reader.varint(_num_bytes(n), "length of the unary stream"), _num_bytes(count * parameter)
    # A bitmask would have been shorter: refused before anything is unpacked, for that bounds memory.
    if num_unary + num_planes > _num_bytes(n):
        raise CodecError(f"{num_unary} + {num_planes} bytes of gaps for {n} entries are more than their bitmask.")
    ends = np.flatnonzero(_unpacked(reader, num_unary))
    if ends.size != count:
        raise CodecError(f"the unary stream ends {ends.size} gaps, but {count} were announced.")
    gaps = (np.diff(ends, prepend=-1) - 1) << parameter
    planes = _unpacked(reader, num_planes)[: count * parameter].reshape(parameter, count)
    for place, plane in enumerate(planes):
        gaps |= plane.astype(np.int64) << place
    if (covered := int(gaps.sum()) + count) > n:
        raise CodecError(f"the gaps lead to entry {covered} of {n}.")
    rare = np.zeros(n, np.bool_)
    rare[np.cumsum(gaps + 1) - 1] = True
    return rare


def _unpacked(reader: Reader, num_bytes: int) -> Array:
    return np.unpackbits(np.frombuffer(reader.take(num_bytes), np.uint8))


def _num_bytes(bits: int) -> int:
    return -(-bits // 8)
