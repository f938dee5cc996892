"""The mask of one leaf as bytes, in the shortest of all forms that sender and receiver have in common.

A form starts with one byte. Below 128 it is the tag of a position code: a bitmask or Rice-coded gaps.
"""

import zlib
from typing import Any

import numpy as np

from sparse_plugins.wire.leaves import Leaf
from sparse_plugins.wire.position_codes import decode_positions, encode_positions, fewest_bytes
from sparse_plugins.wire.reader import CodecError, Reader, varint
from sparse_plugins.wire.seeded_masks import drawn_mask

__all__ = ["decode_mask", "digest_of_bits", "encode_mask", "needs_base", "needs_seed"]

Array = np.ndarray[Any, Any]

_WHOLE, _DENSE, _SAME, _DIFFERENCE, _SEED = (bytes([128 + form]) for form in range(5))
_NAMES = {_WHOLE: "whole", _DENSE: "dense", _SAME: "same", _DIFFERENCE: "difference", _SEED: "seed"}


def encode_mask(mask: Array | None, leaf: Leaf) -> bytes:
    """The shortest form of a mask; among equals the one that needs least from the receiver.

    Args:
        mask: bool[n]; None for a leaf that is sent whole and has no mask.
        leaf: The leaf.

    Returns:
        The form, 1 to 1 + ceil(n / 8) bytes.

    Example:
        >>> old, new = np.arange(800) % 2 == 0, np.arange(800) % 2 == 0
        >>> new[:2] = ~new[:2]
        >>> leaf = Leaf("w", (800,), np.dtype(np.float32), base=old)
        >>> [len(encode_mask(mask, leaf)) for mask in (old, new)]
        [1, 9]
    """
    if mask is None:
        return _WHOLE
    if mask.all():
        return _DENSE
    if leaf.base is not None and np.array_equal(mask, leaf.base):
        return _SAME
    count, drawn = int(np.count_nonzero(mask)), b""
    if leaf.key is not None and np.array_equal(mask, drawn_mask(leaf.key, leaf.size, count)):
        drawn = _SEED + varint(count)
        if leaf.base is None and len(drawn) < fewest_bytes(leaf.size, count):
            return drawn
    forms = [encode_positions(mask)]
    if leaf.base is not None:
        dropped, grown = ~mask[leaf.base], mask[~leaf.base]
        forms.append(_DIFFERENCE + encode_positions(dropped) + encode_positions(grown))
    return min([*forms, drawn] if drawn else forms, key=len)


def decode_mask(reader: Reader, leaf: Leaf) -> tuple[Array | None, str]:
    """Reads what `encode_mask` wrote.

    Args:
        reader: Stands where the form starts.
        leaf: The leaf, with the same base and key.

    Returns:
        The mask as bool[n], None where the leaf is sent whole, and the name of the form.

    Raises:
        CodecError: If this is no form of that leaf.

    Example:
        >>> mask, leaf = np.arange(80) % 2 == 0, Leaf("w", (80,), np.dtype(np.float32))
        >>> decode_mask(Reader(encode_mask(mask, leaf)), leaf)[1]
        'bitmask'
    """
    tag = reader.byte()
    if tag < _WHOLE[0]:
        return decode_positions(tag, reader, leaf.size), "rice" if tag else "bitmask"
    form = bytes([tag])
    if form not in _NAMES:
        raise CodecError(f"there is no mask form {tag}.")
    return _decode_form(form, reader, leaf), _NAMES[form]


def needs_base(form: bytes) -> bool:
    """Whether a form can be read only with the base mask."""
    return form[:1] in (_SAME, _DIFFERENCE)


def needs_seed(form: bytes) -> bool:
    """Whether a form can be read only with the seed."""
    return form[:1] == _SEED


def _decode_form(form: bytes, reader: Reader, leaf: Leaf) -> Array | None:
    if form == _WHOLE:
        return None
    if form == _DENSE:
        return np.ones(leaf.size, np.bool_)
    if form == _SEED:
        if leaf.key is None:
            raise CodecError("its mask comes from a seed, but the payload holds none.")
        return drawn_mask(leaf.key, leaf.size, reader.varint(leaf.size, "number of kept entries"))
    if leaf.base is None:
        raise CodecError("its mask refers to a base mask, but this leaf or payload has none.")
    if form == _SAME:
        return leaf.base.copy()
    mask = leaf.base.copy()
    num_kept = int(np.count_nonzero(leaf.base))
    mask[leaf.base] = ~decode_positions(reader.byte(), reader, num_kept)
    mask[~leaf.base] = decode_positions(reader.byte(), reader, leaf.size - num_kept)
    return mask


def digest_of_bits(masks: list[Array | None]) -> int:
    """A checksum by which two sides find out whether they hold the same masks.

    Args:
        masks: bool[n] of every leaf, None where it has none.

    Returns:
        A number below 2**32.

    Example:
        >>> mask = np.array([True, False])
        >>> digest_of_bits([mask, None]) == digest_of_bits([mask, None]) != digest_of_bits([~mask, None])
        True
    """
    digest = 0
    for mask in masks:
        digest = zlib.crc32(b"\0" if mask is None else b"\1" + np.packbits(mask).tobytes(), digest)
    return digest
