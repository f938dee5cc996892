"""What a reader expects of the values in a file, checked before an array takes memory.

Every check names the place and says what is there and what is allowed, and raises `DamagedFileError`.
"""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.storage.array_files import DamagedFileError, StoredArray, numbers
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["fields", "flag", "like_tree", "listed", "refuse", "stored_array", "text", "tree_values", "whole"]

_EXACT = 1 << 53


def refuse(what: str, value: Any, allowed: str) -> NoReturn:
    """Says what is wrong with a value of a file.

    Raises:
        DamagedFileError: Always.
    """
    shown = f"{value.dtype}{list(value.shape)}" if isinstance(value, StoredArray) else repr(value)
    raise DamagedFileError(f"{what} is {shown[:100]}; allowed is {allowed}")


def fields(value: Any, names: tuple[str, ...], what: str) -> list[Any]:
    """The values of a dictionary that has these keys and no others, in their order.

    Example:
        >>> fields({"a": 1, "_checkpoint_dir": "/"}, ("a",), "the episode")
        Traceback (most recent call last):
        sparse_plugins.core.storage.array_files.DamagedFileError: the episode has or lacks '_checkpoint_dir'; ...
    """
    if not isinstance(value, dict):
        refuse(what, value, f"a dictionary of {', '.join(names)}")
    if set(value) != set(names):
        wrong = ", ".join(map(repr, sorted(set(value) ^ set(names))))
        raise DamagedFileError(f"{what} has or lacks {wrong[:200]}; allowed are {sorted(names)}")
    return [value[name] for name in names]


def whole(value: Any, low: int, high: int, what: str) -> int:
    """An int between two bounds, both allowed."""
    if type(value) is not int or not low <= value <= high:
        refuse(what, value, f"a whole number from {low:,} to {high:,}")
    return value


def flag(value: Any, what: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        refuse(what, value, "True or False")
    return value


def text(value: Any, longest: int, what: str) -> str:
    """Text of a bounded length."""
    if not isinstance(value, str) or len(value) > longest:
        refuse(what, value, f"text of at most {longest} characters")
    return value


def listed(value: Any, longest: int, what: str) -> list[Any]:
    """A list of a bounded length."""
    if not isinstance(value, list) or len(value) > longest:
        refuse(what, value, f"a list of at most {longest:,}")
    return value


def stored_array(value: Any, dtypes: str, shape: tuple[int | None, ...], what: str, limit: int = 0) -> np.ndarray:
    """An array, read.

    Args:
        value: Where an array should be.
        dtypes: The dtype, such as 'float32', or kinds of NumPy dtypes that are allowed, such as 'biuf'.
        shape: Its shape; None for an axis of any length.
        what: Its place, for the message.
        limit: The greatest length of such an axis.
    """
    allowed = f"{dtypes}{[size if size is not None else f'up to {limit:,}' for size in shape]}"
    if not isinstance(value, StoredArray) or not (value.dtype.name == dtypes or value.dtype.kind in dtypes):
        refuse(what, value, allowed)
    fits = [found <= limit if size is None else found == size for size, found in zip(shape, value.shape, strict=False)]
    if len(value.shape) != len(shape) or not all(fits):
        refuse(what, value, allowed)
    return value.read()


def tree_values(tree: PyTree) -> list[list[Any]]:
    """Names and leaves of a tree, for `write_values`.

    Args:
        tree: Tree of arrays, typed keys included, and of Python's numbers.
    """
    return [list(pair) for pair in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)]


def like_tree(value: Any, like: PyTree, what: str) -> PyTree:
    """A tree that `tree_values` took apart, put into what there is already.

    Args:
        value: What the file has.
        like: A tree of the same names, shapes and dtypes. Where it has JAX arrays, JAX arrays come back.
        what: Its place, for the message.

    Example:
        >>> import io
        >>> from sparse_plugins.core.storage.array_files import open_values, write_values
        >>> write_values(file := io.BytesIO(), tree_values({"w": np.ones(2), "count": 3}))
        >>> with open_values(file) as stored:
        ...     like_tree(stored, {"w": np.zeros(2), "count": 0}, "the state")
        {'count': 3, 'w': array([1., 1.])}
    """
    names, leaves = leaf_names(like), jax.tree.leaves(like)
    pairs = listed(value, len(names), what)
    if [pair[0] if isinstance(pair, list) and len(pair) == 2 else None for pair in pairs] != names:
        raise DamagedFileError(f"{what} does not have the leaves {', '.join(names)[:200]} of this run")
    restored = [
        _like_leaf(pair[1], leaf, f"{what}/{name}" if name else what)
        for name, leaf, pair in zip(names, leaves, pairs, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def _like_leaf(value: Any, like: Any, what: str) -> Any:
    if isinstance(like, bool):
        return flag(value, what)
    if isinstance(like, int):
        return whole(value, -_EXACT, _EXACT, what)
    if isinstance(like, float):
        return value if isinstance(value, float) else refuse(what, value, "a float")
    words = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    dtype = numbers(np.zeros(0, words.dtype)).dtype
    if not isinstance(value, StoredArray) or (value.dtype, value.shape) != (dtype, tuple(words.shape)):
        refuse(what, value, f"{dtype}{list(words.shape)}")
    array = value.read()
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    array = array.view(like.dtype)
    if isinstance(like, np.ndarray):
        return array
    return array[()] if isinstance(like, np.generic) else jax.device_put(array)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
