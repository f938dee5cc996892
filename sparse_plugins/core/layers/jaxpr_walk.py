"""Follows values through a program: into calls, loops and branches, equation by equation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.extend import core as jax_core

from sparse_plugins.core.layers.factors import Axis, Factor
from sparse_plugins.core.layers.primitives import Flow, flow_of

__all__ = ["Reader", "Step", "Value", "Walked", "fresh", "inner_jaxpr", "scan_counts", "walk"]


class Value(NamedTuple):
    """What is known of a variable.

    Attributes:
        axes: Its axes.
        is_activation: Whether it depends on inputs; what depends on parameters alone is a weight.
        is_zero: Whether it is a 0 that is written into the program.
    """

    axes: list[Axis]
    is_activation: bool
    is_zero: bool = False


class Step(NamedTuple):
    """What a walk has seen of one equation.

    Attributes:
        operands: Values of its operands.
        results: Values of its results.
        inside: For each jaxpr that it holds what was seen in there.
    """

    operands: list[Value]
    results: list[Value]
    inside: "tuple[Walked, ...]" = ()


class Walked(NamedTuple):
    """What a walk has seen of a program.

    Attributes:
        constants: Values of the arrays that are written into it.
        steps: Its equations.
        results: Values of its outputs.
    """

    constants: list[Value]
    steps: list[Step]
    results: list[Value]


class Reader(Protocol):
    """What somebody who walks through a program writes down."""

    def equation(self, equation: Any, flow: Flow | None, operands: list[Value], results: list[Value]) -> None:
        """An equation, with what it does to axes; None if that is not known."""

    def same(self, value: Value, other: Value) -> None:
        """Two values that stand for one: what a loop begins with and goes on with, or two branches."""

    def looped(self, value: Value) -> None:
        """An array whose first axis a loop takes apart or puts together."""

    def constant(self, value: Value, dtype: Any) -> None:
        """An array that is written into the program."""


def fresh(variable: Any, is_activation: bool) -> Value:
    """A value of which nothing is known but its shape."""
    return Value([[Factor(size)] for size in getattr(variable.aval, "shape", ())], is_activation)


def inner_jaxpr(equation: Any) -> Any:
    """The closed jaxpr that an equation calls once, with its own operands; None if it calls none."""
    if equation.primitive.name in _CALLS:
        for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if (inner := equation.params.get(name)) is not None:
                return inner if isinstance(inner, jax_core.ClosedJaxpr) else jax_core.ClosedJaxpr(inner, ())
    return None


_CALLS = {
    *("pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    *("remat", "remat2", "checkpoint", "custom_lin"),
}


def walk(reader: Reader, program: Any, operands: Sequence[Value]) -> Walked:
    """Walks through a closed jaxpr.

    Args:
        reader: Who is told of every equation.
        program: A closed jaxpr.
        operands: Values of its inputs.

    Returns:
        What was seen of it.
    """
    known: dict[Any, Value] = dict(zip(program.jaxpr.invars, operands, strict=True))
    constants = [fresh(variable, False) for variable in program.jaxpr.constvars]
    known |= dict(zip(program.jaxpr.constvars, constants, strict=True))
    for constant, variable in zip(constants, program.jaxpr.constvars, strict=True):
        reader.constant(constant, variable.aval.dtype)

    def value(variable: Any) -> Value:
        if isinstance(variable, jax_core.Literal):
            return fresh(variable, False)._replace(is_zero=not np.any(np.asarray(variable.val)))
        return known[variable]

    steps = []
    for equation in program.jaxpr.eqns:
        step = _step(reader, equation, [value(variable) for variable in equation.invars])
        known |= dict(zip(equation.outvars, step.results, strict=True))
        steps.append(step)
    return Walked(constants, steps, [value(variable) for variable in program.jaxpr.outvars])


def _step(reader: Reader, equation: Any, operands: list[Value]) -> Step:
    if (inner := inner_jaxpr(equation)) is not None and len(inner.jaxpr.invars) == len(operands):
        inside = walk(reader, inner, operands)
        return Step(operands, inside.results, (inside,))
    if (loop := _LOOPS.get(equation.primitive.name)) is not None:
        return loop(reader, equation, operands)
    is_activation = any(operand.is_activation for operand in operands)
    results = [fresh(variable, is_activation) for variable in equation.outvars]
    reader.equation(equation, flow_of(equation), operands, results)
    return Step(operands, results)


def scan_counts(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """Constants and carried values of a scan, in that order before its slices; from jax 0.12 on as two trees."""
    if "num_consts" in parameters:
        return parameters["num_consts"], parameters["num_carry"]
    constants, carried, _ = parameters["ft_in"].unpack()
    return len(constants), len(carried)


def _scan(reader: Reader, equation: Any, operands: list[Value]) -> Step:
    body = equation.params["jaxpr"]
    first, carried = scan_counts(equation.params)
    last = first + carried
    constants, start, slices = operands[:first], operands[first:last], operands[last:]
    for stack in slices:
        reader.looped(stack)
    taken = [Value(stack.axes[1:], stack.is_activation) for stack in slices]
    carry, inside = _iterated(reader, body, constants, start, taken)
    given = inside.results[len(carry) :]
    stacks = [
        Value([[Factor(variable.aval.shape[0])], *value.axes], value.is_activation)
        for variable, value in zip(equation.outvars[len(carry) :], given, strict=True)
    ]
    for stack in stacks:
        reader.looped(stack)
    return Step(operands, [*carry, *stacks], (inside,))


def _iterated(
    reader: Reader, body: Any, constants: list[Value], start: list[Value], taken: list[Value]
) -> tuple[list[Value], Walked]:
    """The carry of a loop after it, and what was seen in its body."""
    flags = [value.is_activation for value in start]
    around = [value.is_activation for value in constants], [value.is_activation for value in taken]
    for _ in flags:  # each time round another one may turn out to depend on inputs
        after = _activations(body, [*around[0], *flags, *around[1]])
        flags = [old or new for old, new in zip(flags, after, strict=False)]
    variables = body.jaxpr.invars[len(constants) : len(constants) + len(start)]
    carry = [fresh(variable, flag) for variable, flag in zip(variables, flags, strict=True)]
    for before, inside in zip(start, carry, strict=True):
        reader.same(before, inside)
    walked = walk(reader, body, [*constants, *carry, *taken])
    for inside, after_it in zip(carry, walked.results, strict=False):
        reader.same(after_it, inside)
    return carry, walked


class _Silent:
    """A reader that writes nothing down."""

    def equation(self, equation: Any, flow: Flow | None, operands: list[Value], results: list[Value]) -> None:
        pass

    def same(self, value: Value, other: Value) -> None:
        pass

    def looped(self, value: Value) -> None:
        pass

    def constant(self, value: Value, dtype: Any) -> None:
        pass


def _activations(body: Any, flags: list[bool]) -> list[bool]:
    """Which results of a body depend on inputs."""
    operands = [fresh(variable, flag) for variable, flag in zip(body.jaxpr.invars, flags, strict=True)]
    return [value.is_activation for value in walk(_Silent(), body, operands).results]


def _while(reader: Reader, equation: Any, operands: list[Value]) -> Step:
    test, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    first = equation.params["cond_nconsts"]
    last = first + equation.params["body_nconsts"]
    carry, around = _iterated(reader, body, operands[first:last], operands[last:], [])
    before = walk(reader, test, [*operands[:first], *carry])
    return Step(operands, carry, (before, around))


def _cond(reader: Reader, equation: Any, operands: list[Value]) -> Step:
    index, *rest = operands
    walks = [walk(reader, branch, rest) for branch in equation.params["branches"]]
    flags = [
        index.is_activation or any(value.is_activation for value in values)
        for values in zip(*(branch.results for branch in walks), strict=True)
    ]
    results = [fresh(variable, flag) for variable, flag in zip(equation.outvars, flags, strict=True)]
    for branch in walks:
        for value, result in zip(branch.results, results, strict=True):
            reader.same(value, result)
    return Step(operands, results, tuple(walks))


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
