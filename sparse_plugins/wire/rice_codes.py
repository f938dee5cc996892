"""Numbers of which most are small, as bits: Rice codes (1979) in two streams, each made and read all at once.

With parameter p a number is `number >> p` in unary (zeros, then a one), in the first stream, and its p low bits, in the
second: one plane of bits after the other.
"""

from typing import Any

import numpy as np

from sparse_plugins.wire.reader import CodecError, Reader

__all__ = ["num_bytes", "read_rice", "rice_parameter", "rice_streams"]

Array = np.ndarray[Any, Any]


def rice_parameter(numbers: Array) -> int:
    """The parameter with which Rice codes of the numbers are shortest.

    Raising p to p + 1 costs a bit a number and saves `ceil((number >> p) / 2)` bits of each. The saving only falls with
    p, so the first p at which it does not pay is the best of all.

    Args:
        numbers: int64[k], 0 or more.

    Returns:
        The parameter; the smallest one if several are equal.

    Example:
        >>> rice_parameter(np.array([9, 12, 10]))
        3
    """
    # Up to a third of the mean it always pays.
    parameter = max(int(numbers.sum()) // max(3 * numbers.size, 1), 1).bit_length() - 1
    quotients = numbers >> parameter
    while np.sum((quotients + 1) >> 1) > numbers.size:
        parameter, quotients = parameter + 1, quotients >> 1
    return parameter


def rice_streams(numbers: Array, parameter: int) -> tuple[bytes, bytes]:
    """Numbers in unary and in planes of bits.

    Args:
        numbers: int64[k], 0 or more.
        parameter: Low bits that are written as they are.

    Returns:
        Both streams; with the best parameter the first has at most 3 bits a number.

    Example:
        >>> [stream.hex() for stream in rice_streams(np.array([9, 12, 10]), 3)]
        ['54', '8500']
    """
    ends = np.cumsum((numbers >> parameter) + 1)
    unary = np.zeros(ends[-1] if numbers.size else 0, np.uint8)
    unary[ends - 1] = 1
    planes = [(numbers >> place & 1).astype(np.uint8) for place in range(parameter)]
    return np.packbits(unary).tobytes(), np.packbits(np.concatenate([*planes, unary[:0]])).tobytes()


def read_rice(reader: Reader, parameter: int, count: int, num_unary: int, what: str) -> Array:
    """Reads what `rice_streams` wrote.

    Args:
        reader: Stands where the streams start.
        parameter: Low bits that are written as they are; times count it has to be bounded by who calls.
        count: How many numbers there are.
        num_unary: Bytes of the first stream.
        what: What they are, for the message.

    Returns:
        int64[count].

    Raises:
        CodecError: If bytes are missing, or the first stream ends more numbers or fewer.

    Example:
        >>> read_rice(Reader(bytes.fromhex("548500")), 3, 3, 1, "gaps").tolist()
        [9, 12, 10]
    """
    ends = np.flatnonzero(_unpacked(reader, num_unary))
    if ends.size != count:
        raise CodecError(f"the unary stream ends {ends.size} {what}, but {count} were announced.")
    numbers = (np.diff(ends, prepend=-1) - 1) << parameter
    planes = _unpacked(reader, num_bytes(count * parameter))[: count * parameter].reshape(parameter, count)
    for place, plane in enumerate(planes):
        numbers |= plane.astype(np.int64) << place
    return numbers


def num_bytes(bits: int) -> int:
    """Bytes that hold so many bits.

    Example:
        >>> num_bytes(8), num_bytes(9)
        (1, 2)
    """
    return -(-bits // 8)


def _unpacked(reader: Reader, size: int) -> Array:
    return np.unpackbits(np.frombuffer(reader.take(size), np.uint8))
