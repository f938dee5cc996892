"""Layers told by frameworks: names of axes in Flax, T5X and MaxText, and layer classes of Keras.

No framework is imported: what its objects are is asked of them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from sparse_plugins.core.layers.described_axes import Axes
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["axes_of_names", "is_keras_layer", "keras_axes", "names_in_boxes", "names_in_tree"]

_STACK = re.compile(r"(.*_)?(layers?|stack(ed)?|experts?|exp|stages?|circular_repeats)")
_HEADS = re.compile(r"(.*_)?heads?")
_OF_HEAD = re.compile(r"kv|d_kv|qkv|(.*_)?head_(dim|size)")
_SPACE = re.compile(r"(.*_)?(height|width|depth|spatial|kernel_size)|conv_window")
_ROWS = re.compile(r"vocab|(.*_)?(position|positions|buckets)")


def axes_of_names(names: Sequence[str | None]) -> Axes | None:
    """What the axes of a parameter are that has a name for each.

    Names say what an axis runs over, and kernels have their inputs before their outputs.

    Args:
        names: Such as ('layers', 'embed', 'heads', 'kv').

    Returns:
        Its axes; None if the names do not tell.

    Example:
        >>> print(axes_of_names(("layers", "embed", "heads", "kv")), axes_of_names(("vocab", "embed")))
        Axes(stack=0, inputs=1, outputs=(2, 3), heads=2) Axes(outputs=1, rows=0)
        >>> print(axes_of_names(("layers", "norm")), axes_of_names(("model", None)))
        Axes(stack=0, elementwise=1) None
    """
    if not names or not all(isinstance(name, str) for name in names):
        return None
    words = [str(name) for name in names]
    stack = [axis for axis, word in enumerate(words) if _STACK.fullmatch(word)]
    space = [axis for axis, word in enumerate(words) if _SPACE.fullmatch(word)]
    rest = [axis for axis in range(len(words)) if axis not in stack and axis not in space]
    heads = [axis for axis in rest if _HEADS.fullmatch(words[axis])]
    of_heads = heads + [axis for axis in rest if _OF_HEAD.fullmatch(words[axis])]
    rows = [axis for axis in rest if _ROWS.fullmatch(words[axis])]
    if not space and (len(rest) <= 1 or len(of_heads) == len(rest)):
        return Axes(stack=stack, elementwise=rest)
    if len(rest) == 2 and rows and (rest.index(rows[0]) == 0 or heads) and not space:
        return Axes(stack=stack, rows=rows[0], outputs=[axis for axis in rest if axis != rows[0]])
    if len(rest) == 2 or (len(heads) == 1 and rest[0] not in of_heads):
        inputs, outputs = rest[:1], rest[1:]
    elif len(heads) == 1 and rest[-1] not in of_heads:
        inputs, outputs = rest[:-1], rest[-1:]
    else:
        return None
    return Axes(stack=stack, space=space, inputs=inputs, outputs=outputs, heads=heads)


def names_in_boxes(params: PyTree) -> list[Any]:
    """For each leaf of a tree the names that its box has, as Flax's Linen and NNX put parameters into; else None."""
    is_box = lambda node: callable(getattr(node, "get_metadata", None)) or _has_names(node)  # noqa: E731
    boxes = jax.tree.leaves(params, is_leaf=is_box)
    return [_names(box) if is_box(box) else None for box in boxes for _ in jax.tree.leaves(box)]


def _has_names(node: Any) -> bool:
    return hasattr(node, "names") and callable(getattr(node, "unbox", None))


def _names(box: Any) -> Any:
    if _has_names(box):
        return tuple(box.names)
    metadata = box.get_metadata()
    found = next((metadata[key] for key in ("out_sharding", "sharding", "sharding_names") if metadata.get(key)), None)
    return None if found is None or isinstance(found, str) else tuple(found)


def names_in_tree(params: PyTree, axis_names: PyTree) -> list[Any]:
    """For each leaf its names in a tree of tuples or `PartitionSpec`s, such as `get_axis_names` of Flax gives for T5X.

    Raises:
        ValueError: If the tree is not laid out like the parameters.
    """
    return [tuple(names) if names is not None else None for names in aligned(params, axis_names, "axis names")]


def is_keras_layer(params: Any) -> bool:
    """Whether this is a model or a layer of Keras."""
    return any(base.__module__.split(".")[0] in ("keras", "tf_keras") for base in type(params).__mro__) and hasattr(
        params, "trainable_variables"
    )


def keras_axes(model: Any) -> dict[str, tuple[tuple[int, ...], Axes | None]]:
    """Shape and axes of each trainable variable of a Keras model, by path; no axes where its layer does not tell."""
    heads = {}
    layers = list(_keras_layers(model))
    for layer in layers:
        for name, axis in (("query_dense", 1), ("key_dense", 1), ("value_dense", 1), ("output_dense", 0)):
            heads[id(getattr(layer, name, None))] = axis
    found: dict[str, tuple[tuple[int, ...], Axes | None]] = {
        variable.path: (tuple(variable.shape), None) for variable in model.trainable_variables
    }
    for layer in layers:
        for variable in getattr(layer, "_trainable_variables", ()):
            if variable.path in found:
                axes = _keras_variable(layer, variable.name, len(variable.shape), heads.get(id(layer)))
                found[variable.path] = tuple(variable.shape), axes
    return found


def _keras_layers(layer: Any) -> Iterator[Any]:
    yield layer
    for inner in getattr(layer, "_layers", ()):
        yield from _keras_layers(inner)


def _keras_variable(layer: Any, name: str, ndim: int, heads: int | None) -> Axes | None:
    if ndim < 2 or re.fullmatch(r"(.*_)?(bias|gamma|beta|scale)", name):
        return Axes(elementwise=_range(ndim))
    classes = [base.__name__ for base in type(layer).__mro__]
    for pattern, axes in _KERAS:
        if any(re.fullmatch(pattern, f"{class_name}.{name}") for class_name in classes):
            return axes(ndim)
    if "EinsumDense" in classes and name == "kernel":
        return _of_equation(layer.equation, heads)
    return None


def _range(*bounds: int) -> tuple[int, ...]:
    """A range as a tuple."""
    return tuple(range(*bounds))


_KERAS: list[tuple[str, Callable[[int], Axes]]] = [
    (r"Dense\.kernel|.*Cell\.(recurrent_)?kernel", lambda ndim: Axes(inputs=0, outputs=1)),
    (r"Embedding\.embeddings", lambda ndim: Axes(rows=0, outputs=1)),
    (r"Conv\dDTranspose\.kernel", lambda n: Axes(space=_range(n - 2), outputs=n - 2, inputs=n - 1)),
    (r"DepthwiseConv\dD\.kernel", lambda n: Axes(space=_range(n - 2), outputs=(n - 2, n - 1))),
    (r"SeparableConv\dD\.depthwise_kernel", lambda n: Axes(space=_range(n - 2), outputs=(n - 2, n - 1))),
    (
        r"Conv\dD\.kernel|SeparableConv\dD\.pointwise_kernel",
        lambda n: Axes(space=_range(n - 2), inputs=n - 2, outputs=n - 1),
    ),
]


def _of_equation(equation: str, heads: int | None) -> Axes:
    """Axes of the second operand of an einsum."""
    operands, result = equation.replace(" ", "").split("->")
    first, kernel = operands.split(",")
    roles: dict[str, list[int]] = {"inputs": [], "outputs": [], "stack": []}
    for axis, letter in enumerate(kernel):
        is_shared, is_kept = letter in first, letter in result
        roles["stack" if is_shared and is_kept else "outputs" if is_kept else "inputs"].append(axis)
    return Axes(**{role: tuple(axes) for role, axes in roles.items()}, heads=() if heads is None else heads)
