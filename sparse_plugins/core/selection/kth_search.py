"""The k-th largest of many entries, found by counting alone.

An entry has an integer key and a position; entries of one key are told apart by position. The search keeps an
interval that holds the k-th entry and counts how many entries reach each of four pivots inside, until a pivot is
reached by exactly k. It never looks at an entry, so what is counted may be one array, many, or sharded ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.transform.varying import varying_with

__all__ = ["PIVOTS", "Bracket", "compared", "find_kth"]

PIVOTS = 4
_EVEN = np.arange(1, PIVOTS + 1, dtype=np.float32) / np.float32(PIVOTS + 1)
_AROUND = np.array([-1, -1 / 3, 1 / 3, 1], np.float32)
# Interpolation mostly cuts the interval to a square root, but skewed keys can fool it; even cuts are safe.
_GUIDED_PASSES = 4
_FEW = 32
_BELOW_ONE = np.float32(1 - 2**-20)


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
