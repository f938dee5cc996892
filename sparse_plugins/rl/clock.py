"""Optimizer steps, environment steps and frames of one agent, so that a schedule's unit is never a guess."""

import dataclasses
import fractions
import math
from typing import Any

from sparse_plugins.core.base_updater import BaseUpdater

__all__ = ["Clock"]

_MOMENTS = ("target_step", "update_start_step", "update_end_step", "end_step")
_LENGTHS = ("update_freq",)


@dataclasses.dataclass(frozen=True)
class Clock:
    """How the steps of an agent relate.

    Attributes:
        warm_up: Environment steps before the first optimizer step.
        period: Environment steps per optimizer step; a fraction if the agent learns several times per step.
        frames_per_step: Frames per environment step, 4 for Atari.

    Raises:
        ValueError: If one of them is out of range.

    Example:
        >>> nature_dqn = Clock(warm_up=20_000, period=4, frames_per_step=4)
        >>> nature_dqn.environment_step(500_000), nature_dqn.frame(500_000)
        (2020000, 8080000)
    """

    warm_up: int = 0
    period: int | fractions.Fraction = 1
    frames_per_step: int = 1

    def __post_init__(self) -> None:
        for name, lowest in (("warm_up", 0), ("frames_per_step", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)!r}; the smallest allowed value is {lowest}.")
        if self.period <= 0:
            raise ValueError(f"period is {self.period!r}; give the environment steps per optimizer step, above 0.")

    def environment_step(self, optimizer_step: int) -> int:
        """The environment step at which an optimizer step, counted from 0, is made."""
        return self.warm_up + math.ceil(optimizer_step * self.period)

    def frame(self, optimizer_step: int) -> int:
        """The frame at which an optimizer step, counted from 0, is made."""
        return self.environment_step(optimizer_step) * self.frames_per_step

    def optimizer_step(self, step: int, unit: str) -> int:
        """The first optimizer step at or after a step in another unit; 0 while the agent only collects.

        Args:
            step: A number of steps.
            unit: 'optimizer step', 'environment step' or 'frame'.

        Raises:
            ValueError: For another unit.
        """
        if unit == "optimizer step":
            return step
        return max(math.ceil((math.ceil(step / self._per_environment_step(unit)) - self.warm_up) / self.period), 0)

    def in_optimizer_steps(self, updater: BaseUpdater) -> BaseUpdater:
        """The updater with its schedule counted in optimizer steps, which is what an optimizer sees.

        Args:
            updater: Any updater; the `step_unit` of its schedule says what its steps are.

        Returns:
            An updater that updates masks at the optimizer steps nearest to those asked for.

        Raises:
            ValueError: For 'round', which agents do not have.

        Example:
            >>> from sparse_plugins import core
            >>> schedule = core.PolynomialSchedule(4000, 2_020_000, 8_020_000, step_unit="environment step")
            >>> updater = core.MagnitudePruning(scheduler=schedule)
            >>> Clock(warm_up=20_000, period=4).in_optimizer_steps(updater).scheduler
            PolynomialSchedule(step_unit='optimizer step', update_freq=1000, update_start_step=500000,
                update_end_step=2000000, power=3)
        """
        if updater.parts:
            return updater.map_parts(self.in_optimizer_steps)
        unit = updater.scheduler.step_unit
        if unit == "optimizer step":
            return updater
        changes = {"scheduler": self._converted(updater.scheduler, unit)}
        drop = getattr(updater, "drop_fraction_fn", None)
        if dataclasses.is_dataclass(drop):
            changes["drop_fraction_fn"] = self._converted(drop, unit)
        return dataclasses.replace(updater, **changes)

    def describe(self, updater: BaseUpdater) -> str:
        """When masks first and last change, in all three units; part of the plan printed before a run.

        Args:
            updater: An updater whose schedule counts optimizer steps.

        Returns:
            Text of one or two lines per schedule, or nothing if masks never change.

        Example:
            >>> from sparse_plugins import core
            >>> updater = core.MagnitudePruning(scheduler=core.PolynomialSchedule(1000, 500_000, 2_000_000))
            >>> print(Clock(20_000, 4, 4).describe(updater))
            first mask change: optimizer step 500,000 = environment step 2.02M = frame 8.08M
            last mask change: optimizer step 2,000,000 = environment step 8.02M = frame 32.1M
        """
        if updater.parts:
            parts = [(pattern, self.describe(part).splitlines()) for pattern, part in updater.parts]
            return "\n".join(f"{pattern}: {line}" for pattern, lines in parts for line in lines)
        if updater.masks_from_seed or not updater.prunes:
            return ""
        steps = updater.scheduler.refresh_steps()
        if steps is None:
            return self._at("first mask change", updater.scheduler.update_start_step)  # type: ignore[attr-defined]
        if len(steps) == 0:
            return ""
        ends = {"first mask change": steps[0], "last mask change": steps[-1]}
        return "\n".join(self._at(what, int(step)) for what, step in ends.items())

    def _at(self, what: str, step: int) -> str:
        places = f"environment step {_short(self.environment_step(step))} = frame {_short(self.frame(step))}"
        return f"{what}: optimizer step {step:,} = {places}"

    def _per_environment_step(self, unit: str) -> int:
        units = {"environment step": 1, "frame": self.frames_per_step}
        if unit not in units:
            raise ValueError(f"step_unit is {unit!r}; an agent counts 'optimizer step', 'environment step' or 'frame'.")
        return units[unit]

    def _converted(self, schedule: Any, unit: str) -> Any:
        given = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
        moments = {name: self.optimizer_step(given[name], unit) for name in _MOMENTS if given.get(name) is not None}
        if "end_step" in moments:
            moments["end_step"] = max(moments["end_step"], 1)  # that of a drop fraction, which may lie in the warm-up
        per_update = self.period * self._per_environment_step(unit)
        lengths = {name: max(round(given[name] / per_update), 1) for name in _LENGTHS if name in given}
        counted_in = {"step_unit": "optimizer step"} if "step_unit" in given else {}
        return dataclasses.replace(schedule, **moments, **lengths, **counted_in)


def _short(step: int) -> str:
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if step >= size:
            return f"{step / size:.3g}{letter}"
    return str(step)
