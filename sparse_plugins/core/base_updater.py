"""The updater: what every algorithm inherits, and how it becomes an optax transformation."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins.core.checks import (
    check_fields,
    check_schedule,
    check_targets,
    check_update,
    missing_changes,
)
from sparse_plugins.core.descriptions import FieldsSignature, ReadablePartial, described, inherit_meanings
from sparse_plugins.core.distributions import uniform
from sparse_plugins.core.initialization import rescale_to_fan_in
from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.masks import (
    MARKERS,
    NOT_PRUNED,
    apply_masks,
    is_pruned,
    map_pruned,
    unpack_masks,
    visible_leaves,
)
from sparse_plugins.core.schedules import NoUpdateSchedule, PeriodicSchedule, PolynomialSchedule, all_at_refresh
from sparse_plugins.core.selection.channel_pools import common_targets
from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.core.selection.leaf_by_leaf import in_turns
from sparse_plugins.core.selection.random_scores import joined_seed, key_words
from sparse_plugins.core.selection.structured_topk import MaskRule, StructureTopK
from sparse_plugins.core.structures import MAY_COUPLE, ByPath, Structure, Unstructured
from sparse_plugins.core.transform.hooks import UpdaterHooks
from sparse_plugins.core.transform.implicit_masks import masks_of_step
from sparse_plugins.core.transform.skipped_steps import check_some_move
from sparse_plugins.core.transform.state import SparseState, find_sparse_state, map_sparse_states
from sparse_plugins.core.transform.step import ZEROS_NEED_GRAPH, refreshed_state, sparse_transformation
from sparse_plugins.core.trees import PyTree, aligned, aligned_columns, leaf_names, out_of_boxes

__all__ = ["BaseUpdater", "check_updater"]

_KEEP_ALL = ReadablePartial(uniform, sparsity=0.0)


@dataclasses.dataclass(eq=False)
class BaseUpdater(UpdaterHooks):
    """Keeps masks beside an optimizer and confines its parameters to them.

    A new algorithm overrides `calculate_scores`; everything else has a default. `wrap_optax` gives an ordinary optax
    transformation after whose updates `optax.apply_updates` lands exactly on the mask, so a training loop needs no
    hook. It must be the outermost or the last link: `chain(clip, updater.wrap_optax(adam))` is sparse,
    `chain(updater.wrap_optax(adam), scale(0.5))` and `lookahead` around it are not, because what follows changes the
    updates again.

    Attributes:
        scheduler: When masks are updated and how sparse; see `sparse_plugins.core.schedules`.
        skip_gradients: Zero the update of every step that updates masks. The optimizer's state still advances. It needs
            a schedule with steps between.
        is_sparse_gradients: Zero the gradients of pruned weights before the optimizer sees them. It matters where the
            step of one weight depends on the gradients of others: norms that are clipped, factored moments, ratios.
        sparsity_type: Structure of the masks, or `ByPath` for one per layer.
        sparsity_distribution_fn: From parameters to target sparsities, e.g. `partial(erk, sparsity=0.8)`. It goes by
            names, shapes and dtypes, and is asked once for all parameters that are alike in these.
        rng_seed: int or JAX key from which all random scores derive; it is kept in the state. Every `init` draws the
            same masks from it, so that runs and members of a vmap whose random masks are to differ need
            `rng_seed=key`, each its own. Agents of `sparse_plugins.rl` join their own key to it; see `seeded`.
        use_packed_masks: True stores eight mask entries to a byte, False one. 'zeros' stores none: what is pruned is
            read from the zeros of the parameters, and kept weights stop beside 0 instead of landing on it. It needs
            masks to change inside `update`, and parameters that nothing else sets to 0.
        topk_fn: A rule of yours, from the scores of one layer and a sparsity to a uint8 mask; None for the structure's,
            which the field then holds, so that an algorithm can call it.
        layers: What the axes of parameters are, from `core.trace_layers` or `core.describe_layers`: every layer of a
            stack is then ranked by itself, biases and scales stay dense whatever their axes, and structures lie along
            all inputs or outputs. None takes each array for one layer.
        rescale: Whether a sparse start scales the initial weights of an output for the inputs that are left to it.
            `core.start` and the front ends do so; the `init` of an optimizer cannot change parameters.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a field has a value that is not allowed.

    Example:
        >>> from sparse_plugins import core
        >>> updater = core.MagnitudePruning(
        ...     sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5),
        ...     scheduler=core.OneShotSchedule(target_step=0))
        >>> tx = updater.wrap_optax(optax.sgd(0.0))
        >>> params = {"w": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
        >>> updates, state = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"].tolist()
        [[0.0, -4.0], [3.0, 0.0]]

    Source: Lee et al., JaxPruner (2023).
    """

    scheduler: NoUpdateSchedule = NoUpdateSchedule()
    skip_gradients: bool = False
    is_sparse_gradients: bool = False
    sparsity_type: Structure | ByPath = Unstructured()
    sparsity_distribution_fn: Callable[[PyTree], PyTree] | None = _KEEP_ALL
    rng_seed: int | jax.Array = 0
    use_packed_masks: bool | Literal["zeros"] = True
    topk_fn: Callable[[jax.Array, Any], jax.Array] | None = None
    layers: Layers | None = dataclasses.field(default=None, kw_only=True, repr=False)
    rescale: bool = False

    # The schedule that start, end and period in a configuration mean.
    schedule_type: ClassVar[type[PeriodicSchedule]] = PolynomialSchedule

    __signature__ = FieldsSignature()

    def __init_subclass__(cls, **options: Any) -> None:
        """Lets `print` and `help` of every algorithm read as those of this class."""
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = BaseUpdater.__repr__  # type: ignore[method-assign]  # which dataclass would make anew
        inherit_meanings(cls)

    def __repr__(self) -> str:
        return described(self)

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        """Says what to write to whom gives an updater what makes one."""
        known = inspect.signature(cls.__init__).parameters
        if "sparsity" in fields and "sparsity" not in known:
            words = f"core.{cls.__name__}, sparsity={fields['sparsity']!r}, total_steps=..."
            raise TypeError(
                f"{cls.__name__} has no field sparsity: core.sparsify(optimizer, {words}) makes an optimizer of it, "
                f"core.build_updater({words}) an updater. The long form is sparsity_distribution_fn="
                "functools.partial(core.erk, sparsity=...) and a scheduler."
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self)
        self.topk_fn = (
            self.topk_fn if self.has_custom_topk else StructureTopK(self.sparsity_type, self.layers is not None)
        )

    @property
    def has_custom_topk(self) -> bool:
        """Whether it was given a `topk_fn` in place of its structure's."""
        return self.topk_fn is not None and not isinstance(self.topk_fn, StructureTopK)

    # What an algorithm may override.

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """Scores by which weights are kept; higher is kept.

        Args:
            params: Parameter tree.
            sparse_state: The state before the mask update; None in `instant_sparsify`.
            grads: Gradients of the same structure, or None.
            **kwargs: Extra arguments given to `update`.

        Returns:
            Tree of real arrays with the structure of `params`; leaves that stay dense are not read.
        """
        raise TypeError(f"{type(self).__name__} ranks nothing: override calculate_scores(params, sparse_state, grads).")

    def get_initial_masks(self, params: PyTree, target_sparsities: PyTree) -> PyTree:
        """Masks before the first change: everything kept. Targets of None are the updater's own.

        In large models this is traced.
        """
        ones = lambda p, target: jnp.ones(p.shape, jnp.uint8)  # noqa: E731
        return map_pruned(
            ones, params, self.targets_or_default(params, target_sparsities), otherwise=lambda p: NOT_PRUNED
        )

    def is_refresh_due(self, step: Any) -> Any:
        """Whether the update of a step updates masks: bool for a host step, bool[] for a traced one."""
        return self.scheduler.is_mask_update_iter(step)

    @classmethod
    def needs_schedule(cls) -> bool:
        """Whether masks are updated while it trains, at steps that only a schedule can give."""
        by_schedule = cls.is_refresh_due is BaseUpdater.is_refresh_due and type(cls.scheduler) is NoUpdateSchedule
        return cls.prunes and by_schedule and (cls.starts_dense or cls.exchanges_weights)

    @property
    def is_idle(self) -> bool:
        """Whether its masks, which are to change, never do by the schedule that it has."""
        by_schedule = type(self).is_refresh_due is BaseUpdater.is_refresh_due
        never = by_schedule and type(self.scheduler) is NoUpdateSchedule
        return self.prunes and never and (self.starts_dense or self.exchanges_weights)

    def missing_changes(self, params: PyTree) -> list[str]:
        """What is said of masks that are to change and never would, by part; nothing if there are none."""
        return missing_changes(self, params)

    def describe_schedule(self) -> str:
        """When masks are updated, in words; part of the plan printed before a run."""
        return self.scheduler.describe()

    def describe_seed(self) -> str:
        """What random masks are drawn from, in words; nothing if none are, or if `rng_seed` is a key."""
        if not self.draws_randomly or isinstance(self.rng_seed, (jax.Array, np.ndarray)):
            return ""
        return (
            f"random masks and scores: drawn from rng_seed={self.rng_seed}, the same at every init; give rng_seed=key "
            "for others"
        )

    def update_state(self, sparse_state: SparseState, params: PyTree, grads: PyTree, **kwargs: Any) -> SparseState:
        """The state with new masks, from parameters and gradients of this step.

        Args:
            sparse_state: State before the change.
            params: Parameters the optimizer works on.
            grads: Gradients, or None.
            **kwargs: Extra arguments of `update`.

        Returns:
            State with new masks, packed or not. An override may change other fields as well, such as the inner state.
        """
        scores = self.calculate_scores(params, sparse_state=sparse_state, grads=grads, **kwargs)
        plans = self.leaf_plans(params)
        if self.prunes_for_good and not self.has_custom_topk:
            # Pruned weights are 0, and so are some active ones: a tie must not move the mask.
            masks = sparse_state.masks
            if isinstance(self.sparsity_type, MAY_COUPLE):
                masks, scores = self._active_units(params, masks), self.pooled_scores(scores)
            beside = aligned_columns(params, [scores, masks], ["scores", "masks"])
            columns = zip(plans.leaves, *beside, strict=True)
            behind = [leaf.rule.rank_active_first(s, m) if leaf.is_pruned else s for leaf, s, m in columns]
            scores = plans.treedef.unflatten(behind)
        sparsities = self._sparsities(plans.targets, sparse_state.count)
        return sparse_state._replace(masks=self.create_masks(scores, sparsities))

    def _sparsities(self, targets: PyTree, step: Any) -> PyTree:
        """The sparsity of every layer at a step, exact where the schedule allows."""
        distinct = dict.fromkeys(jax.tree.leaves(targets))
        wanted = [functools.partial(self.scheduler.get_sparsity_at_step, target) for target in distinct]
        at_step = dict(zip(distinct, all_at_refresh(wanted, self.scheduler, step), strict=True))
        return jax.tree.map(at_step.get, targets)

    def _active_units(self, params: PyTree, masks: PyTree) -> PyTree:
        """Masks; of the channels of groups whether anything that makes them is kept."""
        pools, rules = self.channel_pools(params), self.mask_rules(params)
        of_leaves = aligned(params, masks, "masks")
        kept = pools.active(of_leaves, [leaf.shape for leaf in jax.tree.leaves(params)])
        columns = zip(rules, of_leaves, strict=True)
        found = [pools.units(rule, kept) if rule.channels and is_pruned(mask) else mask for rule, mask in columns]
        return jax.tree.unflatten(jax.tree.structure(params), found)

    def create_masks(self, scores: PyTree, sparsities: PyTree) -> PyTree:
        """Masks of the best scores.

        Args:
            scores: Tree of real arrays.
            sparsities: Tree of fractions, or tuples of one per layer of a stack; `NOT_PRUNED` (or None) where a leaf
                stays dense.

        Returns:
            Tree of uint8 masks of the scores' shapes, `NOT_PRUNED` where a leaf stays dense.
        """
        rules = self.mask_rules(scores)
        best = in_turns(MaskRule.create_mask)
        if self.has_custom_topk:
            best = lambda rule, score, sparsity: rule.custom_mask(self.topk_fn, score, sparsity)  # noqa: E731
        if isinstance(self.sparsity_type, MAY_COUPLE):
            scores = self.pooled_scores(scores)
        leaves, treedef = jax.tree.flatten(scores)
        columns = zip(rules, leaves, aligned(scores, sparsities, "sparsities"), strict=True)
        return treedef.unflatten([NOT_PRUNED if isinstance(s, MARKERS) else best(rule, x, s) for rule, x, s in columns])

    # What users call.

    def target_sparsities(self, params: PyTree) -> PyTree:
        """Target sparsity of every leaf as a Python float, `NOT_PRUNED` where it stays dense.

        A tuple of them where layers of a stack differ, as by the rounding of ERK.

        Raises:
            ValueError: If there is no distribution, it gives a number outside [0, 1], or `layers` do not know a leaf.
        """
        if self.sparsity_distribution_fn is None:
            raise ValueError(
                f"{type(self).__name__} has no sparsity_distribution_fn; give one, e.g. partial(erk, sparsity=0.8)."
            )
        targets = aligned(params, self.sparsity_distribution_fn(self.layer_shapes(params)), "target sparsities")
        columns = zip(leaf_names(params), targets, strict=True)
        checked = [_checked_target(*column) if is_pruned(column[1]) else NOT_PRUNED for column in columns]
        if isinstance(self.sparsity_type, MAY_COUPLE):
            checked = common_targets(checked, self.mask_rules(params))
        return jax.tree.unflatten(jax.tree.structure(params), checked)

    def layer_shapes(self, params: PyTree) -> PyTree:
        """What distributions and filters see: one layer of every stack if layers are known, else the parameters."""
        return params if self.layers is None else self.layers.shapes(params)

    def seeded(self, key: jax.Array) -> Self:
        """The updater of one run among several: its random masks are drawn from the run's key and `rng_seed` together.

        Args:
            key: JAX key, which may be traced; nothing else should draw from it.

        Returns:
            An updater whose `rng_seed` is another one for every key and every `rng_seed` of this one; the key itself if
            that is 0, the default.

        Example:
            >>> from sparse_plugins import core
            >>> updater = core.create_updater_from_config(algorithm="static_sparse", sparsity=0.5)
            >>> params, keys = {"w": jnp.ones((8, 8))}, jax.random.split(jax.random.key(0), 2)
            >>> masks = jax.vmap(lambda key: updater.seeded(key).init_state(params).masks["w"])(keys)
            >>> bool((masks[0] == masks[1]).all())
            False
        """
        seeded = copy.copy(self)
        seeded.rng_seed = joined_seed(self.rng_seed, key)
        return seeded

    @property
    def ranks_whole_arrays(self) -> bool:
        """Whether all weights of an array compete with each other: no structure, and no stacks known.

        Example:
            >>> from sparse_plugins import core
            >>> core.RigL().ranks_whole_arrays, core.SRigL().ranks_whole_arrays
            (True, False)
        """
        has_stacks = self.layers is not None and any(axes.size("stack") != 1 for axes in self.layers.values())
        return self.sparsity_type == Unstructured() and not has_stacks

    def knowing(self, layers: Layers) -> Self:
        """The updater with `layers`, if it has none yet; front ends that have the model at hand ask this.

        Raises:
            ValueError: If it knows other layers of the same parameters.

        Example:
            >>> from sparse_plugins import core
            >>> params = {"blocks": jnp.ones((2, 4, 4))}
            >>> layers = core.describe_layers(params, [("blocks", core.Axes(stack=0, inputs=1, outputs=2))])
            >>> print(core.create_updater_from_config(algorithm="static_sparse", sparsity=0.5).knowing(layers).layers)
            blocks  (2, 4, 4)  stack 2, inputs 4, outputs 4
        """
        if self.layers is None:
            return dataclasses.replace(self, layers=layers)
        self.layers.check_agrees(layers)
        return self

    @property
    def parts(self) -> Sequence[tuple[str, "BaseUpdater"]]:
        """The updaters this one is made of, each with the pattern of its paths; none for most."""
        return ()

    def map_parts(self, function: Callable[["BaseUpdater"], "BaseUpdater"]) -> "BaseUpdater":
        """The updater made of what a function makes of each part; of what it makes of this one, if there are none.

        Example:
            >>> from sparse_plugins import core
            >>> both = core.PerModule([("head/.*", core.SET()), (".*", core.RigL())])
            >>> still = both.map_parts(lambda updater: dataclasses.replace(updater, skip_gradients=False))
            >>> [updater.skip_gradients for _, updater in still.parts]
            [False, False]
        """
        return function(self)

    def init_state(self, params: PyTree) -> SparseState:
        """The sparse state of fresh parameters, without an inner state.

        Raises:
            ValueError: If no parameter is pruned, or the structure does not fit one that is.
        """
        targets = self.leaf_plans(params).targets
        if self.prunes:
            check_targets(self, params)
        record = map_pruned(lambda p, t: jnp.asarray(t, jnp.float32), params, targets, otherwise=lambda p: NOT_PRUNED)
        state = SparseState((), (), record, jnp.zeros((), jnp.int32), key_words(self.rng_seed))
        first = lambda params: self.storing(state, params, self.get_initial_masks(params, targets)).masks  # noqa: E731
        return state._replace(masks=(jax.jit(first) if _is_large(params) else first)(params))

    def wrap_optax(
        self, inner: optax.GradientTransformation, refresh_in_graph: bool = True
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer, confined to masks.

        Args:
            inner: Any optax transformation.
            refresh_in_graph: True updates masks inside `update` when the schedule says so. False leaves that to
                explicit calls of `refresh`, in loops that know the step on the host; both give the same run. Masks of
                straight-through updaters change inside `update` either way.

        Returns:
            A transformation whose state is a `SparseState`. Its `update` needs `params` and passes extra arguments
            on to `calculate_scores` and to `inner`.

        Raises:
            TypeError: If `inner` is no optax transformation, or one that works on something else than parameters.
            ValueError: If what is asked for cannot be done with `inner`; when built or from its `init`.
        """
        return sparse_transformation(self, inner, refresh_in_graph)

    def refresh(self, opt_state: PyTree, params: PyTree, grads: PyTree | None = None, **kwargs: Any) -> PyTree:
        """Changes the masks now; call it before `update` of the same step, with `refresh_in_graph=False`.

        Masks of straight-through updaters stay: they follow the weights inside `update`, which has to move these first.

        Args:
            opt_state: Optimizer state that holds the sparse state.
            params: Parameters of this step.
            grads: Gradients of this step.
            **kwargs: Extra arguments for `calculate_scores`.

        Returns:
            The optimizer state with new masks.

        Raises:
            ValueError: If the updater keeps its masks in the zeros of the parameters.
        """
        if self.use_packed_masks == "zeros":
            raise ValueError(ZEROS_NEED_GRAPH)
        return map_sparse_states(lambda state: refreshed_state(self, state, params, grads, **kwargs), opt_state)

    def with_masks(self, opt_state: PyTree, params: PyTree, masks: PyTree) -> PyTree:
        """The optimizer state with masks from elsewhere, such as those of a checkpoint that is sparse already.

        Args:
            opt_state: Optimizer state that holds the sparse state.
            params: Parameters; shapes are read only.
            masks: Mask tree, packed or not; `NOT_PRUNED` where the updater leaves a layer dense.

        Returns:
            The optimizer state, its masks stored as `use_packed_masks` says. Go on with
            `pre_forward_update(params, state)`.

        Raises:
            ValueError: If the masks do not fit the parameters or what the updater prunes, or if it keeps its masks in
                the zeros of the parameters.
        """
        if self.use_packed_masks == "zeros":
            raise ValueError(
                "use_packed_masks='zeros' reads masks from the parameters from the first step on; store given masks "
                "with use_packed_masks=True."
            )
        masks = unpack_masks(params, masks)

        def stored(state: SparseState) -> SparseState:
            new = self.storing(state, params, visible_leaves(masks, state.masks))
            check_update(self, None, new, visible_leaves(params, state.masks))
            return new

        return map_sparse_states(stored, opt_state)

    def instant_sparsify(self, params: PyTree, grads: PyTree | None = None, **kwargs: Any) -> tuple[PyTree, PyTree]:
        """Prunes parameters at once to their target sparsities.

        Args:
            params: Parameter tree.
            grads: Gradients, for scores that need them.
            **kwargs: Extra arguments for `calculate_scores`.

        Returns:
            The pruned parameters, and the masks as uint8 arrays of their shapes.
        """
        scores = self.calculate_scores(params, grads=grads, **kwargs)
        masks = self.create_masks(scores, self.target_sparsities(params))
        return apply_masks(params, masks), masks

    def apply_masks(self, params: PyTree, masks: PyTree) -> PyTree:
        """Parameters that are exactly 0 outside the masks, packed or not."""
        return apply_masks(params, masks)

    def pre_forward_update(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """The forward view: the parameters to act, evaluate, broadcast, export and report with.

        Call it once on initial parameters to have step 0 sparse too; after an update it changes nothing.

        Args:
            params: Parameter tree.
            opt_state: Optimizer state that holds the sparse state.

        Returns:
            Parameters on the mask; gradients pass straight through.
        """
        state = find_sparse_state(opt_state)
        if self.use_packed_masks != "zeros":
            return apply_masks(params, state.masks)
        state = out_of_boxes(state)
        visible = visible_leaves(params, state.masks)
        plans = self.leaf_plans(visible)
        return apply_masks(params, plans.tree(plans.acting(masks_of_step(self, state, visible))))

    def first_params(self, params: PyTree, opt_state: PyTree, output_axis: int = -1) -> PyTree:
        """The parameters to begin training with: on the first masks, and rescaled if `rescale` says so.

        Args:
            params: Initial parameters, drawn for dense layers.
            opt_state: Optimizer state of the same parameters, fresh from `init`.
            output_axis: Axis of a kernel along which its outputs lie; -1 for Flax and Haiku, 0 for Equinox.

        Returns:
            Parameters on the mask.
        """
        on_masks = self.pre_forward_update(params, opt_state)
        masks = out_of_boxes(find_sparse_state(opt_state).masks)
        visible = visible_leaves(on_masks, masks)
        plans = self.leaf_plans(visible)
        columns = zip(plans.leaves, plans.acting(masks), strict=True)
        drawn = [mask if getattr(leaf.updater, "rescale", False) else NOT_PRUNED for leaf, mask in columns]
        return rescale_to_fan_in(on_masks, plans.tree(drawn), output_axis) if jax.tree.leaves(drawn) else on_masks

    def post_gradient_update(self, params: PyTree, sparse_state: PyTree) -> PyTree:
        """The same projection, for loops written for JaxPruner; idempotent and not needed after `wrap_optax`."""
        return self.pre_forward_update(params, sparse_state)

    def check_schedule(self) -> None:
        """Refuses a schedule that an optimizer can't count to."""
        check_schedule(self)

    def check_steps(self, period: int) -> None:
        """Refuses a schedule that leaves no step to train in, where weights move in every `period`-th step."""
        check_some_move(self, period)

    def targets_or_default(self, params: PyTree, target_sparsities: PyTree) -> PyTree:
        """Target sparsities; those of the updater where None are given."""
        return self.target_sparsities(params) if target_sparsities is None else target_sparsities


def _checked_target(name: str, target: Any) -> Any:
    """A number in [0, 1], or a tuple of some."""
    if isinstance(target, tuple):
        return tuple(_checked_target(name, layer_target) for layer_target in target)
    return check_fraction(f"target sparsity of {name!r}", target)


def _is_large(params: PyTree) -> bool:
    """Whether a program of its own, which needs no copy of all scores or of unpacked masks, is worth compiling."""
    leaves = jax.tree.leaves(params)
    return sum(map(jnp.size, leaves)) >= 1 << 24 and all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves)


def check_updater(updater: Any) -> None:
    """Raises TypeError if `updater` is none; for front ends, which take one beside an optimizer."""
    if not isinstance(updater, BaseUpdater):
        given = f"the class {updater.__name__}" if isinstance(updater, type) else f"a {type(updater).__name__}"
        raise TypeError(
            f"updater is {given}; give an updater such as core.build_updater('rigl', ...), or an algorithm such as "
            "'rigl' and its sparsity=..., next to the dense optimizer and not in its place."
        )
