import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins.core.selection import topk
from sparse_plugins.core.selection.topk import Bracket, exact_topk, order_keys
from tests import reference

bounded = settings(max_examples=40, deadline=None, derandomize=True)
mask_of = jax.jit(lambda scores, k: exact_topk([scores], k)[0])
masks_of = jax.jit(exact_topk)

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]
DTYPES = [*FLOATS, jnp.int32, jnp.int8, jnp.uint32, jnp.uint8]
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -1.5]


def draw(size: int, dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Scores with many ties; floats also with NaN, infinities and both zeros, integers with their extremes."""
    rng = np.random.default_rng(seed)
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        pool = np.array([limits.min, limits.min + 1, limits.max, limits.max - 1, 0, 1, 7], np.int64)
        return rng.choice(pool, size).astype(dtype)
    usual = rng.standard_normal(size).astype(dtype)
    return np.where(rng.random(size) < 0.3, rng.choice(np.array(SPECIAL), size).astype(dtype), usual)


def assert_same(got: jax.Array, expected: np.ndarray) -> None:
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("size", [0, 1, 1001])
def test_small_arrays(size: int, dtype: np.dtype) -> None:
    scores = draw(size, dtype, seed=size)
    for k in {0, 1, size // 3, size - 1, size} - {-1}:
        assert_same(mask_of(scores, k), reference.top_k(scores, k))


@pytest.mark.parametrize("size", [65536, 65537, 300007])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_arrays_that_rows_divide_and_others(size: int, dtype: np.dtype) -> None:
    scores = draw(size, dtype)
    for k in (1, size // 5, size - 1):
        assert_same(mask_of(scores, k), reference.top_k(scores, k))


def test_jit_with_a_traced_count_is_eager_with_a_static_one() -> None:
    scores = draw(3 * 333, jnp.float32).reshape(9, 3, 37)
    assert_same(mask_of(scores, jnp.int32(400)), np.asarray(exact_topk([scores], 400)[0]))
    assert [int(mask_of(scores, k).sum()) for k in (-1, 0, 998, 999, 1004)] == [0, 0, 998, 999, 999]


@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (2**40, 3),
        (-(2**40), 0),
        (np.int64(2**32 + 1), 3),
        (np.uint32(2**32 - 1), 3),
        (jnp.uint32(2**32 - 1), 3),
        (jnp.int8(-1), 0),
        (jnp.uint8(2), 2),
    ],
)
def test_any_integer_is_clipped_to_how_many_there_are(k: Any, kept: int) -> None:
    masks = lambda k: exact_topk([jnp.arange(3.0)], k)  # noqa: E731
    assert int(masks(k)[0].sum()) == kept
    if isinstance(k, jax.Array):
        assert int(jax.jit(masks)(k)[0].sum()) == kept


def test_what_is_no_count_is_refused() -> None:
    with pytest.raises(TypeError, match=r"k is 1.9; give how many scores are kept, a whole number"):
        exact_topk([jnp.ones(3)], 1.9)
    with pytest.raises(ValueError, match=r"k has shape \(2,\); give one number"):
        exact_topk([jnp.ones(3)], jnp.array([1, 2]))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_empty_array_may_stand_anywhere_among_others(place: int) -> None:
    scores = [jnp.array([3.0, 1.0]), jnp.array([3.0])]
    scores.insert(place, jnp.ones((0, 4)))
    masks = exact_topk(scores, 2)
    assert masks.pop(place).shape == (0, 4)
    assert [mask.tolist() for mask in masks] == [[1, 0], [1]]


def test_nothing_has_no_masks() -> None:
    assert exact_topk([], 0) == []


def test_nan_is_kept_only_when_nothing_else_is_left() -> None:
    scores = jnp.array([1.0, jnp.nan, -jnp.inf, -jnp.nan, 2.0])
    assert [mask_of(scores, k).tolist() for k in (2, 3, 4)] == [[1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 1]]


def test_equal_scores_and_both_zeros_keep_the_first_entries() -> None:
    assert mask_of(jnp.full((2, 3), 3.0), 4).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert mask_of(jnp.array([-0.0, 0.0, -0.0, 0.0]), 2).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.__name__)
def test_denormals_are_ordered_as_their_bits_on_every_backend(dtype: np.dtype) -> None:
    tiny = np.finfo(np.float32).tiny if dtype != jnp.float16 else np.finfo(np.float16).tiny
    scores = (np.array([0.0, 0.25, 0.5, -0.25, 1.0]) * tiny).astype(dtype)
    assert [mask_of(scores, k).tolist() for k in (2, 4)] == [[0, 0, 1, 0, 1], [1, 1, 1, 0, 1]]


@pytest.mark.parametrize("dtypes", [(np.float32, jnp.bfloat16), (np.int32, np.int8), (np.uint8, np.uint32)])
def test_several_arrays_are_ranked_as_one(dtypes: tuple) -> None:
    shapes = [(5, 7), (), (0, 3), (80_001 if dtypes[0] is np.float32 else 81,), (2, 3, 4)]
    arrays = [draw(int(np.prod(s)), dtypes[i % 2], seed=i).reshape(s) for i, s in enumerate(shapes)]
    total = sum(array.size for array in arrays)
    for k in (0, 1, total // 2, total - 3):
        for got, expected in zip(masks_of(arrays, k), reference.top_k_together(arrays, k), strict=True):
            assert_same(got, expected)


@pytest.mark.parametrize("other", [np.float32, np.uint32])
def test_arrays_whose_order_has_no_common_key_are_refused(other: np.dtype) -> None:
    """100 > 1.0, but the key of the integer 100 lies below that of the float 1.0."""
    with pytest.raises(TypeError, match="int32"):
        exact_topk([jnp.array([100], jnp.int32), jnp.array([1], other)], 1)


@functools.cache
def counting_forms(start: int, total: int) -> tuple[Any, Any]:
    at_once = lambda scores, *rest: topk._count_at_once(scores, start, total, *rest)  # noqa: E731
    in_rows = lambda scores, *rest: topk._count_in_rows(topk._in_rows(scores), start, total, *rest)  # noqa: E731
    return jax.jit(at_once), jax.jit(in_rows)


@pytest.mark.parametrize("tied", [0, 1])
@pytest.mark.parametrize("size", [1000, 16385, 64 * 4096, 2**21 + 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_both_counting_forms_agree_with_a_plain_count(dtype: np.dtype, size: int, tied: int) -> None:
    start, total = 11, size + 20
    scores = draw(size, dtype, seed=1)
    keys, positions = np.asarray(order_keys(scores)), (total - 1 - start - np.arange(size)).astype(np.uint32)
    key = int(np.median(keys))
    bracket = Bracket(*jnp.array([0, tied, key, 0, 0, 0, 0], jnp.uint32))
    pivots = np.sort((positions if tied else keys)[[5, size // 2, size // 3, size - 1]])
    reach = lambda p: (keys > key) | ((keys == key) & (positions >= p)) if tied else keys >= p  # noqa: E731
    plain = [int(reach(max(pivot, 1)).sum()) for pivot in pivots]
    for form in counting_forms(start, total):
        assert form(scores, bracket, jnp.maximum(jnp.asarray(pivots), 1)).tolist() == plain


@pytest.mark.parametrize(
    ("shape", "copies"), [((3, 3, 256, 256), 1), ((8, 1024, 1024), 0)], ids=["keys of a small array", "a large array"]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_a_search_keeps_no_copy_of_positions_and_of_a_large_array_none(
    dtype: np.dtype, shape: tuple, copies: int
) -> None:
    """XLA would make what does not depend on the state of the search once, before it, and read it from memory."""
    scores = jax.ShapeDtypeStruct(shape, dtype)
    program = jax.jit(lambda scores, k: exact_topk([scores], k)).lower(scores, jnp.int32(9)).compile()
    kept = copies * scores.size * dtype(0).itemsize
    assert kept <= program.memory_analysis().temp_size_in_bytes < kept + scores.size / 8


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn, jnp.int8, jnp.uint8, jnp.bool_], ids=lambda d: d.__name__
)
def test_an_array_read_as_it_is_ranks_with_one_read_as_keys(dtype: np.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "_LARGE", 50)
    rng = np.random.default_rng(0)
    scores = [jnp.asarray(rng.integers(0, 100, size)).astype(dtype) for size in (49, 51, 50)]
    keys = np.concatenate([order_keys(score) for score in scores])
    for k in (1, 37, 149):
        mask = np.concatenate(exact_topk(scores, k))
        assert np.flatnonzero(mask).tolist() == sorted(np.argsort(~keys, kind="stable")[:k].tolist())


def test_counts_beyond_the_integers_of_float32() -> None:
    size, k = 2**24 + 5, 2**24 + 3
    assert int(np.float32(k)) != k
    scores = jnp.ones(size).at[jnp.array([7, size - 2])].set(-1.0)
    mask = np.asarray(mask_of(scores, k))
    assert mask.sum(dtype=np.int64) == k
    assert np.flatnonzero(mask == 0).tolist() == [7, size - 2]


@bounded
@given(st.integers(0, 2**31), st.sampled_from([(64,), (3, 41), (2, 5, 7)]), st.floats(0, 1), st.floats(0, 1))
def test_count_is_exact_and_sparser_masks_are_subsets(seed: int, shape: tuple, a: float, b: float) -> None:
    scores = draw(int(np.prod(shape)), jnp.bfloat16, seed).reshape(shape)
    few, many = sorted(round(part * scores.size) for part in (a, b))
    sparse, dense = np.asarray(mask_of(scores, few)), np.asarray(mask_of(scores, many))
    assert (sparse.sum(), dense.sum()) == (few, many)
    assert (sparse <= dense).all()


def test_complex_scores_are_refused() -> None:
    with pytest.raises(TypeError, match=r"scores are complex64; rank a real quantity, .*jnp.abs"):
        exact_topk([jnp.ones(3, jnp.complex64)], 1)


def test_more_scores_than_an_index_can_count_are_refused() -> None:
    many = [jax.ShapeDtypeStruct((2**16, 2**14), jnp.int8)] * 2
    with pytest.raises(ValueError, match=r"2147483648 scores are ranked together; at most 2\*\*31 - 1"):
        jax.eval_shape(lambda arrays: exact_topk(arrays, 1), many)
