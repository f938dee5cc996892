"""An updater and an optimizer as one optax transformation: the step."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from sparse_plugins.core.checks import check_changes, check_params, check_update
from sparse_plugins.core.masks import apply_masks, map_pruned, visible_leaves
from sparse_plugins.core.transform.cond import fresh_if, masks_alone, masks_varying_with, refreshed_if
from sparse_plugins.core.transform.hooks import LeafPlans, UpdaterHooks
from sparse_plugins.core.transform.implicit_masks import beside_zeros, forget_masks, masks_if, masks_of_step
from sparse_plugins.core.transform.moments import check_inner, reset_pruned
from sparse_plugins.core.transform.skipped_steps import accumulation_periods
from sparse_plugins.core.transform.state import SparseState, holds_sparse_state
from sparse_plugins.core.trees import PyTree, stands_for_params

__all__ = ["ZEROS_NEED_GRAPH", "refreshed_state", "sparse_transformation"]

ZEROS_NEED_GRAPH = (
    "use_packed_masks='zeros' keeps masks in the parameters, which a refresh outside update does not change: keep "
    "refresh_in_graph=True, or store the masks with use_packed_masks=True."
)
_MASKS_ALONE = (
    "Masks that are not stored are all that a refresh can change: use_packed_masks=True takes the rest along."
)
_FOLLOWING_ALONE = "Masks that follow the weights are made when these have moved, too late for anything else to change."
_SPARSE_ALREADY = "the optimizer to wrap is sparse already: wrap the dense one, once, with one updater."


def sparse_transformation(
    updater: UpdaterHooks, inner: optax.GradientTransformation, refresh_in_graph: bool
) -> optax.GradientTransformationExtraArgs:
    """What `BaseUpdater.wrap_optax` returns; see there."""
    if not isinstance(inner, (optax.GradientTransformation, optax.GradientTransformationExtraArgs)):
        raise TypeError(
            f"wrap_optax got {inner!r}; give an optax transformation such as optax.adam(1e-3). For a "
            "fedjax.Optimizer use sparse_plugins.fed.sparse_server_optimizer."
        )
    if getattr(inner.init, "__qualname__", "").startswith(f"{sparse_transformation.__name__}."):
        raise TypeError(_SPARSE_ALREADY)
    updater.check_schedule()
    in_zeros = updater.use_packed_masks == "zeros"
    if in_zeros and not refresh_in_graph:
        raise ValueError(ZEROS_NEED_GRAPH)
    updater.check_steps(1)
    inner = optax.with_extra_args_support(inner)
    # An update_state that is not ours may change other fields of the state; ours change masks alone.
    is_ours = type(updater).update_state.__module__.startswith(f"{__name__.partition('.')[0]}.")
    changes = ["masks"] if is_ours else None

    def init(params: PyTree) -> SparseState:
        check_params(updater, params)
        inner_state = inner.init(params)
        if holds_sparse_state(inner_state):
            raise TypeError(_SPARSE_ALREADY)
        state = updater.init_state(params)._replace(inner_state=inner_state)
        restarted = updater.leaf_plans(params).restarted(state.masks)
        check_inner(bool(jax.tree.leaves(restarted)), inner.init, inner_state, params, restarted)
        updater.check_inner_state(inner_state)
        for period in accumulation_periods(inner, inner_state, params):
            updater.check_steps(period)
        # A loop that calls refresh by itself updates masks when it likes, schedule or not.
        if refresh_in_graph:
            check_changes(updater, params)
        if stands_for_params(params):  # sums of masks or their products with a number mean nothing
            return state._replace(masks=0, target_sparsities=0)
        return state._replace(masks=forget_masks(params, state.masks)) if in_zeros else state

    def masks_before(
        due: Any, plans: LeafPlans, updates: PyTree, state: SparseState, params: PyTree, **extra: Any
    ) -> tuple[PyTree, SparseState]:
        """The masks in force, and the state that goes with them."""
        refreshed = functools.partial(_refreshed, updater, plans, params, updates, extra)
        if in_zeros:
            fresh = lambda masks: masks_alone(refreshed(state._replace(masks=masks)), state, _MASKS_ALONE)  # noqa: E731
            return masks_of_step(updater, state, params, due, fresh), state
        # Inside shard_map both branches have to vary over the same axes of the mesh.
        state = state._replace(masks=masks_varying_with(params, state.masks))
        state = refreshed_if(due, lambda: refreshed(state), state, changes)
        return state.masks, state

    def masks_after(
        due: Any, masks: PyTree, moved: PyTree, updates: PyTree, state: SparseState, params: PyTree, **extra: Any
    ) -> PyTree:
        def fresh() -> PyTree:
            weights = map_pruned(lambda p, dense: dense, params, moved, otherwise=lambda p: p)
            after = state._replace(masks=masks, count=optax.safe_increment(state.count), dense_params=moved)
            return masks_alone(updater.followed(after, params, weights, updates, **extra), after, _FOLLOWING_ALONE)

        return masks_if(due, fresh, params, masks) if in_zeros else fresh_if(due, fresh, masks)

    def update(
        updates: PyTree, state: SparseState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SparseState]:
        plans = check_update(updater, updates, state, params)
        due = updater.changes_before(state.count) if refresh_in_graph else False
        # Masks first: what this step prunes or grows is pruned or grown for its gradients and moments, too.
        masks, state = masks_before(due, plans, updates, state, params, **extra)
        latent = plans.latent_params(params, masks, state)
        inner_state, restarted = state.inner_state, plans.restarted(masks)
        if jax.tree.leaves(restarted):
            # A weight that comes back must not start with the moments that it had when it was pruned.
            latent = apply_masks(latent, restarted)  # some optimizers keep parameters in their state
            inner_state = reset_pruned(inner_state, inner.init(latent), latent, restarted)
        moves, inner_state = inner.update(plans.inner_gradients(updates, latent, masks), inner_state, latent, **extra)
        # Held before they are landed, so that a step that moves no weight still takes them onto its masks.
        held, dense = plans.moved(moves, latent, state.count)
        due = updater.changes_after(state.count)
        if due is not False:  # straight-through masks are those of the weights as they are after the step
            masks = masks_after(due, masks, dense, updates, state, params, **extra)
        # Differences to where parameters are to be: optax adds them, and no hook comes after it.
        landed = plans.landed(held, params, dense, masks)
        if in_zeros:
            landed = beside_zeros(params, landed, plans.tree(plans.acting(masks)))
        return landed, SparseState(
            masks=state.masks if in_zeros else masks,
            inner_state=inner_state,
            target_sparsities=state.target_sparsities,
            count=optax.safe_increment(state.count),
            rng=state.rng,
            dense_params=dense if updater.keeps_dense_weights else (),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def refreshed_state(
    updater: UpdaterHooks, state: SparseState, params: PyTree, grads: PyTree | None, **extra: Any
) -> SparseState:
    """The state with masks that change now; see `BaseUpdater.refresh`."""
    params, grads = visible_leaves(params, state.masks), None if grads is None else visible_leaves(grads, state.masks)
    plans = check_update(updater, grads, state, params)
    # These change inside update, once it has moved the weights.
    if updater.masks_follow_weights:
        return state
    state = state._replace(masks=masks_varying_with(params, state.masks))
    return _refreshed(updater, plans, params, grads, extra, state)


def _refreshed(
    updater: UpdaterHooks,
    plans: LeafPlans,
    params: PyTree,
    grads: PyTree | None,
    extra: Mapping[str, Any],
    state: SparseState,
) -> SparseState:
    # The latent parameters are made inside the branch: as its operand they would be written out first.
    latent = plans.latent_params(params, state.masks, state)
    new = updater.update_state(state, latent, grads, **extra)
    return updater.storing(new, params, new.masks)
