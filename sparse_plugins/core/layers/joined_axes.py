"""Which axes hold the same channels, all through a program: the reader that joins whatever has to stay together."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from sparse_plugins.core.layers.factors import Factor, factors, pin, unify
from sparse_plugins.core.layers.jaxpr_walk import Value
from sparse_plugins.core.layers.primitives import Flow
from sparse_plugins.core.layers.zeros import Parts, Zeros

__all__ = ["Joined", "join"]


def join(flow: Flow, values: Sequence[Value], axes: Sequence[Any]) -> dict[int, Factor]:
    """Joins the axes of some values as a flow says.

    Args:
        flow: The flow of an equation.
        values: Operands, results or both.
        axes: For each value the symbols of its axes.

    Returns:
        For each symbol the factor that stands for it.
    """
    named = {symbol: Factor(size) for symbol, size in flow.sizes.items()}
    for symbol in flow.left_out:
        named[symbol].is_seen = False
    for value, its in zip(values, axes, strict=True):
        for axis, symbols in zip(value.axes, its, strict=False):
            unify(axis, [named[symbol] for symbol in symbols])
    for whole, segments in flow.joined.items():
        total = Factor(flow.sizes[whole])
        total.segments = [[named[segment]] for segment in segments]
        unify([named[whole]], [total])
    return named


class Joined:
    """Joins axes across weights and activations, and pins what cannot move.

    Args:
        follows_zeros: Whether to pin channels of which something is left where they are pruned. In derivatives all of
            them have some, and what makes them is 0.

    Attributes:
        concatenations: The factors that are concatenations of others.
    """

    def __init__(self, follows_zeros: bool = True) -> None:
        self.concatenations: list[Factor] = []
        self._zeros = Zeros() if follows_zeros else None

    def equation(self, equation: Any, flow: Flow | None, operands: list[Value], results: list[Value]) -> None:
        """Joins what the flow joins; without one nothing that the equation touches may change."""
        if flow is None:
            for axis in (axis for value in (*operands, *results) for axis in value.axes):
                pin(axis, f"the primitive {equation.primitive.name!r}, which is not followed")
            return
        named = join(flow, (*operands, *results), (*flow.operands, *flow.results))
        self.concatenations += [named[whole] for whole in flow.joined]
        for symbol, reason in flow.mixed.items():
            pin([named[symbol]], reason)
        not_zero = {} if self._zeros is None else self._zeros.follow(equation, flow, operands, results)
        for symbol, parts in not_zero.items():
            for factor, is_zero in _beside(factors([named[symbol]]), parts):
                if not is_zero:
                    factor.pins.add("a sum over what is not 0 for a pruned channel")
        if flow.is_product and all(operand.is_activation for operand in operands):
            held = [{symbol for axis in axes for symbol in axis} for axes in (*flow.operands, *flow.results)]
            for symbol in set.intersection(*held):
                for factor in factors([named[symbol]]):
                    factor.is_batched = True

    def same(self, value: Value, other: Value) -> None:
        """Joins two values axis by axis."""
        for axis, other_axis in zip(value.axes, other.axes, strict=True):
            unify(axis, other_axis)

    def looped(self, value: Value) -> None:
        """Layers of a stack stay where they are."""
        pin(value.axes[0], "steps of a loop")

    def constant(self, value: Value, dtype: Any) -> None:
        """Numbers of channels shrink with these; others stay, for what is added to channels lets none of them leave."""
        if jnp.issubdtype(dtype, jnp.integer):
            return
        for axis in value.axes:
            pin(axis, "a constant of the program")

    def settle(self) -> None:
        """Pins the segments of what is pinned as a whole, and those that nothing takes beside some that stay.

        So are rows of a table of positions that inputs of this length do not read, and others would.
        """
        for _ in self.concatenations:  # one may be a segment of another
            for factor in factors(self.concatenations):
                for reason in factor.pins:
                    pin([part for segment in factor.segments for part in segment], reason)
        for factor in factors(self.concatenations):
            segments = [factors(segment) for segment in factor.segments]
            if any(part.pins for segment in segments for part in segment):
                for part in (part for segment in segments for part in segment if not part.is_seen):
                    part.pins.add("a part that is cut off or padded")


def _beside(axis: Sequence[Factor], parts: Parts) -> list[tuple[Factor, bool]]:
    """Factors, each with the flag of the part that it lies in; of parts that lie across factors, that of all."""
    found, start = [], 1
    edges = list(itertools.accumulate((size for size, _ in parts), operator.mul))
    for factor in axis:
        end = start * factor.size
        inside = [
            is_zero for edge, (size, is_zero) in zip(edges, parts, strict=True) if edge // size <= start and end <= edge
        ]
        found.append((factor, inside[0] if inside else all(is_zero for _, is_zero in parts)))
        start = end
    return found
