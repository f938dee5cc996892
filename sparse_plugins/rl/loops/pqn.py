"""How a fused training plays, and learns from what it has just played: parallelised Q-learning."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparse_plugins.core.schedules import whole_number
from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.loops.pace import Pace
from sparse_plugins.rl.q_learning import lambda_returns
from sparse_plugins.rl.replay import Replay, ReplayState, TargetBatch

__all__ = ["PQNConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PQNConfig(Pace):
    """How parallelised Q-learning plays and learns: no replay that lasts, no target network, returns over many steps.

    An iteration is `vector_steps` steps of all environments, and then `epochs` times all of them in another order, in
    `minibatches` optimizer steps each. An episode that a time limit cuts off ends the returns before it at the value of
    its last observation, and its last step teaches nothing, because what would follow is not seen.

    Attributes:
        num_envs: Environments of one seed, stepped together.
        vector_steps: Steps of each environment in an iteration.
        epochs: How often a step is learnt from.
        minibatches: Optimizer steps of an epoch; they divide `vector_steps * num_envs`.
        discount: Factor per step.
        trace: Weight of longer returns, lambda; 0 is one-step Q-learning.
        epsilon_start: Probability of a random action at first.
        epsilon_end: The same in the end.
        epsilon_decay: Environment steps in which it falls, linearly.
        clip_rewards: Learn from rewards clipped to [-1, 1]; returns are reported as they are.
        warm_up: 0.
        updates: Optimizer steps of an iteration.

    Raises:
        TypeError: If a number of steps is no int.
        ValueError: If a field has a value that is not allowed.

    Example:
        >>> config = PQNConfig(num_envs=128, vector_steps=32, epochs=2, minibatches=32, epsilon_decay=1_000_000)
        >>> config.environment_steps(iterations=100), config.updates, config.clock.period
        (409600, 64, Fraction(64, 1))

    Source: Gallici et al., Simplifying Deep Temporal Difference Learning (2024).
    """

    num_envs: int = 128
    vector_steps: int = 32
    epochs: int = 2
    minibatches: int = 32
    discount: float = 0.99
    trace: float = 0.65
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_decay: int = 1_000_000
    clip_rewards: bool = False
    warm_up: int = dataclasses.field(default=0, init=False)
    updates: int = dataclasses.field(default=1, init=False)

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatches"):
            whole_number(name, getattr(self, name), 1)
        whole_number("vector_steps", self.vector_steps, 2)
        object.__setattr__(self, "updates", self.epochs * self.minibatches)
        check_fraction("trace", self.trace)
        self.check_pace()
        if (rows := self.vector_steps * self.num_envs) % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, and {self.vector_steps} steps of {self.num_envs} environments are "
                f"{rows} rows; give a number that divides them."
            )

    def replay_of(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Replay:
        """What one iteration of one seed has played, for frames of a shape and dtype."""
        return Replay(
            capacity=self.vector_steps * self.num_envs,
            num_envs=self.num_envs,
            frame_shape=shape,
            frame_dtype=dtype,
            discount=self.discount,
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
        """As of `Pace`, on all rows of the iteration; the learner has `values`, such as `haiku.SparsePQN`."""
        rows = memory.rows  # whole iterations fill the ring, so they stand in the order of time
        batch = self.targets(learner, learner_state, memory, observation)
        count = rows.action.size

        def epoch(state: LearnerState, key: jax.Array) -> tuple[LearnerState, jax.Array]:
            order = jax.random.permutation(key, count).reshape(self.minibatches, -1)

            def update(state: LearnerState, chosen: jax.Array) -> tuple[LearnerState, jax.Array]:
                state, extra = learner.learn(state, jax.tree.map(lambda leaf: leaf[chosen], batch))
                return state, extra["loss"]

            return lax.scan(update, state, order)

        learner_state, losses = lax.scan(epoch, learner_state, jax.random.split(key, self.epochs))
        return learner_state, memory, jnp.mean(losses)

    def targets(
        self, learner: Any, learner_state: LearnerState, memory: ReplayState, observation: jax.Array
    ) -> TargetBatch:
        """The rows of an iteration with the returns to learn towards, time and environments on one axis.

        Args:
            learner: Has `values(params, observations) -> float32[B, A]`.
            learner_state: Its state.
            memory: Holds one iteration, the oldest rows first.
            observation: [E, ...], what follows them.
        """
        rows = memory.rows
        seen = jnp.concatenate([rows.frame, observation[None]])
        flat = seen.reshape(-1, *seen.shape[2:])
        best = jnp.max(learner.values(learner_state.params, flat), axis=1).reshape(seen.shape[:2])
        # What a time limit cuts off is worth what its last observation is said to be.
        is_cut = ~rows.usable
        reward = jnp.where(is_cut, best[:-1], rows.reward)
        discount = jnp.where(is_cut | rows.terminated, 0.0, self.discount)
        returns = lambda_returns(reward, discount, best[1:], self.trace)
        columns = TargetBatch(rows.frame, rows.action, returns, rows.usable.astype(jnp.float32))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), columns)
