"""What a mask update of the server needs to know, and what of that both sides know from the broadcast.

Updaters drop weights and then grow others. Where fewer are pruned than are to be grown, as in a run that starts dense,
some of those just dropped come back, and clients are asked about all that do not survive the drop. Which these are
follows from the broadcast, so both sides know.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp

from sparse_plugins import core
from sparse_plugins.core.algorithms.tree_partition import Parts
from sparse_plugins.core.checks import counts_steps
from sparse_plugins.core.masks import NOT_PRUNED, map_pruned
from sparse_plugins.core.selection.counts import survivor_count
from sparse_plugins.core.selection.topk import exact_topk
from sparse_plugins.wire.trees import PyTree

__all__ = [
    "MaskChange",
    "can_change_masks",
    "check_counts_rounds",
    "check_is_plain",
    "pruned_places",
    "replaced_per_layer",
    "settled_masks",
    "with_fields",
]

_RULE = ("update_state", "kept_and_survivors", "grow_sources", "grow_score")


class _Exchanging(Protocol):
    """What an updater has that declares `exchanges_weights`."""

    drop_fraction_fn: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class MaskChange:
    """A mask update that is due and goes by gradients.

    Attributes:
        updater: An updater that grows by gradients.
        state: Its state before the change.
        params: The parameters of the broadcast.
        masks: uint8 masks of the broadcast.

    Example:
        >>> third = lambda params: {"w": 1 / 3}
        >>> rigl = core.RigL(sparsity_distribution_fn=third, drop_fraction_fn=core.ConstantDrop(0.25))
        >>> params, masks = {"w": jnp.ones((1, 6))}, {"w": jnp.array([[1, 1, 1, 1, 0, 0]], jnp.uint8)}
        >>> change = MaskChange(rigl, rigl.with_masks(rigl.init_state(params), params, masks), params, masks)
        >>> change.counts, change.is_wanted, change.settled["w"].tolist()
        ({'w': 1}, True, [[1, 1, 1, 1, 0, 0]])
    """

    updater: core.BaseUpdater
    state: core.SparseState
    params: PyTree
    masks: PyTree

    @functools.cached_property
    def counts(self) -> PyTree:
        """How many weights of each layer are replaced, at most; `core.NOT_PRUNED` where a leaf stays dense."""
        return replaced_per_layer(self.updater, int(self.state.count), self.masks)

    @functools.cached_property
    def settled(self) -> PyTree:
        """uint8 masks of the weights that are certain to stay, about which nobody needs to be asked."""
        return settled_masks(self.updater, self.state, self.params, self.masks, self.counts)

    @property
    def is_wanted(self) -> bool:
        """Whether any weight is to be grown."""
        return any(jax.tree.leaves(self.counts))

    @property
    def is_unstructured(self) -> bool:
        """Whether every weight of an array competes with every other."""
        return self.updater.ranks_whole_arrays


def can_change_masks(
    updater: core.BaseUpdater, state: core.SparseState, params: PyTree, grads: PyTree, delta: PyTree
) -> bool:
    """Whether a mask update that goes by gradients has any to go by.

    Args:
        updater: The server's updater. Each of its parts is asked about its own, if it has some.
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
    # While a round is traced there are no values to look at.
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state, params, grads, delta))):
        return True
    if updater.parts:
        patterns, updaters = zip(*updater.parts, strict=True)
        parts = Parts((*updaters, core.NoPruning()), params, patterns)
        ask = lambda part: functools.partial(can_change_masks, part)  # noqa: E731
        return all(parts.each(ask, state._replace(inner_state=()), params, grads, delta))
    if not bool(updater.is_refresh_due(state.count)):
        return True
    if updater.scores_by_gradient:
        return bool(_are_heard(grads, core.unpack_masks(params, state.masks)))
    if not updater.grows_by_gradient:
        return True
    masks = core.unpack_masks(params, state.masks)
    if updater.use_packed_masks == "zeros":
        updater, state = with_fields(updater, use_packed_masks=False), state._replace(masks=masks)
    change = MaskChange(updater, state, params, masks)
    places = pruned_places(grads, change.settled)
    if not _are_wanted(change.counts, places) or _are_heard(grads, places):
        return True
    if not _are_heard(delta, jax.tree.map(jnp.ones_like, delta)):
        return False
    raise ValueError(
        f"round {int(state.count)} is to grow weights by gradients, but all gradients of pruned weights are 0: "
        "clients that train inside the mask send none, and masks would never move. Use core.SET, which grows at "
        "random, let clients train densely with an ordinary client optimizer, or use "
        "fed.sparse_federated_averaging(growth='topk'), whose clients send the few gradients that are needed."
    )


def _are_wanted(counts: PyTree, places: PyTree) -> bool:
    """Whether a layer replaces weights and has any to choose from."""
    wanted = map_pruned(lambda places, count: bool(count) and bool(jnp.any(places)), places, counts, otherwise=_never)
    return any(jax.tree.leaves(wanted))


def _never(places: jax.Array) -> bool:
    return False


@jax.jit
def _are_heard(grads: PyTree, places: PyTree) -> jax.Array:
    heard = lambda grad, asked: jnp.any((asked != 0) & (grad != 0))  # noqa: E731
    leaves = jax.tree.leaves(map_pruned(heard, grads, places, otherwise=_never))
    return jnp.any(jnp.array(leaves))


def replaced_per_layer(updater: core.BaseUpdater, step: int, masks: PyTree) -> PyTree:
    """How many weights of each layer a mask update replaces, which is what clients are asked for.

    Args:
        updater: An updater that grows by gradients. One that does not declare `exchanges_weights` may grow any number
            of weights: it is taken to want all that are pruned.
        step: Its step, int.
        masks: uint8 masks before the change.

    Returns:
        Python int per pruned layer; `core.NOT_PRUNED` elsewhere.

    Example:
        >>> rigl = core.RigL(drop_fraction_fn=core.ConstantDrop(0.25))
        >>> replaced_per_layer(rigl, 0, {"w": jnp.array([1, 1, 1, 1, 0, 0], jnp.uint8)})
        {'w': 1}
    """
    if not updater.exchanges_weights:
        return jax.tree.map(lambda mask: int(jnp.sum(mask == 0)), masks)
    return jax.tree.map(lambda mask: _replaced(updater, step, int(jnp.sum(mask != 0))), masks)


def _replaced(updater: core.BaseUpdater, step: int, kept: int) -> int:
    return kept - int(survivor_count(kept, float(cast(_Exchanging, updater).drop_fraction_fn(step))))


def settled_masks(
    updater: core.BaseUpdater, state: core.SparseState, params: PyTree, masks: PyTree, counts: PyTree
) -> PyTree:
    """Masks of the weights that a mask update is certain to keep, about which nobody needs to be asked.

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
    dropping_none = with_fields(updater, drop_fraction_fn=core.ConstantDrop(0.0))
    left = dropping_none.refresh(state._replace(inner_state=()), params, params)
    is_unstructured = updater.ranks_whole_arrays

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


def pruned_places(grads: PyTree, masks: PyTree) -> PyTree:
    """uint8 masks of all weights outside masks; none in layers that stay dense.

    Example:
        >>> pruned_places({"w": jnp.ones(3)}, {"w": jnp.array([1, 0, 0], jnp.uint8)})["w"].tolist()
        [0, 1, 1]
    """
    return map_pruned(
        lambda g, mask: (mask == 0).astype(jnp.uint8), grads, masks, otherwise=lambda g: jnp.zeros(g.shape, jnp.uint8)
    )


def check_counts_rounds(updater: core.BaseUpdater) -> None:
    """Refuses a schedule that does not say that its steps are rounds, which are all that a server counts.

    Raises:
        ValueError: If it counts something else, or says nothing.

    Example:
        >>> check_counts_rounds(core.MagnitudePruning(scheduler=core.OneShotSchedule(9, step_unit="round")))
        >>> check_counts_rounds(core.MagnitudePruning(scheduler=core.OneShotSchedule(9)))
        Traceback (most recent call last):
        ValueError: the schedule of MagnitudePruning counts optimizer steps, and a server counts rounds: ...
    """
    for part in [part for _, part in updater.parts] or [updater]:
        schedule = part.scheduler
        if schedule.step_unit != "round" and counts_steps(schedule) and not part.masks_from_seed:
            raise ValueError(
                f"the schedule of {type(part).__name__} counts {schedule.step_unit}s, and a server counts rounds: give "
                f"it rounds and say so with step_unit='round' ({schedule})."
            )


def check_is_plain(updater: core.BaseUpdater) -> None:
    """Refuses an updater whose rule differs from those of SET and RigL, which clients without JAX know.

    Raises:
        ValueError: If it has a rule of its own.

    Example:
        >>> check_is_plain(core.RigL())
    """
    known = core.RigL if updater.grows_by_gradient else core.SET
    if any(getattr(type(updater), name, None) is not getattr(known, name) for name in _RULE):
        raise ValueError(
            f"nodes change masks of their own by the rule of core.SET or core.RigL, and {type(updater).__name__} has "
            "another; use one of the two, or fed.sparse_federated_averaging."
        )


def with_fields(updater: core.BaseUpdater, **fields: Any) -> core.BaseUpdater:
    """An updater, or one of whose parts each, with other fields.

    Example:
        >>> with_fields(core.RigL(), skip_gradients=False).skip_gradients
        False
    """
    return updater.map_parts(lambda part: dataclasses.replace(part, **fields))
