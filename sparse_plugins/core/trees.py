"""Parameter trees: names of leaves, and other trees laid beside them."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from sparse_plugins.wire import trees

__all__ = [
    "PyTree",
    "aligned",
    "aligned_columns",
    "common_dtype",
    "exportable",
    "leaf_names",
    "names_of_today",
    "out_of_boxes",
    "prunable_dtype",
    "stands_for_params",
]

PyTree = Any
_OF_BOXES = itertools.repeat("get_metadata")  # by which a box is suspected; every leaf of every update is asked
_IN_A_BOX = jax.tree_util.GetAttrKey("value")
T = TypeVar("T")


def leaf_names(params: PyTree) -> list[str]:
    """Path of every leaf, in the order of `jax.tree.leaves`.

    Args:
        params: Any pytree.

    Returns:
        Names such as 'encoder/dense/kernel' or 'layers/0/w'; a bare array is ''. What is in a Variable of Flax NNX has
        the Variable's name, 'dense/kernel', so that names are the same for the tree of arrays that `nnx.as_pure` makes.

    Example:
        >>> leaf_names({"dense": {"kernel": 1.0, "bias": 2.0}, "scales": (3.0,)})
        ['dense/bias', 'dense/kernel', 'scales/0']
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    if any(_IN_A_BOX in path for path, _ in paths):
        nodes = jax.tree.leaves(params, is_leaf=trees.is_variable)
        if any(map(trees.is_variable, nodes)):
            return [name for name, _ in trees.named_leaves(params)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def names_of_today(stored: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names in a file as this release writes them; older files name what is in a Variable of Flax NNX 'kernel/value'.

    Args:
        stored: Names that the file has.
        names: Those of the leaves that are read.

    Example:
        >>> names_of_today(["dense/kernel/value", "scale"], ["dense/kernel", "scale"])
        ['dense/kernel', 'scale']
    """
    missing, surplus = set(names) - set(stored), set(stored) - set(names)
    shorter = [name.removesuffix("/value") for name in stored]
    return [
        short if name in surplus and short in missing else name for name, short in zip(stored, shorter, strict=True)
    ]


def aligned(params: PyTree, tree: PyTree, what: str) -> list[Any]:
    """The nodes of `tree` that stand where `params` has its leaves.

    Args:
        params: The tree that gives the structure.
        tree: A tree of the same structure; in place of a leaf it may hold any node. Leaves may be boxed otherwise, as
            NNX's optimizers do.
        what: What `tree` is, for the message.

    Returns:
        One node per leaf of `params`, in order, out of its box.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> aligned({"a": 1, "b": 2}, {"a": (3, 4), "b": None}, "masks")
        [(3, 4), None]
    """
    treedef: Any = jax.tree.structure(params)
    try:
        nodes = treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        return trees.aligned(params, tree, what)  # slower; it knows markers of hidden parts, and tells what differs
    return [*map(trees.unboxed, nodes)] if any(map(hasattr, nodes, _OF_BOXES)) else nodes


def aligned_columns(params: PyTree, columns: Sequence[PyTree], what: Sequence[str]) -> list[list[Any]]:
    """`aligned`, of several trees."""
    treedef: Any = jax.tree.structure(params)
    try:
        aside = [*map(treedef.flatten_up_to, columns)]
    except (ValueError, TypeError, KeyError):
        return [aligned(params, tree, name) for tree, name in zip(columns, what, strict=True)]
    if any(map(hasattr, itertools.chain.from_iterable(aside), _OF_BOXES)):
        return [[*map(trees.unboxed, nodes)] for nodes in aside]
    return aside


def out_of_boxes(tree: PyTree) -> PyTree:
    """The tree with what is in its boxes, such as Flax's Variables, in place of them."""
    return jax.tree.map(trees.unboxed, tree, is_leaf=trees.is_box)


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
