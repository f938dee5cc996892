"""Messages for the tests of the codec, and their slow readings."""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.masks import NOT_PRUNED, is_pruned

Tree = dict[str, Any]

SHAPES = ((), (0,), (1,), (3, 0, 2), (7,), (8,), (9, 5), (2, 3, 4), (600,), (31, 40))
FLOATS = (np.float32, jnp.bfloat16, np.float16, np.float64)
OTHERS = (np.int32, np.uint8, np.bool_, np.int64, np.complex64)


def random_leaf(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Any bits at all: NaN payloads, infinities, denormals and signed zeros included."""
    if dtype == np.bool_:
        return np.asarray(rng.random(shape) < 0.5)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(rng.bytes(size), np.uint8).view(dtype).reshape(shape)


def random_mask(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> np.ndarray:
    return np.asarray(rng.random(shape) < density, np.uint8)


@st.composite
def messages(draw: st.DrawFn, dtypes: tuple = FLOATS + OTHERS) -> tuple[Tree, Tree, Tree]:
    """Masks, values and the masks of a base, of a nested tree."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    masks, values, base = {}, {}, {}
    for number in range(draw(st.integers(0, 4))):
        name, shape = f"leaf{number}", draw(st.sampled_from(SHAPES))
        whole = draw(st.booleans()) and draw(st.booleans())
        density = draw(st.sampled_from((0.0, 0.02, 0.2, 0.5, 0.95, 1.0)))
        mask = random_mask(rng, shape, density)
        flips = random_mask(rng, shape, draw(st.sampled_from((0.0, 0.01, 0.5))))
        values[name] = [random_leaf(rng, shape, draw(st.sampled_from(dtypes)))]
        masks[name] = [NOT_PRUNED if whole else mask]
        base[name] = [NOT_PRUNED if draw(st.integers(0, 5)) == 0 else np.asarray(mask ^ flips)]
    return masks, values, base


def inside(masks: Tree, values: Tree) -> Tree:
    """The values with zeros outside the masks, entry by entry."""

    def of_leaf(value: np.ndarray, mask: Any) -> np.ndarray:
        kept = np.array(value)
        for position in np.ndindex(value.shape):
            if is_pruned(mask) and not mask[position]:
                kept[position] = 0
        return kept

    return {name: [of_leaf(values[name][0], masks[name][0])] for name in values}


def same_bits(a: Any, b: Any) -> None:
    """Asserts that two trees have the same structure, shapes, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for leaf, expected in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())
