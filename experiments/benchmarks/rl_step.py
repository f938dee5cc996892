"""What sparsity costs a Dopamine DQN agent: its training step, and a change of masks.

    python -m experiments.benchmarks.rl_step --rounds 40

A step is the agent's own `_train_step`: sampling from a replay buffer of random transitions, gradient, update. All
agents live in one process and step in shuffled order; the second dense agent is a control.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.timing import interleave, table
from sparse_plugins.rl import dopamine

ALGORITHMS = ("no_prune", "magnitude", "static_sparse", "rigl", "magnitude_ste")


def _networks() -> dict[str, dict[str, Any]]:
    from dopamine.discrete_domains import gym_lib
    from dopamine.jax import networks

    cartpole = functools.partial(
        networks.ClassicControlDQNNetwork,
        min_vals=tuple(gym_lib.CARTPOLE_MIN_VALS),
        max_vals=tuple(gym_lib.CARTPOLE_MAX_VALS),
    )
    atari = {"observation_shape": (84, 84), "stack_size": 4, "num_actions": 6}
    return {
        "CartPole": {
            "network": cartpole,
            "observation_shape": (4, 1),
            "observation_dtype": np.float64,
            "stack_size": 1,
            "num_actions": 2,
        },
        "Pong": {"network": networks.NatureDQNNetwork, **atari},
        "Impala, width 3": {"network": functools.partial(networks.ImpalaDQNNetwork, nn_scale=3), **atari},
    }


def _agent(settings: dict[str, Any], algorithm: str | None, start: int, every: int) -> Any:
    import gin
    from dopamine.jax.agents.dqn import dqn_agent

    with gin.unlock_config():
        gin.parse_config(["ReplayBuffer.max_capacity = 1000", "ReplayBuffer.batch_size = 32"])
    settings = {**settings, "min_replay_history": 100, "update_period": 1, "target_update_period": 10**9, "seed": 0}
    if algorithm is None:
        agent = dqn_agent.JaxDQNAgent(**settings)
    else:
        updater = dopamine.create_updater_from_config(
            algorithm,
            sparsity=0.9,
            update_start_step=start,
            update_end_step=start + 1000 * every,
            update_freq=every,
        )
        agent = dopamine.sparsify(dqn_agent.JaxDQNAgent)(updater=updater, **settings)
    random = np.random.default_rng(0)
    agent.begin_episode(_observation(random, settings))
    for _ in range(108):  # fills the replay and compiles
        agent.step(float(random.normal()), _observation(random, settings))
    return agent


def _observation(random: np.random.Generator, settings: dict[str, Any]) -> np.ndarray:
    shape = settings["observation_shape"]
    return random.random(shape) if shape == (4, 1) else random.integers(0, 255, shape).astype(np.uint8)


def _stepping(agent: Any) -> Callable[[], Any]:
    def run() -> Any:
        agent._train_step()
        return agent.online_params

    return run


def main() -> None:
    """Prints a table per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="counted rounds; one step of each agent a round")
    parser.add_argument("--networks", nargs="+", default=list(_networks()), help="networks to time")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, help="names known to the core")
    options = parser.parse_args()
    print(f"{jax.default_backend()}, jax {jax.__version__}; {options.rounds} rounds\n")
    for network in options.networks:
        settings = _networks()[network]
        agents = {"dense": _agent(settings, None, 0, 1), "dense, again": _agent(settings, None, 0, 1)}
        for algorithm in options.algorithms:
            # Between two mask changes: the first has been made while the replay was filled.
            agents[algorithm] = _agent(settings, algorithm, 2, 10**6)
            if algorithm in ("magnitude", "rigl"):
                agents[f"{algorithm}, masks change at every step"] = _agent(settings, algorithm, 2, 1)
        rounds = options.rounds * (10 if network == "CartPole" else 1)
        timings = interleave({name: _stepping(agent) for name, agent in agents.items()}, "dense", rounds)
        print(f"### {network}\n\n{table(timings, {})}\n", flush=True)


if __name__ == "__main__":
    main()
