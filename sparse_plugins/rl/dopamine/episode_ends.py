"""The last transition of an episode, which Dopamine's replay leaves out."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from dopamine.jax.agents.dqn import dqn_agent
from dopamine.jax.replay_memory import accumulator, elements

__all__ = ["WholeEpisodeAccumulator", "keep_last_transitions"]


class WholeEpisodeAccumulator(accumulator.TransitionAccumulator):
    """Dopamine's accumulator of transitions, but with the one that ends an episode.

    Dopamine 4.1.2 marks the last but one as terminal in its place, and stores that again for each frame of the stack,
    with more and more frames blank. The action that lost the game, and what it paid, are never learnt from, which
    slows learning where that action decides, as in MinAtar's Breakout.

    Args:
        stack_size: Frames of a state.
        update_horizon: Rewards of an n-step return.
        gamma: Discount per step.

    Example:
        >>> def seen(accumulator):
        ...     for action in (1, 2, 3):
        ...         element = elements.TransitionElement(np.ones(2), action, 10 * action, is_terminal=action == 3)
        ...         yield from [(e.action, e.reward, e.is_terminal) for e in accumulator.accumulate(element)]
        >>> list(seen(accumulator.TransitionAccumulator(stack_size=1, update_horizon=1, gamma=0.9)))
        [(1, 10.0, False), (2, 20.0, True)]
        >>> list(seen(WholeEpisodeAccumulator(stack_size=1, update_horizon=1, gamma=0.9)))
        [(1, 10.0, False), (2, 20.0, False), (3, 30.0, True)]
    """

    def accumulate(self, transition: elements.TransitionElement) -> Iterable[elements.ReplayElement]:
        """What a transition completes; a terminal one is followed by a state that nothing is learnt about."""
        if not transition.is_terminal:
            yield from super().accumulate(transition)
            return
        yield from super().accumulate(transition._replace(is_terminal=False, episode_end=False))
        self._trajectory.append(transition._replace(observation=np.zeros_like(transition.observation), reward=0.0))
        for horizon in range(min(self._update_horizon, len(self._trajectory) - 1), 0, -1):
            window = accumulator.TransitionAccumulator(self._stack_size, horizon, self._gamma)
            window._trajectory.extend(self._trajectory)
            yield window._make_replay_element()
        self.clear()


def keep_last_transitions(agent: dqn_agent.JaxDQNAgent) -> dqn_agent.JaxDQNAgent:
    """The agent, with a replay that keeps the last transition of each episode.

    Args:
        agent: A Dopamine agent, sparse or dense, that has not learnt yet.

    Returns:
        The same agent.

    Raises:
        TypeError: If its replay does not accumulate transitions as Dopamine's does.
    """
    replay: Any = getattr(agent, "_replay", None)
    found: Any = getattr(replay, "_transition_accumulator", None)
    if type(found) is not accumulator.TransitionAccumulator:
        raise TypeError(
            f"{type(agent).__name__} accumulates transitions in {type(found).__name__}; allowed is Dopamine's "
            "TransitionAccumulator."
        )
    replay._transition_accumulator = WholeEpisodeAccumulator(found._stack_size, found._update_horizon, found._gamma)
    return agent
