"""Random scores that depend on a seed, a step and a parameter's name, and on nothing else."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.trees import PyTree, leaf_names
from sparse_plugins.wire.seeded_masks import words_of_int

__all__ = ["joined_seed", "key_of_masks", "key_words", "leaf_keys", "random_score", "random_scores"]

_MASKS = zlib.crc32(b"masks")


def key_words(seed: Any) -> jax.Array:
    """A seed in the form the state keeps.

    Args:
        seed: int of up to 64 bits, old-style key (uint32[2]) or typed JAX key of any implementation.

    Returns:
        uint32[2], the words of a threefry key.

    Raises:
        TypeError: For anything else.
        ValueError: For an int that is longer.

    Example:
        >>> key_words(7).tolist()
        [0, 7]
    """
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        # As of jax.random.key, which without 64-bit types would forget the upper half.
        return jnp.array(words_of_int(int(seed)), jnp.uint32)
    if isinstance(seed, (jax.Array, np.ndarray)):
        if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) and seed.shape == ():
            return jax.random.bits(seed, (2,), jnp.uint32)
        if seed.dtype == jnp.uint32 and seed.shape == (2,):
            return jnp.array(seed)  # a copy: the state may be donated, the caller's key may not
    raise TypeError(f"rng_seed is {seed!r}; give an int or one JAX key.")


def key_of_masks(key: jax.Array) -> jax.Array:
    """A key for the random masks of a run that has one key for everything, and draws from it elsewhere, too.

    Args:
        key: JAX key, typed or old-style.

    Returns:
        uint32[2], the words of a threefry key.

    Example:
        >>> bool((key_of_masks(jax.random.key(0)) == key_of_masks(jax.random.PRNGKey(0))).all())
        True
    """
    return jax.random.bits(jax.random.fold_in(key, _MASKS), (2,), jnp.uint32)


def joined_seed(seed: Any, key: Any) -> jax.Array:
    """The seed of masks in the run of a key: another one for every key and for every seed.

    Args:
        seed: An updater's `rng_seed`; 0, the default, adds nothing to the key.
        key: JAX key of the run, typed or old-style.

    Returns:
        uint32[2], the words of a threefry key.

    Example:
        >>> key = jnp.array([3, 4], jnp.uint32)
        >>> joined_seed(0, key).tolist(), joined_seed(1, key).tolist() == joined_seed(2, key).tolist()
        ([3, 4], False)
    """
    if isinstance(seed, (int, np.integer)) and seed == 0:
        return key_words(key)
    joined = jax.random.wrap_key_data(key_words(key), impl="threefry2x32")
    for word in key_words(seed):
        joined = jax.random.fold_in(joined, word)
    return jax.random.key_data(joined)


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
    """Random scores of one leaf: its row-major indices, mixed with the two words of a key.

    The mixing maps numbers of 32 bits one to one, so no two entries of a leaf have the same score. It costs a tenth of
    a cipher such as threefry, from which only the keys come, and NumPy can do it as well.

    Args:
        param: Array, or anything with a shape of fewer than 2**32 entries.
        words: uint32[2], as `leaf_keys` gives them.

    Returns:
        uint32 of the parameter's shape.

    Example:
        >>> random_score(jnp.ones((2, 2)), jnp.array([0, 1], jnp.uint32)).tolist()
        [[1753845952, 3529208806], [305810056, 3374898043]]

    Source: Wellons, Prospecting for Hash Functions (2018), for the constants.
    """
    return _mixed_indices(jnp.shape(param), words)


@functools.partial(jax.jit, static_argnums=0)
def _mixed_indices(shape: tuple[int, ...], words: jax.Array) -> jax.Array:
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):  # an iota for each axis partitions, as a flat one would not
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return _mixed(_mixed(index + words[0]) ^ words[1])


def _mixed(numbers: jax.Array) -> jax.Array:
    numbers = (numbers ^ (numbers >> 16)) * jnp.uint32(0x7FEB352D)
    numbers = (numbers ^ (numbers >> 15)) * jnp.uint32(0x846CA68B)
    return numbers ^ (numbers >> 16)
