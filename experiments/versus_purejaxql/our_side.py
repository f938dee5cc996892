"""PQN in `rl.FusedTrainer`, and how the networks of both sides are tested."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.agents.pqn import pqn, pqn_torso
from sparse_plugins import core
from sparse_plugins.rl.environments.gymnax_games import gymnax_environment
from sparse_plugins.rl.loops.fused import FusedState, FusedTrainer
from sparse_plugins.rl.loops.pqn import PQNConfig

EPISODES = 100  # that each seed is tested on


def torso(observations: jax.Array) -> jax.Array:
    """MinAtar's network, which in purejaxql reads grids as if they were pictures."""
    return pqn_torso()(observations.astype(jnp.float32) / 255.0)


def trainer(game: str, steps: int) -> FusedTrainer:
    """The dense agent of a game, for so many environment steps a seed."""
    environment = gymnax_environment(f"{game}-MinAtar")
    loop = PQNConfig(epsilon_decay=steps // 10)
    return FusedTrainer(environment, pqn(environment.num_actions, torso, loop, steps, core.NoPruning()), loop)


def keys_of(seeds: Sequence[int]) -> jax.Array:
    """A JAX key for each seed."""
    return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))


def evaluated(trained: FusedTrainer, state: FusedState) -> list[float]:
    """The mean return of each seed's greedy policy."""
    returns = trained.evaluate(state, EPISODES, jax.random.key(1))
    return [float(episodes.mean()) for episodes in returns]


def run(game: str, seeds: Sequence[int], steps: int) -> tuple[list[float], float]:
    """Trains all seeds together.

    Args:
        game: A game of MinAtar.
        seeds: One run each.
        steps: Environment steps of each.

    Returns:
        The return of each seed, and environment steps of all of them per cpu-second.
    """
    trained = trainer(game, steps)
    state = trained.init(keys_of(seeds))
    iterations = trained.config.iterations(steps)
    tenth = max(iterations // 10, 1)
    state, _ = trained.run(state, max(iterations - 8 * tenth, 1))
    state, _ = trained.run(state, tenth)  # compiles
    jax.block_until_ready(state)
    began = time.process_time()
    for _ in range(7):
        state, _ = trained.run(state, tenth)
    jax.block_until_ready(state)
    pace = 7 * trained.config.environment_steps(tenth) * len(seeds) / (time.process_time() - began)
    return evaluated(trained, state), pace
