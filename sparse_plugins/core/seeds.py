"""Random scores that depend on a seed, a step and a parameter's name, and on nothing else."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["key_words", "leaf_keys", "random_score", "random_scores"]


def key_words(seed: Any) -> jax.Array:
    """A seed in the form the state keeps.

    Args:
        seed: int, old-style key (uint32[2]) or typed JAX key of any implementation.

    Returns:
        uint32[2], the words of a threefry key.

    Raises:
        TypeError: For anything else.

    Example:
        >>> key_words(7).tolist()
        [0, 7]
    """
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        return jax.random.key_data(jax.random.key(int(seed), impl="threefry2x32"))
    if isinstance(seed, (jax.Array, np.ndarray)):
        if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) and seed.shape == ():
            return jax.random.bits(seed, (2,), jnp.uint32)
        if seed.dtype == jnp.uint32 and seed.shape == (2,):
            return jnp.array(seed)  # a copy: the state may be donated, the caller's key may not
    raise TypeError(f"rng_seed is {seed!r}; give an int or one JAX key.")


def random_scores(params: PyTree, words: jax.Array, step: Any) -> PyTree:
    """Independent random scores for every entry.

    They are 32-bit integers whatever the parameters' dtype: bfloat16 has 128 values in [0, 1), whose ties would
    favour low indices.

    Args:
        params: Parameter tree.
        words: uint32[2] as `key_words` gives it.
        step: Scores of another step are independent.

    Returns:
        uint32 tree of the parameters' shapes.

    Example:
        >>> scores = random_scores({"w": jnp.ones((2, 3), jnp.bfloat16)}, key_words(0), 0)
        >>> scores["w"].shape, str(scores["w"].dtype)
        ((2, 3), 'uint32')
    """
    return jax.tree.map(random_score, params, leaf_keys(params, words, step))


def leaf_keys(params: PyTree, words: jax.Array, step: Any) -> PyTree:
    """The words of a key for every leaf, uint32[2], from which `random_score` makes its scores."""
    key = jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), step)
    # A name, unlike a position, stays when a layer is added or another optimizer takes part of the tree.
    keys = [jax.random.key_data(jax.random.fold_in(key, zlib.crc32(name.encode()))) for name in leaf_names(params)]
    return jax.tree.unflatten(jax.tree.structure(params), keys)


def random_score(param: Any, words: jax.Array) -> jax.Array:
    """uint32 of the parameter's shape."""
    return jax.random.bits(jax.random.wrap_key_data(words, impl="threefry2x32"), jnp.shape(param), jnp.uint32)
