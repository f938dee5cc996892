"""The agent, its game and the loop."""

import functools
import math
from typing import Any

import optax

from experiments.common.agents.dqn import dqn
from sparse_plugins import core, rl
from sparse_plugins.rl import haiku

STEPS = 48_000  # environment steps of each seed
CONFIG = rl.FusedConfig(
    num_envs=8,
    updates=4,
    batch_size=64,
    n_step=5,
    warm_up=1_000,
    epsilon_end=0.05,
    epsilon_decay=10_000,
)
DENSE = core.NoPruning()
NEVER_AGAIN = 1 << 30


def pruned(every: int = 500, start: int = 3_000, end: int = 20_000) -> core.BaseUpdater:
    """Magnitude pruning to 90 %, by an ERK budget; steps are environment steps."""
    schedule = core.PolynomialSchedule(every, start, end, step_unit="environment step")
    return core.MagnitudePruning(sparsity_distribution_fn=functools.partial(core.erk, sparsity=0.9), scheduler=schedule)


def trainer(updater: core.BaseUpdater, units: int = 64) -> rl.FusedTrainer:
    """Two layers of so many units; the learning rate falls to a twentieth."""
    game = rl.jax_environments.gymnax_environment("CartPole-v1")
    updates = CONFIG.iterations(STEPS) * CONFIG.updates
    rate, updater = optax.linear_schedule(1e-3, 5e-5, updates), CONFIG.clock.in_optimizer_steps(updater)
    return rl.FusedTrainer(game, dqn(game.num_actions, torso(units), rate, 3.125e-4, updater, 400), CONFIG)


def torso(units: int) -> Any:
    """Two layers of so many units behind CartPole's state, which Dopamine's bounds scale."""
    bounds = (2.4, 5.0, math.pi / 12, 2 * math.pi)
    return haiku.mlp_torso((units, units), low=[-bound for bound in bounds], high=bounds)
