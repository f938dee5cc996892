"""Sums by which channels are ranked: the same in any order, and right."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_plugins.core.selection.exact_sums import exact_sum

NORMAL = np.random.default_rng(0).normal(size=(3, 2000)).astype(np.float32)


def test_any_order_gives_the_same_bits() -> None:
    shuffled = np.stack([np.random.default_rng(i).permutation(NORMAL[0]) for i in range(20)])
    assert len(np.unique(exact_sum(shuffled, (1,)))) == 1
    assert len(np.unique(np.sum(shuffled, axis=1))) > 1, "numbers for which it does not matter show nothing"
    grouped = exact_sum(shuffled.reshape(20, 20, 100), (1, 2))
    np.testing.assert_allclose(grouped, exact_sum(shuffled, (1,)), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-25, 1e34])
def test_sums_are_those_of_float64(scale: float) -> None:
    values = np.float32(scale) * np.abs(NORMAL)
    np.testing.assert_allclose(exact_sum(values, (1,)), values.sum(1, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(exact_sum(values, (0,)), values.sum(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(exact_sum(values, (0, 1)), values.sum(dtype=np.float64), rtol=1e-5)


def test_small_whole_numbers_and_half_precision_are_added_exactly() -> None:
    ones = jnp.ones((513, 2), jnp.bfloat16).at[0, 0].set(0.0)
    assert exact_sum(ones, (0,)).tolist() == [512.0, 513.0]
    assert exact_sum(jnp.array([[True, True, False], [False, False, False]]), (1,)).tolist() == [2.0, 0.0]


def test_what_is_not_finite_shows() -> None:
    rows = jnp.array([[jnp.nan, 1.0], [-jnp.inf, 2.0], [jnp.inf, 1.0], [jnp.inf, -jnp.inf], [3e38, 3e38], [3e38, 0.0]])
    np.testing.assert_allclose(exact_sum(rows, (1,)), [np.nan, -np.inf, np.inf, np.nan, np.inf, 3e38], rtol=1e-5)


def test_nothing_sums_to_0() -> None:
    assert exact_sum(jnp.zeros((2, 0)), (1,)).tolist() == [0.0, 0.0]
    assert exact_sum(jnp.zeros((2, 3)), (1,)).tolist() == [0.0, 0.0]
