"""Priorities in a sum tree: set many at once, draw in proportion, nothing drifts; pure JAX, also under vmap.

A tree is a tuple of levels, the root's children first and the leaves last; a node of one level is the sum of a row of
32 in the next. Four such steps reach a million leaves, where a binary tree takes twenty, each of them a
dispatch. A parent is always made anew from its children, so sums are as exact after a million updates as after one.
"""

import math

import jax
import jax.numpy as jnp

__all__ = [
    "empty_tree",
    "get_priorities",
    "importance_weights",
    "sample_stratified",
    "set_priorities",
    "total_priority",
]


_WIDTH = 32  # children of a node: wider rows cost more to sum, narrower ones more steps

Tree = tuple[jax.Array, ...]


def empty_tree(size: int) -> Tree:
    """A tree whose priorities are all 0.

    Args:
        size: Number of leaves that are used, 1 or more.

    Returns:
        Levels float32[nodes, 32], the last of which has at least `size` entries.

    Raises:
        ValueError: If there are no leaves, or more than an int32 can count.

    Example:
        >>> [level.shape for level in empty_tree(1000)]
        [(1, 32), (32, 32)]
    """
    if not 1 <= size <= 1 << 30:
        raise ValueError(f"a tree of {size} priorities can't be made; give 1 to {1 << 30}.")
    nodes = [math.ceil(size / _WIDTH)]
    while nodes[0] > 1:
        nodes.insert(0, math.ceil(nodes[0] / _WIDTH))
    return tuple(jnp.zeros((count, _WIDTH), jnp.float32) for count in nodes)


def total_priority(tree: Tree) -> jax.Array:
    """Sum of all priorities, float32[]."""
    return jnp.sum(tree[0])


def get_priorities(tree: Tree, index: jax.Array) -> jax.Array:
    """Priorities of some leaves.

    Args:
        tree: As `empty_tree` makes it.
        index: int32[n], from 0.

    Returns:
        float32[n].
    """
    return tree[-1][index // _WIDTH, index % _WIDTH]


def set_priorities(tree: Tree, index: jax.Array, priorities: jax.Array) -> Tree:
    """The tree with the priorities of some leaves set; of a leaf that is named twice the last one counts.

    Args:
        tree: As `empty_tree` makes it.
        index: int32[n], from 0.
        priorities: float32[n], 0 or more; a leaf of priority 0 is never drawn.

    Returns:
        The tree.

    Example:
        >>> tree = set_priorities(empty_tree(4), jnp.array([0, 3, 0]), jnp.array([5.0, 2.0, 1.0]))
        >>> float(total_priority(tree)), get_priorities(tree, jnp.arange(4)).tolist()
        (3.0, [1.0, 0.0, 0.0, 2.0])
    """
    is_same = index[:, None] == index[None, :]
    last = jnp.max(jnp.where(is_same, jnp.arange(index.size)[None, :], 0), axis=1)
    # Twins write the same value, so that the order in which a device writes does not matter.
    values, levels = priorities[last], []
    for level in reversed(tree):
        node = index // _WIDTH
        levels.append(level.at[node, index % _WIDTH].set(values))
        index, values = node, jnp.sum(levels[-1][node], axis=1)
    return tuple(reversed(levels))


def sample_stratified(tree: Tree, key: jax.Array, count: int) -> jax.Array:
    """Leaves drawn in proportion to their priorities, one from each of `count` equal parts of the total.

    Args:
        tree: As `empty_tree` makes it, with at least one priority above 0; without one, leaf 0 is named.
        key: JAX key.
        count: How many are drawn.

    Returns:
        int32[count]; the same leaf may be drawn several times, one of priority 0 never.

    Example:
        >>> tree = set_priorities(empty_tree(4), jnp.array([1, 2]), jnp.array([1.0, 3.0]))
        >>> sample_stratified(tree, jax.random.key(0), 4).tolist()
        [1, 2, 2, 2]

    Source: Schaul et al., Prioritized Experience Replay (2016), appendix B.2.1.
    """
    place = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count * total_priority(tree)
    node = jnp.zeros(count, jnp.int32)
    for level in tree:
        children = level[node]
        ends = jnp.cumsum(children, axis=1)
        # Rounding may leave a place at or past the end of all: then the last child that is not empty has it.
        is_after = (ends > place[:, None]) & (children > 0)
        last = jnp.max(jnp.where(children > 0, jnp.arange(_WIDTH)[None, :], 0), axis=1)
        child = jnp.where(jnp.any(is_after, axis=1), jnp.argmax(is_after, axis=1), last)
        of_child = lambda values, child=child: jnp.take_along_axis(values, child[:, None], axis=1)[:, 0]  # noqa: E731
        place = place - (of_child(ends) - of_child(children))
        node = (node * _WIDTH + child).astype(jnp.int32)
    return node


def importance_weights(priorities: jax.Array, exponent: float) -> jax.Array:
    """Weights that undo part of the bias of drawing by priority, 1 for the rarest of the batch.

    Args:
        priorities: float32[n], of the leaves drawn.
        exponent: In [0, 1]; 0 undoes nothing, 1 everything.

    Returns:
        float32[n] in [0, 1]; 0 for a priority of 0.

    Example:
        >>> importance_weights(jnp.array([4.0, 1.0, 0.0]), 0.5).tolist()
        [0.5, 1.0, 0.0]

    Source: Schaul et al., Prioritized Experience Replay (2016), section 3.4.
    """
    is_drawn = priorities > 0
    lowest = jnp.min(jnp.where(is_drawn, priorities, jnp.inf))
    return jnp.where(is_drawn, (lowest / jnp.where(is_drawn, priorities, 1.0)) ** exponent, 0.0)
