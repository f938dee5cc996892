import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sparse_plugins.rl.replay.priorities import (
    empty_tree,
    get_priorities,
    importance_weights,
    sample_stratified,
    set_priorities,
    total_priority,
)

SIZE = 1_100  # three levels
SET = jax.jit(set_priorities)
SAMPLE = jax.jit(sample_stratified, static_argnums=2)

# Sixteenths are summed without rounding, whatever the order.
PRIORITIES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 64)), min_size=8, max_size=8)


def set_all(tree, pairs):
    index, sixteenths = np.array(pairs).T
    return SET(tree, jnp.int32(index), jnp.float32(sixteenths / 16))


@hypothesis.given(st.lists(PRIORITIES, min_size=1, max_size=5))
def test_sums_are_those_of_the_leaves_and_the_last_twin_wins(batches):
    tree, slow = empty_tree(SIZE), np.zeros(SIZE, np.float32)
    for pairs in batches:
        tree = set_all(tree, pairs)
        for index, sixteenths in pairs:
            slow[index] = sixteenths / 16
    assert get_priorities(tree, jnp.arange(SIZE)).tolist() == slow.tolist()
    assert float(total_priority(tree)) == slow.sum()
    for above, below in itertools.pairwise(tree):
        np.testing.assert_array_equal(above.ravel()[: len(below)], below.sum(axis=1))


def test_sums_do_not_drift():
    """A hundred thousand updates with priorities of all sizes, then one value everywhere."""

    @jax.jit
    def churn(tree, key):
        def step(tree, key):
            index_key, value_key = jax.random.split(key)
            index = jax.random.randint(index_key, (100,), 0, SIZE)
            return set_priorities(tree, index, jnp.exp(20 * jax.random.normal(value_key, (100,)))), None

        return jax.lax.scan(step, tree, jax.random.split(key, 1_000))[0]

    tree = churn(empty_tree(SIZE), jax.random.key(0))
    assert float(total_priority(tree)) > 1e6
    tree = SET(tree, jnp.arange(SIZE), jnp.full(SIZE, 0.25))
    assert float(total_priority(tree)) == SIZE / 4


def test_leaves_are_drawn_in_proportion():
    priorities = np.random.default_rng(0).gamma(0.5, size=SIZE).astype(np.float32)
    priorities[::3] = 0.0
    tree = SET(empty_tree(SIZE), jnp.arange(SIZE), jnp.asarray(priorities))
    drawn = np.asarray(SAMPLE(tree, jax.random.key(1), 200_000))
    counts = np.bincount(drawn, minlength=SIZE)
    expected = priorities / priorities.sum() * 200_000
    assert not counts[::3].any()
    # One from each part: a leaf of m parts is drawn m times, give or take its two ends.
    assert np.abs(counts - expected).max() < 3.0


@hypothesis.given(PRIORITIES, st.integers(0, 2**31 - 1))
def test_a_leaf_of_priority_0_is_never_drawn(pairs, seed):
    tree = set_all(empty_tree(SIZE), pairs)
    drawn = SAMPLE(tree, jax.random.key(seed), 64)
    if float(total_priority(tree)) > 0:
        assert (np.asarray(get_priorities(tree, drawn)) > 0).all()
    assert ((drawn >= 0) & (drawn < SIZE)).all()


def test_a_tiny_priority_among_huge_ones_does_no_harm():
    values = jnp.float32([1e30, 1e-30, 0.0, 1e30])
    tree = SET(empty_tree(4), jnp.arange(4), values)
    assert set(np.asarray(SAMPLE(tree, jax.random.key(0), 64)).tolist()) <= {0, 1, 3}


def test_lanes_of_a_vmap_are_trees_of_their_own():
    index, values = jnp.int32([[0, 7], [7, 7]]), jnp.float32([[1.0, 2.0], [3.0, 4.0]])
    trees = jax.vmap(set_priorities)(jax.vmap(lambda _: empty_tree(40))(index), index, values)
    for lane in range(2):
        alone = set_priorities(empty_tree(40), index[lane], values[lane])
        assert jax.tree.map(lambda many, single, lane=lane: bool((many[lane] == single).all()), trees, alone) == (
            True,
            True,
        )


def test_importance_weights_by_hand():
    priorities = np.float32([0.5, 2.0, 8.0])
    # (N P)^-beta over its largest; the number of rows falls out.
    slow = (1000 * priorities / 10.5) ** -0.4
    np.testing.assert_allclose(importance_weights(jnp.asarray(priorities), 0.4), slow / slow.max(), rtol=1e-6)
    assert importance_weights(jnp.zeros(2), 0.4).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [0, 2**31])
def test_sizes_are_checked(size):
    with pytest.raises(ValueError, match=rf"a tree of {size} priorities can't be made; give 1 to"):
        empty_tree(size)
