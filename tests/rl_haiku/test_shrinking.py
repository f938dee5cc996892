"""Agents that lose their pruned channels in the middle of a training, and go on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.rl import Group, VectorConfig, VectorTrainer, haiku
from sparse_plugins.rl.loops.config import FusedConfig
from sparse_plugins.rl.loops.fused import FusedTrainer
from tests.quick import quick_jit
from tests.rl_haiku.test_vector_loop import Corridors
from tests.rl_haiku.tiny import Corridor, learner

CONFIG = FusedConfig(num_envs=2, capacity=32, batch_size=4, warm_up=8, vector_steps=1, updates=1)


@pytest.fixture(scope="module")
def agent():
    """An agent of 8 hidden units of which 4 stay after its third step, and the graph of its network."""
    x = jnp.ones((1, 5))
    dense = haiku.SparseDQN(
        num_actions=2, torso=haiku.mlp_torso((8,)), optimizer=optax.adam(0.01), updater=core.NoPruning()
    )
    graph = core.channel_graph(dense.network.apply, quick_jit(dense.init)(jax.random.key(0), x).params, x)
    updater = core.build_updater(
        "magnitude", sparsity=0.5, scheduler=core.OneShotSchedule(2), structure=core.ChannelGroups(graph)
    )
    return dataclasses.replace(dense, updater=updater, target_period=2), graph


def test_a_fused_training_goes_on_with_smaller_networks(agent):
    agent, graph = agent
    trainer = FusedTrainer(Corridor(), agent, CONFIG)
    state = trainer.init(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match=r"masks still change \(the last time at step 2\), and training is at step 0"):
        trainer.shrunk(state, graph)
    state, _ = trainer.run(state, 4)
    dense, rows = jax.tree.map(jnp.copy, state.learner), np.asarray(state.replay.rows.frame)
    small, state = trainer.shrunk(state, graph)
    assert small.learner_of.updater.layers is not None, "kernels of four axes need it"
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state.learner.params))
    assert shapes == [(2, 2), (2, 4), (2, 4, 2), (2, 5, 4)]
    x = jax.random.normal(jax.random.key(1), (3, 5))
    for name in ("params", "target_params"):
        before = jax.vmap(agent.values, (0, None))(getattr(dense, name), x)
        after = jax.vmap(small.learner_of.values, (0, None))(getattr(state.learner, name), x)
        np.testing.assert_allclose(before, after, atol=1e-5)
    np.testing.assert_array_equal(rows, state.replay.rows.frame)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), small.template(jax.random.split(jax.random.key(0), 2)))
    assert like == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert small.environment_steps(state) == trainer.config.environment_steps(4)
    later, metrics = small.run(state, 3)
    assert later.learner.steps.tolist() == [7, 7]
    assert np.isfinite(metrics.loss).all()
    assert sorted(leaf.shape for leaf in jax.tree.leaves(later.learner.params)) == shapes


def test_groups_of_a_vector_training_go_on_with_smaller_networks(agent):
    agent, graph = agent
    config = VectorConfig(num_envs=2, capacity=32, batch_size=4, warm_up=4, stack=None, num_halves=1, vector_steps=1)
    groups = [Group("pruned", dataclasses.replace(agent, target_period=1), (0,))]
    trainer = VectorTrainer(Corridors, groups, config)
    with pytest.raises(ValueError, match=r"graphs are for groups \['other'\], and the groups are \['pruned'\]"):
        trainer.shrink({"other": graph})
    trainer.advance(6)
    before = agent.values(jax.tree.map(lambda leaf: leaf[0], trainer.states[0].learner.params), jnp.eye(5))
    trainer.shrink({"pruned": graph})
    smaller = jax.tree.map(lambda leaf: leaf[0], trainer.states[0].learner.params)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(smaller)) == [(2,), (4,), (4, 2), (5, 4)]
    np.testing.assert_allclose(before, trainer.groups[0].learner.values(smaller, jnp.eye(5)), atol=1e-5)
    steps = int(trainer.states[0].learner.steps[0])
    trainer.advance(2)
    assert int(trainer.states[0].learner.steps[0]) == steps + 2
    assert trainer.environment_steps == 16
    trainer.close()


def test_only_learners_that_know_their_network_are_shrunk(agent):
    trainer = FusedTrainer(Corridor(), learner(), CONFIG)
    state = trainer.init(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(TypeError, match="has no with_channels"):
        trainer.shrunk(state, agent[1])
