"""Relative positions in buckets: near ones each, far ones by the logarithm of their distance."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.supervised.layers import named


def relative_buckets(
    queries: int, keys: int, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The bucket of every key's position relative to every query's.

    Args:
        queries: Number of queries.
        keys: Number of keys.
        bidirectional: Half of the buckets for keys after the query; else those are all in bucket 0.
        num_buckets: Number of buckets.
        max_distance: From here on all distances share the last bucket.

    Returns:
        int32 [queries, keys].

    Example:
        >>> relative_buckets(3, 3, bidirectional=True).tolist()
        [[0, 17, 18], [1, 0, 17], [2, 1, 0]]

    Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (2020).
    """
    ahead = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    if bidirectional:
        num_buckets //= 2
        first, distance = np.where(ahead > 0, num_buckets, 0), np.abs(ahead)
    else:
        first, distance = np.zeros_like(ahead), np.maximum(-ahead, 0)
    exact = num_buckets // 2
    octaves = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
    far = exact + np.floor(octaves * (num_buckets - exact) + 1e-6).astype(int)  # where it is whole, rounding may not be
    return (first + np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))).astype(np.int32)


class RelativeBias(nn.Module):
    """What each head adds to its attention for each bucket; one for all layers of a stack.

    Attributes:
        heads: Number of heads.
        bidirectional: As in `relative_buckets`.
        num_buckets: As in `relative_buckets`.
    """

    heads: int
    bidirectional: bool
    num_buckets: int = 32

    @nn.compact
    def __call__(self, queries: int, keys: int) -> jax.Array:
        """float32 [1, heads, queries, keys]."""
        init = named(nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"), ("heads", "relpos_buckets"))
        table = self.param("rel_embedding", init, (self.heads, self.num_buckets))
        buckets = relative_buckets(queries, keys, self.bidirectional, self.num_buckets)
        return jnp.take(table, buckets, axis=1)[None]
