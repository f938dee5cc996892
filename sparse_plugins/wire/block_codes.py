"""What changed in a leaf, as bytes: block by block, in each the shortest of four forms.

A block is a million entries, so that what coding needs beside the leaf has a bound. Small weights change often and
large ones seldom, since a step of an optimizer is as long for both and the numbers near zero lie closer. So the changes
of a block are coded in bands of magnitude, which the receiver knows from its base: in each band with a rate, and with
lengths of steps, that are its own. Zeros are a band by themselves: where sparse weights stay in their masks, positions
outside cost nothing.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from sparse_plugins.wire.bit_patterns import magnitude_classes, stepped, steps
from sparse_plugins.wire.position_codes import decode_places, encode_places
from sparse_plugins.wire.rank_index import RankIndex, num_words, pack_into
from sparse_plugins.wire.reader import CodecError, Reader
from sparse_plugins.wire.step_codes import are_small, decode_planes, decode_steps, encode_planes, encode_steps

__all__ = ["decode_blocks", "encode_blocks", "most_bytes"]

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 20
_SAME, _CHANGES, _ALL, _WHOLE = (bytes([form]) for form in range(4))
_CLASSES = 256
_SAMPLED = 16  # one entry of so many is asked whether it is zero
_IN_CACHE = 1 << 17
_FEW_BANDS, _MANY_BANDS = 4, 8  # where less or more than one entry of 32 changed; without zeros
_MOST_BOUNDS = _MANY_BANDS + 1
_LEAST_CHANGES = 256  # in a band: fewer would not pay for what the band costs


def encode_blocks(new: Array, base: Array | None, is_signed: bool, zstd: bool) -> bytes:
    """Writes what makes `new` of `base`.

    Args:
        new: Patterns [n].
        base: Patterns [n] of the same dtype; None where the receiver has none.
        is_signed: Whether they are floats, see `signed_by_top_bit`.
        zstd: Compress planes by zstd instead of deflate.

    Returns:
        The code, at most `most_bytes` long.

    Example:
        >>> base = np.arange(10_000, dtype=np.uint16)
        >>> new = base.copy()
        >>> new[[5, 5000]] += 1
        >>> len(encode_blocks(base, base, True, False)), len(encode_blocks(new, base, True, False)) < 30
        (1, True)
    """
    codes = []
    for start in range(0, new.size, _BLOCK):
        block = new[start : start + _BLOCK]
        if base is None:
            codes.append(_encode_snapshot(block, is_signed, zstd))
        else:
            codes.append(_encode_block(block, base[start : start + _BLOCK], is_signed, zstd))
    return b"".join(codes)


def decode_blocks(reader: Reader, base: Array | None, new: Array, is_signed: bool) -> None:
    """Reads what `encode_blocks` wrote.

    Args:
        reader: Stands where the code starts.
        base: Patterns [n]; None if the code was made without.
        new: Patterns [n], which are written.
        is_signed: As for `encode_blocks`.

    Raises:
        CodecError: If this is no code of so many entries.

    Example:
        >>> base, new = np.arange(9, dtype=np.uint8), np.empty(9, np.uint8)
        >>> decode_blocks(Reader(encode_blocks(base[::-1], base, False, False)), base, new, False)
        >>> new.tolist()
        [8, 7, 6, 5, 4, 3, 2, 1, 0]
    """
    for start in range(0, new.size, _BLOCK):
        block = new[start : start + _BLOCK]
        old = np.zeros_like(block) if base is None else base[start : start + _BLOCK]
        _decode_block(reader, old, block, is_signed)


def most_bytes(size: int, itemsize: int) -> int:
    """How long a code of so many entries can be: that of a leaf as it is, and a few bytes a block.

    Example:
        >>> most_bytes(1000, 2)
        2003
    """
    return size * itemsize + -(-size // _BLOCK) * (1 + itemsize)


def _encode_block(new: Array, old: Array, is_signed: bool, zstd: bool) -> bytes:
    places = np.flatnonzero(new != old)
    if not places.size:
        return _SAME
    is_sparse = 8 * places.size <= new.size
    codes = []
    if is_sparse or are_small(steps(new[places], old[places], is_signed)):
        codes.append(_CHANGES + _encode_changes(places, new, old, is_signed, zstd))
    if is_sparse and 2 * len(codes[0]) <= new.nbytes:
        return codes[0]
    codes += [_ALL + encode_planes(steps(new, old, is_signed), zstd), _encode_whole(new, is_signed, zstd)]
    return min(codes, key=len)


def _encode_snapshot(new: Array, is_signed: bool, zstd: bool) -> bytes:
    """What is not zero, or all where that is most."""
    places, nothing = np.flatnonzero(new), np.zeros_like(new)
    if 2 * places.size > new.size:
        return _encode_whole(new, is_signed, zstd)
    changes = _CHANGES + _encode_changes(places, new, nothing, is_signed, zstd)
    return min(changes, _encode_whole(new, is_signed, zstd), key=len)


def _encode_whole(new: Array, is_signed: bool, zstd: bool) -> bytes:
    return _WHOLE + encode_planes(steps(new, np.zeros_like(new), is_signed), zstd)


def _decode_block(reader: Reader, old: Array, new: Array, is_signed: bool) -> None:
    form = bytes(reader.take(1))
    if form == _SAME:
        new[:] = old
    elif form == _CHANGES:
        new[:] = old
        _decode_changes(reader, old, new, is_signed)
    elif form in (_ALL, _WHOLE):
        start = old if form == _ALL else np.zeros_like(new)
        new[:] = stepped(start, decode_planes(reader, new.size, new.dtype), is_signed)
    else:
        raise CodecError(f"there is no form of blocks {form[0]}.")


def _encode_changes(places: Array, new: Array, old: Array, is_signed: bool, zstd: bool) -> bytes:
    before = old[places]
    bounds, classes = _band_bounds(before, old)
    moves = steps(new[places], before, is_signed)
    band_of = np.searchsorted(bounds, np.arange(_CLASSES), side="right").astype(np.uint8)[classes]
    positions, by_band = b"", []
    for number, index in enumerate(_bands(old, bounds)):
        chosen = np.flatnonzero(band_of == number)
        positions += encode_places(index.ranks(places[chosen]), index.count)
        by_band.append(moves[chosen])
    sizes = [band.size for band in by_band]
    return bytes([len(bounds), *bounds]) + positions + encode_steps(np.concatenate(by_band), sizes, zstd)


def _decode_changes(reader: Reader, old: Array, new: Array, is_signed: bool) -> None:
    bounds = list(reader.take(reader.byte()))
    if len(bounds) > _MOST_BOUNDS or sorted({0, *bounds}) != [0, *bounds]:
        raise CodecError(f"no block has bands with the bounds {bounds}.")
    by_band = [index.places(decode_places(reader.byte(), reader, index.count)) for index in _bands(old, bounds)]
    moves = decode_steps(reader, [band.size for band in by_band], old.dtype)
    places = np.concatenate(by_band)
    new[places] = stepped(old[places], moves, is_signed)


def _band_bounds(changed: Array, old: Array) -> tuple[list[int], Array]:
    """First classes of all bands but the lowest: as many changes in each, and zeros alone if they are many.

    Returns:
        They, and the classes of all that changed.
    """
    classes = magnitude_classes(changed)
    num_bands = _FEW_BANDS if 32 * changed.size < old.size else _MANY_BANDS
    least = max(_LEAST_CHANGES, -(-changed.size // num_bands))
    passed = np.cumsum(np.bincount(classes, minlength=_CLASSES)) // least
    bounds = 1 + np.flatnonzero(np.diff(passed, prepend=0))
    sample = magnitude_classes(old[::_SAMPLED])
    are_zeros_many = 64 * np.count_nonzero(sample == 0) > sample.size
    return sorted({*([1] if are_zeros_many else []), *bounds[bounds < _CLASSES].tolist()}), classes


def _bands(pattern: Array, bounds: list[int]) -> Iterator[RankIndex]:
    """Which entries lie in each band, from the lowest."""
    up_to = np.zeros((len(bounds) + 1, num_words(pattern.size)), np.uint64)
    for start in range(0, pattern.size, _IN_CACHE):
        classes = magnitude_classes(pattern[start : start + _IN_CACHE])
        for words, bound in zip(up_to, (*bounds, _CLASSES), strict=True):
            pack_into(words, start, classes < bound)
    yield RankIndex(up_to[0])
    yield from (RankIndex(words ^ below) for below, words in itertools.pairwise(up_to))
