"""Agents read from the networks that they build which axes stack layers."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from dopamine.discrete_domains import atari_lib

from sparse_plugins import core
from sparse_plugins.rl import dopamine
from tests.rl.driving import build


class StackedNetwork(nn.Module):
    """Three hidden layers in one array, and a number for every action."""

    num_actions: int
    inputs_preprocessed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        block = lambda dense, x, _: (nn.relu(dense(x)), None)  # noqa: E731
        x = nn.Dense(16)(x.astype(np.float32).reshape(-1))
        stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack(nn.Dense(16, name="blocks"), x, None)
        return atari_lib.DQNNetworkType(nn.Dense(self.num_actions)(x))


def test_layers_of_a_stack_have_their_counts_and_the_plan_lists_them() -> None:
    updater = core.build_updater("static_sparse", sparsity=0.75, distribution="uniform")
    agent = build("jax_dqn", updater=updater, network=StackedNetwork)
    blocks = agent.sparse_params["params"]["blocks"]
    assert np.count_nonzero(blocks["kernel"], axis=(1, 2)).tolist() == [64] * 3
    plan = agent.describe_plan()
    assert "params/blocks/kernel/2  (16, 16)  inputs 16, outputs 16  0.75             64 of 256" in plan
    assert "params/blocks/bias/2    (16,)     elementwise 16         dense            16 of 16" in plan


def test_dopamines_networks_are_pruned_as_before_their_axes_were_read() -> None:
    """The actor of PPO has an output that reads no observation, of which axes are not known."""
    for name in ("atari_100k_rainbow", "ppo"):
        layers = build(name, updater=core.build_updater("static_sparse", sparsity=0.5)).updater.layers
        assert all(axes.is_as_by_shape for axes in layers.values())
        unknown = [path for path, axes in layers.items() if not axes.is_known]
        assert unknown == (["params/_actor/Dense_3/kernel"] if name == "ppo" else [])


def test_an_updater_that_knows_layers_keeps_them() -> None:
    layers = build("jax_dqn", updater=core.build_updater("static_sparse", sparsity=0.5)).updater.layers
    told = dopamine.create_updater_from_config("static_sparse", sparsity=0.5).knowing(core.Layers(layers))
    assert build("jax_dqn", updater=told).updater.layers is told.layers
