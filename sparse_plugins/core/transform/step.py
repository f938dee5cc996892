"""An updater and an optimizer as one optax transformation: the step."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_plugins.core.checks import check_params, check_update
from sparse_plugins.core.masks import apply_masks, map_pruned, unpack
from sparse_plugins.core.schedules import NoUpdateSchedule
from sparse_plugins.core.transform.cond import fresh_if, masks_alone, refreshed_if
from sparse_plugins.core.transform.implicit_masks import beside_zero, forget_masks, masks_if, masks_of_step
from sparse_plugins.core.transform.moments import check_inner, reset_pruned
from sparse_plugins.core.transform.skipped_steps import accumulation_periods
from sparse_plugins.core.transform.state import SparseState, holds_sparse_state
from sparse_plugins.core.transform.varying import masks_varying_with
from sparse_plugins.core.trees import PyTree, stands_for_params

__all__ = ["ZEROS_NEED_GRAPH", "sparse_transformation"]

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
    updater: Any, inner: optax.GradientTransformation, refresh_in_graph: bool
) -> optax.GradientTransformationExtraArgs:
    """What `BaseUpdater.wrap_optax` returns; see there."""
    if not isinstance(inner, (optax.GradientTransformation, optax.GradientTransformationExtraArgs)):
        raise TypeError(
            f"wrap_optax got {inner!r}; give an optax transformation such as optax.adam(1e-3). For a "
            "fedjax.Optimizer use sparse_plugins.fed.sparse_server_optimizer."
        )
    if getattr(inner.init, "__qualname__", "").startswith(f"{sparse_transformation.__name__}."):
        raise TypeError(_SPARSE_ALREADY)
    updater._check_schedule()
    in_zeros = updater.use_packed_masks == "zeros"
    if in_zeros and not refresh_in_graph:
        raise ValueError(ZEROS_NEED_GRAPH)
    updater._check_steps(1)
    inner = optax.with_extra_args_support(inner)
    is_ours = type(updater).update_state.__module__.startswith(f"{__name__.partition('.')[0]}.")
    changes = ["masks"] if is_ours else None

    def init(params: PyTree) -> SparseState:
        check_params(updater, params)
        inner_state = inner.init(params)
        if holds_sparse_state(inner_state):
            raise TypeError(_SPARSE_ALREADY)
        state = updater.init_state(params)._replace(inner_state=inner_state)
        restarted = updater._restarted(params, state.masks)
        check_inner(bool(jax.tree.leaves(restarted)), inner.init, inner_state, params, restarted)
        updater._check_inner_state(inner_state)
        for period in accumulation_periods(inner, inner_state, params):
            updater._check_steps(period)
        stays_dense = updater.starts_dense and type(updater.scheduler) is NoUpdateSchedule
        if refresh_in_graph and stays_dense and any(jax.tree.leaves(updater.target_sparsities(params))):
            warnings.warn(
                f"{type(updater).__name__} with {updater.scheduler} keeps every weight: give a schedule that changes "
                "masks, or call refresh yourself with refresh_in_graph=False.",
                stacklevel=2,
            )
        if stands_for_params(params):  # sums of masks or their products with a number mean nothing
            return state._replace(masks=0, target_sparsities=0)
        return state._replace(masks=forget_masks(params, state.masks)) if in_zeros else state

    def masks_before(
        due: Any, updates: PyTree, state: SparseState, params: PyTree, **extra: Any
    ) -> tuple[PyTree, SparseState]:
        """The masks in force, and the state that goes with them."""

        # The latent parameters are made inside the branch: as its operand they would be written out first.
        def refreshed(state: SparseState) -> SparseState:
            return updater._refreshed(state, params, updates, **extra)

        if in_zeros:
            fresh = lambda masks: masks_alone(refreshed(state._replace(masks=masks)), state, _MASKS_ALONE)  # noqa: E731
            return masks_of_step(updater, state, params, due, fresh), state
        state = state._replace(masks=masks_varying_with(params, state.masks))
        state = refreshed_if(due, lambda: refreshed(state), state, changes)
        return state.masks, state

    def masks_after(
        due: Any, masks: PyTree, moved: PyTree, updates: PyTree, state: SparseState, params: PyTree, **extra: Any
    ) -> PyTree:
        def fresh() -> PyTree:
            weights = map_pruned(lambda p, dense: dense, params, moved, otherwise=lambda p: p)
            after = state._replace(masks=masks, count=optax.safe_increment(state.count), dense_params=moved)
            return masks_alone(updater._followed(after, params, weights, updates, **extra), after, _FOLLOWING_ALONE)

        return masks_if(due, fresh, params, masks) if in_zeros else fresh_if(due, fresh, masks)

    def update(
        updates: PyTree, state: SparseState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SparseState]:
        check_update(updater, updates, state, params)
        grads = updates
        due = updater._changes_before(state.count) if refresh_in_graph else False
        masks, state = masks_before(due, grads, state, params, **extra)
        in_force = updater._in_force(params, masks)
        latent = updater._latent_params(params, in_force, state)
        inner_state = state.inner_state
        restarted = updater._restarted(params, in_force)
        if jax.tree.leaves(restarted):
            latent = apply_masks(latent, restarted)  # some optimizers keep parameters in their state
            inner_state = reset_pruned(inner_state, inner.init(latent), latent, restarted)
        updates, inner_state = inner.update(updater._gradients(grads, latent, in_force), inner_state, latent, **extra)
        updates = updater._held(updates, state.count)
        moved = updater._moved(updates, latent, in_force)
        masks = masks_after(updater._changes_after(state.count), masks, moved, grads, state, params, **extra)
        in_force = updater._in_force(params, masks)
        updates = updater._land(updates, params, moved, in_force)
        if in_zeros:
            beside = lambda p, m, u: jnp.where(unpack(m, p.shape), beside_zero(p, u), u)  # noqa: E731
            updates = map_pruned(beside, params, in_force, updates, otherwise=lambda p, u: u)
        return updates, SparseState(
            masks=state.masks if in_zeros else masks,
            inner_state=inner_state,
            target_sparsities=state.target_sparsities,
            count=optax.safe_increment(state.count),
            rng=state.rng,
            dense_params=moved,
        )

    return optax.GradientTransformationExtraArgs(init, update)
