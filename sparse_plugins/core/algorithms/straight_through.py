"""Straight-through estimation: dense weights learn, their sparse view is used.

The parameters a loop sees are the sparse view; the dense weights live in the state. Gradients are taken at the sparse
view and applied to the dense weights, so nothing but the wrapped optimizer needs to know.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from sparse_plugins.core.algorithms.pruning import MagnitudePruning, RandomPruning
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.masks import NOT_PRUNED, is_pruned, unpack
from sparse_plugins.core.schedules import NoUpdateSchedule
from sparse_plugins.core.selection.counts import check_positive
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, common_dtype

__all__ = ["SoftTopKSte", "SrSte", "SteMagnitudePruning", "SteMixin", "SteRandomPruning"]


@dataclasses.dataclass(eq=False)
class SteMixin(BaseUpdater):
    """Keeps the dense weights and puts a mask in front of them.

    The schedule gives the sparsity and the steps at which the mask is made anew; this goes on after the schedule's
    end, at the target. `NoUpdateSchedule` means the target sparsity at every step, as in the paper. The mask with which
    such a step starts is that of the dense weights as they are then: the update of the step before makes it, once it
    has moved them, also with `refresh_in_graph=False`.

    Raises:
        ValueError: With is_sparse_gradients, which would take the estimator's gradients away.
    """

    starts_dense: ClassVar[bool] = False
    prunes_for_good: ClassVar[bool] = False
    masks_follow_weights: ClassVar[bool] = True
    keeps_dense_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_sparse_gradients:
            raise ValueError(f"{type(self).__name__} needs the gradients of pruned weights: is_sparse_gradients=False.")

    def init_state(self, params: PyTree) -> SparseState:
        """The sparse state, holding the dense weights."""
        state, plans = super().init_state(params), self.leaf_plans(params)
        columns = zip(jax.tree.leaves(params), plans.acting(state.masks), strict=True)
        # Copies: parameters and state may both be donated.
        dense = [jnp.copy(param) if is_pruned(mask) else NOT_PRUNED for param, mask in columns]
        return state._replace(dense_params=plans.tree(dense))

    def get_initial_masks(self, params: PyTree, target_sparsities: PyTree) -> PyTree:
        """Masks of the first step, if the schedule starts there; else everything kept."""
        if not self._is_mask_new(0):
            return super().get_initial_masks(params, target_sparsities)
        targets = self.targets_or_default(params, target_sparsities)
        return self.create_masks(self.calculate_scores(params), self.scheduler.get_sparsity_at_step(targets, 0))

    def is_refresh_due(self, step: Any) -> Any:
        """Whether the update of a step changes the masks, which the next step uses."""
        return self._is_mask_new(step + 1)

    def describe_schedule(self) -> str:
        """The schedule, in words."""
        if type(self.scheduler) is NoUpdateSchedule:
            return f"masks follow the weights at every {self.scheduler.step_unit}"
        return f"{super().describe_schedule()}, and go on following the weights"

    def _is_mask_new(self, step: Any) -> Any:
        """At every step of the schedule's grid, without an end."""
        return self.scheduler.is_mask_update_iter(step) | self.scheduler.is_open_ended_iter(step)

    def latent_param(self, param: jax.Array, mask: jax.Array, dense: jax.Array) -> jax.Array:
        """The parameter where it is visible, else its dense weight."""
        # Visible weights are read where the loop keeps them, so that a change made there (an average, a restore) is
        # heard, and so that the compiler cannot start on the dense weights before the masks are settled: it would
        # have to copy them first. A visible weight of 0 may just have come into view.
        return jnp.where(unpack(mask, param.shape) & (param != 0), param, dense)

    def dense_weight(self, update: jax.Array, latent: jax.Array) -> Any:
        """The latent weight, moved."""
        return optax.apply_updates(latent, update)

    def landed(self, update: jax.Array, param: jax.Array, dense: jax.Array, mask: jax.Array) -> jax.Array:
        """The update that takes the parameter onto the dense weight where it is visible."""
        narrow = common_dtype(update.dtype, param.dtype)
        wide = common_dtype(narrow, jnp.float32)
        current = param.astype(wide)
        landed = jnp.where(unpack(mask, param.shape), dense.astype(wide) - current, -current)
        # A strict loop cannot add a wide update; what it is given then may miss the dense weight by a rounding.
        return landed.astype(narrow) if _is_strict() else landed


def _is_strict() -> bool:
    return jax.config.jax_numpy_dtype_promotion == "strict"  # type: ignore[attr-defined]


@dataclasses.dataclass(eq=False)
class SteMagnitudePruning(SteMixin, MagnitudePruning):
    """Uses the largest weights, trains all of them.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(1.0), "magnitude_ste", sparsity=0.5)
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, 2.0]])})
        >>> updates, state = tx.update({"w": jnp.array([[-3.0, 0.0]])}, state, params)
        >>> optax.apply_updates(params, updates)["w"].tolist(), state.dense_params["w"].tolist()
        ([[4.0, 0.0]], [[4.0, 2.0]])

    Source: Bengio et al. (2013) for the estimator; Lee et al., JaxPruner (2023).
    """


@dataclasses.dataclass(eq=False)
class SteRandomPruning(SteMixin, RandomPruning):
    """Uses random weights, other ones at every mask update, and trains all of them.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(1.0), "random_ste", sparsity=0.5, rng_seed=7)
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, 2.0]])})
        >>> updates, state = tx.update({"w": jnp.array([[-3.0, -3.0]])}, state, params)
        >>> int(jnp.count_nonzero(optax.apply_updates(params, updates)["w"])), state.dense_params["w"].tolist()
        (1, [[4.0, 5.0]])
    """


@dataclasses.dataclass(eq=False)
class SrSte(SteMagnitudePruning):
    """Straight-through estimation in which the weights that are not used decay, so that masks settle.

    Attributes:
        decay: Added to the gradient of an inactive weight, times its dense value; at least 0.

    Raises:
        ValueError: If decay is negative or no number.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(1.0), "sr_ste", sparsity=0.5, decay=0.25)
        >>> params, state = core.start(tx, {"w": jnp.array([[4.0, 2.0]])})
        >>> updates, state = tx.update({"w": jnp.zeros((1, 2))}, state, params)
        >>> state.dense_params["w"].tolist()
        [[4.0, 1.5]]

    Source: Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch (2021).
    """

    decay: float = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decay = check_positive("decay", self.decay, or_zero=True)

    def inner_gradient(self, grad: jax.Array, latent: jax.Array, mask: jax.Array) -> jax.Array:
        """The gradient, and the pull towards 0 of an inactive weight."""
        pull = jnp.where(unpack(mask, latent.shape), 0.0, self.decay).astype(grad.dtype)
        return grad + pull * latent.astype(grad.dtype)


@dataclasses.dataclass(eq=False)
class SoftTopKSte(SteMagnitudePruning):
    """Straight-through estimation whose gradients pass a soft mask: the farther below the threshold, the less.

    What is used stays exactly sparse. A dense weight of r times the smallest magnitude in use gets its gradient times
    sigmoid((r - 1) / temperature) if it is inactive, and all of it if it is in use.

    Attributes:
        temperature: Width of the soft edge, relative to the threshold; above 0. Small values freeze weights that are
            inactive, large ones give half the gradient.

    Raises:
        ValueError: If temperature is not positive.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(1.0), "soft_topk_ste", sparsity=0.5)
        >>> params, state = core.start(tx, {"w": jnp.array([[4.0, 3.999, 0.0, 4.0]])})
        >>> updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
        >>> [round(value, 2) for value in state.dense_params["w"][0].tolist()]
        [3.0, 3.5, -0.01, 3.0]

    Source: after Tai et al., Spartan: Differentiable Sparsity via Regularized Transportation (2022).
    """

    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.temperature = check_positive("temperature", self.temperature)

    def inner_gradient(self, grad: jax.Array, latent: jax.Array, mask: jax.Array) -> jax.Array:
        """The gradient, less of it the farther an inactive weight is below the threshold."""
        used, size = unpack(mask, latent.shape), jnp.abs(latent.astype(jnp.float32))
        threshold = jnp.min(jnp.where(used, size, jnp.inf), initial=jnp.inf)
        ratio = size / jnp.maximum(threshold, jnp.finfo(jnp.float32).tiny)
        soft = jax.nn.sigmoid((ratio - 1.0) / self.temperature)
        return grad * jnp.where(used, 1.0, soft).astype(grad.dtype)
