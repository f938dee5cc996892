"""When masks change in a run of a known length, and how many weights they replace, as papers have it."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from sparse_plugins.core import drop_fractions, schedules
from sparse_plugins.core.base_updater import BaseUpdater

__all__ = ["SCHEDULE_KEYS", "default_drop_fraction", "default_schedule"]

SCHEDULE_KEYS = ("update_start_step", "update_end_step", "update_freq")


def default_schedule(
    updater_class: type[BaseUpdater],
    total_steps: int | None,
    step_unit: schedules.StepUnit = "optimizer step",
    *,
    length_word: str = "total_steps",
    **given: int,
) -> schedules.NoUpdateSchedule:
    """When the masks of an algorithm change in a run of a known length, as its papers have it.

    Pruning goes from 20 to 75 % of the run, in about a hundred changes along a cubic; what replaces weights does so
    from the first step to 75 %, also in about a hundred changes, though no more than every tenth step, since such a
    step may move no weight. AC/DC alternates ten times. Static masks, pruning at initialisation and straight-through
    estimation have schedules of their own.

    Args:
        updater_class: The class of the algorithm.
        total_steps: Length of the run in steps of the schedule; None if nobody knows.
        step_unit: What a step is.
        length_word: How the caller calls total_steps, for messages.
        **given: `update_start_step`, `update_end_step` or `update_freq`, where they are to be others.

    Returns:
        The schedule.

    Raises:
        ValueError: If the length is needed and missing.

    Example:
        >>> from sparse_plugins import core
        >>> default_schedule(core.MagnitudePruning, 10_000).describe()
        'masks change 101 times, every 55 optimizer steps from optimizer step 2000 to 7500'
        >>> default_schedule(core.RigL, 10_000).describe()
        'masks change 101 times, every 75 optimizer steps from optimizer step 0 to 7500'
    """
    if not given and not updater_class.needs_schedule():
        return dataclasses.replace(updater_class.scheduler, step_unit=step_unit)
    if total_steps is None and len(given) < len(SCHEDULE_KEYS):
        raise ValueError(
            f"{updater_class.__name__} changes masks while it trains, so it has to know how long that is: give "
            f"{length_word}=..., the number of {step_unit}s of the run, or all of {', '.join(SCHEDULE_KEYS)}."
        )
    steps = total_steps if total_steps is None else schedules.whole_number(length_word, total_steps, 1)
    replaces = updater_class.exchanges_weights
    start = given.get("update_start_step", 0 if replaces or steps is None else steps // 5)
    end = given.get("update_end_step", start if steps is None else max(steps * 3 // 4, start))
    schedule_type = updater_class.schedule_type
    changes = 10 if issubclass(schedule_type, schedules.AlternatingSchedule) else 100
    shortest = min(10, max(end - start, 1)) if replaces else 1
    freq = given.get("update_freq", max((end - start) // changes, shortest))
    return schedule_type(freq, start, end, step_unit=step_unit)


def default_drop_fraction(
    updater_class: type[BaseUpdater], scheduler: schedules.NoUpdateSchedule, first: float | None = None
) -> Callable[[Any], Any]:
    """What part of the weights a mask change replaces: it falls to 0 along a cosine, or stays without an end.

    Args:
        updater_class: The class of the algorithm, whose own first fraction None stands for.
        scheduler: When masks change.
        first: The fraction at step 0.

    Returns:
        A function of the step.

    Example:
        >>> from sparse_plugins import core
        >>> default_drop_fraction(core.RigL, core.PeriodicSchedule(10, 0, 100))
        CosineDrop(fraction=0.3, end_step=100)
    """
    default = inspect.getattr_static(updater_class, "drop_fraction_fn")
    if first is None:
        if not isinstance(default, drop_fractions.ConstantDrop):
            return default
        first = default.fraction
    end = getattr(scheduler, "update_end_step", None)
    return drop_fractions.CosineDrop(first, end_step=end) if end else drop_fractions.ConstantDrop(first)
