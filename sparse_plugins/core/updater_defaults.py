"""From an algorithm, a sparsity and the length of a run to an updater: what papers use where nothing is said."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparse_plugins.core import schedules
from sparse_plugins.core.algorithms.per_module import PerModule
from sparse_plugins.core.base_updater import BaseUpdater, check_updater
from sparse_plugins.core.config import DISTRIBUTIONS
from sparse_plugins.core.default_schedules import SCHEDULE_KEYS, default_drop_fraction, default_schedule
from sparse_plugins.core.distributions import rules_of_map
from sparse_plugins.core.layer_rules import (
    LayerRule,
    read_layer_rules,
    sparsity_of_groups,
    structures_by_rule,
    without_earlier,
)
from sparse_plugins.core.registry import ALGORITHMS, Algorithm, known
from sparse_plugins.core.run_length import check_length
from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.core.structure_names import parse_structure
from sparse_plugins.core.structures import ByPath, ChannelGroups, NByM, Structure

__all__ = ["PRESETS", "AnyUpdater", "build_updater", "updater_and_rest", "updater_from"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "jaxpruner": {"distribution": "uniform", "drop_fraction": 0.1, "rescale": False},
}
_WORDS = ("step_unit", "drop_fraction", "filter_fn", "custom_sparsity_map", *SCHEDULE_KEYS)
_NAMED = ("sparsity", "total_steps", "distribution", "rules", "structure", "layers", "preset")
# What front ends take: an updater, or an algorithm by its name or class, with the words of `core.sparsify` beside it.
AnyUpdater = BaseUpdater | type[BaseUpdater] | str
# Fields for which there is a word of its own.
_SAID_OTHERWISE = {
    "sparsity_type": "structure",
    "sparsity_distribution_fn": "distribution",
    "dist_type": "distribution",
}


def build_updater(
    algorithm: str | type[BaseUpdater] | BaseUpdater,
    *,
    sparsity: float | None = None,
    total_steps: int | None = None,
    distribution: str | Callable | None = None,
    rules: Sequence[tuple[str, Any]] = (),
    structure: Any = None,
    layers: Any = None,
    preset: str | None = None,
    length_word: str = "total_steps",
    step_unit: schedules.StepUnit = "optimizer step",
    **settings: Any,
) -> BaseUpdater:
    """An updater in few words, with what papers use wherever nothing is said: the one of `core.sparsify`; see there.

    For what takes an updater and an optimizer apart, such as `rl.SparseLearner`.

    Args:
        algorithm: As in `core.sparsify`.
        sparsity: As in `core.sparsify`.
        total_steps: As in `core.sparsify`.
        distribution: As in `core.sparsify`.
        rules: As in `core.sparsify`.
        structure: As in `core.sparsify`.
        layers: As in `core.sparsify`.
        preset: As in `core.sparsify`.
        length_word: How the caller calls total_steps, for messages.
        step_unit: What a step of the schedule is.
        **settings: As in `core.sparsify`.

    Returns:
        The updater; a `PerModule` if a rule names an algorithm.

    Raises:
        TypeError: If `algorithm` is none of the three.
        ValueError: For an unknown name, a value that is not allowed, or a length missing where it is needed.

    Example:
        >>> build_updater("static_sparse", sparsity=0.9, rules=[("head/.*", 0.5)]).sparsity_type
        Unstructured()
    """
    words = {"sparsity": sparsity, "distribution": distribution, "structure": structure, "layers": layers}
    updater = _built(
        algorithm,
        words,
        rules=rules,
        total_steps=total_steps,
        preset=preset,
        length_word=length_word,
        step_unit=step_unit,
        **settings,
    )
    if total_steps is not None:
        check_length(updater, total_steps, length_word)
    return updater


def updater_from(updater: AnyUpdater, **words: Any) -> BaseUpdater:
    """The updater of a front end, which takes one, or an algorithm and words for `build_updater`.

    Raises:
        TypeError: If it is neither of them.

    Example:
        >>> type(updater_from("set", sparsity=0.9, total_steps=1000)).__name__
        'SET'
    """
    if not isinstance(updater, str) and not (isinstance(updater, type) and issubclass(updater, BaseUpdater)):
        check_updater(updater)
    return build_updater(updater, **words)


def updater_and_rest(
    updater: AnyUpdater, given: Mapping[str, Any], front_end: type
) -> tuple[BaseUpdater, dict[str, Any]]:
    """The updater of a front end whose constructor takes keywords of its own and the words of `core.sparsify`.

    Args:
        updater: An updater, or an algorithm by its name or class.
        given: All keywords of the call.
        front_end: The class that is built; what no constructor of it or its bases knows is a word about an algorithm.

    Returns:
        The updater, and the keywords that are left for the front end.

    Raises:
        TypeError: If `updater` is neither of them.
        ValueError: If there are words beside an updater, which says all of itself, or they do not make one.

    Example:
        >>> class Agent:
        ...     def __init__(self, num_actions): ...
        >>> updater, rest = updater_and_rest("set", {"sparsity": 0.9, "total_steps": 1000, "num_actions": 2}, Agent)
        >>> type(updater).__name__, rest
        ('SET', {'num_actions': 2})
    """
    constructors = [vars(base)["__init__"] for base in front_end.__mro__ if "__init__" in vars(base)]
    known = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
    is_updater = isinstance(updater, BaseUpdater)
    is_word = lambda name: name not in known and (not is_updater or name in (*_NAMED, *_WORDS))  # noqa: E731
    words = {name: value for name, value in given.items() if is_word(name)}
    return updater_from(updater, **words), {name: value for name, value in given.items() if name not in words}


def _built(
    algorithm: Any,
    words: Mapping[str, Any],
    *,
    rules: Sequence[tuple[str, Any]],
    total_steps: int | None,
    preset: str | None,
    length_word: str,
    step_unit: schedules.StepUnit,
    **settings: Any,
) -> BaseUpdater:
    """The updater, not yet held against the length of the run."""
    if isinstance(algorithm, BaseUpdater):
        given = {**words, "rules": rules or None, "preset": preset}
        if extra := [*(key for key, value in given.items() if value is not None), *settings]:
            raise ValueError(
                f"algorithm is an updater, {type(algorithm).__name__}, which says all of itself: give "
                f"{', '.join(extra)} to the updater, or the algorithm by its name."
            )
        return algorithm
    chosen = PRESETS[known("preset", preset, PRESETS)] if preset is not None else {}
    common = {**words, "distribution": words["distribution"] or chosen.get("distribution"), "step_unit": step_unit}
    common |= {"total_steps": total_steps, "length_word": length_word}
    base = _algorithm(algorithm)
    _check_words(base, settings)
    if "drop_fraction_fn" not in settings and "drop_fraction" in chosen:
        common["drop_fraction"] = chosen["drop_fraction"]
    if "rescale" in chosen:
        common["rescale"] = chosen["rescale"]
    read = read_layer_rules([*rules_of_map(settings.pop("custom_sparsity_map", None)), *rules])
    named = without_earlier(read, lambda rule: rule.algorithm is not None)
    rest = [rule for rule in read if rule.algorithm is None]
    updater = _single(base, rest, **{**common, **settings})
    if not named:
        return updater
    return PerModule([*((pattern, _of_rule(rule, common, settings)) for pattern, rule in named), (".*", updater)])


def _algorithm(algorithm: Any) -> Algorithm:
    if isinstance(algorithm, type) and issubclass(algorithm, BaseUpdater):
        return Algorithm(algorithm)
    if not isinstance(algorithm, str):
        raise TypeError(
            f"algorithm is {algorithm!r}; give a name such as 'rigl', a class such as core.RigL, or an updater."
        )
    return ALGORITHMS[known("algorithm", algorithm, ALGORITHMS)]


def _check_words(algorithm: Algorithm, settings: Mapping[str, Any]) -> None:
    """Refuses settings that the algorithm does not know, that say one thing twice, or that would have no effect."""
    updater_class, name = algorithm.updater_class, algorithm.updater_class.__name__
    for key in settings:
        if key in ("rounds", "steps", "num_steps"):
            raise ValueError(f"{key} is called total_steps here: give total_steps=..., in steps of the optimizer.")
        if key in _SAID_OTHERWISE:
            raise ValueError(f"{key} is called {_SAID_OTHERWISE[key]} here: give {_SAID_OTHERWISE[key]}=...")
        fields = [field for field in algorithm.fields if field not in _SAID_OTHERWISE]
        known(f"setting of {name}", key, dict.fromkeys([*_NAMED, *_WORDS, *fields]))
    timed = [key for key in settings if key in SCHEDULE_KEYS]
    for same in (["drop_fraction", "drop_fraction_fn"], ["scheduler", *timed[:1]]):
        if len(same) > 1 and set(same) <= set(settings):
            raise ValueError(f"{' and '.join(same)} say the same; give one of them.")
    if "drop_fraction" in settings and "drop_fraction_fn" not in algorithm.fields:
        raise ValueError(f"{name} replaces no weights, so it has no drop fraction: leave drop_fraction out.")
    if timed and updater_class.masks_from_seed:
        raise ValueError(f"{name} never changes its masks: leave {', '.join(timed)} out.")


def _of_rule(rule: LayerRule, common: Mapping[str, Any], settings: Mapping[str, Any]) -> BaseUpdater:
    """The updater of the layers for which a rule names an algorithm; settings it does not know are those of others."""
    said = {"sparsity": None if rule.sparsity == "default" else rule.sparsity, "structure": rule.structure}
    said = {key: value for key, value in said.items() if value is not None}
    if isinstance(rule.algorithm, BaseUpdater):
        if said:
            raise ValueError(f"rule {rule.pattern!r} gives {', '.join(said)} beside an updater, which says it itself.")
        return rule.algorithm
    algorithm = _algorithm(rule.algorithm)
    understood = {key: value for key, value in settings.items() if key in (*_WORDS, *algorithm.fields)}
    return _single(algorithm, [], **{**common, **understood, **said})


def _single(
    algorithm: Algorithm,
    rules: Sequence[LayerRule],
    *,
    sparsity: float | None,
    total_steps: int | None,
    distribution: str | Callable | None,
    structure: Any,
    layers: Any,
    length_word: str,
    step_unit: schedules.StepUnit,
    drop_fraction: float | None = None,
    filter_fn: Callable | None = None,
    scheduler: schedules.NoUpdateSchedule | None = None,
    **settings: Any,
) -> BaseUpdater:
    """An updater of one algorithm."""
    updater_class, name = algorithm.updater_class, algorithm.updater_class.__name__
    given = {key: value for key in SCHEDULE_KEYS if (value := settings.pop(key, None)) is not None}
    if not updater_class.prunes:
        return updater_class(**{**algorithm.defaults, **settings})
    base_structure = algorithm.default("sparsity_type") if structure is None else parse_structure(structure)
    fields = dict(algorithm.defaults) | settings | {"sparsity_type": structures_by_rule(base_structure, rules)}
    fields |= _sparsities(algorithm, base_structure, rules, sparsity, distribution, filter_fn)
    if scheduler is None and ("scheduler" not in algorithm.defaults or given):
        scheduler = default_schedule(updater_class, total_steps, step_unit, length_word=length_word, **given)
    fields |= {"scheduler": scheduler} if scheduler is not None else {}
    if "drop_fraction_fn" in algorithm.fields and "drop_fraction_fn" not in fields:
        fields["drop_fraction_fn"] = default_drop_fraction(updater_class, fields["scheduler"], drop_fraction)
    if fields.get("rescale") is None:
        fields["rescale"] = not updater_class.starts_dense and not updater_class.keeps_dense_weights
    if layers is not None:
        if "layers" not in algorithm.fields:
            raise ValueError(f"{name} does not know layers; leave it out.")
        fields["layers"] = layers
    return updater_class(**fields)


def _sparsities(
    algorithm: Algorithm,
    base_structure: Structure | ByPath,
    rules: Sequence[LayerRule],
    sparsity: float | None,
    distribution: str | Callable | None,
    filter_fn: Callable | None,
) -> dict[str, Any]:
    """Fields that say how sparse layers are."""
    name = algorithm.updater_class.__name__
    if callable(distribution) and not rules and filter_fn is None and sparsity is None:
        return {"sparsity_distribution_fn": distribution}
    if isinstance(base_structure, NByM):
        sparsity, distribution = sparsity_of_groups(base_structure, sparsity, name), distribution or "uniform"
    if isinstance(base_structure, ChannelGroups) and "sparsity" not in algorithm.fields:
        distribution = distribution or "uniform"  # channels of a group are not weights of a layer
    if sparsity is None:
        raise ValueError(f"sparsity is missing; give the fraction of zeros, such as sparsity=0.9 for {name}.")
    sparsity = check_fraction("sparsity", sparsity)
    layers: dict[str, Any] = {"rules": [(rule.pattern, rule.sparsity) for rule in rules]} if rules else {}
    layers |= {"filter_fn": filter_fn} if filter_fn is not None else {}
    if "sparsity" in algorithm.fields:
        if distribution is not None:
            raise ValueError(f"{name} ranks all layers together, which leaves nothing to a distribution; leave it out.")
        return {"sparsity": sparsity, **layers}
    if callable(distribution):
        return {"sparsity_distribution_fn": functools.partial(distribution, sparsity=sparsity, **layers)}
    divide = DISTRIBUTIONS[known("distribution", distribution or "erk", DISTRIBUTIONS)]
    return {"sparsity_distribution_fn": functools.partial(divide, sparsity=sparsity, **layers)}
