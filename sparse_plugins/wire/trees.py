"""Trees of arrays, walked with or without JAX: the same leaves in the same order, under the same names.

Dicts, lists, tuples, named tuples and None are known here. Any other node is one that its library registered with
JAX: where JAX is loaded its registry is asked, elsewhere nobody knows what is inside and the node is taken for a leaf.
"""

import collections
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_plugins.wire.markers import is_masked_node

__all__ = ["PyTree", "aligned", "is_box", "is_variable", "named_leaves", "unboxed", "with_leaves"]

PyTree = Any


class _Node(NamedTuple):
    """What is inside a container."""

    layout: tuple[Any, ...]  # two containers are alike if this is equal; the type comes first
    keys: Sequence[str]
    children: Sequence[Any]
    rebuild: Callable[[Sequence[Any]], Any]
    is_box: bool = False


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Name and value of every leaf, in the order of `jax.tree.leaves`.

    Args:
        tree: Any tree of arrays.

    Returns:
        Names such as 'encoder/dense/kernel' or 'layers/0/w', '' for a bare array, each with its leaf. What is in a
        Variable of Flax NNX has the Variable's name.

    Raises:
        ValueError: If the keys of a dict cannot be sorted.

    Example:
        >>> named_leaves({"dense": {"kernel": 1.0, "bias": 2.0}, "scales": (3.0, None)})
        [('dense/bias', 2.0), ('dense/kernel', 1.0), ('scales/0', 3.0)]
    """
    return [("/".join(path), leaf) for path, leaf in _walked(tree, ())]


def with_leaves(tree: PyTree, leaves: Iterable[Any]) -> PyTree:
    """The tree with other leaves.

    Args:
        tree: The tree that gives the structure.
        leaves: As many as it has, in the order of `named_leaves`.

    Returns:
        A tree of the same containers.

    Example:
        >>> with_leaves({"b": 1, "a": [2, None]}, "xy")
        {'a': ['x', None], 'b': 'y'}
    """
    return _rebuilt(tree, iter(leaves))


_OF_NNX = (
    " In Flax NNX, take both out of their Variables: flax.nnx.as_pure(nnx.state(model, nnx.Param)) and "
    "flax.nnx.as_pure(optimizer.opt_state)."
)


def aligned(params: PyTree, tree: PyTree, what: str) -> list[Any]:
    """The nodes of `tree` that stand where `params` has its leaves.

    Args:
        params: The tree that gives the structure.
        tree: A tree of the same structure; in place of a leaf it may hold any node, and in place of a whole part
            that `optax.masked` hides its marker. Leaves may be boxed otherwise, or not at all, as those that an NNX
            optimizer holds are beside those of its model.
        what: What `tree` is, for the message.

    Returns:
        One node per leaf of `params`, in order, out of its box.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> aligned({"a": 1, "b": 2}, {"a": (3, 4), "b": None}, "masks")
        [(3, 4), None]
    """
    try:
        return list(_beside(params, tree))
    except _DifferenceError:
        names, others = ([name for name, _ in named_leaves(each)] for each in (params, tree))
    is_nnx = any(type(node).__module__.startswith("flax.nnx") for node in (params, tree))
    hint = _OF_NNX if is_nnx else ""
    difference = f"{what} and the parameters have different tree structures: "
    if names == others:
        raise ValueError(
            f"{difference}the same leaves {names}, but in other containers (outermost: {type(tree).__name__} and "
            f"{type(params).__name__}). Give both as the same kind of tree.{hint}"
        )
    raise ValueError(
        f"{difference}parameters have the leaves {names}, {what} {others}. If the model changed, call init again "
        f"on the new parameters; if this is a restored checkpoint, restore the one that belongs to this model.{hint}"
    )


def is_box(node: Any) -> bool:
    """Whether a node is registered with JAX and holds one attribute `value`, as Flax's Variables and Partitioned do."""
    return (opened := _opened(node)) is not None and opened.is_box


def is_variable(node: Any) -> bool:
    """Whether a node is a Variable of Flax NNX: a box that the tree of a model has, and that of its arrays has not."""
    return hasattr(type(node), "get_metadata") and is_box(node)


def unboxed(node: Any) -> Any:
    """What is in a box; any other node as it is."""
    return _opened(node).children[0] if is_box(node) else node  # type: ignore[union-attr]


class _DifferenceError(Exception):
    """Two containers are not alike."""


def _beside(params: PyTree, tree: PyTree) -> Iterator[Any]:
    node = _opened(params)
    if node is None:
        yield unboxed(tree)
    elif is_masked_node(tree):
        yield from (tree for _ in named_leaves(params))
    else:
        other = _opened(tree)
        if other is not None and other.layout == node.layout:
            for child, beside in zip(node.children, other.children, strict=True):
                yield from _beside(child, beside)
        elif node.is_box:
            yield from _beside(node.children[0], unboxed(tree))
        else:
            raise _DifferenceError


def _walked(tree: PyTree, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    node = _opened(tree)
    if node is None:
        yield path, tree
        return
    for key, child in zip(node.keys, node.children, strict=True):
        yield from _walked(child, path if is_variable(tree) else (*path, key))


def _rebuilt(tree: PyTree, leaves: Iterator[Any]) -> PyTree:
    node = _opened(tree)
    return next(leaves) if node is None else node.rebuild([_rebuilt(child, leaves) for child in node.children])


def _opened(tree: PyTree) -> _Node | None:
    """What is inside a node; None if it is a leaf."""
    container = type(tree)
    if container in (np.ndarray, int, float, bool):
        return None
    if tree is None:
        return _Node((container,), (), (), lambda children: None)
    if container in (dict, collections.OrderedDict, collections.defaultdict):
        return _opened_dict(tree)
    if container in (list, tuple):
        return _Node((container, len(tree)), [str(place) for place in range(len(tree))], tree, container)
    if (jax := sys.modules.get("jax")) is not None:
        return _opened_by_jax(jax, tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return _Node((container,), tree._fields, tree, lambda children: container(*children))
    return None


def _opened_dict(tree: dict[Any, Any]) -> _Node:
    container: Any = type(tree)
    factory = getattr(tree, "default_factory", None)
    try:
        keys = list(tree) if container is collections.OrderedDict else sorted(tree)
    except TypeError as error:
        raise ValueError(f"the keys of a dict can't be sorted: {error}. Let all be of one type.") from error
    first = [factory] if container is collections.defaultdict else []
    rebuild = lambda children: container(*first, zip(keys, children, strict=True))  # noqa: E731
    return _Node((container, factory, keys), [str(key) for key in keys], [tree[key] for key in keys], rebuild)


def _opened_by_jax(jax: Any, tree: PyTree) -> _Node | None:
    """By the registry of a JAX that is loaded."""
    inside, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part: part is not tree)
    if [path for path, _ in inside] == [()]:
        return None
    keys = [jax.tree_util.keystr(path, simple=True) for path, _ in inside]
    is_box = [path for path, _ in inside] == [(jax.tree_util.GetAttrKey("value"),)] and not isinstance(tree, tuple)
    return _Node((type(tree), treedef), keys, [child for _, child in inside], treedef.unflatten, is_box)
