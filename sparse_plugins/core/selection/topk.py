"""Exact masks of the k largest scores, without sorting.

Scores are mapped to unsigned integers that keep their order: their keys. The k-th largest pair (key, reversed position)
is found by counting: the search keeps an interval that holds it and counts how many entries reach each of four pivots
inside, until a pivot is reached by exactly k. The mask is everything at or above it. Ties therefore go to the lower
position with no second program, and only counts are ever combined, so several arrays can be ranked together without
joining them and sharded arrays without moving them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.trees import common_dtype

__all__ = [
    "Bracket",
    "check_real",
    "compared",
    "count_each",
    "exact_topk",
    "find_kth",
    "in_common_dtype",
    "is_single_cpu",
    "order_keys",
    "varying_with",
]

PIVOTS = 4
_MAX_ROWS = 16
_WORTH_SHARING = 1 << 17
_EVEN = np.arange(1, PIVOTS + 1, dtype=np.float32) / np.float32(PIVOTS + 1)
_AROUND = np.array([-1, -1 / 3, 1 / 3, 1], np.float32)
# Interpolation mostly cuts the interval to a square root, but skewed keys can fool it; even cuts are safe.
_GUIDED_PASSES = 4
_FEW = 32
_BELOW_ONE = np.float32(1 - 2**-20)
_SAMPLE = 4096
_MIN_STRIDE = 512  # to sort a larger part than that costs as much as the passes it saves
_LARGE = 1 << 22  # entries of an array of which no copy is made


# Inlined into a program around it; without any, one compilation for a shape in place of one for each operation.
@functools.partial(jax.jit, inline=True)
def order_keys(scores: jax.Array) -> jax.Array:
    """Maps scores to unsigned integers of the same order.

    Args:
        scores: Real array of any shape: floating, integer or boolean.

    Returns:
        uint32 (uint64 for 64-bit scores) of the same shape; 16-bit floats stay below 2**16. NaN maps to 0, below
        everything; -0 equals +0.

    Raises:
        TypeError: For complex scores.

    Example:
        >>> import numpy as np
        >>> keys = order_keys(jnp.array([jnp.nan, -1.0, -0.0, 0.0, jnp.inf]))
        >>> bool((keys[0] < keys[1]) & (keys[1] < keys[2]) & (keys[2] == keys[3]) & (keys[3] < keys[4]))
        True
    """
    scores = jnp.asarray(scores)
    check_real(scores)
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger) or scores.dtype == jnp.bool_:
        return scores.astype(jnp.uint64 if scores.dtype == jnp.uint64 else jnp.uint32)
    if jnp.issubdtype(scores.dtype, jnp.signedinteger):
        # Two's complement with its sign bit turned over is in order: negative numbers come below the others.
        integer, word = (jnp.int64, jnp.uint64) if scores.dtype.itemsize == 8 else (jnp.int32, jnp.uint32)
        return lax.bitcast_convert_type(scores.astype(integer), word) ^ word(1 << (jnp.iinfo(word).bits - 1))
    # Floats of 8 bits are few enough to be widened; their formats differ in what their bits mean.
    if scores.dtype.itemsize == 1:
        scores = scores.astype(jnp.float32)
    word = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[scores.dtype.itemsize]
    sign = word(1 << (jnp.iinfo(word).bits - 1))
    pattern = lax.bitcast_convert_type(scores, word)
    # Bits of positive floats are in order as they are; those of negative ones run backwards, and are inverted.
    keys = jnp.where(pattern >= sign, ~pattern, pattern | sign)
    # Zero and NaN are told from the bits: a comparison of floats may flush denormals, and not on every backend.
    magnitude, infinity = pattern << 1, lax.bitcast_convert_type(jnp.asarray(jnp.inf, scores.dtype), word) << 1
    keys = jnp.where(magnitude == 0, sign, keys)
    keys = jnp.where(magnitude > infinity, word(0), keys)
    return keys.astype(jnp.uint32) if word is jnp.uint16 else keys


def check_real(scores: jax.Array) -> None:
    """Refuses scores that have no order.

    Raises:
        TypeError: For complex scores.

    Example:
        >>> check_real(jnp.ones(3, jnp.complex64))
        Traceback (most recent call last):
        ...
        TypeError: scores are complex64; rank a real quantity, for example jnp.abs(scores).
    """
    if jnp.issubdtype(scores.dtype, jnp.complexfloating):
        raise TypeError(f"scores are {scores.dtype}; rank a real quantity, for example jnp.abs(scores).")


def exact_topk(scores: Sequence[jax.Array], k: int | jax.Array) -> list[jax.Array]:
    """Masks of the k largest scores among all arrays together.

    Args:
        scores: Real arrays of any shapes and dtypes; fewer than 2**31 entries in all.
        k: How many to keep, a whole number; values outside [0, total] are clipped.

    Returns:
        One uint8 mask per array with exactly k ones in all. Equal scores are taken in order of array, then of
        row-major position; NaN is taken last.

    Raises:
        TypeError: For complex scores, scores of several kinds, or a `k` that is no whole number.
        ValueError: For 2**31 scores or more, or several `k`.

    Example:
        >>> [mask.tolist() for mask in exact_topk([jnp.array([3.0, 1.0]), jnp.array([3.0])], 1)]
        [[1, 0], [0]]
    """
    scores = in_common_dtype([*map(jnp.asarray, scores)])
    total = sum(map(jnp.size, scores))
    if total == 0:
        return [jnp.zeros(score.shape, jnp.uint8) for score in scores]
    if total >= 1 << 31:
        raise ValueError(
            f"{total} scores are ranked together; at most 2**31 - 1 can be. Rank them per layer; "
            "a layer as large as that needs a structure, such as NByM(2, 4), or parts with names of their own."
        )
    return _masks_of_best(scores, _clipped(k, total))


def _clipped(k: Any, total: int) -> jax.Array:
    """int32[] in [0, total], whatever type of integer `k` has."""
    if not jnp.issubdtype(jnp.result_type(k), jnp.integer):
        raise TypeError(f"k is {k!r}; give how many scores are kept, a whole number.")
    if jnp.ndim(k):
        raise ValueError(f"k has shape {jnp.shape(k)}; give one number, or map over several with jax.vmap.")
    if not isinstance(k, jax.Array):
        return jnp.int32(min(max(int(k), 0), total))
    # A narrower integer cannot say `total`, a wider or unsigned one more than int32 can.
    return (jnp.clip(k, 0, total) if k.dtype.itemsize >= 4 else k).astype(jnp.int32)


@jax.jit
def _masks_of_best(scores: list[jax.Array], k: jax.Array) -> list[jax.Array]:
    """Jitted on its own so that an eager caller compiles the search once per set of shapes, not at every call."""
    *starts, total = itertools.accumulate(map(jnp.size, scores), initial=0)
    on_cpu, highest = is_single_cpu(), _highest_key(scores[0].dtype)
    if on_cpu:
        # Written in their own shape before rows are made of them: as rows, every entry would be looked up by division.
        scores = lax.optimization_barrier([*map(functools.partial(_as_read, highest), scores)])
    form = _count_in_rows if on_cpu else _count_at_once
    columns = zip(map(_in_rows, scores) if on_cpu else scores, starts, strict=True)
    counters = [functools.partial(form, read, start, total) for read, start in columns if read.size]
    # There is no entry 0: where none is kept, the search looks for the first, and the mask leaves it out.
    wanted = varying_with(jnp.clip(k, 1, total), *scores)
    kth = find_kth(
        lambda bracket, pivots: functools.reduce(jnp.add, [count(bracket, pivots) for count in counters]),
        wanted,
        total,
        highest,
        _pivots_of_sample(scores, wanted, total) if on_cpu else None,
    )

    def mask(score: jax.Array, start: int) -> jax.Array:
        numbers = compared(kth, order_keys(score), jnp.uint32(total - 1 - start) - _positions(score.shape))
        return ((numbers >= kth.low) & (k > 0)).astype(jnp.uint8)

    columns = zip(scores, starts, strict=True)
    return [mask(score, start) if score.size else jnp.zeros(score.shape, jnp.uint8) for score, start in columns]


def _as_read(highest: int, score: jax.Array) -> jax.Array:
    """What passes over one array read: its keys, or itself where it is large and may be the caller's own to keep."""
    if score.size > _LARGE:
        return score
    keys = order_keys(score)
    return keys.astype(jnp.uint16) if highest < 1 << 16 else keys


def in_common_dtype(scores: Sequence[jax.Array]) -> list[jax.Array]:
    """Scores whose keys can be compared: promoted to the widest dtype, all floats, all integers or all booleans.

    Args:
        scores: Real arrays; floats of 8 bits, which JAX promotes to nothing else, count as float32 beside others.

    Raises:
        TypeError: If floats, integers and booleans are mixed.
    """
    if len(scores) < 2:
        return list(scores)
    dtypes = {score.dtype for score in scores}
    if len(dtypes) == 1:
        return list(scores)
    dtypes = {jnp.dtype(jnp.float32) if _is_short_float(dtype) else dtype for dtype in dtypes}
    families = (jnp.floating, jnp.signedinteger, jnp.unsignedinteger, jnp.bool_)
    if not any(all(jnp.issubdtype(dtype, family) for dtype in dtypes) for family in (*families, jnp.complexfloating)):
        raise TypeError(f"scores of {', '.join(sorted(map(str, dtypes)))} cannot be ranked together; give one dtype.")
    widest = common_dtype(*dtypes)
    return [score.astype(widest) for score in scores]


def _is_short_float(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 1


def _highest_key(dtype: jnp.dtype) -> int:
    half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2
    return (1 << (16 if half else 64 if dtype.itemsize == 8 else 32)) - 1


def is_single_cpu() -> bool:
    """Whether all of this process runs on one CPU device, for which XLA compiles other programs well."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


class Bracket(NamedTuple):
    """What a search knows, all of the unsigned type of the keys so that one small array carries it.

    Attributes:
        passes: Passes over the entries since the comparison began.
        tied: 0 while keys are compared, 1 while positions are among the entries of one key.
        key: Which key that is.
        low: The k-th entry's key (or position) is at least this,
        high: and at most this.
        reach: Entries at or above `low`: k or more.
        beyond: Entries above `high`: fewer than k.
    """

    passes: jax.Array
    tied: jax.Array
    key: jax.Array
    low: jax.Array
    high: jax.Array
    reach: jax.Array
    beyond: jax.Array


def compared(bracket: Bracket, keys: jax.Array, positions: jax.Array) -> jax.Array:
    """The number of every entry that a search compares with its pivots.

    Args:
        bracket: State of the search.
        keys: Unsigned integers of any shape.
        positions: uint32 of the same shape.

    Returns:
        The keys; or, once a tie is being split, positions, with the largest integer for entries above the tie and 0
        for those below.

    Example:
        >>> split = Bracket(*jnp.array([0, 1, 7, 0, 3, 4, 1], jnp.uint32))
        >>> compared(split, jnp.array([9, 7, 7, 2], jnp.uint32), jnp.array([3, 2, 1, 0], jnp.uint32)).tolist()
        [4294967295, 2, 1, 0]
    """
    dtype = keys.dtype
    below = jnp.where(keys == bracket.key, positions.astype(dtype), dtype.type(0))
    tie = jnp.where(keys > bracket.key, dtype.type(jnp.iinfo(dtype).max), below)
    return jnp.where(bracket.tied == 0, keys, tie)


def find_kth(
    count: Callable[[Bracket, jax.Array], jax.Array],
    k: jax.Array,
    total: int,
    highest: int,
    first: jax.Array | None,
) -> Bracket:
    """Searches for the k-th largest of `total` entries.

    Args:
        count: Maps a state and `PIVOTS` pivots to int32 counts: for each pivot, how many entries have a `compared`
            number at or above it.
        k: Which entry, int32[] in [1, total]; it varies over the axes of a mesh over which the entries do.
        total: Number of entries; their positions are 0 to total - 1, the one that is preferred in a tie highest.
        highest: No key is above this.
        first: Pivots of the first pass, of the keys' type; None cuts evenly.

    Returns:
        A state of which exactly k entries have a `compared` number at or above `low`.

    Example:
        >>> keys, positions = jnp.array([5, 9, 5, 2], jnp.uint32), jnp.array([3, 2, 1, 0], jnp.uint32)
        >>> count = lambda state, pivots: jnp.sum(compared(state, keys, positions)[None] >= pivots[:, None], axis=1)
        >>> found = find_kth(count, jnp.int32(2), 4, 2**32 - 1, jnp.zeros(4, jnp.uint32))
        >>> (compared(found, keys, positions) >= found.low).tolist()
        [True, True, False, False]
    """
    dtype = jnp.uint32 if highest < 1 << 32 else jnp.uint64
    wanted = k.astype(dtype)

    def narrow(carried: jax.Array) -> jax.Array:
        bracket = Bracket(*jnp.unstack(carried))
        pivots = _pivots(bracket, wanted)
        if first is not None:
            pivots = jnp.where((bracket.tied == 0) & (bracket.passes == 0), first, pivots)
        pivots = jnp.clip(pivots, bracket.low + 1, bracket.high)
        return jnp.stack(_next(bracket, pivots, count(bracket, pivots).astype(dtype), wanted, total))

    start = Bracket(*np.array([0, 0, 0, 0, highest, total, 0], jnp.dtype(dtype)))
    carried = varying_with(jnp.stack(start), wanted)
    return Bracket(*jnp.unstack(lax.while_loop(lambda state: Bracket(*state).reach != wanted, narrow, carried)))


def _pivots(bracket: Bracket, wanted: jax.Array) -> jax.Array:
    """Around where the k-th entry is if entries are spread evenly, or evenly where that is no help."""
    width = (bracket.high - bracket.low).astype(jnp.float32)
    inside = (bracket.reach - bracket.beyond).astype(jnp.float32)
    aim = (bracket.reach - wanted).astype(jnp.float32) / inside
    guided = (bracket.passes < _GUIDED_PASSES) & (inside >= _FEW)
    # 1 / sqrt is two standard deviations or more of where the k-th of random entries lies.
    fractions = jnp.where(guided, aim + _AROUND * lax.rsqrt(inside), _EVEN)
    return bracket.low + (jnp.clip(fractions, 0, _BELOW_ONE) * width).astype(bracket.low.dtype)


def _next(bracket: Bracket, pivots: jax.Array, counts: jax.Array, wanted: jax.Array, total: int) -> Bracket:
    """The state after a pass; an interval of one key that too many entries share becomes one of all positions."""
    low, high, reach, beyond = bracket[3:]
    # Scalar by scalar: all of it is then one small program, where reductions would make one each to compile.
    for pivot, counted in zip(jnp.unstack(pivots), jnp.unstack(counts), strict=True):
        enough = counted >= wanted
        low = jnp.where(enough, jnp.maximum(low, pivot), low)
        reach = jnp.where(enough, jnp.minimum(reach, counted), reach)
        high = jnp.where(enough, high, jnp.minimum(high, pivot - 1))
        beyond = jnp.where(enough, beyond, jnp.maximum(beyond, counted))
    # Keys can't split entries that share one; their positions can, and the search starts again on those.
    tie = (bracket.tied == 0) & (low == high) & (reach != wanted)
    return Bracket(
        passes=jnp.where(tie, 0, bracket.passes + 1),
        tied=jnp.where(tie, 1, bracket.tied),
        key=jnp.where(tie, low, bracket.key),
        low=jnp.where(tie, 0, low),
        high=jnp.where(tie, total - 1, high),
        reach=reach,
        beyond=beyond,
    )


def _pivots_of_sample(scores: list[jax.Array], k: jax.Array, total: int) -> jax.Array:
    """Three standard deviations around the k-th key as a sample has it, and that key and the next.

    The two in the middle settle a key that many entries share. A sharded array has no sample: it would be gathered.
    """
    stride = max(total // _SAMPLE, _MIN_STRIDE) | 1  # odd, so that it does not fall on one column of an even number
    sample = jnp.sort(jnp.concatenate([order_keys(score.reshape(-1)[::stride]) for score in scores]))
    part = k.astype(jnp.float32) / total
    deviation = jnp.sqrt(sample.size * part * (1 - part))
    places = sample.size * (1 - part) + np.array([-3, 0, 0, 3], np.float32) * deviation
    places = jnp.clip(jnp.rint(places).astype(jnp.int32), 0, sample.size - 1)
    return sample[places] + np.array([0, 0, 1, 1], sample.dtype)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """uint32 of `shape`: row-major indices, from one iota per axis so that it partitions."""
    position = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return position


def _count_at_once(score: jax.Array, start: int, total: int, bracket: Bracket, pivots: jax.Array) -> jax.Array:
    """One reduction a pivot over the array as it lies: fused on accelerators, and local under sharding."""
    numbers = compared(bracket, order_keys(score), jnp.uint32(total - 1 - start) - _positions(score.shape))
    return jnp.stack([jnp.sum(numbers >= pivot, dtype=jnp.int32) for pivot in jnp.unstack(pivots)])


def _count_in_rows(rows: jax.Array, start: int, total: int, bracket: Bracket, pivots: jax.Array) -> jax.Array:
    """The form for one CPU device: one pass for all pivots, in vector instructions, with no position stored."""
    # Keys and positions would be made once, before the loop around this, and then be read from memory, if they did not
    # depend on its state. Positions count in a tie only.
    rows, pivots = lax.optimization_barrier((rows, pivots))
    tied = bracket.tied.astype(jnp.uint32)
    row_start = lax.broadcasted_iota(jnp.uint32, rows.shape, 0) * (tied * jnp.uint32(rows.shape[1]))
    column = lax.broadcasted_iota(jnp.uint32, rows.shape, 1)
    numbers = compared(bracket, order_keys(rows), tied * jnp.uint32(total - 1 - start) - row_start - column)
    return jnp.stack(_count_rows([numbers >= pivot for pivot in jnp.unstack(pivots)]))


def count_each(*flags: jax.Array) -> list[jax.Array]:
    """How many entries are True, of each of several arrays that can be told in one pass.

    Args:
        *flags: bool arrays of one shape.

    Returns:
        int32[] for each.

    Example:
        >>> numbers = jnp.arange(6)
        >>> [int(count) for count in count_each(numbers > 0, numbers > 3)]
        [5, 2]
    """
    if not is_single_cpu():
        return [jnp.sum(flag, dtype=jnp.int32) for flag in flags]
    return _count_rows([*map(_in_rows, flags)])


def _in_rows(array: jax.Array) -> jax.Array:
    """An array as rows that threads can share out: [rows, entries]; a small one is one row."""
    return array.reshape(math.gcd(array.size, _MAX_ROWS) if array.size >= _WORTH_SHARING else 1, -1)


# As `order_keys`: one compilation for a shape where there is no program around it.
@functools.partial(jax.jit, inline=True)
def _count_rows(flags: Sequence[jax.Array]) -> list[jax.Array]:
    """XLA's CPU compiler makes vector instructions of a reduction of several arrays, and of a single one none."""
    zeros = [np.int32(0)] * len(flags)
    by_row = lax.reduce([flag.astype(jnp.int32) for flag in flags], zeros, _add_each, (1,))
    return [*map(jnp.squeeze, by_row)] if by_row[0].size == 1 else lax.reduce(by_row, zeros, _add_each, (0,))


def _add_each(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> list[jax.Array]:
    return [*map(jnp.add, one, other)]


def varying_with(value: jax.Array, *others: Any) -> jax.Array:
    """The same value, of a type that varies over every axis over which one of the others does.

    Args:
        value: Any array.
        *others: Arrays it is going to meet in a loop or a branch.

    Returns:
        The value itself outside of `jax.shard_map`.

    Example:
        >>> import jax.numpy as jnp
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> over_data = jax.sharding.PartitionSpec("data")
        >>> add = lambda shard: shard + varying_with(jnp.zeros(2), shard)
        >>> jax.shard_map(add, mesh=mesh, in_specs=over_data, out_specs=over_data)(jnp.ones(2)).tolist()
        [1.0, 1.0]
    """
    if not (axes := _axes(others)):
        return value
    missing = axes - _axes([value])
    # Sorted, because all processes of a mesh have to trace the same program.
    return lax.pcast(value, tuple(sorted(missing, key=str)), to="varying") if missing else value


def _axes(values: Sequence[Any]) -> frozenset:
    """The axes of the mesh over which one of the values varies."""
    found: frozenset = frozenset()
    for value in values:
        found |= jax.typeof(value).manual_axis_type.varying
    return found
