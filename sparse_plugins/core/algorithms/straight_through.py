"""Straight-through estimation: dense weights learn, their sparse view is used.

The parameters a loop sees are the sparse view; the dense weights live in the state. Gradients are taken at the sparse
view and applied to the dense weights, so nothing but the wrapped optimizer needs to know.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sparse_plugins.core.algorithms.pruning import MagnitudePruning, RandomPruning
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.masks import NOT_PRUNED, map_pruned, unpack
from sparse_plugins.core.schedules import NoUpdateSchedule
from sparse_plugins.core.state import SparseState
from sparse_plugins.core.trees import PyTree

__all__ = ["SteMagnitudePruning", "SteMixin", "SteRandomPruning"]


@dataclasses.dataclass(eq=False)
class SteMixin(BaseUpdater):
    """Keeps the dense weights and puts a mask in front of them.

    The schedule gives the sparsity and the steps at which the mask follows the weights; it goes on doing so after the
    schedule's end, at the target. `NoUpdateSchedule` means the target sparsity at every step, as in the paper.

    Raises:
        ValueError: With is_sparse_gradients, which would take the estimator's gradients away.
    """

    starts_dense: ClassVar[bool] = False
    prunes_for_good: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_sparse_gradients:
            raise ValueError(f"{type(self).__name__} needs the gradients of pruned weights: is_sparse_gradients=False.")

    def init_state(self, params: PyTree) -> SparseState:
        """The sparse state, holding the dense weights."""
        state = super().init_state(params)
        own = jax.tree.map(jnp.copy, params)  # parameters and state may both be donated
        return state._replace(dense_params=self._dense_leaves(params, self._in_force(params, state.masks), own))

    def get_initial_masks(self, params: PyTree, target_sparsities: PyTree) -> PyTree:
        """Masks of the first step, if the schedule starts there; else everything kept."""
        if not self.is_refresh_due(0):
            return super().get_initial_masks(params, target_sparsities)
        return self.create_masks(
            self.calculate_scores(params), self.scheduler.get_sparsity_at_step(target_sparsities, 0)
        )

    def is_refresh_due(self, step: Any) -> Any:
        """At every step of the schedule's grid, without an end."""
        return self.scheduler.is_mask_update_iter(step) | self.scheduler.is_open_ended_iter(step)

    def describe_schedule(self) -> str:
        """The schedule, in words."""
        if type(self.scheduler) is NoUpdateSchedule:
            return f"masks follow the weights at every {self.scheduler.step_unit}"
        return f"{super().describe_schedule()}, and go on following the weights"

    def _latent_params(self, params: PyTree, masks: PyTree, state: SparseState) -> PyTree:
        # Visible weights are read where the loop keeps them, so that a change made there (an average, a restore) is
        # heard, and so that the compiler cannot start on the dense weights before the masks are settled: it would
        # have to copy them first. A visible weight of 0 may just have come into view.
        def dense(param: jax.Array, mask: jax.Array, kept_dense: jax.Array) -> jax.Array:
            return jnp.where(unpack(mask, param.shape) & (param != 0), param, kept_dense)

        return map_pruned(dense, params, masks, state.dense_params, otherwise=lambda p, _: p)

    def _land(
        self, updates: PyTree, params: PyTree, latent: PyTree, state: SparseState, masks: PyTree
    ) -> tuple[PyTree, PyTree]:
        moved = jax.tree.map(lambda dense, update: (dense + update).astype(dense.dtype), latent, updates)

        def onto_view(param: jax.Array, mask: jax.Array, dense: jax.Array, update: jax.Array) -> jax.Array:
            wide = jnp.promote_types(jnp.promote_types(update.dtype, param.dtype), jnp.float32)
            own = param.astype(wide)
            return jnp.where(unpack(mask, param.shape), dense.astype(wide) - own, -own)

        landed = map_pruned(onto_view, params, masks, moved, updates, otherwise=lambda p, dense, update: update)
        return landed, self._dense_leaves(params, masks, moved)

    def _dense_leaves(self, params: PyTree, masks: PyTree, dense: PyTree) -> PyTree:
        return map_pruned(lambda p, mask, d: d, params, masks, dense, otherwise=lambda p, d: NOT_PRUNED)


@dataclasses.dataclass(eq=False)
class SteMagnitudePruning(SteMixin, MagnitudePruning):
    """Uses the largest weights, trains all of them.

    Example:
        >>> import functools, optax
        >>> from sparse_plugins import core
        >>> updater = SteMagnitudePruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
        >>> tx, params = updater.wrap_optax(optax.sgd(1.0)), {"w": jnp.array([[1.0, 2.0]])}
        >>> state = tx.init(params)
        >>> params = updater.pre_forward_update(params, state)
        >>> for grad in [-3.0, 0.0]:
        ...     updates, state = tx.update({"w": jnp.array([[grad, 0.0]])}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["w"].tolist(), state.dense_params["w"].tolist()
        ([[4.0, 0.0]], [[4.0, 2.0]])

    Source: Bengio et al. (2013) for the estimator; Lee et al., JaxPruner (2023).
    """


@dataclasses.dataclass(eq=False)
class SteRandomPruning(SteMixin, RandomPruning):
    """Uses random weights, other ones at every mask change, and trains all of them.

    Example:
        >>> import functools
        >>> from sparse_plugins import core
        >>> updater = SteRandomPruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75))
        >>> params = {"w": jnp.ones((4, 4))}
        >>> state = updater.init_state(params)
        >>> float(updater.pre_forward_update(params, state)["w"].sum()), float(state.dense_params["w"].sum())
        (4.0, 16.0)
    """
