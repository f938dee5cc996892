"""Dopamine's replay, with the last transition of each episode, against a slow loop over whole episodes."""

import gin
import numpy as np
import pytest
from dopamine.discrete_domains import gym_lib
from dopamine.jax.replay_memory import elements

from sparse_plugins.rl import dopamine
from sparse_plugins.rl.dopamine.runners import create_sparse_runner
from tests.rl.driving import build

DISCOUNT = 0.5


def expected(length, stack, horizon, terminal):
    """What an episode should leave: action, n-step reward, terminal, state and next state of each transition."""
    frame = lambda t: float(t + 1) if 0 <= t < length else 0.0  # noqa: E731
    state = lambda t: [frame(t - back) for back in reversed(range(stack))]  # noqa: E731
    for t in range(length):
        rewards = [10.0 + k for k in range(t, min(t + horizon, length))]
        ends = t + horizon >= length
        if ends and not terminal:  # nobody saw what followed
            return
        reward = sum(r * DISCOUNT**k for k, r in enumerate(rewards))
        yield t, reward, ends, state(t), None if ends else state(t + horizon)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("stack", "horizon"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_every_transition_of_an_episode_is_kept(stack, horizon, terminal):
    whole = dopamine.WholeEpisodeAccumulator(stack, horizon, DISCOUNT)
    for length in (7, 1, 4):  # one after the other
        found = [
            element
            for t in range(length)
            for element in whole.accumulate(
                elements.TransitionElement(
                    np.float64(t + 1), t, 10.0 + t, terminal and t == length - 1, t == length - 1
                )
            )
        ]
        wanted = list(expected(length, stack, horizon, terminal))
        assert [(e.action, e.reward, e.is_terminal) for e in found] == [row[:3] for row in wanted]
        for element, (_, _, ends, state, after) in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(element.state, state)
            if not ends:
                np.testing.assert_array_equal(element.next_state, after)


def test_one_binding_turns_it_on(tmp_path):
    gin.parse_config_file("sparse_plugins/rl/dopamine/configs/cartpole_dqn.gin")
    gin.parse_config(["create_sparse_agent.keep_last_transitions = True", "ReplayBuffer.max_capacity = 500"])
    agent = create_sparse_runner(str(tmp_path))._agent
    poles = gym_lib.create_gym_environment("CartPole", "v1")
    agent.begin_episode(poles.reset())
    steps = 1
    while not (outcome := poles.step(0))[2]:
        agent.step(outcome[1], outcome[0])
        steps += 1
    agent.end_episode(outcome[1], True)
    assert agent._replay.add_count == steps


def test_a_replay_of_another_kind_is_an_error():
    agent = build("jax_dqn")
    dopamine.keep_last_transitions(agent)
    with pytest.raises(TypeError, match="accumulates transitions in WholeEpisodeAccumulator; allowed is Dopamine's"):
        dopamine.keep_last_transitions(agent)
