"""What a run is going to do, held against how long it is."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.checks import check_changes
from sparse_plugins.core.empty_channels import empty_channels, first_masks
from sparse_plugins.core.run_length import concerns_of_length
from sparse_plugins.core.schedules import whole_number
from sparse_plugins.core.sparse_optimizer import updater_of, what_follows
from sparse_plugins.core.structures import NByM
from sparse_plugins.core.summary import describe_plan
from sparse_plugins.core.trees import PyTree

__all__ = ["Plan", "plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is going to do; `print` shows it.

    Attributes:
        text: When masks are updated, and what each layer keeps.
        notes: Layers that keep nothing, because sparsity 1 was asked for, layers that n:m groups do not divide, and
            layers of which outputs or inputs keep nothing when training starts, with their number.
        concerns: What will not happen in a run of the given length.
    """

    text: str
    notes: tuple[str, ...] = ()
    concerns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([self.text, *self.notes, *(f"WARNING: {concern}" for concern in self.concerns)])

    __repr__ = __str__


def plan(optimizer: Any, params: PyTree, *, steps: int | None = None) -> Plan:
    """What a run is going to do, to print before it starts.

    Args:
        optimizer: A sparse optimizer, or its updater.
        params: Parameter tree; shapes will do.
        steps: Length of the run in steps of the schedule; None if nobody knows.

    Returns:
        The plan. A schedule that never updates masks in a run of this length, or has not ended when it does, and
        whatever changes updates after the sparse optimizer in a chain, are among its concerns and warnings too. Of
        models of more than 2**26 weights it does not draw the first masks.

    Raises:
        ValueError: If there is no updater in the optimizer, or one whose masks are to change and never would.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.1), "magnitude", sparsity=0.5, total_steps=100)
        >>> print(core.plan(tx, {"w": jnp.ones((4, 4))}, steps=100))
        MagnitudePruning: masks change 56 times, every 1 optimizer steps from optimizer step 20 to 75
        layer  shape   read as    target sparsity  kept
        w      (4, 4)  one layer  0.5              8 of 16
        prunable: 8 of 16 kept (sparsity 0.5)
    """
    updater = optimizer if isinstance(optimizer, BaseUpdater) else updater_of(optimizer)
    check_changes(updater, params)
    found = () if steps is None else tuple(concerns_of_length(updater, whole_number("steps", steps, 1)))
    if undone := "" if updater is optimizer else what_follows(optimizer):
        found = (*found, undone)
    for concern in found:
        warnings.warn(concern, stacklevel=2)
    return Plan(describe_plan(updater, params), tuple(_notes(updater, params)), found)


def _notes(updater: BaseUpdater, params: PyTree) -> Iterator[str]:
    leaves = updater.leaf_plans(params).leaves
    if updater.prunes and not any(leaf.is_pruned and leaf.target for leaf in leaves):
        yield f"{type(updater).__name__} has no sparsity to reach, so that nothing is ever pruned: give it one"
    whole = [leaf.name for leaf in leaves if leaf.is_pruned and leaf.target == 1]
    if whole:
        yield f"pruned whole, as sparsity 1 asks: {', '.join(whole)}"
    for leaf in leaves:
        structure = leaf.rule.of_layer
        if leaf.is_pruned and leaf.target and isinstance(structure, NByM):
            length = leaf.rule.layer_shape[structure.place]
            if rest := length % structure.m:
                yield (
                    f"{leaf.name} has {length} entries along the axis of its groups, so the last group has {rest} of "
                    f"{structure.m}, of which {min(rest, structure.n)} are kept"
                )
    masks = first_masks(updater, params)
    if masks is None:
        return
    found = [row for row in empty_channels(params, masks) if row[0] not in whole]
    for name, outputs, all_outputs, inputs, all_inputs in found:
        sides = f"{outputs} of {all_outputs} outputs and {inputs} of {all_inputs} inputs"
        yield f"{name} starts with {sides} without a weight"
    if found:
        outputs, inputs = sum(row[1] for row in found), sum(row[3] for row in found)
        yield (
            f"without a weight at the start, as rng_seed={updater.rng_seed} draws: {outputs} outputs (last axis) and "
            f"{inputs} inputs (the axis before it) in all; a rule or a lower sparsity gives them some, "
            "and 'erk' where the distribution is uniform"
        )
