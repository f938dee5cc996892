"""What a run is going to do, held against how long it is."""

import dataclasses
import warnings
from typing import Any

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.run_length import concerns_of_length
from sparse_plugins.core.schedules import whole_number
from sparse_plugins.core.sparse_optimizer import updater_of
from sparse_plugins.core.summary import describe_plan
from sparse_plugins.core.trees import PyTree

__all__ = ["Plan", "plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is going to do; `print` shows it.

    Attributes:
        text: When masks are updated, and what each layer keeps.
        concerns: What will not happen in a run of the given length.
    """

    text: str
    concerns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([self.text, *(f"WARNING: {concern}" for concern in self.concerns)])

    __repr__ = __str__


def plan(optimizer: Any, params: PyTree, *, steps: int | None = None) -> Plan:
    """What a run is going to do, to print before it starts.

    Args:
        optimizer: A sparse optimizer, or its updater.
        params: Parameter tree; shapes will do.
        steps: Length of the run in steps of the schedule; None if nobody knows.

    Returns:
        The plan. A schedule that never updates masks in a run of this length, or has not ended when it does, is
        among its concerns and a warning too.

    Raises:
        ValueError: If there is no updater in the optimizer.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.1), "magnitude", sparsity=0.5, total_steps=100)
        >>> print(core.plan(tx, {"w": jnp.ones((4, 4))}, steps=100))
        MagnitudePruning: masks change 56 times, every 1 optimizer steps from optimizer step 20 to 75
        layer  shape   target sparsity  kept
        w      (4, 4)  0.5              8 of 16
        prunable: 8 of 16 kept (sparsity 0.5)
    """
    updater = optimizer if isinstance(optimizer, BaseUpdater) else updater_of(optimizer)
    found = () if steps is None else tuple(concerns_of_length(updater, whole_number("steps", steps, 1)))
    for concern in found:
        warnings.warn(concern, stacklevel=2)
    return Plan(describe_plan(updater, params), found)
