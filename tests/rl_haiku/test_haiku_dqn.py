"""The agent's losses against loops, how it acts, and its options."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.rl import haiku, q_learning
from tests.quick import quick_jit
from tests.rl_haiku.toy_learner import compiled, mask_changes, run, transitions, updater_of

KEY = jax.random.key(1)
C51 = {"atoms": 5, "v_min": -2.0, "v_max": 2.0}
BATCH = transitions((6,), steps=())


def agent_of(updater: core.BaseUpdater | None = None, **options: Any) -> haiku.SparseDQN:
    settings = {"num_actions": 3, "torso": haiku.mlp_torso((8,)), "optimizer": optax.adam(0.02), "target_period": 5}
    return haiku.SparseDQN(**{**settings, "updater": updater or core.NoPruning(), **options})


@functools.cache
def two_networks(**options: Any) -> tuple[haiku.SparseDQN, Any, Any]:
    agent = agent_of(**options)
    init = quick_jit(agent.network.init)
    return agent, *(init(jax.random.key(seed), BATCH.observation) for seed in (1, 2))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("loss", [None, "huber"])
def test_losses_of_values_agree_with_loops(loss, double):
    agent, online, target = two_networks(loss=loss, double=double)
    weighted = BATCH._replace(weight=np.linspace(0, 2, 8, dtype=np.float32), reward=2 * BATCH.reward)
    value, extra = quick_jit(agent.loss_fn)(online, target, KEY, weighted)
    q, q_next, q_target = (
        np.asarray(agent.values(params, observations))
        for params, observations in (
            (online, weighted.observation),
            (online, weighted.next_observation),
            (target, weighted.next_observation),
        )
    )
    errors, losses = [], []
    for i in range(8):
        best = np.argmax(q_next[i] if double else q_target[i])
        errors.append(weighted.reward[i] + weighted.discount[i] * q_target[i, best] - q[i, weighted.action[i]])
        size = abs(errors[-1])
        losses.append((0.5 * size**2 if size <= 1 else size - 0.5) if loss == "huber" else size**2)
    assert float(value) == pytest.approx(sum(weighted.weight * losses) / 8, rel=1e-4)
    assert float(extra["loss"]) == float(value)
    np.testing.assert_allclose(extra["priorities"], np.abs(errors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_losses_of_distributions_are_cross_entropies(double):
    agent, online, target = two_networks(double=double, dueling=True, **C51)
    weighted = BATCH._replace(weight=np.linspace(0, 2, 8, dtype=np.float32))
    value, extra = quick_jit(agent.loss_fn)(online, target, KEY, weighted)
    support = jnp.linspace(-2.0, 2.0, 5)
    selector = agent.values(online, weighted.next_observation) if double else None
    following = agent.network.apply(target, weighted.next_observation)
    labels = q_learning.categorical_target(weighted.reward, weighted.discount, following, support, selector)
    logits = agent.network.apply(online, weighted.observation)
    expected = q_learning.cross_entropy(logits, weighted.action, labels)
    np.testing.assert_allclose(extra["priorities"], expected, rtol=1e-5)
    assert float(value) == pytest.approx(float(np.mean(weighted.weight * expected)), rel=1e-5)


def test_transitions_of_weight_0_teach_nothing():
    agent, online, target = two_networks()
    gradient = quick_jit(jax.grad(agent.loss_fn, has_aux=True))
    usable = BATCH._replace(weight=np.float32([1, 1, 1, 1, 0, 0, 0, 0]))
    other = usable._replace(observation=np.where(usable.weight[:, None] > 0, usable.observation, 99.0))
    for batch in (usable, other):
        grads, _ = gradient(online, target, KEY, batch)
        expected, _ = gradient(online, target, KEY, usable)
        jax.tree.map(np.testing.assert_array_equal, grads, expected)
    nothing, _ = gradient(online, target, KEY, BATCH._replace(weight=np.zeros(8, np.float32)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing))


@pytest.mark.parametrize("options", [{}, C51], ids=["values", "distributions"])
def test_epsilon_is_the_share_of_random_actions(options):
    agent, online, _ = two_networks(**options)
    state = quick_jit(agent.init)(KEY, BATCH.observation)._replace(params=online)
    observations = np.tile(BATCH.observation[:1], (3000, 1))
    greedy = int(np.argmax(agent.values(online, observations[:1])))
    act = quick_jit(agent.act)
    share = lambda actions: np.bincount(actions, minlength=3) / len(actions)  # noqa: E731
    actions, after = act(state, observations, 0.0)
    assert (actions.dtype, set(np.asarray(actions).tolist())) == (jnp.int32, {greedy})
    np.testing.assert_allclose(share(act(after, observations, 1.0)[0]), 1 / 3, atol=0.04)
    per_environment = np.repeat(np.float32([0.0, 0.6]), 1500)
    actions = np.asarray(act(after, observations, per_environment)[0])
    assert set(actions[:1500].tolist()) == {greedy}
    assert share(actions[1500:])[greedy] == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(
    ("pruner", "options"),
    [("magnitude", {"double": True}), ("rigl", {"double": True, "dueling": True, **C51})],
    ids=["double", "double dueling c51"],
)
def test_agents_are_sparse_at_every_step_and_learn(pruner, options):
    agent = agent_of(updater_of(pruner), **options)
    batches = jax.tree.map(lambda leaf: np.repeat(leaf[None], 40, axis=0), BATCH._replace(discount=np.zeros(8, "f")))
    state, reports, extra = compiled(agent)(KEY, batches)
    assert not np.any(reports.online)
    assert not np.any(reports.target)
    assert mask_changes(reports) >= 2
    assert extra["priorities"].shape == (40, 8)
    assert float(extra["loss"][-1]) < 0.7 * float(extra["loss"][0])
    assert {name for layer in state.params.values() for name in layer} == {"w", "b"}


def test_agents_of_several_seeds_at_once():
    agent = agent_of(updater_of("set"))
    batches = jax.tree.map(lambda leaf: np.repeat(leaf[None], 6, axis=0), BATCH)
    state, reports, _ = quick_jit(jax.vmap(lambda key: run(agent, key, batches)))(jax.random.split(KEY, 3))
    assert state.steps.tolist() == [6, 6, 6]
    assert not np.any(reports.online)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mae"}, "loss is 'mae'; allowed are 'mse' and 'huber'"),
        ({"loss": "mse", **C51}, "loss is 'mse' and atoms 5; distributions have one loss, give none"),
        ({"atoms": 5}, r"atoms is 5, for returns bounded by {}; give v_min and v_max"),
        ({**C51, "v_min": 2.0}, "v_min below v_max"),
        ({"v_max": 10.0}, r"{'v_max': 10.0} bound a return distribution, and there is none; give atoms"),
        ({**C51, "atoms": 1}, "atoms is 1"),
        ({"num_actions": 0}, "num_actions is 0"),
        ({"target_policy": "never"}, "target_policy is 'never'"),
    ],
)
def test_options_that_exclude_each_other_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        agent_of(**options)
