"""What fraction of the kept weights is replaced at a mask update, by step."""

import dataclasses
from typing import Any

from sparse_plugins.core.schedules import Step, array_module, whole_number
from sparse_plugins.core.selection.counts import check_fraction

__all__ = ["ConstantDrop", "CosineDrop", "LinearDrop"]


@dataclasses.dataclass(frozen=True)
class ConstantDrop:
    """The same fraction of kept weights is replaced at every mask update.

    Attributes:
        fraction: In [0, 1].

    Example:
        >>> float(ConstantDrop(0.3)(100))
        0.3
    """

    fraction: float = 0.3

    def __post_init__(self) -> None:
        check_fraction("drop fraction", self.fraction)

    def __call__(self, step: Step) -> Any:
        """The fraction at a step or an array of steps."""
        return self._scale(step) * self.fraction

    def _scale(self, step: Step) -> Any:
        return 1.0


@dataclasses.dataclass(frozen=True)
class CosineDrop(ConstantDrop):
    """The fraction falls to 0 at `end_step` along a half cosine.

    Attributes:
        fraction: At step 0, in [0, 1].
        end_step: Where it reaches 0, at least 1.

    Example:
        >>> float(CosineDrop(0.3, end_step=100)(50))
        0.15

    Source: Evci et al., Rigging the Lottery (2020).
    """

    end_step: int = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("end_step", self.end_step, 1)

    def _scale(self, step: Step) -> Any:
        xp = array_module(step)
        return 0.5 * (1.0 + xp.cos(xp.pi * xp.clip(step / self.end_step, 0.0, 1.0)))


@dataclasses.dataclass(frozen=True)
class LinearDrop(CosineDrop):
    """The fraction falls to 0 at `end_step` along a line.

    Example:
        >>> float(LinearDrop(0.3, end_step=100)(50))
        0.15
    """

    def _scale(self, step: Step) -> Any:
        return 1.0 - array_module(step).clip(step / self.end_step, 0.0, 1.0)
