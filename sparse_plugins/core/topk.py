"""Exact masks of the k largest scores, without sorting.

Scores are mapped to unsigned integers that keep their order. A radix search over the pair (key, reversed position)
finds the k-th pair by counting, two bits a pass; the mask is everything at or above it. Ties therefore go to the
lower position with no second program, and only counts are ever combined, so several arrays can be ranked together
without joining them and sharded arrays without moving them.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["exact_topk", "order_keys"]

_BITS_PER_PASS = 2
_PIVOTS = (1 << _BITS_PER_PASS) - 1
_MIN_CHUNK = 16384
# A chunk's hits are summed in 8-bit lanes, so one accumulation may take at most 255 chunks.
_MAX_CHUNKS = 64

Pivot = tuple[jax.Array, jax.Array]  # (key, reversed position)
Counter = Callable[[Sequence[Pivot]], jax.Array]


def order_keys(scores: jax.Array) -> jax.Array:
    """Maps scores to unsigned integers of the same order.

    Args:
        scores: Real array of any shape: floating, integer or boolean.

    Returns:
        uint32 (uint64 for 64-bit scores) of the same shape. NaN maps to 0, below everything; -0 equals +0.

    Raises:
        TypeError: For complex scores.

    Example:
        >>> import numpy as np
        >>> keys = order_keys(jnp.array([jnp.nan, -1.0, -0.0, 0.0, jnp.inf]))
        >>> bool((keys[0] < keys[1]) & (keys[1] < keys[2]) & (keys[2] == keys[3]) & (keys[3] < keys[4]))
        True
    """
    scores = jnp.asarray(scores)
    if jnp.issubdtype(scores.dtype, jnp.complexfloating):
        raise TypeError(f"scores are {scores.dtype}; rank a real quantity, for example jnp.abs(scores).")
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger) or scores.dtype == jnp.bool_:
        return scores.astype(jnp.uint64 if scores.dtype == jnp.uint64 else jnp.uint32)
    wide = jnp.dtype(scores.dtype).itemsize == 8
    word, bits = (jnp.uint64, 64) if wide else (jnp.uint32, 32)
    sign = word(1 << (bits - 1))
    if jnp.issubdtype(scores.dtype, jnp.signedinteger):
        return lax.bitcast_convert_type(scores.astype(jnp.int64 if wide else jnp.int32), word) ^ sign
    scores = scores.astype(jnp.float64 if wide else jnp.float32)
    pattern = lax.bitcast_convert_type(scores, word)
    keys = jnp.where(pattern >= sign, ~pattern, pattern | sign)
    # Zero and NaN are told from the bits: a comparison of floats may flush denormals, and not on every backend.
    magnitude, infinity = pattern << 1, lax.bitcast_convert_type(jnp.asarray(jnp.inf, scores.dtype), word) << 1
    keys = jnp.where(magnitude == 0, sign, keys)
    return jnp.where(magnitude > infinity, word(0), keys)


def exact_topk(scores: Sequence[jax.Array], k: int | jax.Array) -> list[jax.Array]:
    """Masks of the k largest scores among all arrays together.

    Args:
        scores: Real arrays of any shapes and dtypes; fewer than 2**31 entries in all.
        k: How many to keep, int or int32[]; values outside [0, total] are clipped.

    Returns:
        One uint8 mask per array with exactly k ones in all. Equal scores are taken in order of array, then of
        row-major position; NaN is taken last.

    Example:
        >>> [mask.tolist() for mask in exact_topk([jnp.array([3.0, 1.0]), jnp.array([3.0])], 1)]
        [[1, 0], [0]]
    """
    scores = _of_one_type([jnp.asarray(score) for score in scores])
    total = sum(score.size for score in scores)
    if total == 0:
        return [jnp.zeros(score.shape, jnp.uint8) for score in scores]
    if total >= 1 << 31:
        raise ValueError(f"{total} scores are ranked together; at most 2**31 - 1 can be. Rank them per layer.")
    return _masks_of_best(scores, jnp.asarray(k, jnp.int32))


@jax.jit
def _masks_of_best(scores: list[jax.Array], k: jax.Array) -> list[jax.Array]:
    """Jitted on its own so that an eager caller compiles the search once per set of shapes, not at every call."""
    total = sum(score.size for score in scores)
    key_type = order_keys(jnp.zeros((), scores[0].dtype)).dtype
    starts = [sum(score.size for score in scores[:i]) for i in range(len(scores))]
    counters = [_counter(score, start, total) for score, start in zip(scores, starts, strict=True)]
    key, reverse = _kth_pair(
        lambda pivots: functools.reduce(jnp.add, [count(pivots) for count in counters]), k, total, key_type
    )

    def mask(score: jax.Array, start: int) -> jax.Array:
        position = _reversed_positions(score.shape, start, total)
        return (_at_least(order_keys(score), position, (key, reverse)) & (k > 0)).astype(jnp.uint8)

    return [mask(score, start) for score, start in zip(scores, starts, strict=True)]


def _of_one_type(scores: list[jax.Array]) -> list[jax.Array]:
    """Scores whose keys can be compared: promoted to the widest dtype, all of one kind."""
    dtypes = {score.dtype for score in scores}
    kinds = (jnp.floating, jnp.signedinteger, jnp.unsignedinteger, jnp.bool_)
    if not any(all(jnp.issubdtype(dtype, kind) for dtype in dtypes) for kind in (*kinds, jnp.complexfloating)):
        raise TypeError(f"scores of {', '.join(sorted(map(str, dtypes)))} cannot be ranked together; give one dtype.")
    widest = functools.reduce(jnp.promote_types, dtypes)
    return [score.astype(widest) for score in scores]


def _kth_pair(count: Counter, k: jax.Array, total: int, key_type: jnp.dtype) -> Pivot:
    """The largest (key, reversed position) that at least k pairs reach, most significant bits first.

    Passes over position bits run only if the keys alone do not split the scores at exactly k.
    """
    key_passes = jnp.iinfo(key_type).bits // _BITS_PER_PASS
    position_passes = -(-max((total - 1).bit_length(), 1) // _BITS_PER_PASS)

    def undecided(carry: tuple) -> jax.Array:
        step, _, _, reached = carry
        return (step < key_passes + position_passes) & (reached != k)

    def narrow(carry: tuple) -> tuple:
        step, key, position, reached = carry
        in_key = step < key_passes
        left = jnp.where(in_key, key_passes, key_passes + position_passes) - 1 - step
        shift = (left * _BITS_PER_PASS).astype(jnp.uint32)

        def pivot(digit: jax.Array) -> Pivot:
            key_part = jnp.where(in_key, digit.astype(key_type) << shift.astype(key_type), key_type.type(0))
            return key + key_part, position + jnp.where(in_key, jnp.uint32(0), digit << shift)

        reach = count([pivot(jnp.uint32(digit)) for digit in range(1, _PIVOTS + 1)])
        digit = jnp.sum(reach >= k, dtype=jnp.uint32)
        reached = jnp.where(digit > 0, reach[jnp.maximum(digit, 1) - 1], reached)
        return step + 1, *pivot(digit), reached

    start = (jnp.int32(0), jnp.zeros((), key_type), jnp.uint32(0), jnp.int32(total))
    _, key, position, _ = lax.while_loop(undecided, narrow, start)
    return key, position


def _at_least(keys: jax.Array, positions: jax.Array, pivot: Pivot) -> jax.Array:
    return (keys > pivot[0]) | ((keys == pivot[0]) & (positions >= pivot[1]))


def _reversed_positions(shape: tuple[int, ...], start: int, total: int) -> jax.Array:
    """uint32 of `shape`: total - 1 - (start + row-major index), from one iota per axis so that it partitions."""
    position = jnp.full(shape, total - 1 - start, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position -= lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return position


def _counter(score: jax.Array, start: int, total: int) -> Counter:
    """Counts the pairs of one array that reach each pivot, in the form that suits the machine."""
    if jax.default_backend() == "cpu" and jax.device_count() == 1 and score.size > 4 * _MIN_CHUNK:
        return functools.partial(_count_in_chunks, score.reshape(-1), start, total)
    return functools.partial(_count_at_once, score, start, total)


def _count_at_once(score: jax.Array, start: int, total: int, pivots: Sequence[Pivot]) -> jax.Array:
    """One reduction a pivot over the array as it lies: fused on accelerators, and local under sharding."""
    keys, positions = order_keys(score), _reversed_positions(score.shape, start, total)
    return jnp.stack([jnp.sum(_at_least(keys, positions, pivot), dtype=jnp.int32) for pivot in pivots])


def _count_in_chunks(flat: jax.Array, start: int, total: int, pivots: Sequence[Pivot]) -> jax.Array:
    """The form for one CPU device, where XLA does not fuse a comparison into a reduction.

    An elementwise accumulation over chunks stays in cache; the hits of each pivot have 8 bits of a word.
    """
    chunk = max(_MIN_CHUNK, math.ceil(flat.size / _MAX_CHUNKS))
    chunks = flat.size // chunk
    lane = lax.iota(jnp.uint32, chunk)

    def hits(i: jax.Array) -> jax.Array:
        first = i * chunk
        keys = order_keys(lax.dynamic_slice(flat, (first,), (chunk,)))
        positions = jnp.uint32(total - 1 - start) - first.astype(jnp.uint32) - lane
        words = [
            jnp.where(_at_least(keys, positions, pivot), jnp.uint32(1 << 8 * j), jnp.uint32(0))
            for j, pivot in enumerate(pivots)
        ]
        return functools.reduce(jnp.add, words)

    sums = lax.fori_loop(0, chunks, lambda i, acc: acc + hits(i), jnp.zeros(chunk, jnp.uint32))
    reach = jnp.stack([jnp.sum((sums >> 8 * j) & 255, dtype=jnp.int32) for j in range(len(pivots))])
    if chunks * chunk < flat.size:
        rest = flat[chunks * chunk :]
        reach += _count_at_once(rest, start + chunks * chunk, total, pivots)
    return reach
