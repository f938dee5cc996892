"""Random masks drawn in pieces keep what one ranking of all scores would."""

import numpy as np
import pytest

from sparse_plugins.wire import seeded_masks
from sparse_plugins.wire.seeded_masks import drawn_mask, leaf_scores


def slow_scores(key: tuple[int, int], size: int) -> np.ndarray:
    scores = (np.arange(size, dtype=np.uint64) + key[0]) & 0xFFFFFFFF
    for word in (key[1], 0):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            scores = ((scores ^ scores >> np.uint64(shift)) * np.uint64(factor)) & 0xFFFFFFFF
        scores ^= word
    return scores


def by_full_ranking(key: tuple[int, int], size: int, count: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[np.argpartition(slow_scores(key, size), size - count)[size - count :]] = True
    return mask


SIZES = [2, 65_535, 65_536, 200_001]
KEYS = [(4_294_967_000, 2_654_435_769), (65_535, 4_294_967_295), (0, 0)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", KEYS)
def test_scores_are_those_of_a_hash_number_by_number(key: tuple[int, int], size: int) -> None:
    np.testing.assert_array_equal(leaf_scores(key, size), slow_scores(key, size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sparsity", [0.0001, 0.5, 0.95, 0.9999])
def test_a_mask_is_that_of_one_ranking(size: int, sparsity: float) -> None:
    key, count = KEYS[0], min(size - 1, max(1, round(size * (1 - sparsity))))
    mask = drawn_mask(key, size, count)
    np.testing.assert_array_equal(mask, by_full_ranking(key, size, count))


@pytest.mark.parametrize("count", [3, 100])
def test_a_mask_of_few_among_millions_is_that_of_one_ranking(count: int) -> None:
    """All that are kept and both bounds have the same upper half, so that what finishes a score changes their order."""
    mask = drawn_mask(KEYS[0], 8_000_000, count)
    np.testing.assert_array_equal(mask, by_full_ranking(KEYS[0], 8_000_000, count))


@pytest.mark.parametrize("bounds", [(0, 0), (1 << 31, 1 << 31), ((1 << 32) - 1, (1 << 32) - 1), (0, (1 << 32) - 1)])
def test_scores_that_are_far_from_uniform_are_all_ranked(
    bounds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeded_masks, "_around_threshold", lambda size, count: tuple(map(np.uint32, bounds)))
    np.testing.assert_array_equal(drawn_mask((1, 2), 70_000, 7_000), by_full_ranking((1, 2), 70_000, 7_000))
