"""Parameter trees: names of leaves, and other trees laid beside them."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

__all__ = [
    "PyTree",
    "aligned",
    "aligned_columns",
    "common_dtype",
    "exportable",
    "leaf_names",
    "prunable_dtype",
    "stands_for_params",
]

PyTree = Any
T = TypeVar("T")


def leaf_names(params: PyTree) -> list[str]:
    """Path of every leaf, in the order of `jax.tree.leaves`.

    Args:
        params: Any pytree.

    Returns:
        Names such as 'encoder/dense/kernel' or 'layers/0/w'; a bare array is ''.

    Example:
        >>> leaf_names({"dense": {"kernel": 1.0, "bias": 2.0}, "scales": (3.0,)})
        ['dense/bias', 'dense/kernel', 'scales/0']
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def aligned(params: PyTree, tree: PyTree, what: str) -> list[Any]:
    """The nodes of `tree` that stand where `params` has its leaves.

    Args:
        params: The tree that gives the structure.
        tree: A tree of the same structure; in place of a leaf it may hold any node.
        what: What `tree` is, for the message.

    Returns:
        One node per leaf of `params`, in order.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> aligned({"a": 1, "b": 2}, {"a": (3, 4), "b": None}, "masks")
        [(3, 4), None]
    """
    treedef: Any = jax.tree.structure(params)
    try:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return treedef.flatten_up_to(tree)
        return treedef.flatten_up_to(_hidden_leaf_by_leaf(params, tree))
    except (ValueError, TypeError, KeyError) as error:
        difference = f"{what} and the parameters have different tree structures: "
        if (names := leaf_names(params)) == (others := leaf_names(tree)):
            raise ValueError(
                f"{difference}the same leaves {names}, but in other containers (outermost: {type(tree).__name__} and "
                f"{type(params).__name__}). Give both as the same kind of tree."
            ) from error
        raise ValueError(
            f"{difference}parameters have the leaves {names}, {what} {others}. If the model changed, call init again "
            "on the new parameters; if this is a restored checkpoint, restore the one that belongs to this model."
        ) from error


def aligned_columns(params: PyTree, trees: Sequence[PyTree], what: Sequence[str]) -> list[list[Any]]:
    """`aligned`, of several trees."""
    treedef: Any = jax.tree.structure(params)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return [*map(treedef.flatten_up_to, trees)]
    return [aligned(params, tree, name) for tree, name in zip(trees, what, strict=True)]


def _is_hidden(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _hidden_leaf_by_leaf(params: PyTree, tree: PyTree) -> PyTree:
    """`optax.masked` may hide a whole subtree behind one node; here each of its leaves gets one."""

    def spread(node: Any, part: PyTree) -> PyTree:
        return jax.tree.map(lambda _: node, part) if _is_hidden(node) else node

    is_empty = lambda node: node is None or (isinstance(node, tuple) and not node)  # noqa: E731
    return jax.tree.map(spread, tree, params, is_leaf=is_empty)


def prunable_dtype(leaf: Any) -> bool:
    """Whether a leaf is a real floating-point array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def common_dtype(*dtypes: Any) -> jnp.dtype:
    """The dtype that JAX's standard promotion gives; also under `jax_numpy_dtype_promotion="strict"`.

    Example:
        >>> with jax.numpy_dtype_promotion("strict"):
        ...     common_dtype(jnp.bfloat16, jnp.float32).name
        'float32'
    """
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def stands_for_params(params: PyTree) -> bool:
    """Whether this is the placeholder by which `optax.tree.map_params` asks a state what lies like the parameters."""
    return isinstance(params, _placeholder_type())


@functools.cache
def _placeholder_type() -> type:
    types: list[type] = []
    optax.tree.map_params(lambda placeholder: types.append(type(placeholder)), lambda leaf: leaf, None)
    return types[0]


def exportable(name: str) -> Callable[[type[T]], type[T]]:
    """Decorates a named tuple that `jax.export` may meet in the arguments and results of a step.

    Args:
        name: What stands for the class in a serialized function. It never changes, wherever the class lives.

    Returns:
        The decorator, which gives the class back.

    Example:
        >>> from typing import NamedTuple
        >>> class Pair(NamedTuple):
        ...     left: Any
        ...     right: Any
        >>> pair = exportable("docs.Pair")(Pair)(jnp.ones(2), jnp.ones(2))
        >>> swap = jax.export.export(jax.jit(lambda pair: Pair(pair.right, pair.left)))(pair)
        >>> jax.export.deserialize(swap.serialize()).call(pair).left.tolist()
        [1.0, 1.0]
    """
    return functools.partial(jax.export.register_namedtuple_serialization, serialized_name=f"sparse_plugins.{name}")
