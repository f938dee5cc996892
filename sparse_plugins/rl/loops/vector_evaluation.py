"""How trained agents do in whole games, in environments of their own."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.schedules import whole_number
from sparse_plugins.rl.environments.interfaces import VectorEnvironment, VectorStep
from sparse_plugins.rl.loops.vector import Group, VectorTrainer
from sparse_plugins.rl.loops.vector_step import RunState, VectorConfig

__all__ = ["evaluate"]

_CHUNK = 32  # iterations between two looks at who has played enough
_NEVER = 1 << 24  # iterations; that it is always the same lets a second evaluation compile nothing


def evaluate(
    trainer: VectorTrainer,
    make_environment: Callable[[int, int, int], VectorEnvironment],
    episodes: int,
    *,
    epsilon: float = 0.001,
    longest: int = 27_000,
    at_once: int = 32,
) -> dict[str, np.ndarray]:
    """Scores of whole episodes of every run; training does not notice.

    Each slot plays equally many episodes, so that short ones are not preferred for being over first.

    Args:
        trainer: Holds the agents; it must be between two calls of `advance`.
        make_environment: As for the trainer, but games that it has not played, such as those of other slots:
            `lambda seed, first, size: AtariVector("Pong", size, seed=seed, first_slot=config.num_envs + first)`. Where
            an episode is less than a game, as with `episodic_life`, give one whose episodes are games.
        episodes: Per run.
        epsilon: Probability of a random action.
        longest: Environment steps after which an episode must have ended.
        at_once: Episodes of a run that are played at once, at most.

    Returns:
        By group, float64[seeds, episodes]: sums of rewards as the game pays them.

    Raises:
        ValueError: If an episode has not ended in time, or an argument is out of range.
        EnvironmentFailure: If an environment broke.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> from sparse_plugins.rl import VectorConfig, haiku
        >>> from sparse_plugins.rl.environments import atari
        >>> agent = haiku.SparseDQN(
        ...     num_actions=18, torso=haiku.mlp_torso((8,)), optimizer=optax.adam(1e-4), updater=core.NoPruning())
        >>> boxing = lambda seed, first, size: atari.AtariVector(
        ...     "Boxing", size, seed=seed, first_slot=first, protocol=atari.machado(max_frames=200))
        >>> trainer = VectorTrainer(
        ...     boxing, [Group("dense", agent, seeds=(0, 1))], VectorConfig(num_envs=2, capacity=100, warm_up=10))
        >>> evaluate(trainer, lambda seed, first, size: boxing(seed, 2 + first, size), episodes=3)["dense"].shape
        (2, 3)
        >>> trainer.close()

    Source: Machado et al., Revisiting the Arcade Learning Environment (2018), of whole games that end at 27,000 steps.
    """
    games = math.ceil(whole_number("episodes", episodes, 1) / whole_number("at_once", at_once, 1))
    limit = games * (whole_number("longest", longest, 1) + 1) + _CHUNK
    config = _player_config(trainer.config, math.ceil(episodes / games), epsilon)
    return {
        group.name: _played(group, state, make_environment, config, games, limit)[:, :episodes]
        for group, state in zip(trainer.groups, trainer.states, strict=True)
    }


def _player_config(config: VectorConfig, slots: int, epsilon: float) -> VectorConfig:
    """Of an agent that never learns: its warm-up does not end."""
    return dataclasses.replace(
        config,
        num_envs=slots,
        num_halves=1,
        vector_steps=1,
        updates=1,
        n_step=1,
        prioritized=False,
        capacity=(1 + (config.stacked(()) or 1)) * slots,
        warm_up=_NEVER * slots,
        epsilon_start=epsilon,
        epsilon_end=epsilon,
    )


def _played(
    group: Group,
    state: RunState,
    make_environment: Callable[[int, int, int], VectorEnvironment],
    config: VectorConfig,
    games: int,
    limit: int,
) -> np.ndarray:
    """float64[seeds, games * slots], the first episodes of all slots before the second ones."""
    recorders: list[Any] = []

    def recorded(*where: int) -> Any:
        recorders.append(_Recorder(make_environment(*where)))
        return recorders[-1]

    player = VectorTrainer(recorded, [group], config)
    try:
        # A copy, because acting donates the state.
        player.states[0] = player.states[0]._replace(learner=jax.tree.map(jnp.copy, state.learner))
        while left := sum(max(games - len(slot), 0) for recorder in recorders for slot in recorder.scores):
            if player.iterations >= limit:
                raise ValueError(
                    f"{left} episodes of {player.name} have not ended in time; give a larger `longest`, or an "
                    "environment with a time limit."
                )
            player.advance(_CHUNK)
    finally:
        player.close()
    return np.array([[slot[game] for game in range(games) for slot in recorder.scores] for recorder in recorders])


class _Recorder:
    """An environment that keeps the scores of its episodes, slot by slot."""

    def __init__(self, environment: VectorEnvironment) -> None:
        self._environment = environment
        self._running = np.zeros(environment.num_envs)
        self.scores: list[list[float]] = [[] for _ in range(environment.num_envs)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def recv(self) -> VectorStep:
        step = self._environment.recv()
        self._running = np.where(step.first, 0.0, self._running + step.rewards)
        for slot in np.flatnonzero(step.terminated | step.truncated):
            self.scores[slot].append(float(self._running[slot]))
        return step
