"""Runs a program on parameters that have lost channels: the same equations, with the shapes that are left."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jax_core

from sparse_plugins.core.layers.factors import Axis, Factor, factors, root
from sparse_plugins.core.layers.jaxpr_walk import Step, Value, Walked, inner_jaxpr, walk
from sparse_plugins.core.layers.joined_axes import Joined

__all__ = ["Sizes", "run"]


class Sizes:
    """How long axes are once channels are gone.

    Args:
        kept: Which entries of a factor are left, int[left] in order, where some are gone.
    """

    def __init__(self, kept: Mapping[Factor, np.ndarray]) -> None:
        self._kept = kept

    def length(self, axis: Axis) -> int:
        """How many entries an axis has left."""
        kept = self._by_root()
        return math.prod(self._left(factor, kept) for factor in factors(axis))

    def entries(self, axis: Axis) -> np.ndarray:
        """int[length]: which entries an axis has left."""
        kept, found = self._by_root(), np.zeros(1, int)
        for factor in factors(axis):
            if factor in kept:
                its = kept[factor]
            elif factor.segments:
                starts = itertools.accumulate((_full_length(segment) for segment in factor.segments), initial=0)
                its = np.concatenate(
                    [start + self.entries(part) for start, part in zip(starts, factor.segments, strict=False)]
                )
            else:
                its = np.arange(factor.size)
            found = (found[:, None] * factor.size + its).ravel()
        return found

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape that a value has left."""
        return tuple(self.length(axis) for axis in value.axes)

    def is_smaller(self, value: Value) -> bool:
        """Whether a value has lost anything."""
        return self.shape(value) != _full_shape(value)

    def segments(self, axis: Axis) -> list[int]:
        """How long the segments of an axis are that is a concatenation."""
        (whole,) = factors(axis)
        return [self.length(segment) for segment in whole.segments]

    def _by_root(self) -> dict[Factor, np.ndarray]:
        return {root(factor): left for factor, left in self._kept.items()}  # rules of derivatives join more later

    def _left(self, factor: Factor, kept: Mapping[Factor, np.ndarray]) -> int:
        if factor in kept:
            return len(kept[factor])
        return sum(map(self.length, factor.segments)) if factor.segments else factor.size


def _full_length(axis: Axis) -> int:
    return math.prod(factor.size for factor in factors(axis))


def _full_shape(value: Value) -> tuple[int, ...]:
    return tuple(map(_full_length, value.axes))


def run(sizes: Sizes, program: Any, walked: Walked, operands: Sequence[Any]) -> list[Any]:
    """Runs a closed jaxpr.

    Args:
        sizes: What is left of every axis.
        program: The closed jaxpr.
        walked: What a walk has seen of it.
        operands: Arrays of the shapes that are left.

    Returns:
        Its results.

    Raises:
        ValueError: If channels are gone from an equation that cannot run without them.
    """
    constants = zip(program.consts, walked.constants, strict=True)
    known: dict[Any, Any] = dict(
        zip(program.jaxpr.constvars, [_shorter(sizes, *pair) for pair in constants], strict=True)
    )
    known |= dict(zip(program.jaxpr.invars, operands, strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, jax_core.Literal) else known[variable]

    for equation, step in zip(program.jaxpr.eqns, walked.steps, strict=True):
        results = _step(sizes, equation, step, [value(variable) for variable in equation.invars])
        known |= dict(zip(equation.outvars, results, strict=True))
    return [value(variable) for variable in program.jaxpr.outvars]


def _shorter(sizes: Sizes, array: Any, value: Value) -> Any:
    """What is left of an array that was made for all channels."""
    for place, axis in enumerate(value.axes):
        if len(its := sizes.entries(axis)) < array.shape[place]:
            array = jnp.take(array, its, axis=place)
    return array


def _step(sizes: Sizes, equation: Any, step: Step, operands: list[Any]) -> list[Any]:
    name = equation.primitive.name
    if not any(map(sizes.is_smaller, (*step.operands, *step.results, *_inside(step)))):
        return _bound(equation, equation.params, operands)
    if name.startswith("custom_vjp"):
        raise ValueError(
            f"channels that {name} has cannot leave, for its own derivative is written for all of them: keep the "
            "groups that run through it."
        )
    if name == "random_bits":  # the numbers that these channels had among all
        return [
            _shorter(sizes, *pair)
            for pair in zip(_bound(equation, equation.params, operands), step.results, strict=True)
        ]
    if name in _LOOPS:
        return list(_LOOPS[name](sizes, equation, step, operands))
    if step.inside:
        (inside,) = step.inside
        inner = inner_jaxpr(equation)
        called = lambda *args: run(sizes, inner, inside, args)  # noqa: E731
        if name == "custom_jvp_call":
            return _with_its_derivative(sizes, equation, step, called)(*operands)
        if "policy" in equation.params:
            called = jax.checkpoint(
                called, prevent_cse=equation.params["prevent_cse"], policy=equation.params["policy"]
            )
        return list(called(*operands))
    return _bound(equation, {**equation.params, **_shapes(sizes, equation, step, operands)}, operands)


def _inside(step: Step) -> list[Value]:
    return [value for seen in step.inside for inner in seen.steps for value in (*inner.results, *_inside(inner))]


def _bound(equation: Any, parameters: Mapping[str, Any], operands: list[Any]) -> list[Any]:
    results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(dict(parameters)))
    return list(results) if equation.primitive.multiple_results else [results]


def _shapes(sizes: Sizes, equation: Any, step: Step, operands: list[Any]) -> dict[str, Any]:
    """The parameters of an equation that say shapes, as these are now."""
    name, parameters = equation.primitive.name, equation.params
    shape = sizes.shape(step.results[0])
    if name in ("broadcast_in_dim", "iota"):
        return {"shape": shape}
    if name == "reshape":
        return {"new_sizes": shape}
    if name == "dynamic_slice":
        return {"slice_sizes": shape}
    if name == "split":
        return {"sizes": tuple(sizes.shape(result)[parameters["axis"]] for result in step.results)}
    if name == "conv_general_dilated" and parameters["feature_group_count"] > 1:
        numbers = parameters["dimension_numbers"]
        features, inputs = operands[0].shape[numbers.lhs_spec[1]], operands[1].shape[numbers.rhs_spec[1]]
        return {"feature_group_count": features // inputs}
    if name == "gather":
        lengths = zip(parameters["slice_sizes"], _full_shape(step.operands[0]), operands[0].shape, strict=True)
        return {"slice_sizes": tuple(left if size == full else size for size, full, left in lengths)}
    if name == "pad":
        padded = zip(parameters["padding_config"], step.operands[0].axes, step.results[0].axes, strict=True)
        return {"padding_config": tuple(_padding(sizes, *its) for its in padded)}
    if name == "slice":
        pairs = zip(parameters["start_indices"], _full_shape(step.results[0]), shape, strict=True)
        starts = tuple(start if old == new else start // old * new for start, old, new in pairs)
        strided = zip(starts, shape, parameters["strides"] or [1] * len(shape), strict=True)
        limits = tuple(start + (new - 1) * stride + 1 for start, new, stride in strided)
        return {"start_indices": starts, "limit_indices": limits}
    return {}


def _padding(sizes: Sizes, widths: tuple[int, int, int], before: Axis, after: Axis) -> tuple[int, int, int]:
    if sizes.length(after) == sizes.length(before) + widths[0] + widths[1] or widths[2]:
        return widths
    lengths = sizes.segments(after)
    return lengths[0] if widths[0] else 0, lengths[-1] if widths[1] else 0, 0


def _with_its_derivative(sizes: Sizes, equation: Any, step: Step, called: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a derivative of its own, such as relu, which keeps it."""
    function = jax.custom_jvp(called)
    rule, count = equation.params["jvp_jaxpr_fun"], len(step.operands)

    @function.defjvp
    def derivative(primals: tuple, tangents: tuple) -> tuple:
        program, constants, zeros = rule.call_wrapped(*[False] * count)
        closed = jax_core.ClosedJaxpr(program, constants)
        joined = Joined()
        walked = walk(joined, closed, [*step.operands, *step.operands])
        for value, result in zip((*step.results, *step.results), walked.results, strict=False):
            joined.same(value, result)
        values = run(sizes, closed, walked, [*primals, *tangents])
        made, rest = values[: len(step.results)], iter(values[len(step.results) :])
        moved = [jnp.zeros_like(value) if zero else next(rest) for value, zero in zip(made, zeros, strict=True)]
        return made, moved

    return function


def _scan(sizes: Sizes, equation: Any, step: Step, operands: list[Any]) -> Sequence[Any]:
    parameters, (inside,) = equation.params, step.inside
    first, count = parameters["num_consts"], parameters["num_carry"]
    constants, start, slices = operands[:first], operands[first : first + count], operands[first + count :]

    def body(carry: list[Any], taken: list[Any]) -> tuple[list[Any], list[Any]]:
        results = run(sizes, parameters["jaxpr"], inside, [*constants, *carry, *taken])
        return results[:count], results[count:]

    carry, stacks = lax.scan(
        body, start, slices, length=parameters["length"], reverse=parameters["reverse"], unroll=parameters["unroll"]
    )
    return [*carry, *stacks]


def _while(sizes: Sizes, equation: Any, step: Step, operands: list[Any]) -> Sequence[Any]:
    parameters, (before, around) = equation.params, step.inside
    first = parameters["cond_nconsts"]
    last = first + parameters["body_nconsts"]
    test = lambda carry: run(sizes, parameters["cond_jaxpr"], before, [*operands[:first], *carry])[0]  # noqa: E731
    body = lambda carry: run(sizes, parameters["body_jaxpr"], around, [*operands[first:last], *carry])  # noqa: E731
    return lax.while_loop(test, body, operands[last:])


def _cond(sizes: Sizes, equation: Any, step: Step, operands: list[Any]) -> Sequence[Any]:
    index, *rest = operands
    branches = [
        lambda *args, branch=branch, seen=seen: run(sizes, branch, seen, args)
        for branch, seen in zip(equation.params["branches"], step.inside, strict=True)
    ]
    return lax.switch(index, branches, *rest)


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
