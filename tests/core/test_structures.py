import itertools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins.core.selection.counts import survivor_count
from sparse_plugins.core.selection.random_scores import key_words, random_score, random_scores
from sparse_plugins.core.selection.structured_topk import create_mask, kept_units, rank_active_first, regrow_mask
from sparse_plugins.core.structures import (
    Block,
    ByPath,
    Channel,
    ConstantFanIn,
    NByM,
    Structure,
    Unstructured,
    structure_per_leaf,
)
from tests import reference
from tests.quick import thorough

bounded = settings(max_examples=25, deadline=None, derandomize=True)
mask_of = jax.jit(create_mask, static_argnums=1)
regrown = jax.jit(regrow_mask, static_argnums=3)


def draw(shape: tuple, dtype: np.dtype = np.float32, seed: int = 0) -> np.ndarray:
    """Small whole numbers: exact in every dtype, with ties."""
    return np.random.default_rng(seed).integers(-20, 20, shape).astype(dtype)


def slow_mask(scores: np.ndarray, structure: Structure, sparsity: float) -> np.ndarray:
    kept = reference.keep_count(structure.units(scores.shape), sparsity)
    if isinstance(structure, NByM):
        kept = max(reference.keep_count(structure.m, sparsity), structure.n)
        return reference.n_by_m(scores, kept, structure.m, structure.place)
    if isinstance(structure, Block):
        return reference.block(scores, structure.block_shape, kept, structure.use_avg_pooling)
    if isinstance(structure, Channel):
        return reference.channel(scores, structure.place, kept)
    if isinstance(structure, ConstantFanIn):
        return reference.constant_fan_in(scores, structure.place, sparsity)
    return reference.top_k(scores, kept)


@pytest.mark.parametrize("dtype", [np.float32, thorough(jnp.bfloat16)], ids=lambda d: d.__name__)
@pytest.mark.parametrize(
    ("structure", "shape"),
    [
        (Unstructured(), (7, 11)),
        (Unstructured(), ()),
        (NByM(2, 4), (8, 6)),
        (NByM(1, 3, axis=0), (7, 5)),
        (NByM(3, 5, axis=-1), (2, 3, 13)),
        (Block((4, 4)), (8, 12)),
        (Block((3, 3)), (4, 6)),
        (Block((2, 3), use_avg_pooling=False), (3, 2, 5, 7)),
        (Block([4]), (10,)),
        (Channel(), (3, 3, 4, 8)),
        (Channel(axis=-2), (5, 6)),
        (Channel(axis=0), (9,)),
        (ConstantFanIn(), (7, 5)),
        (ConstantFanIn(axis=0), (5, 6)),
        (ConstantFanIn(axis=-1), (3, 3, 4, 5)),
        (ConstantFanIn(axis=0), (4,)),
    ],
    ids=str,
)
def test_masks_equal_the_slow_ones(structure: Structure, shape: tuple, dtype: np.dtype) -> None:
    scores = draw(shape, dtype)
    for sparsity in (0, 0.25, 0.5, 0.75, 1):
        mask = mask_of(scores, structure, np.float32(sparsity))
        assert mask.dtype == jnp.uint8
        np.testing.assert_array_equal(mask, slow_mask(scores, structure, sparsity))


@pytest.mark.parametrize(
    ("structure", "shape", "units"),
    [
        (Unstructured(), (3, 0), 0),
        (NByM(2, 4), (10, 3), 9),
        (NByM(2, 4), (0, 3), 0),
        (Block((4, 4)), (2, 8, 10), 12),
        (Channel(1), (3, 5, 7), 5),
        (ConstantFanIn(), (3, 0), 0),
        (ConstantFanIn(), (0, 3), 3),
    ],
)
def test_units(structure: Structure, shape: tuple, units: int) -> None:
    assert structure.units(shape) == units
    assert mask_of(jnp.zeros(shape), structure, 0.5).shape == shape


def test_nm_lies_along_the_reduction_axis_and_its_ties_go_to_the_lower_index() -> None:
    assert NByM(2, 4).place == -2
    assert mask_of(jnp.ones((8, 2)), NByM(2, 4), 0.5).tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]] * 2


def test_nm_follows_a_gradual_schedule_instead_of_jumping_to_the_full_pattern() -> None:
    assert [kept_units(NByM(2, 4), (8, 8), s) for s in (0, 0.01, 0.25, 0.5, 0.9)] == [4, 4, 3, 2, 2]
    assert int(mask_of(draw((8, 8)), NByM(2, 4), np.float32(0.01)).sum()) == 64


def test_structures_can_be_pickled_and_hashed() -> None:
    by_path = ByPath([["a", NByM(2, 4)]])
    for structure in (Unstructured(), NByM(2, 4), Block([4, 4]), Channel(), ConstantFanIn(), by_path):
        assert pickle.loads(pickle.dumps(structure)) == structure
        assert hash(structure) == hash(pickle.loads(pickle.dumps(structure)))


def test_blocks_lie_over_the_last_axes_so_a_conv_kernel_is_not_pruned_by_tap() -> None:
    mask = np.asarray(mask_of(draw((3, 3, 4, 4)), Block((2, 2)), 0.5)).reshape(9, 4, 4)
    assert mask.sum() == 72
    assert len({tuple(tap.ravel()) for tap in mask}) > 2


def test_a_block_at_the_border_is_averaged_over_the_entries_it_has() -> None:
    scores = jnp.zeros((4, 6)).at[3, 5].set(-1.0).at[3, :3].set(1.0)
    mask = np.asarray(mask_of(scores, Block((3, 3)), 0.75))
    assert mask.shape == (4, 6)
    assert np.argwhere(mask).tolist() == [[3, 0], [3, 1], [3, 2]]


def test_bf16_maximum_over_a_border_block() -> None:
    scores = jnp.full((3, 3), -5.0, jnp.bfloat16).at[2, 2].set(-1.0)
    assert mask_of(scores, Block((2, 2), use_avg_pooling=False), 0.75)[2].tolist() == [0, 0, 1]


def test_channel_sums_of_half_precision_are_made_in_float32() -> None:
    close = jnp.full((513, 2), 1.0, jnp.bfloat16).at[0, 0].set(0.0)
    assert mask_of(close, Channel(), 0.5)[0].tolist() == [0, 1]
    huge = jnp.array([[60000, 60001, 0], [20000, 60000, 0]], jnp.float16)
    assert mask_of(huge, Channel(), 0.67)[0].tolist() == [0, 1, 0]


def test_random_scores_are_those_of_a_loop_over_indices() -> None:
    first, second = 0xDEADBEEF, 0x12345678

    def mixed(number: int) -> int:
        number = (number ^ number >> 16) * 0x7FEB352D % 2**32
        number = (number ^ number >> 15) * 0x846CA68B % 2**32
        return number ^ number >> 16

    expected = [mixed(mixed((index + first) % 2**32) ^ second) for index in range(24)]
    scores = random_score(jax.ShapeDtypeStruct((2, 3, 4), jnp.float32), jnp.array([first, second], jnp.uint32))
    assert np.asarray(scores).ravel().tolist() == expected


def test_random_masks_are_spread_evenly_and_those_of_two_steps_or_layers_are_independent() -> None:
    shape, kept = (512, 256), 13_107
    like = {"a": jax.ShapeDtypeStruct(shape, jnp.float32), "b": jax.ShapeDtypeStruct(shape, jnp.float32)}
    draws = [random_scores(like, key_words(seed), step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    masks = [np.asarray(mask_of(scores[name], Unstructured(), 0.9)).astype(int) for scores in draws for name in "ab"]
    part = kept / masks[0].size
    for mask in masks:
        for sums in (mask.sum(axis=0), mask.sum(axis=1)):
            expected = kept / sums.size
            chi_square = ((sums - expected) ** 2).sum() / (expected * (1 - part))
            assert abs(chi_square - sums.size) < 5 * np.sqrt(2 * sums.size)
    overlap, deviation = masks[0].size * part**2, np.sqrt(masks[0].size) * part * (1 - part)
    for mask, other_mask in itertools.combinations(masks, 2):
        assert abs((mask & other_mask).sum() - overlap) < 5 * deviation


def test_random_scores_of_bf16_parameters_do_not_favour_low_indices() -> None:
    params = {"w": jnp.ones((1000, 100), jnp.bfloat16)}
    scores = random_scores(params, key_words(0), 0)["w"]
    mask = np.asarray(mask_of(scores, Unstructured(), np.float32(0.995)))
    assert mask.sum() == 500
    assert 200 < mask[:500].sum() < 300


@pytest.mark.parametrize(
    "structure", [Unstructured(), NByM(2, 4, axis=0), NByM(3, 5, axis=1), ConstantFanIn()], ids=str
)
@pytest.mark.parametrize("drop_fraction", [0.0, 0.5, *map(thorough, (0.3, 1.0))])
def test_regrown_masks_equal_the_slow_ones(structure: Structure, drop_fraction: float) -> None:
    shape = (12, 10)
    mask = slow_mask(draw(shape, seed=1), structure, 0.5)
    drop, grow = np.abs(draw(shape, seed=2)), np.abs(draw(shape, seed=3))
    drop.flat[::17], grow.flat[::19] = np.nan, np.nan
    grow.flat[::23] = np.inf
    kept = kept_units(structure, shape, 0.5)
    survivors = survivor_count(kept, drop_fraction)
    new = np.asarray(regrown(mask != 0, drop, grow, structure, kept, survivors))
    if isinstance(structure, NByM):
        slow = reference.n_by_m_drop_and_grow(mask, drop, grow, survivors, structure.m, structure.place)
    elif isinstance(structure, ConstantFanIn):
        slow = np.stack(
            [reference.drop_and_grow(*column, survivors) for column in zip(mask.T, drop.T, grow.T, strict=True)]
        ).T
    else:
        slow = reference.drop_and_grow(mask, drop, grow, survivors)
    np.testing.assert_array_equal(new, slow)
    assert new.sum() == mask.sum()
    assert (new != mask).any() == (survivors < kept)


@pytest.mark.parametrize("structure", [Unstructured(), NByM(1, 2, axis=0), Block((2, 2)), Channel()], ids=str)
def test_drop_fraction_zero_keeps_the_mask_however_large_the_gradients(structure: Structure) -> None:
    mask = slow_mask(draw((6, 8)), structure, 0.5)
    huge = jnp.where(mask, 0.0, 1e30)
    kept = kept_units(structure, mask.shape, 0.5)
    for drop in (jnp.zeros(mask.shape), jnp.where(mask, jnp.nan, 1.0)):
        np.testing.assert_array_equal(regrown(mask != 0, drop, huge, structure, kept, kept), mask)


@pytest.mark.thorough
def test_whole_blocks_and_channels_are_dropped_and_grown() -> None:
    mask = jnp.zeros((4, 6), bool).at[:, :2].set(True)
    drop, grow = jnp.ones((4, 6)).at[:2, 0].set(5.0), jnp.zeros((4, 6)).at[2:, 4].set(1.0)
    new = regrown(mask, drop, grow, Block((2, 2)), 2, 1)
    assert np.argwhere(new[::2, ::2]).tolist() == [[0, 0], [1, 2]]
    assert regrown(mask, drop, grow, Channel(), 2, 1)[0].tolist() == [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "scores",
    [[jnp.nan, -jnp.inf, -1.0, 0.0], [-2, -1, 0, 5], np.array([0, 1, 2, 3], np.uint32), [False, True]],
    ids=["float", "int", "uint", "bool"],
)
def test_active_entries_keep_their_order_ahead_of_pruned_ones(scores: list) -> None:
    scores = jnp.asarray(scores)
    active = jnp.ones(scores.shape, bool)
    both = rank_active_first(jnp.tile(scores, 2), jnp.concatenate([active, ~active]), Unstructured()).tolist()
    ranks, pruned = both[: scores.size], both[scores.size :]
    assert ranks == sorted(set(ranks))
    assert max(pruned) < min(ranks)


@pytest.mark.parametrize("structure", [Block((1, 2)), Channel()])
def test_an_active_unit_of_zeros_is_not_exchanged_for_a_pruned_one(structure: Structure) -> None:
    active = jnp.zeros((1, 8), bool).at[:, 4:].set(True)
    scores = rank_active_first(jnp.zeros((1, 8)), active, structure)
    np.testing.assert_array_equal(mask_of(scores, structure, 0.5), active)


@pytest.mark.parametrize("structure", [Block((2, 2)), Block((2, 2), use_avg_pooling=False), Channel()], ids=str)
def test_units_that_are_pruned_in_part_are_ranked_by_what_is_left(structure: Structure) -> None:
    scores = jnp.arange(1.0, 65.0).reshape(8, 8)
    active = np.random.default_rng(0).random((8, 8)) < 0.7
    active[:, :4] = False  # half of the units have nothing
    last = np.zeros((8, 8), np.uint8)
    last[:, 4:] = 1
    np.testing.assert_array_equal(mask_of(rank_active_first(scores, active, structure), structure, 0.5), last)
    filled = np.where(active, scores, 0)
    best = mask_of(rank_active_first(scores, active, structure), structure, 0.75)
    np.testing.assert_array_equal(best, mask_of(jnp.asarray(filled), structure, 0.75))


@pytest.mark.parametrize("sparsity", [80, 1.5, -1.0, float("nan"), jnp.float32("nan")])
def test_what_is_no_sparsity_is_refused(sparsity: Any) -> None:
    with pytest.raises(ValueError, match=r"give a number in \[0, 1\]"):
        create_mask(jnp.ones(4), Unstructured(), sparsity)


@pytest.mark.parametrize("structure", [Block((2, 2)), Channel(), NByM(2, 4), Unstructured()], ids=str)
def test_complex_scores_are_refused_by_every_structure(structure: Structure) -> None:
    with pytest.raises(TypeError, match="rank a real quantity"):
        create_mask(jnp.ones((4, 4), jnp.complex64), structure, 0.5)


@pytest.mark.parametrize("structure", [Unstructured(), Block((1, 2)), Block((1, 2), use_avg_pooling=False), Channel()])
@pytest.mark.parametrize("broken", [jnp.nan, -jnp.inf])
def test_broken_units_stay_ahead_of_pruned_ones_and_behind_the_others(structure: Structure, broken: float) -> None:
    active = jnp.zeros((1, 8), bool).at[:, 4:].set(True)
    scores = jnp.array([[9.0, 9, 9, 9, broken, broken, -3e5, 1]])
    for sparsity, kept in ((0.5, [4, 5, 6, 7]), (0.75, [6, 7])):
        mask = mask_of(rank_active_first(scores, active, structure), structure, sparsity)
        assert np.flatnonzero(mask).tolist() == kept


@pytest.mark.parametrize("structure", [Unstructured(), NByM(2, 4, axis=-1), ConstantFanIn(axis=0), Channel()], ids=str)
def test_where_too_few_are_active_all_stay_and_the_best_are_grown(structure: Structure) -> None:
    mask = np.zeros((2, 8), bool)
    mask[:, 1] = True
    grow = np.tile(np.arange(8.0, dtype=np.float32), (2, 1))
    kept = {Unstructured: 8, Channel: 4}.get(type(structure), 2 if isinstance(structure, NByM) else 4)
    new = np.asarray(regrow_mask(*map(jnp.asarray, (mask, grow, grow)), structure, kept, kept))
    expected = [1, 3, 6, 7] if isinstance(structure, NByM) else [1, 5, 6, 7]
    assert [np.flatnonzero(row).tolist() for row in new] == [expected] * 2


@bounded
@given(st.integers(0, 99), st.sampled_from([(8, 6), (10, 3)]), st.floats(0, 1), st.floats(0, 1))
def test_group_counts_of_nm_and_subsets(seed: int, shape: tuple, a: float, b: float) -> None:
    scores, low, high = draw(shape, seed=seed), *sorted(np.float32([a, b]))
    dense, sparse = (np.asarray(mask_of(scores, NByM(2, 4), s)) for s in (low, high))
    assert (sparse <= dense).all()
    kept = max(reference.keep_count(4, float(high)), 2)
    for start in range(0, shape[0], 4):
        group = sparse[start : start + 4]
        assert (group.sum(axis=0) == min(kept, len(group))).all()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: NByM(4, 2), ValueError, "n=4 of m=2; n must not exceed m"),
        (lambda: NByM(0, 2), ValueError, "NByM.n is 0; the smallest allowed value is 1"),
        (lambda: NByM(2, 4, axis=0.5), TypeError, "NByM.axis is 0.5; give an int"),
        (lambda: Block(()), TypeError, r"block_shape is \(\); give ints such as \(4, 4\)"),
        (lambda: Block(4), TypeError, r"block_shape is 4; give ints"),
        (lambda: Block((0, 4)), ValueError, "entry is 0; the smallest allowed value is 1"),
        (lambda: Channel("in"), TypeError, "Channel.axis is 'in'; give an int"),
        (lambda: ConstantFanIn("out"), TypeError, "ConstantFanIn.axis is 'out'; give an int"),
        (
            lambda: ByPath([("a", "2:4")]),
            TypeError,
            r"structure of 'a' is '2:4'; give an instance such as NByM\(2, 4\)",
        ),
        (lambda: ByPath([], default=Channel), TypeError, "structure of 'default' is"),
        (lambda: ByPath(["a"]), ValueError, r"'a' is not a pair \(regular expression, structure\)"),
        (lambda: ByPath([("(", Channel())]), ValueError, "is not a pair"),
    ],
)
def test_bad_structures_are_refused_when_built(build: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("structure", "shape", "message"),
    [
        (NByM(2, 4), (8,), r"NByM.* needs axis -2, which scores of shape \(8,\) does not have; choose another axis"),
        (ConstantFanIn(2), (4, 4), r"ConstantFanIn.* needs axis 2"),
        (Channel(2), (4, 4), r"Channel.* needs axis 2, which scores of shape \(4, 4\)"),
        (Channel(-2), (4,), r"needs axis -2, .* leave that layer dense with a rule"),
        (Block((4, 4)), (8, 3), r"Block.* is larger than scores of shape \(8, 3\); choose a smaller block"),
        (Block((4, 4)), (16,), r"is larger than scores of shape \(16,\)"),
    ],
)
def test_structures_that_do_not_fit_are_refused(structure: Structure, shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mask(jnp.ones(shape), structure, 0.5)


def test_the_first_rule_decides_about_the_structure_and_every_rule_is_used() -> None:
    by_path = ByPath([("head/.*", Channel()), (".*/w", NByM(2, 4))], default=Block((2, 2)))
    names = ["body/w", "body/v", "head/w"]
    assert structure_per_leaf(by_path, names) == [NByM(2, 4), Block((2, 2)), Channel()]
    with pytest.raises(ValueError, match=r"rule 'haed/\.\*' matches no leaf"):
        structure_per_leaf(ByPath([("haed/.*", Channel())]), names)
    with pytest.raises(ValueError, match="rule 'head/w' is never used: earlier rules match all its leaves"):
        structure_per_leaf(ByPath([("head/.*", Channel()), ("head/w", Block((2, 2)))]), names)
