"""Layers where a front end has the model at hand: read from its program, or why that cannot be."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.layers.axes import LayerAxes, Layers
from sparse_plugins.core.layers.roles import trace_layers
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["layers_at_hand"]


def layers_at_hand(apply: Callable[..., Any], params: PyTree, *inputs: Any, **named: Any) -> Layers:
    """What the axes of a model's parameters are; where its program cannot be traced, axes that say why not.

    Nothing is computed: arrays count by their shapes. What is no array, such as a flag, is handed on as it is.

    Args:
        apply: From parameters and inputs to anything; arrays in it are the outputs.
        params: Parameter tree.
        *inputs: What `apply` takes after the parameters.
        **named: The same, by name.

    Returns:
        As `core.trace_layers` gives them. Axes that are not known leave an array to be read as without layers, and a
        plan says so.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones((3, 2))}
        >>> print(layers_at_hand(lambda params, x, is_training: x @ params["w"], params, jnp.ones((1, 3)), True))
        w  (3, 2)  inputs 3, outputs 2
        >>> print(layers_at_hand(lambda params, x: x @ params["v"], params, jnp.ones((1, 3))))
        w  (3, 2)  unknown 3, unknown 2: not traced, because of KeyError: 'v'
    """
    leaves, treedef = jax.tree.flatten((inputs, named))
    places = [place for place, leaf in enumerate(leaves) if _is_array(leaf)]

    def called(params: PyTree, *arrays: Any) -> Sequence[Any]:
        filled = dict(zip(places, arrays, strict=True))
        args, kwargs = treedef.unflatten([filled.get(place, leaf) for place, leaf in enumerate(leaves)])
        return [leaf for leaf in jax.tree.leaves(apply(params, *args, **kwargs)) if _is_array(leaf)]

    shapes = jax.tree.map(_shape, params)
    try:
        return trace_layers(called, shapes, *[_shape(leaves[place]) for place in places])
    except Exception as error:  # whatever a model may raise: the plan names it, and axes are not guessed
        cause = error.__cause__ or error
        reason = str(cause).partition("\n")[0].partition(". ")[0]
        note = f"not traced, because of {type(cause).__name__}: {reason}"
        columns = zip(leaf_names(shapes), jax.tree.leaves(shapes), strict=True)
        return Layers((name, LayerAxes.unknown(name, leaf.shape, note)) for name, leaf in columns)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, jnp.result_type(array))
