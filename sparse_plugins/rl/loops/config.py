"""How a fused training plays, remembers and learns."""

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
from sparse_plugins.rl.replay import Replay

__all__ = ["FusedConfig"]

_NEVER = 1 << 24  # environment steps; who only plays, to evaluate or to measure, has so long a warm-up


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedConfig:
    """How a fused training plays, remembers and learns; steps are environment steps of one seed.

    An iteration is `vector_steps` steps of all environments, and then `updates` optimizer steps.

    Attributes:
        num_envs: Environments of one seed, stepped together.
        capacity: Rows of its replay.
        batch_size: Rows of one optimizer step.
        n_step: Rewards that are summed before the value is bootstrapped.
        discount: Factor per step.
        warm_up: Environment steps before the first optimizer step, a multiple of `num_envs`.
        vector_steps: Steps of each environment in an iteration.
        updates: Optimizer steps in an iteration.
        epsilon_start: Probability of a random action up to the end of the warm-up.
        epsilon_end: The same in the end.
        epsilon_decay: Environment steps after the warm-up in which it falls, linearly.
        prioritized: Draw rows by priority.
        priority_exponent: See `Replay`.
        importance_exponent: See `Replay`.
        clip_rewards: Learn from rewards clipped to [-1, 1]; returns are reported as they are.

    Raises:
        TypeError: If a number of steps is no int.
        ValueError: If a field has a value that is not allowed.

    Example:
        >>> config = FusedConfig(num_envs=8, capacity=10_000, warm_up=1_000, updates=4, epsilon_decay=10_000)
        >>> config.environment_steps(iterations=500), config.clock.period
        (5000, Fraction(2, 1))
        >>> round(float(config.epsilon(750)), 3)
        0.505
    """

    num_envs: int = 8
    capacity: int = 100_000
    batch_size: int = 32
    n_step: int = 1
    discount: float = 0.99
    warm_up: int = 1_000
    vector_steps: int = 1
    updates: int = 1
    epsilon_start: float = 1.0
    epsilon_end: float = 0.01
    epsilon_decay: int = 10_000
    prioritized: bool = False
    priority_exponent: float = 0.5
    importance_exponent: float = 0.5
    clip_rewards: bool = False

    def __post_init__(self) -> None:
        for name in ("num_envs", "capacity", "batch_size", "n_step", "vector_steps", "updates"):
            whole_number(name, getattr(self, name), 1)
        whole_number("epsilon_decay", self.epsilon_decay, 0)
        for name in ("discount", "epsilon_start", "epsilon_end", "priority_exponent", "importance_exponent"):
            check_fraction(name, getattr(self, name))
        for name in ("prioritized", "clip_rewards"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; give True or False.")
        least = (self.n_step + 1) * self.num_envs
        if whole_number("warm_up", self.warm_up, least) % self.num_envs:
            above = math.ceil(self.warm_up / self.num_envs) * self.num_envs
            raise ValueError(
                f"warm_up is {self.warm_up}; give a multiple of num_envs={self.num_envs}, such as {above}."
            )
        replay = self.replay_of((), jnp.float32)
        if self.warm_up + self.epsilon_decay >= (most := replay.counts_up_to * self.num_envs):
            raise ValueError(
                f"warm_up and epsilon_decay are {self.warm_up} and {self.epsilon_decay}; steps are counted to {most}, "
                "so give fewer than that together."
            )

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

    def check_iterations(self, iterations: int) -> int:
        """The same number of iterations.

        Raises:
            ValueError: If an optimizer can't count their steps, by which masks and target networks change.

        Example:
            >>> FusedConfig(updates=2).check_iterations(1_000)
            1000
        """
        if iterations * self.updates > LAST_STEP:
            raise ValueError(
                f"{iterations:,} iterations are {iterations * self.updates:,} optimizer steps, and an optimizer counts "
                f"{LAST_STEP:,}; give fewer environment steps in all, or fewer updates."
            )
        return iterations

    def check_memory(self) -> None:
        """Refuses a warm-up that the replay does not hold, whose first steps would be gone before they teach anything.

        Raises:
            ValueError: If it is longer than the capacity. One of 2**24 steps and more does not end: nothing is learnt.

        Example:
            >>> FusedConfig(warm_up=1_000, capacity=5_000).check_memory()
        """
        if self.capacity < self.warm_up < _NEVER:
            raise ValueError(
                f"warm_up is {self.warm_up} and capacity {self.capacity}: the first {self.warm_up - self.capacity} "
                "steps would be gone from the replay before anything is learnt. Give a larger capacity, or a warm_up "
                "of no more than that."
            )

    def concerns(self, updater: BaseUpdater, environment_steps: int) -> list[str]:
        """What the schedule of an updater will not do in a run of so many environment steps of a seed.

        Example:
            >>> from sparse_plugins import core
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

    def replay_of(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Replay:
        """The replay of one seed, for frames of a shape and dtype."""
        return Replay(
            capacity=self.capacity,
            num_envs=self.num_envs,
            frame_shape=shape,
            frame_dtype=dtype,
            n_step=self.n_step,
            discount=self.discount,
            prioritized=self.prioritized,
            priority_exponent=self.priority_exponent,
            importance_exponent=self.importance_exponent,
        )
