from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins.core.selection.counts import StepTable, check_fraction, keep_count, part_count, survivor_count
from tests import reference

bounded = settings(max_examples=100, deadline=None, derandomize=True)
sizes = st.integers(0, 2**31 - 1)
HALF = Fraction(1, 2)


@pytest.mark.parametrize(
    ("n", "sparsity", "kept"),
    [(0, 0.5, 0), (1, 1.0, 0), (1, 0.0, 1), (5, 0.5, 2), (7, 0.5, 4), (10, 0.8, 2), (2**31 - 1, 0.0, 2**31 - 1)],
)
def test_counts_by_hand_in_every_form(n: int, sparsity: float, kept: int) -> None:
    for count in (keep_count, survivor_count):
        assert in_every_form(count, n, sparsity) == [kept] * 6
    assert int(part_count(n, 1.0 - sparsity)) == kept
    assert float(jnp.asarray(StepTable(np.array([0.25, sparsity]), jnp.int32(1)))) == np.float32(sparsity)


def in_every_form(count: Any, n: int, fraction: float) -> list[int]:
    table = StepTable(np.array([0.25, fraction]), jnp.int32(1))
    forms = [fraction, np.float64(fraction), table, jnp.float32(fraction)]
    found = [*(count(n, form) for form in forms), count(n, table.values)[1], count(jnp.int32(n), table)]
    return list(map(int, found))


@pytest.mark.parametrize(("n", "sparsity"), [(16, 0.98), (1, 0.999), (3, 1 - 2**-24), (1000, 0.9999)])
def test_what_is_not_asked_to_be_empty_keeps_one(n: int, sparsity: float) -> None:
    assert in_every_form(keep_count, n, sparsity) == [reference.keep_count(n, sparsity)] * 6 == [1] * 6
    assert in_every_form(survivor_count, n, sparsity) == [reference.survivor_count(n, sparsity)] * 6 == [0] * 6
    assert in_every_form(keep_count, n, 1.0) == [0] * 6
    assert in_every_form(keep_count, 0, sparsity) == [0] * 6
    just_below = StepTable(np.array([1 - 2**-50]), jnp.int32(0))  # 1 as a float32
    assert int(keep_count(n, just_below)) == int(keep_count(jnp.int32(n), just_below)) == 1


def test_a_count_in_float32_is_off_by_one_and_ours_is_not() -> None:
    n, sparsity = 25_165_824, 0.9
    assert int(np.rint(np.float32(n) * np.float32(1 - np.float32(sparsity)))) != 2_516_582
    assert keep_count(n, sparsity) == reference.keep_count(n, sparsity) == 2_516_582
    traced = jnp.float32(sparsity)
    assert int(keep_count(n, traced)) == reference.keep_count(n, float(traced))


@bounded
@given(sizes, st.floats(0, 1))
def test_host_counts_are_exact_up_to_double_precision(n: int, sparsity: float) -> None:
    rounding = n * Fraction(1, 2**52)
    assert abs(survivor_count(n, sparsity) - (1 - Fraction(sparsity)) * n) <= HALF + rounding
    assert keep_count(n, sparsity) == max(survivor_count(n, sparsity), int(n > 0 and sparsity < 1))
    assert abs(part_count(n, sparsity) - Fraction(sparsity) * n) <= HALF + rounding
    table = StepTable(np.array([sparsity]), jnp.int32(0))
    assert int(keep_count(n, table)) == keep_count(n, sparsity)
    assert int(part_count(n, table)) == part_count(n, sparsity)


@bounded
@given(sizes, st.floats(2**-8, 1, width=32))
def test_traced_counts_equal_rational_arithmetic(n: int, fraction: float) -> None:
    traced = jnp.float32(fraction)
    assert int(keep_count(n, traced)) == reference.keep_count(n, fraction)
    assert int(survivor_count(n, traced)) == reference.survivor_count(n, fraction)
    assert int(part_count(n, traced)) == round(Fraction(fraction) * n)


@bounded
@given(sizes, st.floats(0, 2**-8, width=32))
def test_traced_counts_of_tiny_fractions_lose_less_than_half_an_entry(n: int, fraction: float) -> None:
    exact = (1 - Fraction(fraction)) * n
    assert abs(int(keep_count(n, jnp.float32(fraction))) - exact) <= HALF + n * Fraction(1, 2**32)


def test_traced_counts_are_the_same_under_jit() -> None:
    fractions = jnp.linspace(0, 1, 33)
    eager = [int(keep_count(24_000_001, fraction)) for fraction in fractions]
    assert jax.jit(jax.vmap(lambda s: keep_count(24_000_001, s)))(fractions).tolist() == eager


@pytest.mark.parametrize("value", [-0.1, 1.7, float("nan"), float("inf"), np.float32(-1), jnp.float32(2)])
def test_a_number_outside_zero_to_one_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"density is {float(value)}; give a number in \[0, 1\]"):
        check_fraction("density", value)


@pytest.mark.parametrize("value", ["0.8", None, True, 1j, [0.5], np.array([0.5])])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"density is .*; give a number in \[0, 1\]"):
        check_fraction("density", value)
