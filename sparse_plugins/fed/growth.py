"""Where a server that grows weights by their gradients gets them from.

Clients that upload survivors only say nothing about pruned weights. In rounds that change masks they can be asked:

- `random`: nothing is asked, weights are grown by seed;
- `topk`: the strongest gradients of pruned weights, as many as weights are going to be grown;
- `delta`: clients train densely in that round, and what they changed outside the mask is taken for a gradient;
- `dense`: all gradients of pruned weights.

Gradients are those of a client's data at the parameters of the broadcast.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins import core
from sparse_plugins.core.algorithms.parts import Parts
from sparse_plugins.core.counts import keep_count
from sparse_plugins.core.masks import is_pruned, map_pruned, unpack
from sparse_plugins.core.seeds import random_scores
from sparse_plugins.core.topk import exact_topk
from sparse_plugins.core.trees import aligned

PROTOCOLS = ("random", "topk", "delta", "dense")


def grows_by_gradient(updater: core.BaseUpdater) -> bool:
    """Whether an updater, or one of a `core.PerModule`, grows weights by gradients, which its server then needs.

    Example:
        >>> grows_by_gradient(core.RigL()), grows_by_gradient(core.SET())
        (True, False)
        >>> grows_by_gradient(core.PerModule([("head/.*", core.SET()), (".*", core.RigL())]))
        True
    """
    if isinstance(updater, core.PerModule):
        return any(grows_by_gradient(one) for _, one in updater.updaters)
    return isinstance(updater, core.RigL)


def check_signal(updater: Any, state: core.SparseState, grads: Any) -> None:
    """Checks that weights about to be grown by their gradients have gradients.

    Args:
        updater: The server's updater. Each of a `core.PerModule` is asked about its part.
        state: Its state before the round's update.
        grads: What it is going to rank by. Nothing is checked if these are being traced.

    Raises:
        ValueError: If weights are to be replaced now, and all gradients of pruned ones are 0.
    """
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state, grads))):
        return
    if isinstance(updater, core.PerModule):
        patterns, updaters = zip(*updater.updaters, strict=True)
        parts = Parts((*updaters, core.NoPruning()), grads, patterns)
        parts.each(lambda one: functools.partial(check_signal, one), state._replace(inner_state=()), grads)
        return
    if not grows_by_gradient(updater) or updater.use_packed_masks == "zeros":
        return
    if not bool(updater.is_refresh_due(state.count)):
        return
    kept, heard = _kept_and_heard(state.masks, grads)
    if any(_replaced(updater, int(state.count), int(n)) for n in kept) and not heard:
        raise ValueError(
            f"round {int(state.count)} is to grow weights by gradients, but all gradients of pruned weights are 0: "
            "clients that train inside the mask send none, and masks would never move. Use core.SET, which grows at "
            "random, let clients train densely with an ordinary client optimizer, or use "
            "fed.sparse_federated_averaging(growth='topk'), whose clients send the few gradients that are needed."
        )


@jax.jit
def _kept_and_heard(masks: Any, grads: Any) -> tuple[list[jax.Array], jax.Array]:
    """Weights kept in each layer that has pruned ones (0 in others), and whether any pruned weight has a gradient."""
    kept, heard = [], jnp.zeros((), jnp.bool_)
    for grad, mask in zip(jax.tree.leaves(grads), aligned(grads, masks, "masks"), strict=True):
        if is_pruned(mask):
            inside = unpack(mask, grad.shape)
            kept.append(jnp.where(jnp.all(inside), 0, jnp.sum(inside)))
            heard |= jnp.any(~inside & (grad != 0))
    return kept, heard


def _replaced(updater: Any, step: int, kept: int) -> int:
    return kept - int(keep_count(kept, float(updater.drop_fraction_fn(step))))


def growth_protocol(updater: core.BaseUpdater, name: str | None) -> str:
    """The protocol to use: the one asked for, or the cheapest that serves the updater well.

    The strongest gradients of a layer may all lie in few blocks or groups, and say nothing about the others: structures
    are grown by all gradients.

    Raises:
        ValueError: If the name is not known.

    Example:
        >>> growth_protocol(core.RigL(), None), growth_protocol(core.SRigL(), None), growth_protocol(core.SET(), None)
        ('topk', 'dense', 'random')
    """
    if name is None:
        if not grows_by_gradient(updater):
            return "random"
        return "topk" if updater.sparsity_type == core.Unstructured() else "dense"
    if name not in PROTOCOLS:
        raise ValueError(f"growth is {name!r}; choose one of {', '.join(PROTOCOLS)}.")
    return name


def replaced_per_layer(updater: Any, step: int, masks: Any) -> Any:
    """How many weights of each layer a mask change replaces, which is what clients are asked for.

    Args:
        updater: An updater that grows by gradients.
        step: Its step, int.
        masks: uint8 masks before the change.

    Returns:
        Python int per pruned layer; `core.NOT_PRUNED` elsewhere.

    Example:
        >>> rigl = core.RigL(drop_fraction_fn=core.ConstantDrop(0.25))
        >>> replaced_per_layer(rigl, 0, {"w": jnp.array([1, 1, 1, 1, 0, 0], jnp.uint8)})
        {'w': 1}
    """
    return jax.tree.map(lambda mask: _replaced(updater, step, int(jnp.sum(mask != 0))), masks)


@jax.jit
def strongest_pruned(grads: Any, masks: Any, counts: Any) -> Any:
    """Masks of the pruned weights with the largest gradients.

    Args:
        grads: Gradients of one client at the parameters of the broadcast.
        masks: uint8 masks of the broadcast.
        counts: How many to choose in each layer.

    Returns:
        uint8 masks; none chosen in layers that stay dense.

    Example:
        >>> grads, masks = {"w": jnp.array([9.0, -3.0, 1.0])}, {"w": jnp.array([1, 0, 0], jnp.uint8)}
        >>> strongest_pruned(grads, masks, {"w": 1})["w"].tolist()
        [0, 1, 0]
    """

    def chosen(grad: jax.Array, mask: jax.Array, count: Any) -> jax.Array:
        outside = mask == 0
        count = jnp.minimum(count, jnp.sum(outside, dtype=jnp.int32))
        return exact_topk([jnp.where(outside, jnp.abs(grad).astype(jnp.float32), -1.0)], count)[0]

    return map_pruned(chosen, grads, masks, counts, otherwise=lambda g, count: jnp.zeros(g.shape, jnp.uint8))


def pruned_places(grads: Any, masks: Any) -> Any:
    """uint8 masks of all pruned weights; none in layers that stay dense."""
    return map_pruned(
        lambda g, mask: (mask == 0).astype(jnp.uint8), grads, masks, otherwise=lambda g: jnp.zeros(g.shape, jnp.uint8)
    )


def random_signal(params: Any, state: core.SparseState) -> Any:
    """Growth scores drawn by the updater's seed and the round, as positive floats."""
    words = random_scores(params, state.rng, state.count + 1)
    return jax.tree.map(lambda word: 1.0 + (word >> 8).astype(jnp.float32), words)
