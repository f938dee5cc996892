"""A game and a learner that compile fast."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_plugins import core
from sparse_plugins.rl.environments.interfaces import JaxStep
from sparse_plugins.rl.learner import SparseLearner

LENGTH, LIMIT = 5, 12


class Walk(NamedTuple):
    place: Any
    time: Any


class Corridor:
    """From one end to the other: 1 goes on, 0 back; the goal pays 2, every step costs 0.125; random starts."""

    name, num_actions, observation_shape, observation_dtype = "corridor", 2, (LENGTH,), jnp.dtype(bool)

    def reset(self, key):
        state = Walk(jax.random.randint(key, (), 0, 2), jnp.int32(0))
        return state, self._show(state)

    def step(self, key, state, action):
        place = jnp.clip(state.place + 2 * action - 1, 0, LENGTH - 1)
        terminated = place == LENGTH - 1
        truncated = ~terminated & (state.time + 1 >= LIMIT)
        fresh, _ = self.reset(key)
        ended = terminated | truncated
        state = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, Walk(place, state.time + 1))
        return state, JaxStep(self._show(state), jnp.where(terminated, 2.0, -0.125), terminated, truncated)

    def _show(self, state):
        return jnp.arange(LENGTH) == state.place


HIDDEN = 16
UPDATER = core.RigL(
    sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5),
    scheduler=core.PeriodicSchedule(update_freq=7, update_start_step=1, update_end_step=100),
)


def learner(learning_rate=0.05, updater=UPDATER, **fields):
    def init(key, observation):
        input_key, output_key = jax.random.split(key)
        return {
            "in": jax.random.normal(input_key, (observation.shape[-1], HIDDEN)),
            "out": jax.random.normal(output_key, (HIDDEN, 2)) / HIDDEN,
        }

    def values(params, observation):
        return jax.nn.relu(observation.astype(jnp.float32) @ params["in"]) @ params["out"]

    def loss(params, target, key, batch):
        best = jnp.max(values(target, batch.next_observation), axis=1)
        chosen = jnp.take_along_axis(values(params, batch.observation), batch.action[:, None], axis=1)[:, 0]
        error = chosen - batch.reward - batch.discount * best
        total = jnp.mean(batch.weight * error**2)
        return total, {"loss": total, "priorities": jnp.abs(error)}

    def act(params, key, observation, epsilon):
        greedy = jnp.argmax(values(params, observation), axis=1).astype(jnp.int32)
        coin, other = jax.random.split(key)
        random = jax.random.randint(other, greedy.shape, 0, 2)
        return jnp.where(jax.random.uniform(coin, greedy.shape) < epsilon, random, greedy)

    return SparseLearner(
        network=(init, values),
        loss_fn=loss,
        act_fn=act,
        optimizer=optax.adam(learning_rate),
        updater=updater,
        target_period=5,
        **fields,
    )
