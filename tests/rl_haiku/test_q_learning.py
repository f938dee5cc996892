import json
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparse_plugins.rl import q_learning

GOLDEN = json.loads((Path(__file__).parent / "rlax_values.json").read_text())
GIVEN = {name: jnp.asarray(values) for name, values in GOLDEN["given"].items()}
EXPECTED = GOLDEN["expected"]
SUPPORT = np.array([-3.0, -1.0, 0.0, 2.0, 3.0], np.float32)
PROJECT = jax.jit(q_learning.categorical_projection)

# Halves are on, between and beyond the points of the support, and summed without rounding.
RETURNS = hnp.arrays(np.float32, (2, 4), elements=st.integers(-10, 10).map(lambda n: n / 2))
WEIGHTS = hnp.arrays(np.float32, (2, 4), elements=st.integers(0, 8).map(float)).filter(lambda w: w.sum(1).all())


def given(*names):
    return [GIVEN[name] for name in names]


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def slow_projection(returns: np.ndarray, probabilities: np.ndarray, support: np.ndarray) -> np.ndarray:
    out = np.zeros((len(returns), len(support)))
    for row, (zs, ps) in enumerate(zip(returns, probabilities, strict=True)):
        for z, p in zip(np.clip(zs, support[0], support[-1]), ps, strict=True):
            right = next(i for i, point in enumerate(support) if point >= z)
            if support[right] == z:
                out[row, right] += p
                continue
            share = (z - support[right - 1]) / (support[right] - support[right - 1])
            out[row, right - 1] += p * (1 - share)
            out[row, right] += p * share
    return out


def slow_softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


class TestAgainstRlax:
    @pytest.mark.parametrize("double", [False, True])
    def test_values(self, double):
        selector = GIVEN["selector"] if double else None
        target = q_learning.q_learning_target(*given("reward", "discount", "next_values"), selector)
        error = q_learning.td_error(*given("values", "action"), target)
        close(error, EXPECTED["double_q_learning" if double else "q_learning"])

    @pytest.mark.parametrize("double", [False, True])
    def test_distributions(self, double):
        selector = GIVEN["selector"] if double else None
        target = q_learning.categorical_target(*given("reward", "discount", "next_logits", "support"), selector)
        loss = q_learning.cross_entropy(*given("logits", "action"), target)
        close(loss, EXPECTED["categorical_double_q_learning" if double else "categorical_q_learning"])

    @pytest.mark.parametrize("support", ["support", "uneven_support"])
    def test_projection(self, support):
        projected = PROJECT(*given("returns", "probabilities", support))
        close(projected, EXPECTED[f"categorical_l2_project on {support}"])


def test_targets_and_errors_agree_with_loops():
    values, action, reward, discount, next_values, selector = (
        np.asarray(GIVEN[name]) for name in ("values", "action", "reward", "discount", "next_values", "selector")
    )
    for chooser in (next_values, selector):
        target = [
            reward[i] + discount[i] * next_values[i, max(range(3), key=chooser[i].__getitem__)]
            for i in range(len(reward))
        ]
        got = q_learning.q_learning_target(reward, discount, next_values, chooser)
        close(got, target)
        close(q_learning.td_error(values, action, got), [t - values[i, action[i]] for i, t in enumerate(target)])


def test_distributions_agree_with_loops():
    logits, action, reward, discount, next_logits, support = (
        np.asarray(GIVEN[name]) for name in ("logits", "action", "reward", "discount", "next_logits", "support")
    )
    means = [[float(slow_softmax(row) @ support) for row in state] for state in next_logits]
    close(q_learning.expected_values(next_logits, support), means)
    targets, losses = [], []
    for i in range(len(reward)):
        best = slow_softmax(next_logits[i, int(np.argmax(means[i]))])
        targets.append(slow_projection((reward[i] + discount[i] * support)[None], best[None], support)[0])
        losses.append(-sum(targets[-1] * np.log(slow_softmax(logits[i, action[i]]))))
    got = q_learning.categorical_target(reward, discount, next_logits, support)
    close(got, targets)
    close(q_learning.cross_entropy(logits, action, got), losses)


@hypothesis.given(RETURNS, WEIGHTS)
def test_projection_agrees_with_a_loop_and_keeps_mass_and_mean(returns, weights):
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    projected = np.asarray(PROJECT(returns, probabilities, SUPPORT))
    close(projected, slow_projection(returns, probabilities, SUPPORT))
    close(projected.sum(axis=1), [1, 1])
    assert projected.min() >= 0
    inside = np.clip(returns, SUPPORT[0], SUPPORT[-1])
    close(projected @ SUPPORT, (inside * probabilities).sum(axis=1))


@hypothesis.given(WEIGHTS, st.randoms(use_true_random=False))
def test_projection_leaves_what_is_on_the_support_and_does_not_see_order(weights, random):
    order = list(range(4))
    random.shuffle(order)
    on_support = np.tile(SUPPORT[:4], (2, 1))
    expected = np.pad(weights, [(0, 0), (0, 1)])
    assert PROJECT(on_support[:, order], weights[:, order], SUPPORT).tolist() == expected.tolist()


def test_an_ended_episode_is_worth_its_reward():
    target = q_learning.categorical_target(jnp.array([2.0]), jnp.zeros(1), jnp.ones((1, 2, 5)), jnp.asarray(SUPPORT))
    close(target, [[0, 0, 0, 1, 0]])
    assert q_learning.q_learning_target(jnp.array([2.0]), jnp.zeros(1), jnp.full((1, 2), 7.0)).tolist() == [2.0]


def test_no_gradient_flows_through_targets():
    reward, discount, support = given("reward", "discount", "support")

    def of_values(values):
        return jnp.sum(q_learning.q_learning_target(reward, discount, values, values))

    def of_logits(logits):
        return jnp.sum(q_learning.categorical_target(reward, discount, logits, support)[:, 0])

    for function, x in ((of_values, GIVEN["values"]), (of_logits, GIVEN["logits"])):
        assert not jax.grad(function)(x).any()


def test_gradient_of_the_cross_entropy_is_the_difference_of_probabilities():
    logits, action, support = given("logits", "action", "support")
    target = q_learning.categorical_target(*given("reward", "discount", "next_logits"), support)
    gradient = jax.grad(lambda x: jnp.sum(q_learning.cross_entropy(x, action, target)))(logits)
    for i, chosen in enumerate(np.asarray(action)):
        close(gradient[i, chosen], slow_softmax(np.asarray(logits[i, chosen])) - np.asarray(target[i]))
    assert np.count_nonzero(np.abs(gradient).sum(axis=-1)) == len(action)


def test_shapes_that_would_be_spread_in_silence_are_errors():
    reward, discount, values = given("reward", "discount", "values")
    with pytest.raises(ValueError, match=r"reward has shape \(4, 1\); beside next_values \(4, 3\) give \(4,\)"):
        q_learning.q_learning_target(reward[:, None], discount, values)
    with pytest.raises(ValueError, match=r"values has shape \(3,\); give 2 axes, the batch first"):
        q_learning.td_error(values[0], jnp.zeros(3, int), reward)
    with pytest.raises(ValueError, match=r"target has shape \(4, 3\); beside the logits of an action \(4, 5\)"):
        q_learning.cross_entropy(GIVEN["logits"], GIVEN["action"], values)
    with pytest.raises(ValueError, match=r"support has shape \(1,\); give two or more"):
        q_learning.categorical_projection(values, values, jnp.ones(1))
