"""What a ranking goes by when its scores are broken: gradients that overflowed or are NaN say nothing about weights."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.layers.axes import LayerView
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["finite_or_magnitude"]


def finite_or_magnitude(
    params: PyTree, scores: PyTree, rankings: PyTree, layers: Sequence[LayerView] | None = None
) -> PyTree:
    """Scores, but |w| for all weights of a ranking in which some score is not finite.

    A mask update must neither prune by index, as where all scores are NaN, nor take an overflow for a large or a small
    score, and its count is due; so that one change is by magnitude. A weight of 0 scores 0 whatever its gradient is:
    nothing is lost without it. A weight that is not finite itself breaks no ranking, and NaN loses in it.

    Args:
        params: Parameter tree.
        scores: Real arrays of their shapes, such as weight times gradient.
        rankings: By leaf 0 if its weights are ranked among themselves, else a number that its ranking's leaves share.
        layers: How every leaf is seen as layers, each ranked by itself; None takes each for one.

    Returns:
        Tree of scores of the same dtypes.

    Example:
        >>> params, grads = {"w": jnp.array([4.0, -2.0, 0.0])}, {"w": jnp.array([0.5, jnp.nan, jnp.nan])}
        >>> product = jax.tree.map(jnp.multiply, params, grads)
        >>> finite_or_magnitude(params, product, {"w": 0})["w"].tolist()
        [4.0, 2.0, 0.0]
    """
    leaves, treedef = jax.tree.flatten(params)
    beside = aligned(params, scores, "scores"), aligned(params, rankings, "rankings")
    columns = list(zip(leaves, *beside, layers or map(LayerView.of_shape, map(jnp.shape, leaves)), strict=True))
    shared: dict[Any, jax.Array] = {}
    for param, score, ranking, _ in columns:
        if ranking:  # magnitudes do not compare with other scores: one broken leaf makes them count in all
            shared[ranking] = shared.get(ranking, jnp.bool_(False)) | _is_broken(param, score)
    usable = [
        _magnitude_where(shared[ranking], param, score) if ranking else view.mapped(_usable, param, score)
        for param, score, ranking, view in columns
    ]
    return jax.tree.unflatten(treedef, usable)


def _is_broken(param: jax.Array, score: jax.Array) -> jax.Array:
    return jnp.any(~jnp.isfinite(_scored(param, score)) & jnp.isfinite(param))


def _scored(param: jax.Array, score: jax.Array) -> jax.Array:
    return jnp.where(param == 0, jnp.zeros((), score.dtype), score)


def _usable(param: jax.Array, score: jax.Array) -> jax.Array:
    return _magnitude_where(_is_broken(param, score), param, score)


def _magnitude_where(is_broken: jax.Array, param: jax.Array, score: jax.Array) -> jax.Array:
    return jnp.where(is_broken, jnp.abs(param).astype(score.dtype), _scored(param, score))
