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
from sparse_plugins.core.layers.jaxpr_walk import Step, Value, Walked, inner_jaxpr, scan_counts, walk
from sparse_plugins.core.layers.joined_axes import Joined

__all__ = ["Sizes", "run", "tells_apart"]


class Sizes:
    """How long axes are once channels are gone.

    Args:
        kept: Which entries of a factor are left, int[left] in order, where some are gone.
    """

    def __init__(self, kept: Mapping[Factor, np.ndarray]) -> None:
        self._kept = dict(kept)
        self.renew()

    def renew(self) -> None:
        """Looks factors up again, after more of them were joined."""
        self._by_root = {root(factor): left for factor, left in self._kept.items()}

    def length(self, axis: Axis) -> int:
        """How many entries an axis has left."""
        return math.prod(map(self._left, factors(axis)))

    def entries(self, axis: Axis) -> np.ndarray:
        """int[length]: which entries an axis has left."""
        found = np.zeros(1, int)
        for factor in factors(axis):
            if (kept := self._of(factor)) is not None:
                its = kept
            elif factor.segments:
                starts = itertools.accumulate((_full_length(segment) for segment in factor.segments), initial=0)
                its = np.concatenate(
                    [start + self.entries(part) for start, part in zip(starts, factor.segments, strict=False)]
                )
            else:
                its = np.arange(factor.size)
            found = (found[:, None] * factor.size + its).ravel()
        return found

    def before(self, axis: Axis, place: int) -> int:
        """How many entries an axis has left before a place, which is where a part of it begins or ends."""
        first, *rest = factors(axis)
        major, minor = divmod(place, _full_length(rest))
        if self._of(first) is not None and 0 < major < first.size:
            raise ValueError("a part of an axis begins where there is no edge between its channels")
        if self._of(first) is not None:
            left = self._left(first) if major else 0
        else:
            left = self._before_in(first.segments, major) if first.segments else major
        return left * self.length(rest) + (self.before(rest, minor) if minor else 0)

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape that a value has left."""
        return tuple(map(self.length, value.axes))

    def is_smaller(self, value: Value) -> bool:
        """Whether a value has lost anything."""
        return any(self.length(axis) != _full_length(axis) for axis in value.axes)

    def _before_in(self, segments: list[Axis], place: int) -> int:
        left = 0
        for segment in segments:
            if place < (length := _full_length(segment)):
                return left + (self.before(segment, place) if place else 0)
            left, place = left + self.length(segment), place - length
        return left

    def _left(self, factor: Factor) -> int:
        if (kept := self._of(factor)) is not None:
            return len(kept)
        return sum(map(self.length, factor.segments)) if factor.segments else factor.size

    def _of(self, factor: Factor) -> np.ndarray | None:
        return self._by_root.get(root(factor))


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


def tells_apart(sizes: Sizes, program: Any, walked: Walked) -> bool:
    """Whether channels that leave have numbers in a program: constants, or random ones from a key that is no input.

    Args:
        sizes: What is left of every axis.
        program: A closed jaxpr.
        walked: What a walk has seen of it.
    """
    if any(map(sizes.is_smaller, walked.constants)):
        return True
    for equation, step in zip(program.jaxpr.eqns, walked.steps, strict=True):
        is_fixed = equation.primitive.name == "random_bits" and not step.operands[0].is_activation
        if is_fixed and any(map(sizes.is_smaller, step.results)):
            return True
        if any(tells_apart(sizes, *inner) for inner in zip(_programs(equation), step.inside, strict=bool(step.inside))):
            return True
    return False


def _programs(equation: Any) -> Sequence[Any]:
    """The closed jaxprs that an equation holds, in the order in which a walk goes through them."""
    if (inner := inner_jaxpr(equation)) is not None:
        return [inner]
    names = {"scan": ["jaxpr"], "while": ["cond_jaxpr", "body_jaxpr"]}.get(equation.primitive.name, [])
    return equation.params["branches"] if equation.primitive.name == "cond" else [equation.params[n] for n in names]


def _shorter(sizes: Sizes, array: Any, value: Value) -> Any:
    """What is left of an array that was made for all channels."""
    for place, axis in enumerate(value.axes):
        if len(its := sizes.entries(axis)) < array.shape[place]:
            array = jnp.take(array, its, axis=place, mode="clip")
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
    return _checked(sizes, equation, step, operands)


def _checked(sizes: Sizes, equation: Any, step: Step, operands: list[Any]) -> list[Any]:
    """An equation with the shapes that are left, if it gives these."""
    try:
        results = _bound(equation, {**equation.params, **_shapes(sizes, equation, step, operands)}, operands)
        shapes = [jnp.shape(result) for result in results]
        expected = [*map(sizes.shape, step.results)]
        difference = "" if shapes == expected else f"it gives {shapes} instead of {expected}"
    except (TypeError, ValueError) as error:
        difference = str(error)
    if difference:
        raise ValueError(
            f"channels cannot leave the primitive {equation.primitive.name!r} ({difference}): keep the groups that run "
            f"through it, of operands {[variable.aval.str_short() for variable in equation.invars]}."
        )
    return results


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
        padded = zip(parameters["padding_config"], step.results[0].axes, strict=True)
        return {"padding_config": tuple(_padding(sizes, *its) for its in padded)}
    if name == "slice":
        columns = zip(step.operands[0].axes, parameters["start_indices"], strict=True)
        starts = tuple(sizes.before(axis, start) if start else 0 for axis, start in columns)
        strided = zip(starts, shape, parameters["strides"] or [1] * len(shape), strict=True)
        limits = tuple(start + (new - 1) * stride + 1 for start, new, stride in strided)
        return {"start_indices": starts, "limit_indices": limits}
    return {}


def _padding(sizes: Sizes, widths: tuple[int, int, int], after: Axis) -> tuple[int, int, int]:
    """Between edges of segments where channels are padded; elsewhere nothing is gone, and padding may be negative."""
    low, high, between = widths
    if between or min(low, high) < 0 or not any(widths):
        return widths
    full = _full_length(after)
    return sizes.before(after, low), sizes.length(after) - sizes.before(after, full - high), between


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
        sizes.renew()
        values = run(sizes, closed, walked, [*primals, *tangents])
        made, rest = values[: len(step.results)], iter(values[len(step.results) :])
        moved = [jnp.zeros_like(value) if zero else next(rest) for value, zero in zip(made, zeros, strict=True)]
        return made, moved

    return function


def _scan(sizes: Sizes, equation: Any, step: Step, operands: list[Any]) -> Sequence[Any]:
    parameters, (inside,) = equation.params, step.inside
    first, count = scan_counts(parameters)
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
