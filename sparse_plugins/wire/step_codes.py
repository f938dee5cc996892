"""Steps between bit patterns as bytes: nearly all of them small, or spread so wide that only some bytes repeat.

A code starts with a byte: 0 for small steps, 1 for planes. Small steps are the directions (a position code over all),
and for each band the steps that are longer than one (a position code) and by how much (Rice). Planes are the steps'
highest bytes, then the next ones: each as it is, as deflate or as zstd makes it.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparse_plugins.wire import zstd_frames
from sparse_plugins.wire.position_codes import decode_positions, encode_positions
from sparse_plugins.wire.reader import CodecError, Reader, varint
from sparse_plugins.wire.rice_codes import num_bytes, read_rice, rice_parameter, rice_streams

__all__ = ["are_small", "decode_planes", "decode_steps", "encode_planes", "encode_steps"]

Array = np.ndarray[Any, Any]

_SMALL, _PLANES = b"\0", b"\1"
_RAW, _DEFLATE, _ZSTD = b"\0", b"\1", b"\2"
_LARGEST_SMALL = 1 << 24
_SAMPLE = 1 << 14  # bytes by which a plane that can't be compressed is known
_MOST_UNARY = 3  # bits a number, see `rice_streams`


def are_small(moves: Array) -> bool:
    """Whether steps can be written as small ones.

    Example:
        >>> are_small(np.array([1, 9], np.uint32)), are_small(np.array([1, 1 << 30], np.uint32))
        (True, False)
    """
    return int(moves.max(initial=0)) <= _LARGEST_SMALL


def encode_steps(moves: Array, sizes: Sequence[int], zstd: bool) -> bytes:
    """The shorter code of steps of which none is 0.

    Args:
        moves: Unsigned integers [k] of `steps`, 1 or more, band after band.
        sizes: How many steps each band has.
        zstd: Compress planes by zstd instead of deflate.

    Returns:
        The code.

    Example:
        >>> len(encode_steps(np.tile(np.array([1, 2], np.uint16), 400), [800], zstd=False))
        107
    """
    planes = lambda: _PLANES + encode_planes(moves, zstd)  # noqa: E731
    if not are_small(moves):
        return planes()
    small = _SMALL + encode_positions((moves & 1).astype(np.bool_))
    lengths, start = ((moves.astype(np.int64) + 1) >> 1) - 1, 0
    for size in sizes:
        small += _encode_lengths(lengths[start : start + size])
        start += size
    # Where lengths have many values, their planes may repeat more than Rice codes know.
    return small if len(small) <= moves.size // 2 else min(small, planes(), key=len)


def decode_steps(reader: Reader, sizes: Sequence[int], dtype: np.dtype) -> Array:
    """Reads what `encode_steps` wrote.

    Args:
        reader: Stands where the code starts.
        sizes: How many steps each band has.
        dtype: Dtype of the patterns.

    Returns:
        Unsigned integers [k].

    Raises:
        CodecError: If this is no code of so many steps.

    Example:
        >>> code = encode_steps(np.array([1, 2, 9], np.uint16), [1, 2], zstd=False)
        >>> decode_steps(Reader(code), [1, 2], np.dtype(np.uint16)).tolist()
        [1, 2, 9]
    """
    count = sum(sizes)
    tag = bytes(reader.take(1))
    if tag == _PLANES:
        moves = decode_planes(reader, count, dtype)
        if not moves.all():
            raise CodecError("an entry that changed took no step.")
        return moves
    if tag != _SMALL:
        raise CodecError(f"there is no code of steps {tag[0]}.")
    is_down = decode_positions(reader.byte(), reader, count)
    lengths = np.concatenate([_decode_lengths(reader, size) for size in sizes] or [np.zeros(0, np.int64)])
    moves = 2 * (lengths + 1) - is_down
    if int(moves.max(initial=0)) >= 1 << 8 * dtype.itemsize:
        raise CodecError(f"a step is longer than {dtype} has room for.")
    return moves.astype(dtype)


def encode_planes(numbers: Array, zstd: bool) -> bytes:
    """Bytes of numbers by significance, each plane in its shortest form.

    Args:
        numbers: Unsigned integers [k].
        zstd: Compress by zstd instead of deflate.

    Returns:
        The code.

    Example:
        >>> len(encode_planes(np.arange(1000, dtype=np.uint32) % 7, zstd=False)) < 500
        True
    """
    octets = numbers.view(np.uint8).reshape(numbers.size, numbers.dtype.itemsize)
    return b"".join(_encode_plane(octets[:, place].tobytes(), zstd) for place in reversed(range(octets.shape[1])))


def decode_planes(reader: Reader, count: int, dtype: np.dtype) -> Array:
    """Reads what `encode_planes` wrote.

    Raises:
        CodecError: If this is no code of so many numbers.

    Example:
        >>> numbers = np.arange(1000, dtype=np.uint32) * 70_000
        >>> bool((decode_planes(Reader(encode_planes(numbers, False)), 1000, numbers.dtype) == numbers).all())
        True
    """
    octets = np.empty((count, dtype.itemsize), np.uint8)
    for place in reversed(range(dtype.itemsize)):
        octets[:, place] = _decode_plane(reader, count)
    return octets.reshape(-1).view(dtype)


def _encode_lengths(lengths: Array) -> bytes:
    is_long = lengths > 0
    rest = lengths[is_long] - 1
    parameter = rice_parameter(rest)
    unary, planes = rice_streams(rest, parameter)
    return encode_positions(is_long) + bytes([parameter]) + varint(len(unary)) + unary + planes


def _decode_lengths(reader: Reader, count: int) -> Array:
    is_long = decode_positions(reader.byte(), reader, count)
    num_long, parameter = int(np.count_nonzero(is_long)), reader.byte()
    if parameter >= _LARGEST_SMALL.bit_length():
        raise CodecError(f"no steps have Rice parameter {parameter}.")
    num_unary = reader.varint(num_bytes(_MOST_UNARY * num_long), "length of the unary stream")
    lengths = np.zeros(count, np.int64)
    lengths[is_long] = read_rice(reader, parameter, num_long, num_unary, "steps") + 1
    return lengths


def _encode_plane(plane: bytes, zstd: bool) -> bytes:
    tag, compress = (_ZSTD, zstd_frames.compressed) if zstd else (_DEFLATE, _deflated)
    sample = plane[:_SAMPLE]
    if len(plane) > _SAMPLE and len(compress(sample)) > 0.98 * _SAMPLE:
        return _RAW + plane
    content = compress(plane)
    return tag + varint(len(content)) + content if len(content) + 9 < len(plane) else _RAW + plane


def _decode_plane(reader: Reader, count: int) -> Array:
    tag = bytes(reader.take(1))
    if tag == _RAW:
        return np.frombuffer(reader.take(count), np.uint8)
    if tag not in (_DEFLATE, _ZSTD):
        raise CodecError(f"there is no form of planes {tag[0]}.")
    content = reader.take(reader.varint(count, "length of a plane"))
    return np.frombuffer((_from_zstd if tag == _ZSTD else _inflated)(content, count), np.uint8)


def _from_zstd(content: memoryview, count: int) -> bytes:
    if (size := zstd_frames.decompressed_size(content)) != count:
        raise CodecError(f"a plane has {size} bytes, and {count} are due.")
    return zstd_frames.decompressed(content, count)


def _deflated(plane: bytes) -> bytes:
    # Runs and the code of Huffman are all that pays in such bytes: matches cost ten times the time.
    compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return compressor.compress(plane) + compressor.flush()


def _inflated(content: memoryview, count: int) -> bytes:
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plane = decompressor.decompress(content, count + 1)
    except zlib.error as error:
        raise CodecError(f"a plane can't be decompressed: {error}.") from error
    if len(plane) != count or not decompressor.eof or decompressor.unused_data:
        raise CodecError(f"a plane does not hold the {count} bytes that are due.")
    return plane
