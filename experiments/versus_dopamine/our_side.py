"""The same agents in `rl.FusedTrainer`, all seeds at once, with settings of the gin files that Dopamine reads."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments.common.agents.cartpole import torso
from experiments.common.agents.dqn import dqn
from experiments.versus_dopamine.outcomes import TASKS, End
from sparse_plugins import core
from sparse_plugins.rl.environments.gymnax_games import gymnax_environment
from sparse_plugins.rl.haiku import minatar_torso
from sparse_plugins.rl.loops.config import FusedConfig
from sparse_plugins.rl.loops.fused import FusedTrainer


def trainer(task: str, steps: int) -> FusedTrainer:
    """The dense agent of a task.

    Args:
        task: One of `TASKS`.
        steps: Agent steps of a run, by a quarter of which it has stopped to explore.
    """
    settings: dict[str, Any] = {"capacity": steps, "warm_up": 1_000, "epsilon_decay": steps // 4}
    # Dopamine's update period is here the number of environments.
    if TASKS[task].config == "cartpole_dqn":
        game = gymnax_environment("CartPole-v1")
        config = FusedConfig(**settings, num_envs=2, batch_size=64, n_step=3, epsilon_end=0.02)
        rate = optax.linear_schedule(1e-3, 0.0, 50_000)
        network, target_period = torso(TASKS[task].units), 100
    else:
        game = gymnax_environment("Breakout-MinAtar", sticky_actions=0.1, use_minimal_action_set=False)
        config = FusedConfig(**settings, num_envs=4)
        rate, network, target_period = 2.5e-4, minatar_torso(), 250
    agent = dqn(game.num_actions, network, rate, 3.125e-4, core.NoPruning(), target_period)
    return FusedTrainer(game, agent, config)


def run(task: str, seeds: Sequence[int], steps: int) -> list[End]:
    """Trains all seeds of a task together.

    Args:
        task: One of `TASKS`.
        seeds: One run each.
        steps: Agent steps of each.
    """
    trained = trainer(task, steps)
    state = trained.init(jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32)))
    chunk = trained.config.iterations(steps) // 10
    state, _ = trained.run(state, chunk)  # compiles
    jax.block_until_ready(state)
    began, chunks = time.process_time(), []
    for _ in range(9):
        state, metrics = trained.run(state, chunk)
        chunks.append(jax.tree.map(np.asarray, metrics))
    done = 9 * chunk * trained.config.num_envs * len(seeds)
    pace = done / (time.process_time() - began)
    last = chunks[-2:]
    counts, totals = (
        sum(getattr(chunk_metrics, name) for chunk_metrics in last) for name in ("episodes", "return_sum")
    )
    return [End(float(totals[i] / counts[i]), int(counts[i]), pace) for i in range(len(seeds))]
