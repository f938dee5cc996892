"""Functions with some of their equations replaced, wherever these stand."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

__all__ = ["equations_of", "replace_equations"]

# Says what computes an equation's outputs from its inputs, or None to leave it alone.
Replacement = Callable[[JaxprEqn], Callable | None]


def replace_equations(function: Callable, replacement: Replacement) -> Callable:
    """A function that computes some primitive operations differently.

    Args:
        function: Takes and returns trees of arrays.
        replacement: Maps an equation with one output to a function of its inputs, or to None.

    Returns:
        The function; equations inside loops, branches and jitted functions are replaced, too. It is not meant to be
        differentiated: custom derivatives in it are lost.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> cosine = lambda equation: jnp.cos if equation.primitive.name == "sin" else None
        >>> replace_equations(lambda x: {"y": 2 * jax.jit(jnp.sin)(x)}, cosine)(0.0)["y"].item()
        2.0
    """

    def replaced(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _evaluate(program.jaxpr, program.consts, jax.tree.leaves(args), replacement)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return replaced


def equations_of(program: ClosedJaxpr, name: str) -> list[JaxprEqn]:
    """The equations of a primitive, also inside loops, branches and jitted functions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> len(equations_of(jax.make_jaxpr(jax.jit(jnp.sin))(0.0), "sin"))
        1
    """
    found: list[JaxprEqn] = []
    jax.make_jaxpr(lambda *inputs: _evaluate(program.jaxpr, program.consts, list(inputs), found.append))(
        *(jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in program.in_avals)
    )
    return [equation for equation in found if equation.primitive.name == name]


def _evaluate(program: Jaxpr, consts: list, inputs: list, replacement: Replacement) -> list:
    values = dict(zip((*program.constvars, *program.invars), (*consts, *inputs), strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]  # noqa: E731
    for equation in program.eqns:
        outputs = _outputs(equation, [read(atom) for atom in equation.invars], replacement)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in program.outvars]


def _outputs(equation: JaxprEqn, inputs: list, replacement: Replacement) -> list:
    if compute := replacement(equation):
        return [compute(*inputs)]
    primitive = equation.primitive
    if primitive.name in ("custom_jvp_call", "custom_vjp_call"):
        inner = equation.params["call_jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, inputs, replacement)
    params = {name: _with_replacements(value, replacement) for name, value in equation.params.items()}
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return outputs if primitive.multiple_results else [outputs]


def _with_replacements(value: Any, replacement: Replacement) -> Any:
    """A parameter of an equation; if it is a program, that program with its equations replaced."""
    if type(value) is tuple:  # not named tuples, which are descriptions
        return tuple(_with_replacements(part, replacement) for part in value)
    if not isinstance(value, ClosedJaxpr):  # from jax 0.11 on, every program is one
        return _with_replacements(ClosedJaxpr(value, ()), replacement).jaxpr if isinstance(value, Jaxpr) else value
    evaluate = lambda *inputs: _evaluate(value.jaxpr, value.consts, list(inputs), replacement)  # noqa: E731
    shapes = (jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in value.in_avals)
    return jax.make_jaxpr(evaluate)(*shapes)
