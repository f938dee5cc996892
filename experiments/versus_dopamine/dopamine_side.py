"""Runs by Dopamine: its own agent, replay, environment and networks."""
# ruff: noqa: I001 - Dopamine is imported after us, repaired.

import time

import numpy as np

from experiments.common.agents.dopamine_play import episodes, make_agent
from experiments.versus_dopamine.outcomes import REPAIRED, TASKS, End
from sparse_plugins.rl.dopamine.environments import create_minatar_environment
from dopamine.discrete_domains import gym_lib

_ENVIRONMENTS = {
    "cartpole_dqn": (gym_lib.create_gym_environment, 500),
    "minatar_dqn": (create_minatar_environment, 1_000),
}


def run(task: str, side: str, seed: int, steps: int) -> End:
    """Trains the dense agent of a task's gin file.

    Args:
        task: One of `TASKS`.
        side: `DOPAMINE`, or `REPAIRED` to keep the last transition of each episode.
        seed: Seed of agent and environment.
        steps: Agent steps.
    """
    config, units = TASKS[task].config, TASKS[task].units
    bindings = [
        "create_updater_from_config.algorithm = 'no_prune'",
        f"create_sparse_agent.keep_last_transitions = {side == REPAIRED}",
        f"ReplayBuffer.max_capacity = {steps}",
        f"JaxDQNAgent.epsilon_decay_period = {steps // 4}",
    ]
    if config == "cartpole_dqn":
        bindings.append(f"ClassicControlDQNNetwork.hidden_units = {units}")
    create_environment, longest = _ENVIRONMENTS[config]
    agent, environment = make_agent(config, create_environment, seed, bindings)
    done, last, began = 0, [], (0, 0.0)
    for length, total in episodes(agent, environment, longest):
        done += length
        if not began[0] and int(agent.training_steps) > agent.min_replay_history + 100:
            began = done, time.process_time()
        if done > 4 * steps // 5:
            last.append(total)
        if done >= steps:
            break
    pace = (done - began[0]) / (time.process_time() - began[1])
    return End(float(np.mean(last)), len(last), pace)
