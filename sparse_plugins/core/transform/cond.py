"""The branch that keeps a mask update off the ordinary step."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparse_plugins.core.masks import NOT_PRUNED, map_pruned
from sparse_plugins.core.selection.topk import varying_with
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree

__all__ = ["fresh_if", "masks_alone", "masks_varying_with", "refreshed_if"]


def fresh_if(due: Any, fresh: Callable[[], PyTree], stale: PyTree) -> PyTree:
    """`fresh()` where due, else `stale`.

    Args:
        due: bool, concrete or traced bool[]. Under `vmap` it may differ by lane; the branch is then taken for all
            lanes when any is due, so that a guard shared by all lanes stays a branch and never becomes a select.
        fresh: Makes the new tree.
        stale: The tree of the same structure, shapes and dtypes to keep otherwise.

    Returns:
        One of the two trees.

    Example:
        >>> fresh_if(False, lambda: {"mask": 1}, {"mask": 0})
        {'mask': 0}
    """
    if not isinstance(due, jax.core.Tracer):  # known already: an eager loop must not compile a branch at every step
        return fresh() if due else stale

    def chosen() -> PyTree:
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), fresh(), stale)

    return lax.cond(_any_lane(due), chosen, lambda: stale)


def refreshed_if(
    due: Any, refreshed: Callable[[], SparseState], state: SparseState, changes: list[str] | None
) -> SparseState:
    """`refreshed()` where due, else the state; what a refresh leaves alone stays outside the branch.

    Args:
        due: As in `fresh_if`.
        refreshed: Makes the new state.
        state: The state before.
        changes: The fields that a refresh changes, if they are known. None finds out by tracing it once more.

    Returns:
        One of the two states.

    Example:
        >>> state = SparseState(masks={}, count=jnp.int32(3))
        >>> int(refreshed_if(True, lambda: state._replace(count=jnp.int32(0)), state, None).count)
        0
    """
    if not isinstance(due, jax.core.Tracer):
        return refreshed() if due else state
    names = _changes_of(refreshed, state) if changes is None else changes
    chosen = lambda of: {name: getattr(of, name) for name in names}  # noqa: E731
    return state._replace(**fresh_if(due, lambda: chosen(refreshed()), chosen(state)))


def _changes_of(refreshed: Callable[[], SparseState], state: SparseState) -> list[str]:
    names: list[str] = []

    def trace() -> tuple:
        names.extend(_changed(refreshed(), state))
        return ()

    jax.eval_shape(trace)
    return names


def _changed(new: SparseState, old: SparseState) -> list[str]:
    """The fields that do not hold the very arrays of the old state."""

    def is_same(name: str) -> bool:
        (leaves, treedef), (others, other_treedef) = (jax.tree.flatten(getattr(of, name)) for of in (new, old))
        # Tracers have no values to compare: what a refresh leaves alone is the very same object.
        return treedef == other_treedef and all(map(operator.is_, leaves, others))

    return [name for name in SparseState._fields if not is_same(name)]


def masks_alone(new: SparseState, old: SparseState, why: str) -> PyTree:
    """The masks of a refreshed state that may differ in nothing else.

    Args:
        new: The state after a refresh.
        old: The state before.
        why: What stands in the way of more, for the message.

    Raises:
        ValueError: If another field has changed.

    Example:
        >>> masks_alone(SparseState({"w": 1}, count=1), SparseState({"w": 0}, count=0), "Masks only.")
        Traceback (most recent call last):
        ValueError: update_state changes count as well as masks. Masks only.
    """
    if others := [name for name in _changed(new, old) if name != "masks"]:
        raise ValueError(f"update_state changes {' and '.join(others)} as well as masks. {why}")
    return new.masks


def masks_varying_with(params: PyTree, masks: PyTree) -> PyTree:
    """Masks that vary over the axes of a mesh over which their parameters do, as both sides of a branch have to.

    Args:
        params: Parameter tree, inside `jax.shard_map` or not.
        masks: Their masks; markers stay.
    """
    varying = [leaf for leaf in jax.tree.leaves(params) if jax.typeof(leaf).manual_axis_type.varying]
    if not varying:
        return masks
    return map_pruned(lambda p, m: varying_with(m, p), params, masks, otherwise=lambda p: NOT_PRUNED)


# `vmap` makes a select of a branch whose predicate differs by lane, and a select computes both sides at every step.
@jax.custom_batching.custom_vmap
def _any_lane(due: jax.Array) -> jax.Array:
    return due


@_any_lane.def_vmap
def _reduce_lanes(axis_size: int, in_batched: list, due: jax.Array) -> tuple[jax.Array, bool]:
    return _any_lane(jnp.any(due)), False
