"""A model as something to trace: a function, shapes of its parameters and of its inputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp

KEY = jax.eval_shape(lambda: jax.random.key(0))


class Traced(NamedTuple):
    """A model to trace.

    Attributes:
        name: What it is called in the table.
        apply: From parameters and inputs to outputs.
        params: Shapes of its parameters.
        inputs: Shapes of what it takes besides.
    """

    name: str
    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """An array of float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def tokens(*shape: int) -> jax.ShapeDtypeStruct:
    """An array of int32."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def of_linen(name: str, module: nn.Module, *inputs: Any, streams: tuple[str, ...] = ()) -> Traced:
    """A Flax module; statistics and keys are inputs, not parameters."""
    variables = dict(
        jax.eval_shape(lambda key, *x: module.init(dict.fromkeys(("params", *streams), key), *x), KEY, *inputs)
    )
    params = variables.pop("params")

    def apply(params: Any, rest: Any, key: Any, *inputs: Any) -> Any:
        return module.apply({"params": params, **rest}, *inputs, rngs=dict.fromkeys(streams, key))

    return Traced(name, apply, params, (variables, KEY, *inputs))


def of_haiku(name: str, function: Callable[..., Any], *inputs: Any) -> Traced:
    """A function of Haiku modules."""
    model = hk.transform_with_state(function)
    params, state = jax.eval_shape(model.init, KEY, *inputs)
    return Traced(
        name, lambda params, state, key, *x: model.apply(params, state, key, *x)[0], params, (state, KEY, *inputs)
    )
