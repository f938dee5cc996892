"""From a configuration to an updater: a dataclass, a mapping, a ConfigDict or keywords."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sparse_plugins.core import drop_fractions, schedules
from sparse_plugins.core.algorithms.per_module import PerModule
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.checks import without_changes
from sparse_plugins.core.default_schedules import default_schedule
from sparse_plugins.core.distributions import SHARED, FilterFn, erk, uniform
from sparse_plugins.core.layer_rules import LayerRule, read_layer_rules, structures_by_rule, without_earlier
from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.registry import ALGORITHMS, Algorithm, known
from sparse_plugins.core.run_length import check_length
from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.core.structure_names import parse_structure
from sparse_plugins.core.structures import ByPath, NByM, Structure

__all__ = ["DISTRIBUTIONS", "SparsityConfig", "create_updater_from_config"]

DISTRIBUTIONS: Mapping[str, Callable] = {"uniform": uniform, "erk": erk}
DROP_SCHEDULES: Mapping[str, Callable[..., drop_fractions.ConstantDrop]] = {
    "constant": drop_fractions.ConstantDrop,
    "cosine": drop_fractions.CosineDrop,
    "linear": drop_fractions.LinearDrop,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Everything a run needs to say about sparsity; None means the algorithm's own default.

    Keys that only some algorithms read are allowed for all, so that one configuration serves a table of algorithms.

    Attributes:
        algorithm: One of `all_algorithm_names()`.
        sparsity: Fraction of zeros in [0, 1]; with an 'n:m' structure it defaults to 1 - n / m.
        dist_type: 'uniform' or 'erk'; not read by the global algorithms.
        sparsity_type: None for the algorithm's own; a structure or its name: 'unstructured', 'nm_2,4' or '2:4',
            'block_4,4' or '4x4', 'channel', 'heads', 'fan_in', or with an axis `'channel_-1'`, `'fan_in_-1'`; or pairs
            (regular expression for a path, one of these) for a structure per layer.
        total_steps: Length of the run in steps of the schedule. Without the three keys below, masks are then updated
            when papers update them (see `sparsify`); with them, a schedule that starts after the end is an error.
        update_start_step: First step at which masks are updated; None for no updates.
        update_end_step: Last step at which they do; equal to the start for a one-shot change.
        update_freq: Steps between changes.
        step_unit: What a step is; printed with the plan.
        drop_fraction: SET, RigL and related algorithms: fraction of kept weights replaced at step 0; None for the
            class's default, 0.3 of SET and RigL (0.1 in JaxPruner).
        drop_fraction_fn: The same as a function of the step, in place of the two keys around it.
        drop_schedule: How the drop fraction falls: 'cosine' or 'linear' to 0 at update_end_step, or 'constant'.
        filter_fn: Which leaves are pruned; see `uniform`.
        custom_sparsity_map: Sparsity by path; see `uniform`.
        rules: What differs by layer, as in `core.sparsify`: pairs (regular expression for a path, what), where what is
            None (dense), a sparsity, a structure, an algorithm or a mapping of these.
        rng_seed: Seed of random masks and scores.
        use_packed_masks: How masks are stored; see `BaseUpdater`.
        skip_gradients: See `BaseUpdater`.
        is_sparse_gradients: See `BaseUpdater`.
        topk_fn: See `BaseUpdater`.
        rescale: See `BaseUpdater`.
        use_normalization: See `GlobalMagnitudePruning`.
        normalization_eps: See `GlobalMagnitudePruning`.
        layers: What the axes of parameters are; see `BaseUpdater`.
    """

    algorithm: str
    sparsity: float | None = None
    dist_type: str = "uniform"
    sparsity_type: str | Structure | ByPath | Sequence[tuple[str, str | Structure]] | None = None
    total_steps: int | None = None
    update_start_step: int | None = None
    update_end_step: int | None = None
    update_freq: int | None = None
    step_unit: schedules.StepUnit = "optimizer step"
    drop_fraction: float | None = None
    drop_schedule: str = "cosine"
    drop_fraction_fn: Callable[[Any], Any] | None = None
    filter_fn: FilterFn | None = None
    custom_sparsity_map: Mapping[Sequence[str] | str, float] | None = None
    rules: Sequence[tuple[str, Any]] = ()
    rng_seed: Any = None
    use_packed_masks: bool | Literal["zeros"] | None = None
    skip_gradients: bool | None = None
    is_sparse_gradients: bool | None = None
    topk_fn: Callable[[Any, Any], Any] | None = None
    rescale: bool | None = None
    use_normalization: bool | None = None
    normalization_eps: float | None = None
    layers: Layers | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            check_fraction("sparsity", self.sparsity)


def create_updater_from_config(config: Any = None, **keywords: Any) -> BaseUpdater:
    """Builds an updater.

    Args:
        config: `SparsityConfig`, any mapping (a dict, OmegaConf's DictConfig) or ml_collections ConfigDict with its
            keys; None for keywords alone. `algorithm` may be called `pruner_type`, as in the paper, and `dist_type` and
            `sparsity_type` may be `distribution` and `structure`, as in `core.sparsify`.
        **keywords: Single keys, which take precedence. Keys given as None count as not given. `core.SparsityConfig`
            explains them: `algorithm`; how sparse and where `sparsity`, `dist_type`, `sparsity_type`, `rules`,
            `custom_sparsity_map`, `filter_fn`, `layers`; when `total_steps`, `update_start_step`, `update_end_step`,
            `update_freq`, `step_unit`; of what drops and grows weights `drop_fraction`, `drop_schedule`,
            `drop_fraction_fn`; of all `rng_seed`, `rescale`, `skip_gradients`, `is_sparse_gradients`,
            `use_packed_masks`, `topk_fn`; of rankings across layers `use_normalization`, `normalization_eps`.

    Returns:
        The updater.

    Raises:
        ValueError: For an unknown key, algorithm, distribution or structure, or a value that is not allowed.

    Example:
        >>> updater = create_updater_from_config(
        ...     algorithm="magnitude", dist_type="erk", sparsity=0.8,
        ...     update_freq=10, update_start_step=200, update_end_step=1000)
        >>> updater.scheduler.update_end_step
        1000
    """
    settings = _read(config, keywords)
    named = without_earlier(read_layer_rules(settings.rules), lambda rule: rule.algorithm is not None)
    if not named:
        return _single(settings)
    rest = [rule for rule in settings.rules if read_layer_rules([rule])[0].algorithm is None]
    others = _single(dataclasses.replace(settings, rules=rest))
    return PerModule([*((pattern, _of_rule(rule, settings)) for pattern, rule in named), (".*", others)])


def _of_rule(rule: LayerRule, settings: SparsityConfig) -> BaseUpdater:
    """The updater of the layers for which a rule names an algorithm."""
    if isinstance(rule.algorithm, BaseUpdater):
        return rule.algorithm
    said: dict[str, Any] = {"sparsity": rule.sparsity, "sparsity_type": rule.structure}
    said = {key: value for key, value in said.items() if value not in (None, SHARED)}
    return _single(dataclasses.replace(settings, algorithm=rule.algorithm, rules=(), **said))


def _single(settings: SparsityConfig) -> BaseUpdater:
    """An updater of one algorithm."""
    algorithm = ALGORITHMS[known("algorithm", settings.algorithm, ALGORITHMS)]
    if not algorithm.updater_class.prunes:
        return algorithm.updater_class(**algorithm.defaults)
    structure = algorithm.default("sparsity_type")
    if settings.sparsity_type is not None:
        structure = parse_structure(settings.sparsity_type)
    rules = read_layer_rules(settings.rules)
    options = {
        **{name: getattr(settings, name) for name in _AS_GIVEN},
        **_sparsity(settings, rules, structure, algorithm),
        "sparsity_type": structures_by_rule(structure, rules),
        "scheduler": _scheduler(settings, algorithm),
    }
    if "drop_fraction_fn" in algorithm.fields:
        end = getattr(options["scheduler"], "update_end_step", None)
        options["drop_fraction_fn"] = settings.drop_fraction_fn or _drop_fraction(settings, algorithm, end)
    given = {name: value for name, value in options.items() if value is not None and name in algorithm.fields}
    updater = algorithm.updater_class(**{**algorithm.defaults, **given})
    if settings.total_steps is not None:
        check_length(updater, settings.total_steps)
    if updater.is_idle and updater.exchanges_weights:  # one that starts dense may prune at once, without a schedule
        raise ValueError(without_changes(updater))
    return updater


_AS_GIVEN = (
    *("rng_seed", "use_packed_masks", "skip_gradients", "is_sparse_gradients", "topk_fn", "rescale"),
    *("use_normalization", "normalization_eps", "layers"),
)


def _sparsity(
    settings: SparsityConfig, rules: Sequence[LayerRule], structure: Structure | ByPath, algorithm: Algorithm
) -> dict[str, Any]:
    """How sparse layers are: fields of one ranking across layers, or a distribution."""
    sparsity = settings.sparsity
    if sparsity is None:
        if not isinstance(structure, NByM):
            raise ValueError("sparsity is missing; give the fraction of zeros, e.g. sparsity=0.8.")
        sparsity = 1.0 - structure.n / structure.m
    said = {"filter_fn": settings.filter_fn, "custom_sparsity_map": settings.custom_sparsity_map}
    layers: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    layers |= {"rules": [(rule.pattern, rule.sparsity) for rule in rules]} if rules else {}
    if "sparsity" in algorithm.fields:
        return {"sparsity": sparsity, **layers}
    distribution = DISTRIBUTIONS[known("dist_type", settings.dist_type, DISTRIBUTIONS)]
    return {"sparsity_distribution_fn": functools.partial(distribution, sparsity=sparsity, **layers)}


# The paper's name for the algorithm, and what `core.sparsify` calls two keys of the paper.
_OTHER_NAMES = {"pruner_type": "algorithm", "distribution": "dist_type", "structure": "sparsity_type"}


def _read(config: Any, keywords: dict[str, Any]) -> SparsityConfig:
    if isinstance(config, SparsityConfig):
        given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    elif config is None or hasattr(config, "keys"):
        given = {key: config[key] for key in config.keys()} if config is not None else {}  # noqa: SIM118
    else:
        raise TypeError(f"config is {config!r}; give a SparsityConfig, a mapping or a ConfigDict.")
    given = {key: value for key, value in {**given, **keywords}.items() if value is not None}
    for other, key in _OTHER_NAMES.items():
        value = given.pop(other, None)
        if value is not None and given.setdefault(key, value) != value:
            raise ValueError(
                f"{other} is {value!r} and {key} {given[key]!r}: these are two names of one key; give one."
            )
    names = [*(field.name for field in dataclasses.fields(SparsityConfig)), *_OTHER_NAMES]
    for key in given:
        known("sparsity configuration key", key, names)
    if "algorithm" not in given:
        raise ValueError(f"algorithm is missing; allowed are {', '.join(ALGORITHMS)}.")
    return SparsityConfig(**given)


def _scheduler(settings: SparsityConfig, algorithm: Algorithm) -> schedules.NoUpdateSchedule:
    start, end, freq, unit = (
        settings.update_start_step,
        settings.update_end_step,
        settings.update_freq,
        settings.step_unit,
    )
    if start is None:
        if end is not None or freq is not None:
            raise ValueError("update_end_step or update_freq is given without update_start_step; give that too.")
        if settings.total_steps is not None and "scheduler" not in algorithm.defaults:
            return default_schedule(algorithm.updater_class, settings.total_steps, unit)
        return dataclasses.replace(algorithm.default("scheduler"), step_unit=unit)
    if start == end:
        return schedules.OneShotSchedule(target_step=start, step_unit=unit)
    if freq is None:
        raise ValueError("update_freq is missing; give the number of steps between mask changes.")
    schedule_type = algorithm.updater_class.schedule_type
    if end is None and schedule_type is not schedules.PeriodicSchedule:
        raise ValueError("update_end_step is missing; give the step at which the target sparsity is reached.")
    return schedule_type(freq, start, end, step_unit=unit)


def _drop_fraction(settings: SparsityConfig, algorithm: Algorithm, end: int | None) -> Callable[[Any], Any]:
    if "drop_fraction_fn" in algorithm.defaults:
        return algorithm.defaults["drop_fraction_fn"]
    drop_schedule = DROP_SCHEDULES[known("drop_schedule", settings.drop_schedule, DROP_SCHEDULES)]
    end = settings.update_end_step if end is None else end
    first = settings.drop_fraction
    if first is None:
        default = algorithm.default("drop_fraction_fn")
        if type(default) is not drop_fractions.ConstantDrop:
            return default
        first = default.fraction
    if end is None or drop_schedule is drop_fractions.ConstantDrop:
        return drop_fractions.ConstantDrop(first)
    return drop_schedule(first, end_step=max(end, 1))
