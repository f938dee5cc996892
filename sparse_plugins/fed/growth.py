"""Where a server that grows weights by their gradients gets them from.

Clients that upload survivors only say nothing about pruned weights. In rounds that change masks they can be asked:

- `random`: nothing is asked, weights are grown by seed;
- `topk`: the strongest gradients of pruned weights, as many as weights are going to be grown;
- `delta`: clients train densely in that round, and what they changed outside the mask is taken for a gradient;
- `dense`: all gradients of pruned weights.

Gradients are those of a client's data at the parameters of the broadcast. Only clients whose update was used are heard,
and what each says is put into ranks before it is summed (`ranked`): by gradients themselves, one client with large ones
would decide alone.

Updaters drop weights and then grow others. Where fewer are pruned than are to be grown, as in a run that starts dense,
some of those just dropped come back, and clients are asked about all that do not survive the drop. Which these are
follows from the broadcast, so both sides know.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins import core
from sparse_plugins.core.algorithms.tree_partition import Parts
from sparse_plugins.core.masks import NOT_PRUNED, map_pruned
from sparse_plugins.core.selection.counts import survivor_count
from sparse_plugins.core.selection.random_scores import random_scores
from sparse_plugins.core.selection.topk import exact_topk
from sparse_plugins.fed.aggregation import Aggregation, Sums
from sparse_plugins.fed.replies import growth_of

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
    return updater.grows_by_gradient


def can_change_masks(updater: Any, state: core.SparseState, params: Any, grads: Any, delta: Any) -> bool:
    """Whether a mask change that goes by gradients has any to go by.

    Args:
        updater: The server's updater. Each of a `core.PerModule` is asked about its part.
        state: Its state before the round's update.
        params: The server's parameters before the round's update.
        grads: What it is going to rank by. Nothing is checked if these are being traced.
        delta: The round's mean delta.

    Returns:
        False if masks are to change now and nothing was learned: a round of clients without examples, or of none. By
        gradients of 0 weights would be ranked by index, so the change has to be put off.

    Raises:
        ValueError: If weights are to be replaced now, and clients learned, but sent no gradient of those that may be
            grown: then no round ever has one.
    """
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state, params, grads, delta))):
        return True
    if isinstance(updater, core.PerModule):
        patterns, updaters = zip(*updater.updaters, strict=True)
        parts = Parts((*updaters, core.NoPruning()), params, patterns)
        ask = lambda one: functools.partial(can_change_masks, one)  # noqa: E731
        return all(parts.each(ask, state._replace(inner_state=()), params, grads, delta))
    if not bool(updater.is_refresh_due(state.count)):
        return True
    if isinstance(updater, core.SaliencyPruning):
        return bool(_are_heard(grads, core.unpack_masks(params, state.masks)))
    if not grows_by_gradient(updater):
        return True
    masks = core.unpack_masks(params, state.masks)
    if updater.use_packed_masks == "zeros":
        updater, state = dataclasses.replace(updater, use_packed_masks=False), state._replace(masks=masks)
    counts = replaced_per_layer(updater, int(state.count), masks)
    places = pruned_places(grads, settled_masks(updater, state, params, masks, counts))
    if not _are_wanted(counts, places) or _are_heard(grads, places):
        return True
    if not _are_heard(delta, jax.tree.map(jnp.ones_like, delta)):
        return False
    raise ValueError(
        f"round {int(state.count)} is to grow weights by gradients, but all gradients of pruned weights are 0: "
        "clients that train inside the mask send none, and masks would never move. Use core.SET, which grows at "
        "random, let clients train densely with an ordinary client optimizer, or use "
        "fed.sparse_federated_averaging(growth='topk'), whose clients send the few gradients that are needed."
    )


def _are_wanted(counts: Any, places: Any) -> bool:
    """Whether a layer replaces weights and has any to choose from."""
    wanted = map_pruned(lambda places, count: bool(count) and bool(jnp.any(places)), places, counts, otherwise=_never)
    return any(jax.tree.leaves(wanted))


def _never(places: jax.Array) -> bool:
    return False


@jax.jit
def _are_heard(grads: Any, places: Any) -> jax.Array:
    heard = lambda grad, asked: jnp.any((asked != 0) & (grad != 0))  # noqa: E731
    leaves = jax.tree.leaves(map_pruned(heard, grads, places, otherwise=_never))
    return jnp.any(jnp.array(leaves))


def _replaced(updater: Any, step: int, kept: int) -> int:
    return kept - int(survivor_count(kept, float(updater.drop_fraction_fn(step))))


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


class Signals:
    """What clients say about growth in a round that changes masks, summed up.

    Args:
        updater: An updater that grows by gradients.
        state: Its state before the change.
        params: The parameters of the broadcast.
        masks: uint8 masks of the broadcast.
        protocol: How clients say it.

    Attributes:
        is_wanted: Whether any weight is to be grown.
        asked: Which masks signals may have.
    """

    def __init__(self, updater: Any, state: core.SparseState, params: Any, masks: Any, protocol: str) -> None:
        self._counts = replaced_per_layer(updater, int(state.count), masks)
        self.is_wanted = any(jax.tree.leaves(self._counts))
        self._settled = settled_masks(updater, state, params, masks, self._counts)
        self._is_topk = protocol == "topk"
        is_unstructured = updater.sparsity_type == core.Unstructured()
        self.asked = growth_of(self._settled, self._counts if self._is_topk else None)
        self._limits = self._counts if self._is_topk or (protocol == "delta" and is_unstructured) else None
        self._sums = Sums(params)

    def places(self, grads: Any) -> Any:
        """uint8 masks of the gradients that a client sends."""
        if self._is_topk:
            return strongest_pruned(grads, self._settled, self._counts)
        return pruned_places(grads, self._settled)

    def add(self, grads: Any) -> None:
        """Takes in what arrived of one client."""
        self._sums.add(ranked(grads, self._settled, self._limits), 1.0)

    def total(self) -> Any:
        """What to grow by: the mean of all clients' ranks; 0 where none says anything."""
        return self._sums.aggregate(Aggregation())


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


def settled_masks(updater: Any, state: core.SparseState, params: Any, masks: Any, counts: Any) -> Any:
    """Masks of the weights that a mask change is certain to keep, about which nobody needs to be asked.

    Args:
        updater: An updater that grows by gradients.
        state: Its state before the change.
        params: The parameters of the broadcast.
        masks: uint8 masks of the broadcast.
        counts: How many weights of each layer are replaced, at most.

    Returns:
        uint8 masks: those of the broadcast, or what survives the drop in layers in which fewer weights are pruned than
        are to be grown (nothing, if the masks have a structure); `core.NOT_PRUNED` where a leaf stays dense.

    Example:
        >>> quarter = lambda params: {"w": 0.25}
        >>> rigl = core.RigL(sparsity_distribution_fn=quarter, drop_fraction_fn=core.ConstantDrop(0.6))
        >>> params, masks = {"w": jnp.array([[1.0, 4.0, 3.0, 2.0]])}, {"w": jnp.array([[0, 1, 1, 1]], jnp.uint8)}
        >>> state = rigl.with_masks(rigl.init_state(params), params, masks)
        >>> settled_masks(rigl, state, params, masks, replaced_per_layer(rigl, 0, masks))["w"].tolist()
        [[0, 1, 0, 0]]
    """
    is_short = lambda mask, count: int(jnp.sum(mask == 0)) < count  # noqa: E731
    if not any(jax.tree.leaves(jax.tree.map(is_short, masks, counts))):
        return masks
    # Without a drop, a mask change leaves the weights among which the drop chooses.
    dropping_none = dataclasses.replace(updater, drop_fraction_fn=core.ConstantDrop(0.0))
    left = dropping_none.refresh(state._replace(inner_state=()), params, params)
    is_unstructured = updater.sparsity_type == core.Unstructured()

    def settled(param: jax.Array, mask: jax.Array, stays: jax.Array) -> jax.Array:
        kept = int(jnp.sum(stays))
        grown = _replaced(updater, int(state.count), kept)
        if kept == param.size or not is_short(mask, grown):
            return mask
        if not is_unstructured:
            return jnp.zeros_like(mask)
        scores = jnp.where((stays != 0) & (mask != 0), jnp.abs(param).astype(jnp.float32), -1.0)
        return exact_topk([scores], kept - grown)[0] & mask

    return map_pruned(settled, params, masks, core.unpack_masks(params, left.masks), otherwise=lambda *_: NOT_PRUNED)


@jax.jit
def strongest_pruned(grads: Any, masks: Any, counts: Any) -> Any:
    """Masks of the pruned weights with the largest gradients.

    Args:
        grads: Gradients of one client at the parameters of the broadcast.
        masks: uint8 masks of weights that are not to be chosen.
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


def ranked(grads: Any, masks: Any, counts: Any = None) -> Any:
    """A client's say in what to grow: the ranks of its gradients instead of their sizes.

    In each layer the strongest counts 1, and each further one a fixed step less; gradients of one magnitude share the
    mean of their ranks. So no client says more at a weight than 1, nor more in all than any other, whatever it sends.

    Args:
        grads: What a client sent, as arrays; entries that are 0 say nothing.
        masks: uint8 masks of weights on which it was not asked.
        counts: How many weights of each layer it may name. The last of them counts more than one half, so that of
            weights named once and weights named twice alike the latter are ahead; those behind it count 0. None: it may
            name all on which it was asked, down to next to 0.

    Returns:
        float32 arrays in [-1, 1] with the gradients' signs; 0 in layers that stay dense.

    Example:
        >>> grads, masks = {"w": np.array([9.0, -0.3, 0.1, 0.0, 700.0])}, {"w": np.array([0, 0, 0, 0, 1], np.uint8)}
        >>> ranked(grads, masks)["w"].tolist(), ranked(grads, masks, {"w": 2})["w"].tolist()
        ([1.0, -0.75, 0.5, 0.0, 0.0], [1.0, -0.75, 0.0, 0.0, 0.0])
    """
    fall = 1.0 if counts is None else 0.5
    counts = jax.tree.map(lambda mask: mask.size, masks) if counts is None else counts

    def ranks(grad: Any, mask: Any, count: int) -> np.ndarray[Any, Any]:
        grad, asked = np.asarray(grad), np.asarray(mask) == 0
        count = min(count, int(asked.sum()))
        named = asked & (grad != 0)
        magnitudes = np.abs(grad[named]).astype(np.promote_types(grad.dtype, np.float32))
        _, group, sizes = np.unique(magnitudes, return_inverse=True, return_counts=True)
        stronger = magnitudes.size - np.cumsum(sizes)
        say = 1 - fall * (stronger + (sizes - 1) / 2) / max(count, 1)
        say = np.where(stronger + sizes <= count, say, 0)[group]
        out = np.zeros(grad.shape, np.float32)
        out[named] = np.where(grad[named] < 0, -say, say)
        return out

    return map_pruned(ranks, grads, masks, counts, otherwise=lambda g, count: np.zeros(np.shape(g), np.float32))


def pruned_places(grads: Any, masks: Any) -> Any:
    """uint8 masks of all weights outside masks; none in layers that stay dense."""
    return map_pruned(
        lambda g, mask: (mask == 0).astype(jnp.uint8), grads, masks, otherwise=lambda g: jnp.zeros(g.shape, jnp.uint8)
    )


def random_signal(params: Any, state: core.SparseState) -> Any:
    """Growth scores drawn by the updater's seed and the round, as positive floats."""
    words = random_scores(params, state.rng, state.count + 1)
    return jax.tree.map(lambda word: 1.0 + (word >> 8).astype(jnp.float32), words)
