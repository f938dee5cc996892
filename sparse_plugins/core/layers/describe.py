"""Layers told by hand: rules on paths, and names that frameworks give to axes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.layers.axes import LayerAxes, Layers
from sparse_plugins.core.layers.axis_names import (
    axes_of_names,
    is_keras_layer,
    keras_axes,
    names_in_boxes,
    names_in_tree,
)
from sparse_plugins.core.layers.described_axes import Axes
from sparse_plugins.core.path_rules import first_match, read_rule
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["describe_layers"]


def describe_layers(
    params: PyTree, rules: Sequence[tuple[str, Axes]] = (), *, axis_names: PyTree | None = None
) -> Layers:
    """What every axis of every parameter is, told by hand; `core.trace_layers` reads the same from the computation.

    Rules come first. Then names: of the boxes that Flax's `with_logical_partitioning` and NNX's metadata put parameters
    into, of `axis_names` as T5X and MaxText have them ('layers', 'embed', 'heads', 'kv', 'mlp', 'vocab', ...), or the
    layer classes of a Keras model. Names of a mesh, such as 'model', tell nothing.

    Args:
        params: Parameter tree, boxed or not; shapes will do. Or a Keras model.
        rules: Pairs (regular expression for a whole path 'a/b/kernel', `core.Axes`); the first match wins.
        axis_names: A tree like the parameters, with a tuple or a `PartitionSpec` of names for each: of T5X
            `flax.linen.partitioning.get_axis_names(variables["params_axes"])`.

    Returns:
        A mapping from each parameter's path to its `LayerAxes`. What neither a rule nor a name describes has axes that
        are not known.

    Raises:
        TypeError: If a rule has no `Axes`.
        ValueError: If a rule matches nothing, axes or names are not those of the shape, or the names are laid out
            otherwise than the parameters.

    Example:
        >>> from sparse_plugins import core
        >>> params = {"blocks": {"kernel": jnp.ones((6, 4, 4)), "bias": jnp.ones((6, 4))}}
        >>> kernel, bias = core.Axes(stack=0, inputs=1, outputs=2), core.Axes(stack=0, elementwise=1)
        >>> layers = core.describe_layers(params, [(".*/kernel", kernel), (".*/bias", bias)])
        >>> print(layers)
        blocks/bias    (6, 4)     stack 6, elementwise 4
        blocks/kernel  (6, 4, 4)  stack 6, inputs 4, outputs 4
        >>> names = {"blocks": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}}
        >>> core.describe_layers(params, axis_names=names) == layers
        True
    """
    read = [read_rule(rule, "Axes", "('blocks/.*/kernel', core.Axes(stack=0, inputs=1, outputs=2))") for rule in rules]
    for pattern, axes in read:
        if not isinstance(axes, Axes):
            raise TypeError(f"the axes of {pattern!r} are {axes!r}; give core.Axes(inputs=0, outputs=1) or the like.")
    told = _told_by_keras(params) if is_keras_layer(params) else _told_by_names(params, axis_names)
    chosen = first_match([pattern for pattern, _ in read], [name for name, _, _ in told])
    return Layers(
        (name, _described(name, shape, axes if rule is None else read[rule][1]))
        for (name, shape, axes), rule in zip(told, chosen, strict=True)
    )


def _told_by_keras(model: Any) -> list[tuple[str, tuple[int, ...], Axes | None]]:
    return [(path, shape, axes) for path, (shape, axes) in keras_axes(model).items()]


def _told_by_names(params: PyTree, axis_names: PyTree | None) -> list[tuple[str, tuple[int, ...], Axes | None]]:
    paths, leaves = leaf_names(params), jax.tree.leaves(params)
    names = names_in_boxes(params) if axis_names is None else names_in_tree(params, axis_names)
    told = []
    for path, leaf, its in zip(paths, leaves, names, strict=True):
        axes = None if its is None else axes_of_names(its)
        if axes is not None and len(its) != jnp.ndim(leaf):
            raise ValueError(f"the axes of {path!r} are named {its}, and its shape is {jnp.shape(leaf)}.")
        told.append((path, tuple(jnp.shape(leaf)), axes))
    return told


def _described(name: str, shape: tuple[int, ...], axes: Axes | None) -> LayerAxes:
    if axes is not None:
        return axes.of(name, shape)
    return LayerAxes.unknown(name, shape, "not described")
