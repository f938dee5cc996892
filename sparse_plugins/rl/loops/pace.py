"""When a loop on the device plays, learns and explores, whatever it learns from."""

import abc
import dataclasses
import fractions
import math

import jax
import jax.numpy as jnp

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.run_length import concerns_of_length
from sparse_plugins.core.schedules import LAST_STEP, whole_number
from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.rl.clock import Clock
from sparse_plugins.rl.environments.interfaces import JaxEnvironment
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.replay import Replay, ReplayState

__all__ = ["Pace"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace(abc.ABC):
    """What the configurations of all loops on the device share: fields, and what follows from them.

    Attributes:
        num_envs: Environments of one seed, stepped together.
        warm_up: Environment steps before the first optimizer step.
        vector_steps: Steps of each environment in an iteration.
        updates: Optimizer steps in an iteration.
        discount: Factor per step.
        epsilon_start: Probability of a random action up to the end of the warm-up.
        epsilon_end: The same in the end.
        epsilon_decay: Environment steps after the warm-up in which it falls, linearly.
        clip_rewards: Learn from rewards clipped to [-1, 1].
    """

    num_envs: int
    warm_up: int
    vector_steps: int
    updates: int
    discount: float
    epsilon_start: float
    epsilon_end: float
    epsilon_decay: int
    clip_rewards: bool

    @property
    def clock(self) -> Clock:
        """How environment and optimizer steps relate; converts the schedule of an updater."""
        per_update = fractions.Fraction(self.num_envs * self.vector_steps, self.updates)
        return Clock(warm_up=self.warm_up, period=per_update)

    def environment_steps(self, iterations: int) -> int:
        """Environment steps of one seed after some iterations, warm-up included."""
        return self.warm_up + iterations * self.vector_steps * self.num_envs

    def iterations(self, environment_steps: int) -> int:
        """Iterations after which at least so many environment steps are made, warm-up included."""
        return max(math.ceil((environment_steps - self.warm_up) / (self.vector_steps * self.num_envs)), 0)

    def learnt_steps(self, environment_steps: int) -> int:
        """Optimizer steps that are certainly made after so many environment steps of one seed.

        Example:
            >>> from sparse_plugins.rl.loops.config import FusedConfig
            >>> FusedConfig(num_envs=8, updates=4, warm_up=1_000).learnt_steps(1_080)
            36
        """
        return max((environment_steps - self.warm_up) // (self.vector_steps * self.num_envs) - 1, 0) * self.updates

    def check_iterations(self, iterations: int) -> int:
        """The same number of iterations.

        Raises:
            ValueError: If an optimizer can't count their steps, by which masks and target networks change.

        Example:
            >>> from sparse_plugins.rl.loops.config import FusedConfig
            >>> FusedConfig(updates=2).check_iterations(1_000)
            1000
        """
        if iterations * self.updates > LAST_STEP:
            raise ValueError(
                f"{iterations:,} iterations are {iterations * self.updates:,} optimizer steps, and an optimizer counts "
                f"{LAST_STEP:,}; give fewer environment steps in all, or fewer updates."
            )
        return iterations

    def concerns(self, updater: BaseUpdater, environment_steps: int) -> list[str]:
        """What the schedule of an updater will not do in a run of so many environment steps of a seed.

        Example:
            >>> from sparse_plugins import core
            >>> from sparse_plugins.rl.loops.config import FusedConfig
            >>> late = core.MagnitudePruning(scheduler=core.OneShotSchedule(500))
            >>> FusedConfig(warm_up=1_000).concerns(late, environment_steps=2_000)
            ['MagnitudePruning changes no mask in a run of 125 optimizer steps: ...']
        """
        return concerns_of_length(updater, self.iterations(environment_steps) * self.updates)

    def epsilon(self, vector_step: jax.Array | int) -> jax.Array:
        """Probability of a random action at a step of the environments, float32[]."""
        # Floats, because an int32 holds neither the steps of all environments nor every length of the decay.
        since = (jnp.float32(vector_step) - float(self.warm_up // self.num_envs)) * self.num_envs
        part = jnp.clip(since / float(max(self.epsilon_decay, 1)), 0.0, 1.0)
        return self.epsilon_start + (self.epsilon_end - self.epsilon_start) * part

    def replay(self, environment: JaxEnvironment) -> Replay:
        """The replay of one seed."""
        return self.replay_of(tuple(environment.observation_shape), environment.observation_dtype)

    @abc.abstractmethod
    def replay_of(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Replay:
        """The replay of one seed, for frames of a shape and dtype."""

    @abc.abstractmethod
    def learn(
        self,
        learner: SparseLearner,
        learner_state: LearnerState,
        replay: Replay,
        memory: ReplayState,
        observation: jax.Array,
        key: jax.Array,
    ) -> tuple[LearnerState, ReplayState, jax.Array]:
        """The optimizer steps of an iteration.

        Args:
            learner: Its loss gives back {'loss': float32[], ...} beside itself.
            learner_state: Its state.
            replay: As of `replay`.
            memory: What it holds.
            observation: [E, ...], what follows the newest rows.
            key: JAX key of this iteration.

        Returns:
            State, memory and the mean loss, float32[].
        """

    def check_memory(self) -> None:  # noqa: B027 - most memories are large enough for any
        """Refuses, where a training is about to begin, a memory that is too small for it."""

    def check_pace(self) -> None:
        """Refuses fields that no loop can go by.

        Raises:
            TypeError: If a number of steps is no int, or `clip_rewards` neither True nor False.
            ValueError: If a field has a value that is not allowed.
        """
        for name in ("num_envs", "vector_steps", "updates"):
            whole_number(name, getattr(self, name), 1)
        whole_number("epsilon_decay", self.epsilon_decay, 0)
        for name in ("discount", "epsilon_start", "epsilon_end"):
            check_fraction(name, getattr(self, name))
        if not isinstance(self.clip_rewards, bool):
            raise TypeError(f"clip_rewards is {self.clip_rewards!r}; give True or False.")
        if self.warm_up + self.epsilon_decay >= (most := self.replay_of((), jnp.float32).counts_up_to * self.num_envs):
            raise ValueError(
                f"warm_up and epsilon_decay are {self.warm_up} and {self.epsilon_decay}; steps are counted to {most}, "
                "so give fewer than that together."
            )
