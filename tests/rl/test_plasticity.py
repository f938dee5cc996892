import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.rl.plasticity import (
    action_distance,
    dormant_share,
    dormant_units,
    network_distance,
    policy_churn,
    srank,
    unit_scores,
)

# Few shapes, each compiled once.
SHAPES = st.sampled_from([(1, 1), (4, 3), (2, 5), (2, 3, 1, 4)])
# Sixteenths are summed without rounding, whatever the order.
SIXTEENTHS = st.integers(-64, 64).map(lambda n: n / 16)
LAYERS = SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=SIXTEENTHS))
SMALL = st.integers(-8, 8).map(float)
MATRICES = st.sampled_from([(1, 1), (5, 3), (3, 6), (7, 7)]).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=SMALL)
)


def slow_scores(layer: np.ndarray) -> list[float]:
    units = layer.shape[-1]
    of_unit = []
    for unit in range(units):
        values = [abs(float(value)) for value in layer[..., unit].ravel()]
        of_unit.append(sum(values) / len(values))
    mean = sum(of_unit) / units
    return [score / mean if mean else 0.0 for score in of_unit]


def slow_rank(features: np.ndarray, delta: float) -> int:
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    for k in range(len(values) + 1):
        if values[:k].sum() >= (1 - delta) * values.sum():
            return k
    raise AssertionError


@hypothesis.given(LAYERS)
def test_scores_agree_with_a_loop(layer):
    np.testing.assert_allclose(unit_scores(layer), slow_scores(layer), rtol=1e-5)


@hypothesis.given(LAYERS, st.integers(-20, 20))
def test_scores_do_not_depend_on_scale(layer, exponent):
    assert unit_scores(layer).tolist() == unit_scores(layer * np.float32(2.0) ** exponent).tolist()


@hypothesis.given(LAYERS, st.randoms(use_true_random=False))
def test_dormant_units_move_with_their_units_and_not_with_the_batch(layer, random):
    units, batch = list(range(layer.shape[-1])), list(range(layer.shape[0]))
    random.shuffle(units)
    random.shuffle(batch)
    dormant = np.asarray(dormant_units(layer, 0.5))
    assert np.asarray(dormant_units(layer[batch][..., units], 0.5)).tolist() == dormant[units].tolist()


@hypothesis.given(LAYERS, st.floats(0, 2), st.floats(0, 2))
def test_a_higher_threshold_finds_more(layer, threshold, other_threshold):
    low, high = sorted([threshold, other_threshold])
    assert not np.any(np.asarray(dormant_units(layer, low)) & ~np.asarray(dormant_units(layer, high)))


def test_of_a_feature_map_batch_and_space_are_averaged():
    maps = np.zeros((2, 3, 3, 3), np.float32)
    maps[0, 1, 2, 0], maps[..., 1] = 18.0, 1.0
    scores = unit_scores({"conv": maps})["conv"]
    np.testing.assert_allclose(scores, [1.5, 1.5, 0.0])
    assert dormant_units({"conv": maps}, 0.0)["conv"].tolist() == [False, False, True]


def test_all_units_of_a_silent_layer_are_dormant():
    layers = {"silent": jnp.zeros((4, 3)), "awake": jnp.ones((4, 5))}
    dormant = dormant_units(layers, 0.0)
    assert dormant["silent"].all()
    assert not dormant["awake"].any()
    assert float(dormant_share(dormant)) == 3 / 8
    assert float(dormant_share({})) == 0.0


def test_units_that_diverged_are_not_called_dormant():
    assert not dormant_units(jnp.array([[jnp.nan, 1.0]]), 0.1)[0]


def test_low_precision_activations_are_averaged_in_float32():
    ones = jnp.ones((4096, 2), jnp.bfloat16).at[:, 1].set(3.0)
    assert unit_scores(ones).tolist() == [0.5, 1.5]


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), "0.1"])
def test_thresholds_are_checked(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*; give a number of at least 0"):
        dormant_units(jnp.ones((1, 1)), threshold)


@hypothesis.given(MATRICES, st.sampled_from([0.01, 0.1, 0.5]))
def test_srank_agrees_with_a_loop(features, delta):
    exact = slow_rank(features, delta)
    # In float32 a sum that meets the bound exactly may fall on either side of it.
    assert int(srank(features, delta)) in {
        exact,
        slow_rank(features, delta * (1 + 1e-4)),
        slow_rank(features, delta * (1 - 1e-4)),
    }
    assert exact <= min(features.shape)


@hypothesis.given(MATRICES, st.randoms(use_true_random=False))
def test_srank_is_bounded_and_does_not_see_order_or_scale(features, random):
    rank = int(srank(features, 0.07))
    assert (rank == 0) == (not features.any())
    assert rank <= min(features.shape)
    rows, columns = (list(range(length)) for length in features.shape)
    random.shuffle(rows)
    random.shuffle(columns)
    near = {slow_rank(features, 0.07 * (1 + slack)) for slack in (-1e-4, 0, 1e-4)}
    assert int(srank(4 * features[rows][:, columns], 0.07)) in near


def test_srank_of_hand_made_features():
    assert int(srank(jnp.zeros((5, 3)))) == 0
    assert int(srank(jnp.ones((5, 3)))) == 1
    assert int(srank(jnp.eye(100))) == 99  # the last of a hundred equal values may be left out
    assert int(srank(jnp.eye(7), delta=0.0)) == 7
    assert int(srank(jnp.ones((0, 3)))) == 0


def test_srank_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match=r"features have shape \(2, 3, 4\); give \[batch, features\]"):
        srank(jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"delta is 1\.0"):
        srank(jnp.ones((2, 3)), delta=1.0)


@hypothesis.given(hnp.arrays(np.float32, (2, 9, 3), elements=st.integers(0, 3).map(float)))
def test_churn_agrees_with_a_loop(q_values):
    before, after = q_values
    changed = sum(list(a).index(max(a)) != list(b).index(max(b)) for a, b in zip(before, after, strict=True))
    assert float(policy_churn(before, after)) == pytest.approx(changed / 9)
    assert float(policy_churn(before, 2 * before + 1)) == 0.0


def test_distances_between_actions_and_bad_shapes():
    assert float(action_distance(jnp.zeros((2, 2)), jnp.array([[1.0, -1.0], [0.0, 2.0]]))) == 1.0
    for churn in (policy_churn, action_distance):
        with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(3, 3\)"):
            churn(jnp.ones((2, 3)), jnp.ones((3, 3)))


def test_distance_of_networks_by_hand():
    online = {"w": jnp.array([[0.0, 2.0], [3.0, 0.0]]), "b": jnp.array([0.0, 1.0])}
    target = {"w": jnp.array([[1.0, 0.0], [1.0, 0.0]]), "b": jnp.array([4.0, 1.0])}
    distance = network_distance(online, target)
    assert float(distance["l2"]) == 5.0  # 1 + 4 + 4 + 0 + 16
    assert float(distance["mask_hamming"]) == 0.5
    only_biases = network_distance(online, target, masks={"w": NOT_PRUNED, "b": jnp.ones(2, jnp.uint8)})
    assert float(only_biases["mask_hamming"]) == 0.5
    assert float(network_distance(online, target, masks={"w": NOT_PRUNED, "b": NOT_PRUNED})["mask_hamming"]) == 0.0


@hypothesis.given(hnp.arrays(np.float32, (2, 4, 3), elements=st.integers(-2, 2).map(float)))
def test_distance_of_networks_agrees_with_a_loop(pair):
    online, target = pair
    entries = list(zip(online.ravel(), target.ravel(), strict=True))
    distance = network_distance({"w": online}, {"w": target})
    assert float(distance["l2"]) == pytest.approx(sum((a - b) ** 2 for a, b in entries) ** 0.5)
    assert float(distance["mask_hamming"]) == pytest.approx(sum((a == 0) != (b == 0) for a, b in entries) / 12)


def test_networks_of_different_shape_have_no_distance():
    with pytest.raises(ValueError, match="parameters 'w' have shapes"):
        network_distance({"w": jnp.ones((2, 2))}, {"w": jnp.ones((2, 1))})
    with pytest.raises(ValueError, match="different tree structures"):
        network_distance({"w": jnp.ones((2, 2))}, {"v": jnp.ones((2, 2))})


def test_everything_can_be_compiled():
    layer, q = jnp.arange(12.0).reshape(4, 3), jnp.eye(3)
    report = lambda a: (dormant_share(dormant_units({"a": a})), srank(a), policy_churn(q, -q), network_distance(q, -q))  # noqa: E731
    assert jax.tree.map(float, jax.jit(report)(layer)) == jax.tree.map(float, report(layer))
