"""What a ranking goes by when its scores are broken: gradients that overflowed or are NaN say nothing about weights."""

from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["finite_or_magnitude"]


def finite_or_magnitude(params: PyTree, scores: PyTree, rankings: PyTree) -> PyTree:
    """Scores, but |w| for all weights of a ranking in which some score is not finite.

    A mask change must neither prune by index, as where all scores are NaN, nor take an overflow for a large or a small
    score, and its count is due; so that one change is by magnitude. A weight of 0 scores 0 whatever its gradient is:
    nothing is lost without it. A weight that is not finite itself breaks no ranking, and NaN loses in it.

    Args:
        params: Parameter tree.
        scores: Real arrays of their shapes, such as weight times gradient.
        rankings: By leaf 0 if its weights are ranked among themselves, else a number that its ranking's leaves share.

    Returns:
        Tree of scores of the same dtypes.

    Example:
        >>> params, grads = {"w": jnp.array([4.0, -2.0, 0.0])}, {"w": jnp.array([0.5, jnp.nan, jnp.nan])}
        >>> product = jax.tree.map(jnp.multiply, params, grads)
        >>> finite_or_magnitude(params, product, {"w": 0})["w"].tolist()
        [4.0, 2.0, 0.0]
    """
    leaves, treedef = jax.tree.flatten(params)
    columns = list(zip(leaves, aligned(params, scores, "scores"), aligned(params, rankings, "rankings"), strict=True))
    scored = [jnp.where(param == 0, jnp.zeros((), score.dtype), score) for param, score, _ in columns]
    broken = [
        jnp.any(~jnp.isfinite(score) & jnp.isfinite(param))
        for (param, _, _), score in zip(columns, scored, strict=True)
    ]
    shared: dict[Any, jax.Array] = {}
    for (_, _, ranking), is_broken in zip(columns, broken, strict=True):
        shared[ranking] = shared.get(ranking, jnp.bool_(False)) | is_broken
    usable = [
        jnp.where(shared[ranking] if ranking else is_broken, jnp.abs(param).astype(score.dtype), score)
        for (param, _, ranking), score, is_broken in zip(columns, scored, broken, strict=True)
    ]
    return jax.tree.unflatten(treedef, usable)
