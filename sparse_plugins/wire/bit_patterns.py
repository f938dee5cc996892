"""Numbers as the bits they are, and steps between them: how far two bit patterns lie apart in the order of numbers."""

from typing import Any

import numpy as np

from sparse_plugins.wire.value_codes import is_floating

__all__ = ["magnitude_classes", "pattern_dtype", "patterns", "signed_by_top_bit", "stepped", "steps"]

Array = np.ndarray[Any, Any]

_WIDEST = 8  # bytes of one number


def pattern_dtype(dtype: np.dtype) -> np.dtype:
    """The unsigned integers that hold the bits of a dtype; a complex number is two of them.

    Raises:
        ValueError: If none are wide enough.

    Example:
        >>> [str(pattern_dtype(np.dtype(name))) for name in ("bfloat16", "bool", "complex64")]
        ['uint16', 'uint8', 'uint32']
    """
    width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    if width > _WIDEST:
        raise ValueError(f"numbers of dtype {dtype} have {8 * width} bits; give {8 * _WIDEST} at most.")
    return np.dtype(f"u{width}")


def patterns(array: Array) -> Array:
    """The bits of an array, in order.

    Args:
        array: Numbers of any dtype and shape.

    Returns:
        Unsigned integers [n]; a view where the array is contiguous.

    Example:
        >>> patterns(np.array([1.0, -0.0], np.float16)).tolist()
        [15360, 32768]
    """
    return np.ascontiguousarray(array.reshape(-1)).view(pattern_dtype(array.dtype))


def signed_by_top_bit(dtype: np.dtype) -> bool:
    """Whether the top bit of a pattern is the sign and the others are a magnitude, as in floats."""
    return dtype.kind == "c" or is_floating(dtype)


def steps(new: Array, base: Array, is_signed: bool) -> Array:
    """How many numbers of its dtype an entry moved by: 1 and 2 are a step down and up, 3 and 4 two steps.

    Neighbours among floats are a step apart, -0.0 and 0.0 too. Entries that did not move are 0.

    Args:
        new: Patterns.
        base: Patterns of the same shape and dtype.
        is_signed: See `signed_by_top_bit`.

    Returns:
        Unsigned integers of that shape and dtype.

    Example:
        >>> base = np.array([1.0, 1.0, 0.0], np.float16)
        >>> new = np.array([1.0, np.nextafter(np.float16(1), np.float16(0)), -0.0], np.float16)
        >>> steps(patterns(new), patterns(base), True).tolist()
        [0, 1, 1]
    """
    difference = _in_order(new, is_signed) - _in_order(base, is_signed)
    return (difference << 1) ^ -(difference >> _top(difference))


def stepped(base: Array, moves: Array, is_signed: bool) -> Array:
    """What `steps` were taken to.

    Example:
        >>> base = patterns(np.array([1.0, -2.5], np.float32))
        >>> new = patterns(np.array([np.nan, -0.0], np.float32))
        >>> bool((stepped(base, steps(new, base, True), True) == new).all())
        True
    """
    difference = (moves >> 1) ^ -(moves & 1)
    ordered = _in_order(base, is_signed) + difference
    return ordered ^ ((ordered >> _top(ordered)) - 1 | _top_bit(ordered)) if is_signed else ordered


def magnitude_classes(pattern: Array) -> Array:
    """The top eight bits without the sign: the exponent of float32 and bfloat16, and 0 for zeros of all floats.

    Args:
        pattern: Patterns [n].

    Returns:
        uint8[n].

    Example:
        >>> magnitude_classes(patterns(np.array([0.0, -0.0, 1.0, -1.5], np.float32))).tolist()
        [0, 0, 127, 127]
    """
    return ((pattern << 1) >> (_top(pattern) - 7)).astype(np.uint8)


def _in_order(pattern: Array, is_signed: bool) -> Array:
    """Patterns renumbered so that a larger number has a larger one."""
    return pattern ^ (-(pattern >> _top(pattern)) | _top_bit(pattern)) if is_signed else pattern


def _top(pattern: Array) -> int:
    return 8 * pattern.dtype.itemsize - 1


def _top_bit(pattern: Array) -> Array:
    return pattern.dtype.type(1 << _top(pattern))
