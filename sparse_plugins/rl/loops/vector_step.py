"""What the device does at each step of a vector environment: store, stack, act, learn; pure functions of one run."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparse_plugins.core.schedules import whole_number
from sparse_plugins.rl.environments.interfaces import VectorEnvironment
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.loops.config import FusedConfig
from sparse_plugins.rl.replay import Replay, ReplayState, Row

__all__ = ["Half", "RunState", "VectorAgent", "VectorConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorConfig(FusedConfig):
    """How a training on vector environments plays, remembers and learns: as `FusedConfig`, and in which turns.

    Attributes:
        stack: Frames of an observation, on a new last axis; None if a frame is the observation; 'auto' for 4 images, or
            a single frame of anything else.
        num_halves: Groups of environments that take turns; 2 lets emulators work while the device does.

    Raises:
        ValueError: If a field has a value that is not allowed.

    Example:
        >>> config = VectorConfig(num_envs=16, vector_steps=1, updates=4, warm_up=20_000, capacity=200_000)
        >>> config.clock.period, [config.updates_in_turn(turn) for turn in range(2)]
        (Fraction(4, 1), [2, 2])
    """

    stack: int | Literal["auto"] | None = "auto"
    num_halves: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_envs % whole_number("num_halves", self.num_halves, 1):
            raise ValueError(f"num_envs is {self.num_envs}; give a multiple of num_halves={self.num_halves}.")

    def for_frames(self, shape: Sequence[int]) -> "VectorConfig":
        """The same with a `stack` that is 'auto' decided, for frames of a shape.

        Example:
            >>> VectorConfig().for_frames((84, 84)).stack, VectorConfig().for_frames((4,)).stack
            (4, None)
        """
        return dataclasses.replace(self, stack=self.stacked(shape)) if self.stack == "auto" else self

    def stacked(self, shape: Sequence[int]) -> int | None:
        """Frames of an observation, None for a frame alone, for frames of a shape."""
        if self.stack == "auto":
            return 4 if len(shape) > 1 else None
        return self.stack

    @property
    def turns(self) -> int:
        """Turns of one half in an iteration."""
        return self.vector_steps * self.num_halves

    def updates_in_turn(self, turn: int) -> int:
        """Optimizer steps after a turn, counted within its iteration; they are spread evenly."""
        return (turn + 1) * self.updates // self.turns - turn * self.updates // self.turns

    def replay(self, environment: VectorEnvironment) -> Replay:  # type: ignore[override]
        """The replay of one seed."""
        return self.replay_of(tuple(environment.frame_shape), environment.frame_dtype)

    def replay_of(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Replay:
        """The replay of one seed, for frames of a shape and dtype; it builds the stacks."""
        return dataclasses.replace(super().replay_of(shape, dtype), stack=self.stacked(shape))


class Half(NamedTuple):
    """Environments that are stepped together, between a step and the next.

    Attributes:
        observation: [E, ...], what they show: a frame, or a stack of frames on a last axis.
        first: bool[E], whether the newest frame opens an episode.
        action: int32[E], what was done about it.
        row: What the step before is to leave in the replay, once the other half has stepped too.
    """

    observation: Any
    first: Any
    action: Any
    row: Row


class RunState(NamedTuple):
    """Everything of one run that lives on the device.

    Attributes:
        learner: Networks, masks, optimizer state and key.
        replay: The memory; its `steps` counts steps of the environments.
        halves: One `Half` for each group of environments that take turns.
        loss: float32[], of the last optimizer step.
    """

    learner: LearnerState
    replay: ReplayState
    halves: tuple[Half, ...]
    loss: Any


@dataclasses.dataclass(frozen=True)
class VectorAgent:
    """A learner and its replay, fed by the steps of vector environments.

    Attributes:
        learner: Chooses actions and learns.
        replay: Its memory, of all halves together.
        config: How it plays and learns.
    """

    learner: SparseLearner
    replay: Replay
    config: VectorConfig

    @property
    def axes(self) -> RunState:
        """The state as `in_axes` and `out_axes` of a vmap over seeds."""
        return RunState(learner=0, replay=self.replay.axes, halves=0, loss=0)  # type: ignore[arg-type]

    def init(self, key: jax.Array) -> RunState:
        """A run before its first step; the key decides about masks too, together with the updater's `rng_seed`."""
        learner_key, masks_key = jax.random.split(key)
        size = self.config.num_envs // self.config.num_halves
        observation = jnp.zeros((size, *self.replay.observation_shape), self.replay.frame_dtype)
        frames = jnp.zeros((size, *self.replay.frame_shape), self.replay.frame_dtype)
        no, action = jnp.zeros(size, bool), jnp.zeros(size, jnp.int32)
        # The first step completes a row from before the beginning, which nobody can learn from.
        half = Half(observation, ~no, action, Row(frames, ~no, action, jnp.zeros(size), no, no))
        learner = self.learner.seeded(masks_key).init(learner_key, observation)
        return RunState(learner, self.replay.init(), (half,) * self.config.num_halves, jnp.float32(0))

    def act(
        self,
        state: RunState,
        which: int,
        frames: jax.Array,
        rewards: jax.Array,
        terminated: jax.Array,
        first: jax.Array,
    ) -> tuple[RunState, jax.Array]:
        """Stores what the last actions of a half led to, and chooses its next ones.

        Args:
            state: The run.
            which: Number of the half; the replay gets its rows with those of the last one.
            frames: [E, ...], the newest frames.
            rewards: float32[E], as the game pays them.
            terminated: bool[E], whether the game ended the episode.
            first: bool[E], whether the frames open an episode.

        Returns:
            The run, and int32[E] actions.
        """
        before = state.halves[which]
        frame = before.observation if self.replay.stack is None else before.observation[..., -1]
        rewards = jnp.clip(rewards, -1.0, 1.0) if self.config.clip_rewards else rewards
        # A frame that opens an episode is nobody's successor: the row before it showed a last frame.
        row = Row(frame, before.first, before.action, rewards, terminated, ~first)
        observation = self._observation(before.observation, frames, first)
        action, learner = self.learner.act(state.learner, observation, self.config.epsilon(state.replay.steps))
        halves = [*state.halves[:which], Half(observation, first, action, row), *state.halves[which + 1 :]]
        replay = state.replay
        if which == self.config.num_halves - 1:
            replay = self.replay.append(replay, _joined([half.row for half in halves]))
        return state._replace(learner=learner, halves=tuple(halves), replay=replay), action

    def learn(self, state: RunState, updates: int) -> RunState:
        """Some optimizer steps, 1 or more."""
        rows, steps = state.replay.rows, state.replay.steps  # only read here

        def step(carry: Any, _: None) -> tuple[Any, None]:
            learner, tree, highest, _ = carry
            key, sample_key = jax.random.split(learner.key)
            replay = ReplayState(rows, steps, tree, highest)
            batch = self.replay.sample(replay, sample_key, self.config.batch_size)
            learner, extra = self.learner.learn(learner._replace(key=key), batch)
            if self.config.prioritized:
                replay = self.replay.update_priorities(replay, batch.index, extra["priorities"])
            return (learner, replay.tree, replay.highest, extra["loss"]), None

        carry: Any = (state.learner, state.replay.tree, state.replay.highest, state.loss)
        if jax.default_backend() == "cpu":  # where convolutions inside a loop take ten times as long as outside
            for _ in range(updates):
                carry, _ = step(carry, None)
        else:
            carry, _ = jax.lax.scan(step, carry, None, updates)
        learner, tree, highest, loss = carry
        return state._replace(learner=learner, replay=ReplayState(rows, steps, tree, highest), loss=loss)

    def _observation(self, before: jax.Array, frames: jax.Array, first: jax.Array) -> jax.Array:
        if self.replay.stack is None:
            return frames
        opens = first.reshape(-1, *(1,) * (before.ndim - 1))
        older = jnp.where(opens, jnp.zeros((), before.dtype), before[..., 1:])
        return jnp.concatenate([older, frames[..., None]], axis=-1)


def _joined(rows: Sequence[Row]) -> Row:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
