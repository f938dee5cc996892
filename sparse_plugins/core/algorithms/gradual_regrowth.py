"""Sparse training on the way from dense to sparse: fewer weights at every mask update, and some of them replaced."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sparse_plugins.core.algorithms.global_pruning import GlobalMagnitudePruning
from sparse_plugins.core.algorithms.regrowth import SET, GradientGrowthMixin, RigL
from sparse_plugins.core.drop_fractions import ConstantDrop
from sparse_plugins.core.masks import NOT_PRUNED, map_pruned, unpack
from sparse_plugins.core.schedules import (
    PeriodicSchedule,
    PolynomialSchedule,
    Step,
    at_refresh,
    count_at_refresh,
)
from sparse_plugins.core.selection.counts import check_fraction, survivor_count
from sparse_plugins.core.selection.leaf_by_leaf import in_turns
from sparse_plugins.core.selection.structured_topk import kept_units, regrow_mask
from sparse_plugins.core.structures import Structure, Unstructured
from sparse_plugins.core.transform.hooks import LeafPlan
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree

__all__ = ["GraNet", "GradualRigL", "GradualSET"]


@dataclasses.dataclass(eq=False)
class GradualSET(SET):
    """SET whose sparsity follows a schedule: at every mask update fewer weights, and some of those random new ones.

    Attributes:
        start_part: Part of each layer's target sparsity at which training starts, with random masks; 0 starts dense.

    Raises:
        ValueError: If start_part lies outside [0, 1].

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "gradual_set", sparsity=0.75, total_steps=4, start_part=2 / 3)
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, -4.0, 3.0, 2.0]])})
        >>> before = int(jnp.count_nonzero(params["w"]))
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> before, int(jnp.count_nonzero(params["w"]))
        (2, 1)

    Source: Liu et al., Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (2021).
    """

    start_part: float = 0.0

    starts_dense: ClassVar[bool] = True
    schedule_type: ClassVar[type[PeriodicSchedule]] = PolynomialSchedule

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("start_part", self.start_part)

    def get_initial_masks(self, params: PyTree, target_sparsities: PyTree) -> PyTree:
        """Random masks at `start_part` of the target sparsities."""
        targets = self.targets_or_default(params, target_sparsities)
        begin = jax.tree.map(lambda target: self.start_part * target, targets)
        return super().get_initial_masks(params, begin)

    def kept_and_survivors(
        self, structure: Structure, shape: tuple[int, ...], target: float, step: Any
    ) -> tuple[Any, Any]:
        """Units kept after the mask update, and those of them that were active before."""
        begin = self.start_part * target

        def sparsity_at(step: Step) -> Any:
            part = self.scheduler.get_sparsity_at_step(1.0, step)
            return begin * (1.0 - part) + target * part  # exact at both ends

        kept_at = lambda step: kept_units(structure, shape, sparsity_at(step))  # noqa: E731
        steps = self.scheduler.refresh_steps()
        if steps is None or len(steps) == 0:  # a count may be too large for the floats of a traced step
            return (units := kept_at(step)), survivor_count(units, self.drop_fraction_fn(step))
        survivors_at = lambda step: (1.0 - self.drop_fraction_fn(step)) * kept_at(step)  # noqa: E731
        kept, survivors = (count_at_refresh(count_at, self.scheduler, step) for count_at in (kept_at, survivors_at))
        return kept, survivors


@dataclasses.dataclass(eq=False)
class GradualRigL(GradualSET, RigL):
    """RigL whose sparsity follows a schedule: at every mask update fewer weights, some grown by their gradients.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.1), "gradual_rigl", sparsity=0.5, scheduler=core.OneShotSchedule(0),
        ...                    drop_fraction=0.5)
        >>> params, state = core.start(tx, {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]])})
        >>> updates, state = tx.update({"w": jnp.array([[0.0, 0.0, 0.0, 9.0]])}, state, params)
        >>> core.unpack_masks(params, state.masks)["w"].tolist()  # the largest weight, and the largest gradient
        [[1, 0, 0, 1]]

    Source: Liu et al., Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (2021).
    """

    def describe_seed(self) -> str:
        """Only masks that start sparse are drawn; growth goes by gradients."""
        return super().describe_seed() if self.start_part else ""


@dataclasses.dataclass(eq=False)
class GraNet(GlobalMagnitudePruning, GradientGrowthMixin):
    """Gradual magnitude pruning across layers, and in each layer regeneration by gradients at every mask update.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> schedule = core.OneShotSchedule(0)
        >>> tx = core.sparsify(optax.sgd(0.1), "granet", sparsity=0.5, scheduler=schedule, drop_fraction=0.5)
        >>> params = {"a": jnp.array([[9.0, 8.0, 7.0, 1.0]]), "b": jnp.array([[6.0, 0.3, 0.2, 0.1]])}
        >>> params, state = core.start(tx, params)
        >>> updates, state = tx.update({"a": jnp.array([[0, 0, 0, 5.0]]), "b": jnp.ones((1, 4))}, state, params)
        >>> {name: mask.tolist() for name, mask in core.unpack_masks(params, state.masks).items()}  # 7 gave way
        {'a': [[1, 1, 0, 1]], 'b': [[1, 0, 0, 0]]}

    Source: Liu et al., Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (2021).
    """

    skip_gradients: bool = True
    is_sparse_gradients: bool = True
    use_normalization: bool = False
    drop_fraction_fn: Callable[[Any], Any] = ConstantDrop(0.5)

    def update_state(self, sparse_state: SparseState, params: PyTree, grads: PyTree, **kwargs: Any) -> SparseState:
        """Prunes across layers, then replaces the smallest weights of each layer."""
        pruned = super().update_state(sparse_state, params, grads, **kwargs)
        drop_fraction = at_refresh(self.drop_fraction_fn, self.scheduler, sparse_state.count)

        def of_layer(active: jax.Array, drop: jax.Array, grow: jax.Array) -> jax.Array:
            kept = jnp.sum(active, dtype=jnp.int32)
            return regrow_mask(active, drop, grow, Unstructured(), kept, survivor_count(kept, drop_fraction))

        def regenerated(param: jax.Array, mask: jax.Array, source: jax.Array, leaf: LeafPlan) -> jax.Array:
            active, grow = unpack(mask, param.shape), self.grow_score(param, source)
            return leaf.rule.layers.mapped(of_layer, active, jnp.abs(param), grow)

        plans = self.leaf_plans(params)
        beside = (self.grow_sources(params, sparse_state, grads), plans.tree(plans.leaves))
        masks = map_pruned(in_turns(regenerated), params, pruned.masks, *beside, otherwise=lambda *_: NOT_PRUNED)
        return sparse_state._replace(masks=masks)
