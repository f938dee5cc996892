"""What a step asks of an updater: the plan of every leaf, and the hooks that algorithms override."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.layers.axes import Layers, LayerView
from sparse_plugins.core.masks import NOT_PRUNED, apply_mask, is_pruned, store_masks, unpack
from sparse_plugins.core.schedules import NoUpdateSchedule
from sparse_plugins.core.selection.channel_pools import AxisOfChannels, ChannelPools, ChannelUnits, channels_of_leaves
from sparse_plugins.core.selection.structured_topk import MaskRule
from sparse_plugins.core.structures import MAY_COUPLE, ByPath, ChannelGroups, Structure, structure_per_leaf
from sparse_plugins.core.transform.cond import masks_varying_with
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, aligned, common_dtype, leaf_names, stands_for_params

__all__ = ["LeafPlan", "LeafPlans", "UpdaterHooks"]

T = TypeVar("T")
_MOST_MADE = 64  # an updater meets few trees: its parameters, their scores, the parts of each


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """What names and shapes decide about one parameter.

    Attributes:
        name: Its path.
        target: Its target sparsity, or a tuple with one per layer of a stack where these differ; `NOT_PRUNED` if it
            stays dense. Where it is neither that nor 0, a mask acts.
        is_pruned: Whether it has a mask.
        rule: How its mask is made: the structure, and the layers that it holds.
        ranking: 0 if its entries are ranked among themselves, else a number that all leaves of a ranking share.
        updater: Who looks after it: under `PerModule` the updater of its rule.
    """

    name: str
    target: Any
    is_pruned: bool
    rule: MaskRule
    ranking: int
    updater: "UpdaterHooks"

    @property
    def differs(self) -> bool:
        """Whether layers of a stack have targets of their own."""
        return self.is_pruned and isinstance(self.target, tuple)

    def inner_gradient(self, grad: jax.Array, latent: jax.Array, mask: jax.Array) -> jax.Array:
        """The gradient that the inner optimizer gets, of each layer of a stack by itself."""
        if self.rule.layers.layers is None:
            return self.updater.inner_gradient(grad, latent, mask)
        return self.rule.layers.mapped(self.updater.inner_gradient, grad, latent, unpack(mask, latent.shape))


@dataclasses.dataclass(frozen=True)
class LeafPlans:
    """The plans of all parameters of a tree, in the order of its leaves.

    Attributes:
        leaves: One plan per leaf.
        treedef: The structure of the parameters.
    """

    leaves: Sequence[LeafPlan]
    treedef: Any

    def tree(self, column: Sequence[Any]) -> PyTree:
        """A tree laid out like the parameters, of one node per leaf."""
        return jax.tree.unflatten(self.treedef, column)

    def column(self, tree: PyTree, what: str) -> list[Any]:
        """The nodes of a tree laid out like the parameters; ValueError, which calls it `what`, if it is not."""
        try:
            return self.treedef.flatten_up_to(tree)
        except (ValueError, TypeError, KeyError):
            return aligned(self.tree(self.leaves), tree, what)  # slower; it tells what differs

    @functools.cached_property
    def targets(self) -> PyTree:
        """Tree of target sparsities."""
        return self.tree([leaf.target for leaf in self.leaves])

    @property
    def rankings(self) -> PyTree:
        """Tree of rankings."""
        return self.tree([leaf.ranking for leaf in self.leaves])

    def acting(self, masks: PyTree) -> list[Any]:
        """The masks that act, by leaf: a layer of target 0 is left to the optimizer alone, bit-exactly."""
        nodes = self.column(masks, "masks")
        return [mask if leaf.target else NOT_PRUNED for leaf, mask in zip(self.leaves, nodes, strict=True)]

    # Down from parameters and gradients to the inner optimizer, and back up. Where no mask acts nothing is done.

    def latent_params(self, params: PyTree, masks: PyTree, state: SparseState) -> PyTree:
        """The parameters the inner optimizer works on."""
        keeps_none = isinstance(state.dense_params, tuple) and not state.dense_params
        dense = [NOT_PRUNED] * len(self.leaves) if keeps_none else self.column(state.dense_params, "dense weights")
        columns = zip(self.leaves, jax.tree.leaves(params), self.column(masks, "masks"), dense, strict=True)
        return self.treedef.unflatten(
            [leaf.updater.latent_param(p, mask, weights) if leaf.target else p for leaf, p, mask, weights in columns]
        )

    def restarted(self, masks: PyTree) -> PyTree:
        """The masks of leaves in which a weight that comes back starts from fresh moments; else `NOT_PRUNED`."""
        columns = zip(self.leaves, self.column(masks, "masks"), strict=True)
        return self.treedef.unflatten(
            [mask if leaf.target and leaf.updater.restarts_moments else NOT_PRUNED for leaf, mask in columns]
        )

    def inner_gradients(self, gradients: PyTree, latent: PyTree, masks: PyTree) -> PyTree:
        """The gradients that the inner optimizer gets."""
        nodes = self.column(gradients, "gradients"), jax.tree.leaves(latent), self.column(masks, "masks")
        columns = zip(self.leaves, *nodes, strict=True)
        return self.treedef.unflatten(
            [leaf.inner_gradient(g, p, mask) if leaf.target else g for leaf, g, p, mask in columns]
        )

    def moved(self, updates: PyTree, latent: PyTree, step: Any) -> tuple[PyTree, PyTree]:
        """The updates, held where they are to be, and the dense weights to keep, as these move them.

        Args:
            updates: Updates that the inner optimizer gave.
            latent: The parameters it worked on.
            step: The step: where an updater that prunes anything says so, no weight moves in those that update masks.

        Returns:
            Updates, and dense weights with `NOT_PRUNED` where the parameter is all there is.
        """
        updaters = {id(leaf.updater): leaf.updater for leaf in self.leaves if leaf.target}
        # The moves alone are held: the optimizer has seen the gradients, and its state advances.
        due = {key: updater.is_refresh_due(step) for key, updater in updaters.items() if updater.skip_gradients}
        held = lambda due, u: u if due is False else jnp.where(due, jnp.zeros((), u.dtype), u)  # noqa: E731
        nodes = self.column(updates, "updates")
        if due:
            nodes = [held(due.get(id(leaf.updater), False), u) for leaf, u in zip(self.leaves, nodes, strict=True)]
        keeps = [bool(leaf.target) and leaf.updater.keeps_dense_weights for leaf in self.leaves]
        columns = zip(self.leaves, keeps, nodes, jax.tree.leaves(latent), strict=True)
        dense = [leaf.updater.dense_weight(u, p) if is_kept else NOT_PRUNED for leaf, is_kept, u, p in columns]
        return self.treedef.unflatten(nodes), self.treedef.unflatten(dense)

    def landed(self, updates: PyTree, params: PyTree, dense: PyTree, masks: PyTree) -> PyTree:
        """Updates that take parameters onto their masks."""
        moved = self.column(updates, "updates"), jax.tree.leaves(params), self.column(dense, "dense weights")
        columns = zip(self.leaves, *moved, self.column(masks, "masks"), strict=True)
        return self.treedef.unflatten(
            [leaf.updater.landed(u, *beside) if leaf.target else u for leaf, u, *beside in columns]
        )


class UpdaterHooks(abc.ABC):
    """All that a step asks of an updater; `BaseUpdater` is one, and algorithms override what they do otherwise.

    The fields are those of `BaseUpdater`. What an algorithm can do is declared in class attributes; nobody asks for
    its class. What names, shapes and dtypes decide is made once, and anew when a field is set.

    Attributes:
        prunes: Whether anything is pruned at all.
        starts_dense: Whether the first masks keep everything.
        prunes_for_good: Whether a pruned weight never comes back.
        exchanges_weights: Whether a mask update drops weights and grows others, as many as `drop_fraction_fn` says.
        grows_by_gradient: Whether a mask update reads gradients of pruned weights, to grow by.
        scores_by_gradient: Whether it reads gradients of kept weights, to rank by.
        restarts_moments: Whether a weight that comes back starts from fresh optimizer moments.
        masks_follow_weights: Whether masks are made of the weights that an update has moved, instead of those it is
            about to move.
        keeps_dense_weights: Whether the state holds dense weights, of which the parameters are the masked view.
        draws_randomly: Whether masks depend on `rng_seed`.
        masks_from_seed: Whether they depend on nothing else, and never change.
    """

    __slots__ = ("made_once",)

    made_once: dict[tuple, Any]
    scheduler: NoUpdateSchedule
    skip_gradients: bool
    is_sparse_gradients: bool
    sparsity_type: Structure | ByPath
    sparsity_distribution_fn: Callable[[PyTree], PyTree] | None
    rng_seed: Any
    use_packed_masks: bool | Literal["zeros"]
    topk_fn: Callable[[jax.Array, Any], jax.Array] | None
    layers: Layers | None
    rescale: bool

    prunes: ClassVar[bool] = True
    starts_dense: ClassVar[bool] = True
    prunes_for_good: ClassVar[bool] = True
    exchanges_weights: ClassVar[bool] = False
    grows_by_gradient: ClassVar[bool] = False
    scores_by_gradient: ClassVar[bool] = False
    restarts_moments: ClassVar[bool] = False
    masks_follow_weights: ClassVar[bool] = False
    keeps_dense_weights: ClassVar[bool] = False
    draws_randomly: ClassVar[bool] = False
    masks_from_seed: ClassVar[bool] = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a field, and forgets what was made of the fields before."""
        object.__setattr__(self, name, value)
        object.__setattr__(self, "made_once", {})

    def __getstate__(self) -> dict[str, Any]:
        """The fields: a copy makes its plans itself."""
        return vars(self).copy()

    def once(self, what: str, tree: PyTree, make: Callable[[], T], by_dtype: bool = False) -> T:
        """What `make` gives, made once for all trees of one structure and the same shapes.

        Args:
            what: What is made.
            tree: The tree it is made for.
            make: Makes it; of values of the tree it may read nothing, nor keep any.
            by_dtype: Whether dtypes have to be the same, too.
        """
        leaves, treedef = jax.tree.flatten(tree)
        dtypes = [getattr(leaf, "dtype", None) for leaf in leaves] if by_dtype else ()
        key = (what, treedef, *map(np.shape, leaves), *dtypes)
        if not hasattr(self, "made_once"):  # it is a copy
            object.__setattr__(self, "made_once", {})
        try:
            known = self.made_once.get(key)
        except TypeError:  # a node of the tree that cannot be hashed
            return make()
        if known is None:
            if len(self.made_once) >= _MOST_MADE:
                self.made_once.clear()
            known = self.made_once[key] = make()
        return known

    # Before a run.

    @property
    @abc.abstractmethod
    def has_custom_topk(self) -> bool:
        """Whether it was given a `topk_fn` in place of its structure's."""

    @abc.abstractmethod
    def target_sparsities(self, params: PyTree) -> PyTree:
        """Target sparsity of every leaf as a Python float, `NOT_PRUNED` where it stays dense.

        A tuple of them where layers of a stack differ.
        """

    @abc.abstractmethod
    def init_state(self, params: PyTree) -> SparseState:
        """The sparse state of fresh parameters, without an inner state."""

    @abc.abstractmethod
    def get_initial_masks(self, params: PyTree, target_sparsities: PyTree) -> PyTree:
        """Masks before the first change."""

    @property
    def is_idle(self) -> bool:
        """Whether its masks, which are to change, never do by the schedule that it has."""
        return False

    @abc.abstractmethod
    def missing_changes(self, params: PyTree) -> list[str]:
        """What is said of masks that are to change and never would."""

    @abc.abstractmethod
    def check_schedule(self) -> None:
        """Refuses a schedule that an optimizer can't count to."""

    @abc.abstractmethod
    def check_steps(self, period: int) -> None:
        """Refuses a schedule that leaves no step to train in, where weights move in every `period`-th step."""

    def check_inner_state(self, inner_state: PyTree) -> None:  # noqa: B027
        """Refuses an optimizer that lacks what the scores are made of."""

    def check_state(self, state: SparseState) -> None:  # noqa: B027
        """Refuses a state that another updater made."""

    def leaf_plans(self, params: PyTree) -> LeafPlans:
        """What names, shapes and dtypes decide about every leaf; made once."""
        return self.once("leaf plans", params, lambda: self._made_plans(params), by_dtype=True)

    def _made_plans(self, params: PyTree) -> LeafPlans:
        targets = aligned(params, self.target_sparsities(params), "target sparsities")
        rules, rankings = self.mask_rules(params), jax.tree.leaves(self.rankings(params))
        columns = zip(targets, map(is_pruned, targets), rules, rankings, strict=True)
        leaves = [LeafPlan(rule.name, target, prunes, rule, rank, self) for target, prunes, rule, rank in columns]
        return LeafPlans(leaves, jax.tree.structure(params))

    def mask_rules(self, tree: PyTree) -> list[MaskRule]:
        """How the mask of every leaf is made, of a tree laid out like the parameters, such as their scores."""
        return self.once("mask rules", tree, lambda: self._made_rules(tree))

    def _made_rules(self, tree: PyTree) -> list[MaskRule]:
        names, leaves = leaf_names(tree), jax.tree.leaves(tree)
        axes = [None] * len(leaves) if self.layers is None else self.layers.of(tree)
        structures = structure_per_leaf(self.sparsity_type, names)
        channels: list[tuple[AxisOfChannels, ...]] = [()] * len(names)
        has_groups = isinstance(self.sparsity_type, MAY_COUPLE) and any(
            isinstance(s, ChannelGroups) for s in structures
        )
        if has_groups and not stands_for_params(tree):
            structures, channels = channels_of_leaves(structures, names, [*map(np.shape, leaves)])
        columns = zip(structures, leaves, axes, names, channels, strict=True)
        return [
            MaskRule(structure, np.shape(leaf), known, name, leaf_channels)
            for structure, leaf, known, name, leaf_channels in columns
        ]

    def channel_pools(self, tree: PyTree) -> ChannelPools:
        """The groups of channels whose masks several leaves share."""
        return self.once("channel pools", tree, lambda: ChannelPools.of([r.channels for r in self.mask_rules(tree)]))

    def pooled_scores(self, scores: PyTree) -> PyTree:
        """The scores, those of the channels of a group in place of those of the entries that make them."""
        pools, (leaves, treedef) = self.channel_pools(scores), jax.tree.flatten(scores)
        if not pools.groups or any(isinstance(leaf, ChannelUnits) for leaf in leaves):
            return scores
        sums = pools.summed(leaves)
        columns = zip(self.mask_rules(scores), leaves, strict=True)
        return treedef.unflatten([pools.units(rule, sums) if rule.channels else leaf for rule, leaf in columns])

    def compared(self, params: PyTree) -> PyTree:
        """By leaf 0 if its scores are compared among themselves, else a number that all share whose scores are."""
        rules, rankings = self.mask_rules(params), jax.tree.leaves(self.rankings(params))
        numbers = [
            rule.channels[0].together if rule.channels else ranking
            for rule, ranking in zip(rules, rankings, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), numbers)

    def layer_views(self, params: PyTree) -> list[LayerView]:
        """How every leaf is seen as layers."""
        return [rule.layers for rule in self.mask_rules(params)]

    def rankings(self, params: PyTree) -> PyTree:
        """By leaf 0 if its entries are ranked among themselves, else a number that all leaves of a ranking share."""
        return jax.tree.map(lambda leaf: 0, params)

    def foreseen_masks(self, params: PyTree) -> PyTree:
        """Masks at the target if concrete parameters say now what a ranking across layers keeps; else `NOT_PRUNED`."""
        return jax.tree.map(lambda leaf: NOT_PRUNED, params)

    # Masks change.

    @abc.abstractmethod
    def is_refresh_due(self, step: Any) -> Any:
        """Whether the update of a step updates masks: bool for a host step, bool[] for a traced one."""

    @abc.abstractmethod
    def update_state(self, sparse_state: SparseState, params: PyTree, grads: PyTree, **kwargs: Any) -> SparseState:
        """The state with new masks, from parameters and gradients of this step."""

    def changes_before(self, step: Any) -> Any:
        """Whether the update of a step updates masks before it moves the weights."""
        return False if self.masks_follow_weights else self.is_refresh_due(step)

    def changes_after(self, step: Any) -> Any:
        """Whether it does so afterwards."""
        return self.is_refresh_due(step) if self.masks_follow_weights else False

    def followed(
        self, state: SparseState, params: PyTree, weights: PyTree, grads: PyTree, **kwargs: Any
    ) -> SparseState:
        """The state after a step, with masks of the weights that it moved."""
        new = self.update_state(state, weights, grads, **kwargs)
        return self.storing(new, params, new.masks)

    def storing(self, state: SparseState, params: PyTree, masks: PyTree) -> SparseState:
        """The state with masks of any form, stored as `use_packed_masks` says."""
        stored = store_masks(params, masks, bool(self.use_packed_masks))
        return state._replace(masks=masks_varying_with(params, stored))

    # From a gradient to an update, leaf by leaf, where a mask acts.

    def latent_param(self, param: jax.Array, mask: jax.Array, dense: jax.Array) -> jax.Array:
        """The parameter the inner optimizer works on.

        Args:
            param: The parameter that the loop sees.
            mask: Its mask, however it is stored.
            dense: What the state keeps as `dense_params` of it, or `NOT_PRUNED`.
        """
        return param

    def inner_gradient(self, grad: jax.Array, latent: jax.Array, mask: jax.Array) -> jax.Array:
        """The gradient the inner optimizer gets; of a stack the hook sees layer by layer."""
        return apply_mask(grad, mask) if self.is_sparse_gradients else grad

    def dense_weight(self, update: jax.Array, latent: jax.Array) -> Any:
        """The dense weight to keep, as the optimizer moved it; `NOT_PRUNED` if the parameter is all there is."""
        return NOT_PRUNED

    def landed(self, update: jax.Array, param: jax.Array, dense: jax.Array, mask: jax.Array) -> jax.Array:
        """The update that takes a parameter onto its mask.

        Args:
            update: Update that the inner optimizer gave.
            param: The parameter that the loop sees.
            dense: From `dense_weight`.
            mask: Its mask, however it is stored.
        """
        dtype = update.dtype if update.dtype == param.dtype else common_dtype(update.dtype, param.dtype)
        return jnp.where(unpack(mask, param.shape), update.astype(dtype), -param.astype(dtype))
