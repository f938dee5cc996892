"""Updates of many clients as one, taken in one at a time."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sparse_plugins.core.masks import NOT_PRUNED, map_pruned
from sparse_plugins.core.topk import exact_topk


@dataclasses.dataclass(frozen=True)
class Aggregation:
    """How the updates of clients become one.

    With one mask for all clients every rule gives the same mean. With personal masks, a weight that few clients hold
    moves little under 'mean', whose bias is towards no change, and as far as its holders say under 'voters', whose
    variance is that of few clients.

    Attributes:
        rule: 'mean' takes what a client does not hold as no change; 'voters' averages over those that hold a weight.
            Clients count by their number of examples.
        min_votes: Clients that must hold a weight, counted by head, for it to stay or to be grown where masks are
            personal; with fewer valid clients a round changes nothing.

    Raises:
        ValueError: If a value is not allowed.

    Source: Bibikar et al., Federated Dynamic Sparse Training (2022), for sparse averages over voters.
    """

    rule: Literal["mean", "voters"] = "mean"
    min_votes: int = 1

    def __post_init__(self) -> None:
        if self.rule not in ("mean", "voters"):
            raise ValueError(f"rule is {self.rule!r}; choose 'mean' or 'voters'.")
        if self.min_votes < 1:
            raise ValueError(f"min_votes is {self.min_votes}; give 1 or more.")


class Sums:
    """Running sums of updates: memory for one model, however many clients there are.

    Args:
        like: Parameter tree.
        masks: uint8 masks of the clients if they may differ from client to client; None if all hold the same.

    Example:
        >>> sums = Sums({"w": jnp.zeros(2)}, {"w": jnp.ones(2, jnp.uint8)})
        >>> for kept, change in ([1, 1], 2.0), ([1, 0], 4.0):
        ...     mask = jnp.array(kept, jnp.uint8)
        ...     sums.add({"w": change * mask}, weight=1.0, masks={"w": mask})
        >>> sums.aggregate(Aggregation("mean"))["w"].tolist(), sums.aggregate(Aggregation("voters"))["w"].tolist()
        ([3.0, 1.0], [3.0, 2.0])
    """

    def __init__(self, like: Any, masks: Any = None) -> None:
        zeros = lambda x, m: jnp.zeros(x.shape, jnp.float32)  # noqa: E731
        counts = lambda x, m: jnp.zeros(x.shape, jnp.int32)  # noqa: E731
        self._like = like
        self._sum = wide_zeros(like)
        self._weight = 0.0
        self._held = masks and map_pruned(zeros, like, masks, otherwise=lambda x: NOT_PRUNED)
        self._votes = masks and map_pruned(counts, like, masks, otherwise=lambda x: NOT_PRUNED)
        self.clients = 0

    def add(self, update: Any, weight: float, masks: Any = None) -> None:
        """Takes in one client.

        Args:
            update: Tree of the parameters' shapes, 0 outside the client's mask.
            weight: How much the client counts, 0 or more.
            masks: Its uint8 masks, if they are its own.
        """
        self._sum = _add_scaled(self._sum, update, weight)
        self._weight += weight
        self.clients += 1
        if masks is not None:
            self._held = _add_scaled(self._held, masks, weight)
            self._votes = _add_scaled(self._votes, masks, 1)

    def aggregate(self, aggregation: Aggregation) -> Any:
        """The one update; 0 where no client of any weight has a say."""
        total = max(self._weight, jnp.finfo(jnp.float32).tiny)
        over_all = lambda x: x / jnp.asarray(total, x.dtype)  # noqa: E731
        over_voters = lambda x, held: jnp.where(held > 0, x / jnp.maximum(held, 1e-30), 0).astype(x.dtype)  # noqa: E731
        if aggregation.rule == "mean" or self._held is None:
            return in_dtypes_of(self._like, jax.tree.map(over_all, self._sum))
        return in_dtypes_of(self._like, map_pruned(over_voters, self._sum, self._held, otherwise=over_all))

    def elected(self, aggregation: Aggregation) -> Any:
        """uint8 masks of the weights that enough clients hold."""
        enough = lambda x, votes: (votes >= aggregation.min_votes).astype(jnp.uint8)  # noqa: E731
        return map_pruned(enough, self._sum, self._votes, otherwise=lambda x: NOT_PRUNED)


def wide_zeros(like: Any) -> Any:
    """Zeros to sum up many trees in: half precision would stop growing, or overflow.

    Example:
        >>> [zeros.dtype.name for zeros in wide_zeros([jnp.ones(2, jnp.bfloat16), jnp.ones(2)])]
        ['float32', 'float32']
    """
    return jax.tree.map(lambda x: jnp.zeros_like(x, jnp.promote_types(jnp.result_type(x), jnp.float32)), like)


def in_dtypes_of(like: Any, mean: Any) -> Any:
    """A mean of wide sums, in the floating dtypes of what was summed up.

    Example:
        >>> in_dtypes_of(jnp.ones(2, jnp.bfloat16), jnp.ones(2)).dtype.name
        'bfloat16'
    """
    cast = lambda x, m: m.astype(jnp.result_type(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else m  # noqa: E731
    return jax.tree.map(cast, like, mean)


@jax.jit
def _add_scaled(total: Any, new: Any, weight: Any) -> Any:
    return jax.tree.map(lambda t, x: t + x.astype(t.dtype) * jnp.asarray(weight, t.dtype), total, new)


@jax.jit
def reprune(params: Any, masks: Any, elected: Any) -> Any:
    """Masks as large as before, of the strongest weights among those elected.

    Args:
        params: Parameters after the update.
        masks: uint8 masks before.
        elected: uint8 masks of the weights that may stay or be grown.

    Returns:
        uint8 masks that keep exactly as many entries as `masks`: elected ones by magnitude; if they are too few,
        those that were kept before, then others, by index.

    Example:
        >>> params = {"w": jnp.array([1.0, 5.0, 2.0, 9.0])}
        >>> kept, elected = {"w": jnp.array([1, 1, 0, 0], jnp.uint8)}, {"w": jnp.array([1, 0, 1, 0], jnp.uint8)}
        >>> reprune(params, kept, elected)["w"].tolist()
        [1, 0, 1, 0]
    """

    def best(param: jax.Array, mask: jax.Array, chosen: jax.Array) -> jax.Array:
        others = jnp.where(mask != 0, -1.0, -2.0)
        scores = jnp.where(chosen != 0, jnp.abs(param).astype(jnp.float32), others)
        return exact_topk([scores], jnp.sum(mask != 0, dtype=jnp.int32))[0]

    return map_pruned(best, params, masks, elected, otherwise=lambda param, chosen: NOT_PRUNED)
