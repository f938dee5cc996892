"""The first steps of DQN on Pong: frames of the real ROM through the network, the replay memory and the optimizer."""
# ruff: noqa: I001 - Dopamine is imported after us, repaired.

import time

from experiments.common.agents.dopamine_play import episodes, make_agent, zeros
from dopamine.discrete_domains import atari_lib


def play(steps: int, seed: int) -> dict[str, float]:
    """Plays Pong with the agent of the package's gin file, which learns and is pruned in the last quarter of the steps.

    Args:
        steps: Agent steps of four frames, 80 or more.
        seed: Seed of agent and game.

    Returns:
        What came of it: agent steps, frames of the game, optimizer steps, points won less points lost, zeros in percent
        of the layers that can be pruned, and agent steps a second, compiling included.
    """
    learns = steps // 16  # every fourth step
    bindings = (
        f"ReplayBuffer.max_capacity = {steps}",
        f"JaxDQNAgent.min_replay_history = {3 * steps // 4}",
        f"create_updater_from_config.update_start_step = {learns // 4}",
        f"create_updater_from_config.update_end_step = {3 * learns // 4}",
        f"create_updater_from_config.update_freq = {max(learns // 8, 1)}",
    )
    agent, game = make_agent("pong_dqn", atari_lib.create_atari_environment, seed, bindings)
    started = time.perf_counter()
    length, score = next(episodes(agent, game, steps))
    return {
        "agent steps": length,
        "frames": length * agent.clock.frames_per_step,
        "optimizer steps": int(agent.sparse_state.count),
        "score so far": score,
        "zeros, %": 100 * zeros(agent.sparse_params)["_total_sparsity"],
        "steps a second": length / (time.perf_counter() - started),
    }
