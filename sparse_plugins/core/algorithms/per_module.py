"""Different updaters for the parts of one model, around one optimizer."""

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from sparse_plugins.core.algorithms.pruning import NoPruning
from sparse_plugins.core.algorithms.tree_partition import Parts, check_keys
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.checks import missing_changes
from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.core.path_rules import read_rule
from sparse_plugins.core.schedules import NoUpdateSchedule, StepUnit
from sparse_plugins.core.structures import ByPath, Structure
from sparse_plugins.core.transform.cond import fresh_if, masks_alone
from sparse_plugins.core.transform.hooks import LeafPlans
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree

__all__ = ["PerModule"]

_MASKS_ALONE = "Under PerModule the rest of the state belongs to all updaters together: use this updater by itself."


@dataclasses.dataclass(eq=False)
class PerModule(BaseUpdater):
    """One updater for the encoder, another for the head: a leaf belongs to the first rule that matches its path.

    Each updater does what it does alone on its part of the parameters, with its own algorithm, schedule, structure and
    seed; a budget (ERK, a global ranking) is divided inside its part. The optimizer stays one, so that the global norm
    by which it clips is that of all gradients, unlike with `optax.partition` of several sparse optimizers.

    The state is one `SparseState`, whose `rng` is a tuple of one key per rule. An explicit `refresh` changes the
    parts that are due at the state's step.

    Attributes:
        updaters: Pairs (regular expression for a whole path 'a/b/kernel', updater). The first match wins; leaves that
            no rule matches stay dense.
        layers: What the axes of parameters are, for all updaters; None leaves each what it knows.
        rng_seed: None leaves each updater its seed; an int or JAX key replaces them all. `seeded` joins a key to each.

    Raises:
        TypeError: If an updater is none.
        ValueError: If a rule is no such pair, or the updaters cannot share a state: they store masks differently or
            as 'zeros', count different units, or one is a PerModule itself. From `init`: if a rule decides about no
            leaf, or an updater would never prune.

    Example:
        >>> import functools, jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> half = functools.partial(core.uniform, sparsity=0.5)
        >>> updater = PerModule([
        ...     ("actor/.*", core.MagnitudePruning(sparsity_distribution_fn=half, scheduler=core.OneShotSchedule(1))),
        ...     ("critic/.*", core.StaticRandomSparse(sparsity_distribution_fn=half))])
        >>> tx = updater.wrap_optax(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)))
        >>> params, state = core.start(tx, {name: {"w": jnp.ones((4, 4))} for name in ("actor", "critic", "encoder")})
        >>> for _ in range(2):
        ...     updates, state = tx.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print({name: int(jnp.count_nonzero(part["w"])) for name, part in params.items()})
        {'actor': 16, 'critic': 8, 'encoder': 16}
        {'actor': 8, 'critic': 8, 'encoder': 16}
    """

    updaters: Sequence[tuple[str, BaseUpdater]] = ()
    rng_seed: Any = dataclasses.field(default=None, kw_only=True)

    # The updaters say these.
    scheduler: NoUpdateSchedule = dataclasses.field(init=False, repr=False)
    skip_gradients: bool = dataclasses.field(init=False, repr=False, default=False)
    is_sparse_gradients: bool = dataclasses.field(init=False, repr=False, default=False)
    sparsity_type: Structure | ByPath = dataclasses.field(init=False, repr=False)
    sparsity_distribution_fn: None = dataclasses.field(init=False, repr=False, default=None)
    use_packed_masks: bool | Literal["zeros"] = dataclasses.field(init=False, repr=False, default=True)
    topk_fn: None = dataclasses.field(init=False, repr=False, default=None)
    rescale: bool = dataclasses.field(init=False, repr=False, default=False)

    starts_dense: ClassVar[bool] = False  # those that do are asked one by one

    def __post_init__(self) -> None:
        rules = tuple(read_rule(rule, "updater", "('actor/.*', RigL(...))") for rule in self.updaters)
        _check(rules)
        common = {name: value for name in ("rng_seed", "layers") if (value := getattr(self, name)) is not None}
        rules = (
            tuple((pattern, dataclasses.replace(updater, **common)) for pattern, updater in rules) if common else rules
        )
        self.updaters = rules
        self.scheduler = NoUpdateSchedule(step_unit=_step_units(rules)[0])
        self.sparsity_type = ByPath([rule for pattern, updater in rules for rule in _structure_rules(pattern, updater)])
        self.use_packed_masks = next(iter(_storage(rules).values()), True)

    def knowing(self, layers: Layers) -> Self:
        """Each updater with `layers`, if it has none yet."""
        return dataclasses.replace(self, updaters=[(pattern, each.knowing(layers)) for pattern, each in self.updaters])

    @property
    def parts(self) -> Sequence[tuple[str, BaseUpdater]]:
        """The rules."""
        return self.updaters

    def map_parts(self, function: Callable[[BaseUpdater], BaseUpdater]) -> BaseUpdater:
        """Each updater replaced by what a function makes of it."""
        return dataclasses.replace(self, updaters=[(pattern, function(updater)) for pattern, updater in self.updaters])

    @property
    def grows_by_gradient(self) -> bool:  # type: ignore[override]
        """Whether one of the updaters does."""
        return any(updater.grows_by_gradient for _, updater in self.updaters)

    @property
    def keeps_dense_weights(self) -> bool:  # type: ignore[override]
        """Whether one of the updaters does."""
        return any(updater.keeps_dense_weights for _, updater in self.updaters)

    @property
    def scores_by_gradient(self) -> bool:  # type: ignore[override]
        """Whether one of the updaters does."""
        return any(updater.scores_by_gradient for _, updater in self.updaters)

    def target_sparsities(self, params: PyTree) -> PyTree:
        """The targets that each updater gives its part."""
        return self._parts(params).joined(lambda updater: updater.target_sparsities, params)

    def leaf_plans(self, params: PyTree) -> LeafPlans:
        """The plans that each updater makes for its part; joined anew, for fields of a part may have been set."""
        parts = self._parts(params)
        made = parts.each(lambda updater: lambda part: (plans := updater.leaf_plans(part)).tree(plans.leaves), params)
        return LeafPlans(jax.tree.leaves(parts.join(made)), jax.tree.structure(params))

    def foreseen_masks(self, params: PyTree) -> PyTree:
        """Those that each updater foresees."""
        return self._parts(params).joined(lambda updater: updater.foreseen_masks, params)

    def missing_changes(self, params: PyTree) -> list[str]:
        """What is said of the updaters whose masks are to change and never would."""
        parts = zip(self.updaters, self._parts(params).cut(params)[:-1], strict=True)
        return [
            lack for (pattern, updater), part in parts for lack in missing_changes(updater, part, f" of {pattern!r}")
        ]

    def describe_seed(self) -> str:
        """What the updaters draw random masks from, those with one seed in one line."""
        return "\n".join(dict.fromkeys(line for _, updater in self.updaters if (line := updater.describe_seed())))

    def seeded(self, key: jax.Array) -> Self:
        """The updaters of one run among several, each as the updater's `seeded` makes it."""
        seeded = copy.copy(self)
        seeded.updaters = tuple((pattern, updater.seeded(key)) for pattern, updater in self.updaters)
        seeded.rng_seed = None  # it is in them
        return seeded

    def init_state(self, params: PyTree) -> SparseState:
        """One state that holds those of all updaters."""
        parts = self._parts(params)
        states = parts.each(lambda updater: updater.init_state, params)
        return SparseState(
            masks=parts.join([state.masks for state in states]),
            inner_state=(),
            target_sparsities=parts.join([state.target_sparsities for state in states]),
            count=jnp.zeros((), jnp.int32),
            rng=tuple(state.rng for state in states[:-1]),
            dense_params=_joined_dense(parts, [state.dense_params for state in states]),
        )

    def get_initial_masks(self, params: PyTree, target_sparsities: PyTree) -> PyTree:
        """The first masks of each updater."""
        return self._parts(params).joined(lambda updater: updater.get_initial_masks, params, target_sparsities)

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """The scores of each updater; extra arguments laid out like the parameters are cut to its part."""
        return self._parts(params).joined(
            lambda updater: updater.calculate_scores, params, sparse_state, grads, **kwargs
        )

    def create_masks(self, scores: PyTree, sparsities: PyTree) -> PyTree:
        """The masks that each updater makes of its scores."""
        return self._parts(scores).joined(lambda updater: updater.create_masks, scores, sparsities)

    def is_refresh_due(self, step: Any) -> Any:
        """Whether any updater changes its masks."""
        return functools.reduce(operator.or_, (updater.is_refresh_due(step) for _, updater in self.updaters))

    def describe_schedule(self) -> str:
        """The schedule of each updater, a line each."""
        said = [(pattern, type(updater).__name__, updater.describe_schedule()) for pattern, updater in self.updaters]
        lines = [f"  {pattern}  {name}: {schedule}" for pattern, name, schedule in said]
        return "\n".join(["one updater per module", *lines])

    def update_state(self, sparse_state: SparseState, params: PyTree, grads: PyTree, **kwargs: Any) -> SparseState:
        """The state with new masks where they are due at its step."""
        due = lambda updater: updater.changes_before(sparse_state.count)  # noqa: E731
        return self._changed(due, sparse_state, params, grads, **kwargs)

    def followed(
        self, state: SparseState, params: PyTree, weights: PyTree, grads: PyTree, **kwargs: Any
    ) -> SparseState:
        """The state with masks of the moved weights where they are due at the step."""
        return self._changed(lambda updater: updater.changes_after(state.count - 1), state, weights, grads, **kwargs)

    def _changed(
        self, due: Callable[[BaseUpdater], Any], state: SparseState, params: PyTree, grads: PyTree, **kwargs: Any
    ) -> SparseState:
        def changed(updater: BaseUpdater) -> Callable[..., PyTree]:
            def masks(state: SparseState, params: PyTree, grads: PyTree, **extra: Any) -> PyTree:
                new = lambda: updater.update_state(state, params, grads, **extra)  # noqa: E731
                fresh = lambda: updater.storing(state, params, masks_alone(new(), state, _MASKS_ALONE)).masks  # noqa: E731
                return fresh_if(due(updater), fresh, state.masks)

            return masks

        return state._replace(masks=self._parts(params).joined(changed, state, params, grads, **kwargs))

    def changes_before(self, step: Any) -> Any:
        """Whether any updater updates masks before weights move."""
        return functools.reduce(operator.or_, (updater.changes_before(step) for _, updater in self.updaters))

    def changes_after(self, step: Any) -> Any:
        """Whether any updater does so afterwards."""
        return functools.reduce(operator.or_, (updater.changes_after(step) for _, updater in self.updaters))

    def check_schedule(self) -> None:
        """Asks each updater."""
        for _, updater in self.updaters:
            updater.check_schedule()

    def check_state(self, state: SparseState) -> None:
        """Refuses a state that does not hold a key for each rule."""
        check_keys(state, len(self.updaters))

    def check_inner_state(self, inner_state: PyTree) -> None:
        """Asks each updater."""
        for _, updater in self.updaters:
            updater.check_inner_state(inner_state)

    def check_steps(self, period: int) -> None:
        """Asks each updater."""
        for _, updater in self.updaters:
            updater.check_steps(period)

    def _parts(self, params: PyTree) -> Parts:
        patterns, updaters = zip(*self.updaters, strict=True)
        layout = lambda: jax.tree.map(lambda leaf: 0, params)  # parts are kept, arrays are not  # noqa: E731
        return self.once("parts", params, lambda: Parts((*updaters, NoPruning()), layout(), patterns))


def _joined_dense(parts: Parts, dense: Sequence[PyTree]) -> PyTree:
    """The dense weights of all updaters, or () where none keeps any."""
    if all(part == () for part in dense):
        return ()
    nothing = parts.cut(jax.tree.map(lambda p: NOT_PRUNED, parts.params))
    return parts.join([none if part == () else part for none, part in zip(nothing, dense, strict=True)])


def _check(updaters: Sequence[tuple[str, Any]]) -> None:
    """Refuses what cannot share a state."""
    if not updaters:
        raise ValueError("PerModule got no updaters; give pairs such as ('actor/.*', RigL(...)), or use NoPruning.")
    for pattern, updater in updaters:
        if not isinstance(updater, BaseUpdater):
            raise TypeError(
                f"the updater of {pattern!r} is {updater!r}; give an instance such as MagnitudePruning(...)."
            )
        if isinstance(updater, PerModule):
            raise ValueError(f"the updater of {pattern!r} is a PerModule; put its rules into this one's list instead.")
        if updater.use_packed_masks == "zeros":
            raise ValueError(
                f"the updater of {pattern!r} has use_packed_masks='zeros', which needs the whole state for itself; "
                "store the masks with use_packed_masks=True."
            )
    if len(set((stored := _storage(updaters)).values())) > 1:
        raise ValueError(f"the updaters differ in use_packed_masks ({stored}); give all of them the same.")
    if len(units := _step_units(updaters)) > 1:
        raise ValueError(f"the schedules count in different units ({', '.join(units)}); they all see the same steps.")


def _storage(updaters: Sequence[tuple[str, BaseUpdater]]) -> dict[str, Any]:
    """How those that have masks store them."""
    return {pattern: updater.use_packed_masks for pattern, updater in updaters if updater.prunes}


def _step_units(updaters: Sequence[tuple[str, BaseUpdater]]) -> list[StepUnit]:
    """What the steps are, by the schedules that have any."""
    schedules = [updater.scheduler for _, updater in updaters]
    timed = [schedule for schedule in schedules if type(schedule) is not NoUpdateSchedule] or schedules[:1]
    return sorted({schedule.step_unit for schedule in timed})


def _structure_rules(pattern: str, updater: BaseUpdater) -> list[tuple[str, Structure]]:
    """The structures of one updater as rules for the whole model."""
    structure = updater.sparsity_type
    if not isinstance(structure, ByPath):
        return [(pattern, structure)]
    rules = [(rf"(?=(?:{pattern})\Z)(?:{inner})", inner_structure) for inner, inner_structure in structure.rules]
    return [*rules, (pattern, structure.default)]
