"""How a fused training plays, remembers and learns."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from sparse_plugins.core.schedules import whole_number
from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.loops.pace import Pace
from sparse_plugins.rl.replay import Replay, ReplayState

__all__ = ["FusedConfig"]

_NEVER = 1 << 24  # environment steps; who only plays, to evaluate or to measure, has so long a warm-up


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedConfig(Pace):
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
        for name in ("num_envs", "capacity", "batch_size", "n_step"):
            whole_number(name, getattr(self, name), 1)
        for name in ("priority_exponent", "importance_exponent"):
            check_fraction(name, getattr(self, name))
        if not isinstance(self.prioritized, bool):
            raise TypeError(f"prioritized is {self.prioritized!r}; give True or False.")
        least = (self.n_step + 1) * self.num_envs
        if whole_number("warm_up", self.warm_up, least) % self.num_envs:
            above = math.ceil(self.warm_up / self.num_envs) * self.num_envs
            raise ValueError(
                f"warm_up is {self.warm_up}; give a multiple of num_envs={self.num_envs}, such as {above}."
            )
        self.check_pace()

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

    def learn(
        self,
        learner: SparseLearner,
        learner_state: LearnerState,
        replay: Replay,
        memory: ReplayState,
        observation: jax.Array,
        key: jax.Array,
    ) -> tuple[LearnerState, ReplayState, jax.Array]:
        """As of `Pace`, on rows drawn from the replay; the loss gives back 'priorities', float32[B], too."""
        rows, steps = memory.rows, memory.steps  # only read from here on

        def update(carry: PyTree, key: jax.Array) -> tuple[PyTree, jax.Array]:
            learner_state, tree, highest = carry
            memory = ReplayState(rows, steps, tree, highest)
            batch = replay.sample(memory, key, self.batch_size)
            learner_state, extra = learner.learn(learner_state, batch)
            if self.prioritized:
                memory = replay.update_priorities(memory, batch.index, extra["priorities"])
            return (learner_state, memory.tree, memory.highest), extra["loss"]

        begun = (learner_state, memory.tree, memory.highest)
        (learner_state, tree, highest), losses = lax.scan(update, begun, jax.random.split(key, self.updates))
        return learner_state, ReplayState(rows, steps, tree, highest), jnp.mean(losses)
