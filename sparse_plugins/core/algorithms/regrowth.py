"""Sparse training: masks are sparse from the start and, but for the static one, move their weights about."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sparse_plugins.core.algorithms.pruning import RandomPruning
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.drop_fractions import ConstantDrop
from sparse_plugins.core.masks import NOT_PRUNED, map_pruned, unpack
from sparse_plugins.core.schedules import PeriodicSchedule, at_refresh
from sparse_plugins.core.selection.counts import survivor_count
from sparse_plugins.core.selection.leaf_by_leaf import in_turns
from sparse_plugins.core.selection.random_scores import leaf_keys, random_score
from sparse_plugins.core.selection.structured_topk import kept_units
from sparse_plugins.core.structures import MAY_COUPLE, ByPath, ConstantFanIn, Structure
from sparse_plugins.core.transform.hooks import LeafPlan
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["SET", "GradientGrowthMixin", "RigL", "SRigL", "StaticRandomSparse"]


@dataclasses.dataclass(eq=False)
class RandomStartMixin(RandomPruning):
    """Training starts at the target sparsities, with random masks."""

    is_sparse_gradients: bool = True

    starts_dense: ClassVar[bool] = False

    def get_initial_masks(self, params: PyTree, target_sparsities: PyTree) -> PyTree:
        """Random masks at the target sparsities."""
        return self.create_masks(self.calculate_scores(params), self.targets_or_default(params, target_sparsities))


@dataclasses.dataclass(eq=False)
class StaticRandomSparse(RandomStartMixin):
    """A random mask at initialisation that never changes.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "static_sparse", sparsity=0.75)
        >>> params, state = core.start(tx, {"w": jnp.ones((4, 4))})
        >>> before = params["w"] != 0
        >>> updates, state = tx.update({"w": jnp.ones((4, 4))}, state, params)
        >>> after = optax.apply_updates(params, updates)["w"] != 0
        >>> int(before.sum()), bool((before == after).all())
        (4, True)
    """

    masks_from_seed: ClassVar[bool] = True

    def is_refresh_due(self, step: Any) -> Any:
        """Never, whatever the schedule."""
        return False

    def describe_schedule(self) -> str:
        """Masks never change."""
        return "masks never change"


@dataclasses.dataclass(eq=False)
class ExchangeMixin(BaseUpdater):
    """A mask update drops the smallest weights and grows others, random ones if nothing else is said.

    Attributes:
        drop_fraction_fn: From a step (or an array of steps) to the fraction of kept weights that is replaced.
        skip_gradients: True, as published: the step of a mask update moves no weight.

    Raises:
        ValueError: Without is_sparse_gradients, through which re-grown weights start from fresh moments.
    """

    skip_gradients: bool = True
    is_sparse_gradients: bool = True
    drop_fraction_fn: Callable[[Any], Any] = ConstantDrop(0.3)

    exchanges_weights: ClassVar[bool] = True
    restarts_moments: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.drop_fraction_fn):
            raise TypeError(f"drop_fraction_fn is {self.drop_fraction_fn!r}; give e.g. CosineDrop(0.3, end_step=7500).")
        if not self.is_sparse_gradients:
            raise ValueError(
                f"{type(self).__name__} restarts re-grown weights through masked gradients: is_sparse_gradients=True."
            )
        if self.has_custom_topk:
            raise ValueError(f"{type(self).__name__} ranks what it drops and grows by sparsity_type; drop topk_fn.")

    def grow_sources(self, params: PyTree, state: SparseState, grads: PyTree) -> PyTree:
        """What the scores by which weights are grown are made of, leaf by leaf: a key."""
        # Draw 0 made the initial mask; growing by the same scores would undo every drop.
        return leaf_keys(params, state.rng, state.count + 1)

    def grow_score(self, param: jax.Array, source: jax.Array) -> jax.Array:
        """Scores by which weights of one leaf are grown, from its source: random."""
        return random_score(param, source)


@dataclasses.dataclass(eq=False)
class GradientGrowthMixin(ExchangeMixin):
    """Weights are grown by the size of their gradients."""

    grows_by_gradient: ClassVar[bool] = True

    def grow_sources(self, params: PyTree, state: SparseState, grads: PyTree) -> PyTree:
        """Gradients."""
        if grads is None:
            raise ValueError(f"{type(self).__name__} grows by |gradient|: pass grads.")
        return grads

    def grow_score(self, param: jax.Array, source: jax.Array) -> jax.Array:
        """|dL/dw|."""
        return jnp.abs(source)


@dataclasses.dataclass(eq=False)
class SET(ExchangeMixin, RandomStartMixin):
    """Replaces the smallest weights by random ones at every mask update; the number kept is constant.

    Its `drop_fraction_fn` says how many; see `ExchangeMixin`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> schedule = core.OneShotSchedule(0)
        >>> tx = core.sparsify(optax.sgd(0.5), "set", sparsity=0.75, scheduler=schedule, drop_fraction=0.5)
        >>> params, state = core.start(tx, {"w": jnp.ones((4, 4))})
        >>> before = core.unpack_masks(params, state.masks)["w"]
        >>> updates, state = tx.update({"w": jnp.ones((4, 4))}, state, params)
        >>> after = core.unpack_masks(params, state.masks)["w"]
        >>> int(before.sum()), int(after.sum()), int((before & after).sum())
        (4, 4, 2)

    Source: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity (2018).
    """

    schedule_type: ClassVar[type[PeriodicSchedule]] = PeriodicSchedule

    def update_state(self, sparse_state: SparseState, params: PyTree, grads: PyTree, **kwargs: Any) -> SparseState:
        """Drops the smallest active weights and grows as many others."""
        counts = functools.partial(self.kept_and_survivors, step=sparse_state.count)

        def regrown(param: jax.Array, mask: jax.Array, source: jax.Array, leaf: LeafPlan, *pooled: Any) -> jax.Array:
            if any(pooled):
                active, drop, grow = pooled[0]
            else:
                active, drop, grow = unpack(mask, param.shape), jnp.abs(param), self.grow_score(param, source)
            return leaf.rule.regrow_mask(active, drop, grow, counts, leaf.target)

        plans = self.leaf_plans(params)
        sources = self.grow_sources(params, sparse_state, grads)
        beside: list[PyTree] = [sources, plans.tree(plans.leaves)]
        if isinstance(self.sparsity_type, MAY_COUPLE):
            beside.append(self._of_channels(params, sparse_state.masks, sources))
        masks = map_pruned(in_turns(regrown), params, sparse_state.masks, *beside, otherwise=lambda *_: NOT_PRUNED)
        return sparse_state._replace(masks=masks)

    def _of_channels(self, params: PyTree, masks: PyTree, sources: PyTree) -> PyTree:
        """Activity, drop scores and growth scores of the channels of groups, by leaf; () where it makes none."""
        rules, pools = self.mask_rules(params), self.channel_pools(params)
        nodes = aligned(params, masks, "masks"), aligned(params, sources, "growth")
        columns = list(zip(rules, jax.tree.leaves(params), *nodes, strict=True))
        active = pools.active([mask for _, _, mask, _ in columns], [p.shape for _, p, _, _ in columns])
        drop = pools.summed([jnp.abs(p) if rule.channels else None for rule, p, _, _ in columns])
        grow = pools.summed([self.grow_score(p, source) if rule.channels else None for rule, p, _, source in columns])
        found = [tuple(pools.units(r, summed) for summed in (active, drop, grow)) if r.channels else () for r in rules]
        return jax.tree.unflatten(jax.tree.structure(params), found)

    def kept_and_survivors(
        self, structure: Structure, shape: tuple[int, ...], target: float, step: Any
    ) -> tuple[Any, Any]:
        """Units kept after the mask update, and those of them that were active before."""
        kept = int(kept_units(structure, shape, target))
        return kept, survivor_count(kept, at_refresh(self.drop_fraction_fn, self.scheduler, step))


@dataclasses.dataclass(eq=False)
class RigL(GradientGrowthMixin, SET):
    """Replaces the smallest weights by those with the largest gradients at every mask update.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.adam(0.1), core.RigL, sparsity=0.75, total_steps=40)
        >>> params, state = core.start(tx, {"w": jnp.ones((16, 1))})
        >>> before = core.unpack_masks(params, state.masks)["w"]
        >>> for _ in range(40):  # the gradient of (w - 2)**2, summed up
        ...     updates, state = tx.update({"w": 2 * (params["w"] - 2)}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> int(before.sum()), int(jnp.count_nonzero(params["w"])), int((before != (params["w"] != 0)).sum()) > 0
        (4, 4, True)

    Source: Evci et al., Rigging the Lottery: Making All Tickets Winners (2020).
    """


@dataclasses.dataclass(eq=False)
class SRigL(RigL):
    """RigL in which every output keeps the same number of inputs, a form that condensed layers can compute with.

    Outputs are not ablated.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "srigl", sparsity=0.75, scheduler=core.OneShotSchedule(0))
        >>> params, state = core.start(tx, {"w": jnp.ones((4, 4))})
        >>> updates, state = tx.update({"w": jnp.ones((4, 4))}, state, params)
        >>> core.unpack_masks(params, state.masks)["w"].sum(axis=0).tolist()  # inputs of each output
        [1, 1, 1, 1]

    Source: Lasby et al., Dynamic Sparse Training with Structured Sparsity (2024).
    """

    sparsity_type: Structure | ByPath = ConstantFanIn()
