"""When masks are updated and how sparse they are then.

A schedule counts its own steps: calls of the optimizer that an updater wraps. `step_unit` says what such a call is
for the user (an optimizer step, a federated round, ...) so that a plan can be printed before a run.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.selection.counts import StepTable
from sparse_plugins.core.trees import PyTree

__all__ = [
    "LAST_STEP",
    "AlternatingSchedule",
    "NoUpdateSchedule",
    "OneShotSchedule",
    "PeriodicSchedule",
    "PolynomialSchedule",
    "Step",
    "StepUnit",
    "all_at_refresh",
    "array_module",
    "at_refresh",
    "count_at_refresh",
    "whole_number",
]

LAST_STEP = (1 << 31) - 2  # the count of an optimizer stays at the step after it
StepUnit = Literal["optimizer step", "round", "environment step", "frame"]
Step = Any  # int | np.ndarray | int32[] jax.Array


def whole_number(name: str, value: Any, lowest: int) -> int:
    """A number of steps as an int; TypeError or ValueError, which call it `name`, if it is none or below `lowest`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; give an int (a number of steps).") from None
    if isinstance(value, bool) or number < lowest:
        raise ValueError(f"{name} is {value!r}; the smallest allowed value is {lowest}.")
    return number


def array_module(step: Step) -> Any:
    """NumPy for a step on the host, `jax.numpy` for a traced one."""
    return jnp if isinstance(step, jax.Array) else np


@dataclasses.dataclass(frozen=True)
class NoUpdateSchedule:
    """Masks never change; the sparsity is the target from the start.

    Attributes:
        step_unit: What one step is: 'optimizer step', 'round', 'environment step' or 'frame'.

    Example:
        >>> NoUpdateSchedule().is_mask_update_iter(3)
        False
    """

    step_unit: StepUnit = dataclasses.field(default="optimizer step", kw_only=True)

    def __post_init__(self) -> None:
        if self.step_unit not in get_args(StepUnit):
            raise ValueError(f"step_unit is {self.step_unit!r}; allowed are {', '.join(get_args(StepUnit))}.")

    def is_mask_update_iter(self, step: Step | None) -> Any:
        """Whether masks are updated at `step`, a bool on the host and bool[] for a traced step."""
        return False

    def is_open_ended_iter(self, step: Step) -> Any:
        """As `is_mask_update_iter`, for masks that go on following the weights after the last change."""
        return True

    def get_sparsity_at_step(self, target_sparsities: PyTree, step: Step) -> PyTree:
        """The tree of targets as it stands at `step`."""
        return target_sparsities

    def describe(self) -> str:
        """When masks are updated, in words."""
        return "masks never change"

    def refresh_steps(self) -> np.ndarray | None:
        """int64[refreshes], every step at which masks are updated; None if there is no last one."""
        return np.zeros(0, np.int64)

    def refresh_index(self, step: jax.Array) -> jax.Array:
        """int32[], which of `refresh_steps` is the latest at `step` (0 before the first)."""
        return jnp.int32(0)


@dataclasses.dataclass(frozen=True)
class OneShotSchedule(NoUpdateSchedule):
    """Masks are updated once.

    Attributes:
        target_step: The step at which they do, counted from 0.

    Example:
        >>> OneShotSchedule(target_step=20).is_mask_update_iter(20)
        True
    """

    target_step: int

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("target_step", self.target_step, 0)

    def is_mask_update_iter(self, step: Step | None) -> Any:
        """True at `target_step` only."""
        return False if step is None else step == self.target_step

    def is_open_ended_iter(self, step: Step) -> Any:
        """True from `target_step` on."""
        return step >= self.target_step

    def describe(self) -> str:
        """The one step, in its unit."""
        return f"masks change once, at {self.step_unit} {self.target_step}"

    def refresh_steps(self) -> np.ndarray | None:
        """The target step alone."""
        return np.array([self.target_step], np.int64)


@dataclasses.dataclass(frozen=True)
class PeriodicSchedule(NoUpdateSchedule):
    """Masks are updated every `update_freq` steps, counted from the start step.

    Attributes:
        update_freq: Steps between changes, at least 1.
        update_start_step: First step at which masks are updated.
        update_end_step: Last step at which they may; None for no end.

    Raises:
        ValueError: If update_freq < 1, a step is negative, or the end lies before the start.

    Example:
        >>> schedule = PeriodicSchedule(update_freq=5, update_start_step=2, update_end_step=13)
        >>> [step for step in range(20) if schedule.is_mask_update_iter(step)]
        [2, 7, 12]
    """

    update_freq: int
    update_start_step: int
    update_end_step: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("update_freq", self.update_freq, 1)
        whole_number("update_start_step", self.update_start_step, 0)
        if self.update_end_step is not None and whole_number("update_end_step", self.update_end_step, 0) < (
            self.update_start_step
        ):
            raise ValueError(
                f"update_end_step ({self.update_end_step}) lies before update_start_step "
                f"({self.update_start_step}); swap them or move the end."
            )

    def is_mask_update_iter(self, step: Step | None) -> Any:
        """True at the start step and every `update_freq` steps after it, up to the end."""
        if step is None:
            return False
        return self._is_on_grid(step) & (step <= (LAST_STEP if self.update_end_step is None else self.update_end_step))

    def is_open_ended_iter(self, step: Step) -> Any:
        """True every `update_freq` steps from the start step on, as long as steps are counted."""
        due = self._is_on_grid(step)
        return due if self.update_freq == 1 else due & (step <= LAST_STEP)

    def _is_on_grid(self, step: Step) -> Any:
        return (step >= self.update_start_step) & ((step - self.update_start_step) % self.update_freq == 0)

    def describe(self) -> str:
        """Period, start and end, in the schedule's unit."""
        every = f"every {self.update_freq} {self.step_unit}s from {self.step_unit} {self.update_start_step}"
        steps = self.refresh_steps()
        return (
            f"masks change {every} on" if steps is None else f"masks change {len(steps)} times, {every} to {steps[-1]}"
        )

    def refresh_steps(self) -> np.ndarray | None:
        """All steps at which masks are updated, or None without an end."""
        if self.update_end_step is None:
            return None
        return np.arange(self.update_start_step, self.update_end_step + 1, self.update_freq)

    def refresh_index(self, step: jax.Array) -> jax.Array:
        """The number of whole periods since the start step, up to the last refresh."""
        index = jnp.maximum((step - self.update_start_step) // self.update_freq, 0)
        steps = self.refresh_steps()
        return index if steps is None else jnp.where(step >= int(steps[-1]), len(steps) - 1, index)


@dataclasses.dataclass(frozen=True)
class _ScheduleWithEnd(PeriodicSchedule):
    """Masks are updated on the grid and, on it or off it, at the end step."""

    def is_mask_update_iter(self, step: Step | None) -> Any:
        """True on the grid of `update_freq` and at the end step."""
        return False if step is None else super().is_mask_update_iter(step) | (step == self.update_end_step)

    def is_open_ended_iter(self, step: Step) -> Any:
        """True on the grid, at the end step, and on the grid after it."""
        return super().is_open_ended_iter(step) | (step == self.update_end_step)

    def refresh_steps(self) -> np.ndarray | None:
        """The grid and the end step."""
        grid, end = cast(np.ndarray, super().refresh_steps()), cast(int, self.update_end_step)
        return grid if grid[-1] == end else np.append(grid, end)


@dataclasses.dataclass(frozen=True)
class PolynomialSchedule(_ScheduleWithEnd):
    """Sparsity rises from 0 to the target along a polynomial, in steps of `update_freq`.

    At step t it is target * (1 - (1 - progress) ** power) with progress = (t + 1 - start) / (end - start), the
    paper's values. The end step always refreshes the masks, on the grid or off it, so the target is always reached.

    Attributes:
        update_end_step: Step at which the target is reached; must be given.
        power: Exponent; 3 is the usual cubic schedule.

    Example:
        >>> schedule = PolynomialSchedule(update_freq=5, update_start_step=0, update_end_step=20)
        >>> schedule.get_sparsity_at_step({"w": 0.5}, 9)
        {'w': 0.4375}

    Source: Zhu and Gupta, To prune, or not to prune (2017).
    """

    power: float = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.update_end_step is None:
            raise ValueError("update_end_step is None; a PolynomialSchedule reaches its target there, so give a step.")
        if not isinstance(self.power, (int, float)) or not 0 < self.power < math.inf:
            raise ValueError(f"power is {self.power!r}; give a positive number, 3 for the usual cubic schedule.")

    def get_sparsity_at_step(self, target_sparsities: PyTree, step: Step) -> PyTree:
        """The targets scaled by the polynomial; floats for a host step, float32[] for a traced one."""
        xp = array_module(step)
        if self.update_end_step == self.update_start_step:
            part = xp.where(step >= self.update_start_step, 1.0, 0.0)
        else:
            length = cast(int, self.update_end_step) - self.update_start_step
            # From the last step before the end on it is 1; beyond, a step may be too large to add to.
            progress = (xp.minimum(step, cast(int, self.update_end_step) - 1) + 1 - self.update_start_step) / length
            part = 1.0 - (1.0 - xp.clip(progress, 0.0, 1.0)) ** self.power
        return _scaled(target_sparsities, part)


@dataclasses.dataclass(frozen=True)
class AlternatingSchedule(_ScheduleWithEnd):
    """Phases of `update_freq` steps, sparse and dense in turn; sparse first, and sparse for good at the end.

    Attributes:
        update_end_step: First step of the last sparse phase; must be given.

    Example:
        >>> schedule = AlternatingSchedule(update_freq=5, update_start_step=5, update_end_step=17)
        >>> [schedule.get_sparsity_at_step(0.8, step) for step in (0, 5, 10, 15, 16, 17)]
        [0.0, 0.8, 0.0, 0.8, 0.8, 0.8]

    Source: Peste et al., AC/DC: Alternating Compressed/DeCompressed Training (2021).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.update_end_step is None:
            raise ValueError("update_end_step is None; an AlternatingSchedule is sparse from there on, so give a step.")

    def get_sparsity_at_step(self, target_sparsities: PyTree, step: Step) -> PyTree:
        """The targets in sparse phases, 0 in dense ones."""
        xp = array_module(step)
        sparse = ((step - self.update_start_step) // self.update_freq) % 2 == 0
        part = xp.where((step >= self.update_start_step) & (sparse | (step >= self.update_end_step)), 1.0, 0.0)
        return _scaled(target_sparsities, part)


def _scaled(targets: PyTree, part: Any) -> PyTree:
    """Targets times a part that depends on the step: floats for a host step."""
    on_host = np.ndim(part) == 0 and not isinstance(part, jax.Array)
    return jax.tree.map(lambda target: float(target * part) if on_host else target * part, targets)


def at_refresh(value_at: Callable[[Step], Any], schedule: NoUpdateSchedule, step: Step) -> Any:
    """A fraction at the latest refresh, exact if the schedule has an end.

    Args:
        value_at: From a step, or an array of steps, to fractions.
        schedule: The schedule whose refreshes count.
        step: Traced or host step.

    Returns:
        A float if the fraction is the same at every refresh; a `StepTable` of host values if the refreshes are
        known; else what `value_at(step)` gives.

    Example:
        >>> schedule = PeriodicSchedule(update_freq=5, update_start_step=0, update_end_step=20)
        >>> at_refresh(lambda step: 0.3, schedule, jnp.int32(5))
        0.3
    """
    return all_at_refresh([value_at], schedule, step)[0]


def all_at_refresh(values_at: Sequence[Callable[[Step], Any]], schedule: NoUpdateSchedule, step: Step) -> list[Any]:
    """`at_refresh`, of several fractions.

    Example:
        >>> schedule = PolynomialSchedule(update_freq=5, update_start_step=0, update_end_step=20)
        >>> values = [lambda step: 0.3, lambda step: schedule.get_sparsity_at_step(0.9, step)]
        >>> [round(float(jnp.asarray(value)), 4) for value in all_at_refresh(values, schedule, jnp.int32(5))]
        [0.3, 0.5913]
    """
    steps = schedule.refresh_steps()
    if steps is None or len(steps) == 0:
        return [value_at(step) for value_at in values_at]
    with jax.ensure_compile_time_eval():
        tables = [np.broadcast_to(np.asarray(value_at(steps), np.float64), steps.shape) for value_at in values_at]
    constants = [float(table[0]) if (table == table[0]).all() else None for table in tables]
    if None not in constants:
        return constants
    index = schedule.refresh_index(step)
    columns = zip(tables, constants, strict=True)
    return [StepTable(table, index) if constant is None else constant for table, constant in columns]


def count_at_refresh(count_at: Callable[[Step], Any], schedule: NoUpdateSchedule, step: Step) -> int | jax.Array:
    """A whole number at the latest refresh.

    Args:
        count_at: From a step, or an array of steps, to numbers that are whole, or are to be rounded half to even.
        schedule: As in `at_refresh`.
        step: As in `at_refresh`.

    Returns:
        An int, or int32[]; exact if the schedule has an end.

    Example:
        >>> schedule = PolynomialSchedule(update_freq=5, update_start_step=0, update_end_step=20)
        >>> kept = lambda step: 11 * (1 - schedule.get_sparsity_at_step(1.0, step))
        >>> [int(count_at_refresh(kept, schedule, jnp.int32(step))) for step in (0, 10, 20)]
        [9, 1, 0]
    """
    count = at_refresh(count_at, schedule, step)
    if isinstance(count, StepTable):
        return count.count(np.rint(count.values))
    return round(count) if isinstance(count, (int, float)) else jnp.rint(count).astype(jnp.int32)
