"""FedJAX's quantizing aggregators on kept weights only: zeros stay zeros and cost nothing."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.fed.mask_in_params import broadcast_masks
from sparse_plugins.wire.trees import PyTree

__all__ = ["SparseAggregatorState", "survivors_only"]

# Its square is 0 in float32: a norm of such entries vanishes, and so does what a quantizer makes of them.
_NEXT_TO_NOTHING = 1e-30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseAggregatorState:
    """State of a sparse aggregator.

    Attributes:
        inner: State of the aggregator that quantizes.
        num_bits: Bits sent per client so far, by the inner aggregator's formula for what it was given.
        masks: bool tree of the entries that are sent; None: each client's entries that are not 0.
    """

    inner: Any
    num_bits: float = 0.0
    masks: PyTree | None = None

    def for_broadcast(self, params: PyTree) -> "SparseAggregatorState":
        """The state for a round whose broadcast is `params`: entries are sent that are not 0 in it."""
        return dataclasses.replace(self, masks=broadcast_masks(params))


def survivors_only(aggregator: fedjax.aggregators.Aggregator) -> fedjax.aggregators.Aggregator:
    """Makes a FedJAX aggregator work on the entries inside the mask.

    `uniform_stochastic_quantizer` and similar ones quantize all entries of an update between its smallest and largest
    value: a pruned 0 comes out as something else and is paid for. Here they see, client by client, vectors of the
    kept weights alone.

    Args:
        aggregator: Any FedJAX aggregator whose result for one client is what it makes of that client's update.

    Returns:
        An aggregator. Call `state.for_broadcast(params)` once a round if masks are the server's: vectors then have
        the same length for all clients, and nothing is compiled anew.

    Example:
        >>> from sparse_plugins import fed
        >>> quantizer = fed.import_fedjax().aggregators.uniform_stochastic_quantizer(2, jax.random.PRNGKey(0))
        >>> sparse = fed.survivors_only(quantizer)
        >>> update = {"w": jnp.array([0.0, 1.0, 3.0, 0.0])}
        >>> mean, state = sparse.apply([(b"anna", update, 1.0)], sparse.init())
        >>> mean["w"].tolist(), float(state.num_bits)
        ([0.0, 1.0, 3.0, 0.0], 66.0)
    """

    def init() -> SparseAggregatorState:
        return SparseAggregatorState(aggregator.init())

    def apply(
        clients_params_and_weights: Iterable[tuple[Any, Any, float]], state: SparseAggregatorState
    ) -> tuple[Any, SparseAggregatorState]:
        inner, total, weights, clients = state.inner, None, 0.0, 0
        bits_before = inner.num_bits
        for client, update, weight in clients_params_and_weights:
            masks = state.masks if state.masks is not None else jax.tree.map(lambda x: x != 0, update)
            places = jax.tree.map(lambda mask: np.flatnonzero(np.asarray(mask)), masks)
            quantized, inner = aggregator.apply([(client, _gathered(update, places), 1.0)], inner)
            scaled = jax.tree.map(lambda x, weight=weight: x * weight, _scattered(quantized, places, update))
            total = scaled if total is None else jax.tree.map(jnp.add, total, scaled)
            weights, clients = weights + weight, clients + 1
        if not clients:
            raise ValueError("no client to aggregate: the round needs one at least.")
        mean = jax.tree.map(lambda x: x / max(weights, np.finfo(np.float32).tiny), total)
        new_bits = (inner.num_bits - bits_before) / clients
        return mean, dataclasses.replace(state, inner=inner, num_bits=state.num_bits + new_bits)

    return fedjax.aggregators.Aggregator(init, apply)


def _gathered(update: PyTree, places: PyTree) -> list[jax.Array]:
    """Vectors of the kept weights; leaves without any are left out, and none is all zeros (some divide by norms)."""
    vectors = [
        jnp.asarray(leaf).reshape(-1)[kept]
        for leaf, kept in zip(jax.tree.leaves(update), jax.tree.leaves(places), strict=True)
        if kept.size
    ]
    return [jnp.where(jnp.any(vector != 0), vector, jnp.asarray(_NEXT_TO_NOTHING, vector.dtype)) for vector in vectors]


def _scattered(vectors: list[jax.Array], places: PyTree, like: PyTree) -> Any:
    rest = iter(vectors)
    leaves, treedef = jax.tree.flatten(like)
    whole = [
        jnp.zeros(leaf.size, leaf.dtype).at[kept].set(next(rest)).reshape(leaf.shape)
        if kept.size
        else jnp.zeros_like(leaf)
        for leaf, kept in zip(leaves, jax.tree.leaves(places), strict=True)
    ]
    return jax.tree.unflatten(treedef, whole)
