from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis.extra import numpy as arrays

from sparse_plugins.wire.reader import CodecError, Reader
from sparse_plugins.wire.value_codes import DTYPES, PER_SCALE, decode_values, encode_values, sent_dtype
from tests.wire.cases import FLOATS, OTHERS, random_leaf, same_bits


def there_and_back(values: np.ndarray, dtype: str, shuffled: bool) -> np.ndarray:
    reader = Reader(encode_values(values, dtype, "w", shuffled))
    decoded = decode_values(reader, values.size, values.dtype, dtype, shuffled)
    assert reader.left == 0
    return decoded


KEPT = [(native, dtype) for native in FLOATS + OTHERS for dtype in DTYPES if sent_dtype(native, dtype) == native]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("native", "dtype"), KEPT)
def test_values_that_are_not_narrowed_keep_every_bit(native: Any, dtype: str, shuffled: bool) -> None:
    values = random_leaf(np.random.default_rng(0), (700,), native)
    same_bits(there_and_back(values, dtype, shuffled), values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("native", FLOATS, ids=lambda native: np.dtype(native).name)
def test_signalling_nans_raise_no_warning(native: Any, dtype: str) -> None:
    values = random_leaf(np.random.default_rng(1), (2000,), native)
    with np.errstate(invalid="ignore"):
        values = values[np.isnan(values)]
    assert values.size > 0
    if sent_dtype(native, dtype) == np.int8:
        with pytest.raises(ValueError, match="not finite"):
            encode_values(values, dtype, "w", False)
    else:
        decoded = there_and_back(values, dtype, False)
        with np.errstate(invalid="ignore"):
            assert np.isnan(decoded).all()


@pytest.mark.parametrize(
    ("native", "dtype", "sent"),
    [
        (np.float64, "float32", "float32"),
        (np.float32, "bfloat16", "bfloat16"),
        (np.float32, "float16", "float16"),
        (jnp.bfloat16, "float16", "bfloat16"),
        (np.float16, "bfloat16", "float16"),
        (jnp.float8_e4m3fn, "int8", "float8_e4m3fn"),
        (jnp.bfloat16, "int8", "int8"),
        (np.int64, "int8", "int64"),
        (np.complex64, "int8", "complex64"),
    ],
)
def test_a_leaf_travels_in_the_narrower_dtype(native: Any, dtype: str, sent: str) -> None:
    assert sent_dtype(native, dtype).name == sent


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrower_floats_are_rounded_to_nearest(dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    narrow = jnp.dtype(dtype)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    for original in (values, special):
        np.testing.assert_array_equal(
            there_and_back(original, dtype, False), original.astype(narrow).astype(np.float32), strict=True
        )
    bits = 7 if dtype == "bfloat16" else 10
    assert np.all(
        np.abs(there_and_back(values, dtype, True) - values) <= np.abs(values) * 2.0 ** -(bits + 1) + 2.0**-25
    )


def test_a_value_too_large_for_float16_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"leaf 'w' has values of up to 70000, too large for float16; .*bfloat16"):
        encode_values(np.array([np.inf, 7e4], np.float32), "float16", "w", False)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays.arrays(np.float32, st.integers(0, 600), elements=finite, fill=finite), st.booleans())
@example(np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max], np.float32), False)
@example(np.array([1e-45, 0, -1e-45, 5e-44], np.float32), False)
@example(np.array([-0.0, 0.0], np.float32), True)
def test_int8_is_off_by_half_a_scale(values: np.ndarray, shuffled: bool) -> None:
    decoded = there_and_back(values, "int8", shuffled)
    for start in range(0, values.size, PER_SCALE):
        block, got = (array[start : start + PER_SCALE].astype(np.float64) for array in (values, decoded))
        largest = np.max(np.abs(block))
        scale = largest / 127 * (1 + 2.0**-22) + 2.0**-149
        assert np.all(np.abs(got - block) <= scale / 2 * (1 + 2.0**-15) + 2.0**-150)
        assert np.all(got[block == 0] == 0)
        assert not np.any(np.signbit(got[block == 0]))


def test_int8_scales_are_per_256_values_and_powers_of_two_exact() -> None:
    values = np.concatenate([np.arange(-127, 128), [0], 1024.0 * np.arange(-127, 1)]).astype(np.float32)
    np.testing.assert_array_equal(there_and_back(values, "int8", False), values, strict=True)
    assert len(encode_values(values, "int8", "w", False)) == 2 * 4 + values.size


@pytest.mark.parametrize("native", FLOATS, ids=lambda native: np.dtype(native).name)
def test_int8_serves_every_floating_dtype(native: Any) -> None:
    values = np.linspace(-1, 1, 300).astype(native)
    decoded = there_and_back(values, "int8", False)
    assert decoded.dtype == values.dtype
    assert np.all(np.abs(decoded.astype(np.float64) - values.astype(np.float64)) <= 0.5 / 127 + 2.0**-8)
    extremes = np.array([jnp.finfo(native).max, -jnp.finfo(native).max], native)
    if native != np.float64:
        np.testing.assert_array_equal(there_and_back(extremes, "int8", False), extremes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_int8_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"leaf 'w' has values that are not finite or beyond float32"):
        encode_values(np.array([1.0, bad]), "int8", "w", False)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_forged_scales_are_refused(scale: float) -> None:
    payload = np.float32(scale).tobytes() + b"\x01"
    with pytest.raises(CodecError, match="a scale is negative or not finite"):
        decode_values(Reader(payload), 1, np.float32, "int8", False)


def test_forged_integers_stay_finite() -> None:
    payload = np.finfo(np.float32).max.tobytes() + b"\x80\x7f"
    assert np.isfinite(decode_values(Reader(payload), 2, np.float32, "int8", False)).all()


def test_a_truth_value_is_0_or_1() -> None:
    with pytest.raises(CodecError, match="neither 0 nor 1"):
        decode_values(Reader(b"\x01\x02"), 2, np.bool_, "float32", False)
