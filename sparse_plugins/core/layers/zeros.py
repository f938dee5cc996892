"""Where values are 0 once a channel is pruned: a network is the same without it if all that sums over channels meets 0.

Of parameters that make a channel the masks leave nothing; this follows that 0 through the equations. It errs on the
side of 0, as loops and unknown primitives do here: `core.shrink` compares outputs in any case.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from sparse_plugins.core.layers.jaxpr_walk import Value
from sparse_plugins.core.layers.primitives import Axes, Flow

__all__ = ["Parts", "Zeros"]

# Parts of an axis, major to minor: how many entries each has, and whether a value is 0 where one of them is pruned.
Parts = tuple[tuple[int, bool], ...]

# Of 0 they make something else.
_NOT_OF_ZERO = frozenset(
    {"acos", "cos", "cosh", "acosh", "digamma", "erfc", "exp", "exp2", "iota", "lgamma", "log", "logistic"}
    | {"one_minus_square", "random_bits", "rsqrt"}
)
_COPIES = frozenset({"broadcast_in_dim", "convert_element_type", "copy", "neg", "reshape"})
_SUMS = frozenset({"add", "add_any", "sub"})
_OF_THE_FIRST = frozenset({"div", "pow", "rem", "integer_pow"})


class Zeros:
    """Along which axes values are 0 where a channel is pruned."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Value, tuple[Parts, ...]]] = {}  # with the value, so that its id stays its own
        self._nothing: set[int] = set()  # of these those that are 0 everywhere

    def follow(
        self, equation: Any, flow: Flow, operands: Sequence[Value], results: Sequence[Value]
    ) -> dict[int, Parts]:
        """Notes what an equation makes of zeros.

        Args:
            equation: The equation.
            flow: What it does to axes.
            operands: Values of its operands.
            results: Values of its results.

        Returns:
            Symbols over which it sums, of activations that are not 0 where some of their channels are pruned.
        """
        name = equation.primitive.name
        flags = [self._of_symbols(flow, *column) for column in zip(operands, flow.operands, strict=True)]
        found = _combined(name, equation, flow, flags)
        for value, axes in zip(results, flow.results, strict=True):
            parts = tuple(tuple(part for symbol in axis for part in found(symbol)) for axis in axes)
            self._known[id(value)] = value, parts
            if name in _COPIES and (operands[0].is_zero or id(operands[0]) in self._nothing):
                self._nothing.add(id(value))
        if not (flow.is_product or name == "reduce_sum"):
            return {}
        kept = {symbol for axes in flow.results for axis in axes for symbol in axis}
        seen = [its for its, value in zip(flags, operands, strict=True) if value.is_activation]
        summed = {symbol for its in seen for symbol in its} - kept
        any_of = {symbol: _merged(any, [its[symbol] for its in seen if symbol in its]) for symbol in summed}
        return {symbol: parts for symbol, parts in any_of.items() if not _is_zero(parts)}

    def _of_symbols(self, flow: Flow, value: Value, axes: Axes) -> dict[int, Parts]:
        if value.is_zero or id(value) in self._nothing:
            return {symbol: ((size, True),) for symbol, size in flow.sizes.items()}
        if id(value) not in self._known:
            return {symbol: ((flow.sizes[symbol], True),) for axis in axes for symbol in axis}
        found: dict[int, Parts] = {}
        for axis, parts in zip(axes, self._known[id(value)][1], strict=False):
            found |= _dealt([(symbol, flow.sizes[symbol]) for symbol in axis], parts)
        return found


def _combined(name: str, equation: Any, flow: Flow, flags: list[dict[int, Parts]]) -> Callable[[int], Parts]:
    """For a symbol of the results, whether these are 0 along it."""

    def no(symbol: int) -> Parts:
        return ((flow.sizes[symbol], False),)

    def having(symbol: int) -> list[Parts]:
        return [its[symbol] for its in flags if symbol in its] or [((flow.sizes[symbol], True),)]

    if name in _NOT_OF_ZERO or (name == "integer_pow" and equation.params["y"] <= 0):
        return no
    if name in _SUMS:
        return lambda symbol: _merged(all, [its.get(symbol, no(symbol)) for its in flags])
    if name == "select_n":
        return lambda symbol: _merged(all, [its.get(symbol, no(symbol)) for its in flags[1:]])
    if name in _OF_THE_FIRST:
        return lambda symbol: flags[0].get(symbol, no(symbol))
    if name == "broadcast_in_dim":
        return lambda symbol: flags[0].get(symbol, no(symbol))
    if name == "mul" or flow.is_product:
        return lambda symbol: _merged(any, having(symbol))
    wholes = {segment: total for total, segments in flow.joined.items() for segment in segments}

    def passed_on(symbol: int) -> Parts:
        if symbol in flow.joined and not any(symbol in its for its in flags):
            are_zero = all(_is_zero(parts) for segment in flow.joined[symbol] for parts in having(segment))
            return ((flow.sizes[symbol], are_zero),)
        if symbol in wholes and not any(symbol in its for its in flags):
            return ((flow.sizes[symbol], all(map(_is_zero, having(wholes[symbol])))),)
        return _merged(all, having(symbol))

    return passed_on


def _is_zero(parts: Parts) -> bool:
    return all(is_zero for _, is_zero in parts)


def _merged(of: Callable[[Sequence[bool]], bool], every: Sequence[Parts]) -> Parts:
    """Flags of several values together, part by part if all have the same parts."""
    if len({tuple(size for size, _ in parts) for parts in every}) > 1:
        every = [((math.prod(size for size, _ in parts), _is_zero(parts)),) for parts in every]
    return tuple((column[0][0], of([is_zero for _, is_zero in column])) for column in zip(*every, strict=True))


def _dealt(symbols: Sequence[tuple[int, int]], parts: Parts) -> dict[int, Parts]:
    """Parts of an axis as those of the symbols that it is made of."""
    rest, found = list(parts), {}
    for symbol, size in symbols:
        its: list[tuple[int, bool]] = []
        while rest and math.prod(length for length, _ in its) < size:
            its.append(rest.pop(0))
        found[symbol] = tuple(its)
        if math.prod(length for length, _ in its) != size:
            return {symbol: ((size, _is_zero(parts)),) for symbol, size in symbols}
    return found
