"""What names and shapes alone decide is worked out once between the gradients of a step and its updates."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from sparse_plugins.core.trees import PyTree

__all__ = ["once", "shared_walk"]

T = TypeVar("T")

_made: contextvars.ContextVar[dict[tuple, tuple[Any, Any]] | None] = contextvars.ContextVar("made", default=None)


@contextlib.contextmanager
def shared_walk() -> Iterator[None]:
    """Around one init, update or refresh: inside, `once` makes nothing twice; afterwards all of it is forgotten.

    Example:
        >>> import jax.numpy as jnp
        >>> with shared_walk():
        ...     once("me", "plan", {"w": jnp.ones(2)}, lambda: 1), once("me", "plan", {"w": jnp.zeros(2)}, lambda: 2)
        (1, 1)
    """
    if _made.get() is not None:  # inside another
        yield
        return
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


def once(owner: Any, what: str, tree: PyTree, make: Callable[[], T]) -> T:
    """What `make` gives, made once in a walk for an owner and all trees of one structure and the same shapes.

    Args:
        owner: Whose it is, such as an updater; a changed copy of one is another owner.
        what: What is made.
        tree: The tree it is made for.
        make: Makes it; of values of the tree it may read nothing.

    Returns:
        What was made first; outside of `shared_walk` it is made at every call.
    """
    made = _made.get()
    if made is None:
        return make()
    leaves, treedef = jax.tree.flatten(tree)
    key = (id(owner), what, treedef, tuple(map(np.shape, leaves)))
    try:
        known = made.get(key)
    except TypeError:  # a node of the tree that cannot be hashed
        return make()
    if known is None:
        known = made[key] = make(), owner  # an owner that is kept leaves its id to no other
    return known[0]
