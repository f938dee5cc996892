"""Replay memory on the device: a ring of rows, n-step windows, and stacks of frames rebuilt as they are read."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.core.trees import exportable
from sparse_plugins.rl.replay.priorities import (
    empty_tree,
    get_priorities,
    importance_weights,
    sample_stratified,
    set_priorities,
    total_priority,
)

__all__ = ["Batch", "Replay", "ReplayState", "Row", "TargetBatch"]

_LEAST_PRIORITY = 1e-6  # of a row whose error is 0, so that it is drawn again some day
_MOST_STEPS = (1 << 31) - 1  # that an int32 can count


@exportable("Row")
class Row(NamedTuple):
    """What is stored of one environment step.

    Attributes:
        frame: The newest piece of observation, as it is stored: uint8[H, W] of pixels, or any array.
        first: bool, whether the frame opens an episode.
        action: int32, the action chosen at the frame.
        reward: float32 of the transition, as the learner is to see it.
        terminated: bool, whether the game ended the episode at this transition, so that nothing is bootstrapped.
        usable: bool, whether the next row is the transition's true successor, or none is needed. False for a truncated
            row if the next row is already the next episode, and for rows that only show an episode's last frame.
    """

    frame: Any
    first: Any
    action: Any
    reward: Any
    terminated: Any
    usable: Any


@exportable("Batch")
class Batch(NamedTuple):
    """What a learner reads; its loss is sum(weight * loss of a row) / batch size.

    Attributes:
        observation: [B, ...], a frame, or a stack of them on a new last axis.
        action: int32[B].
        reward: float32[B], discounted sum of up to n rewards.
        discount: float32[B], factor of the value of the next observation; 0 after the end of an episode.
        next_observation: [B, ...], where the value is bootstrapped.
        weight: float32[B], 0 for a row that teaches nothing, else the importance weight.
        index: int32[B], for `Replay.update_priorities`.
    """

    observation: Any
    action: Any
    reward: Any
    discount: Any
    next_observation: Any
    weight: Any
    index: Any


@exportable("TargetBatch")
class TargetBatch(NamedTuple):
    """What a learner reads whose targets are known; its loss is sum(weight * loss of a row) / batch size.

    Attributes:
        observation: [B, ...].
        action: int32[B].
        target: float32[B], what the value of the action should be.
        weight: float32[B], 0 for a row that teaches nothing.
    """

    observation: Any
    action: Any
    target: Any
    weight: Any


@exportable("ReplayState")
class ReplayState(NamedTuple):
    """The memory.

    Attributes:
        rows: Row of arrays [rows per environment, environments, ...].
        steps: int32[], rows appended per environment so far. Past 2**31 - 1 it goes back by one length of the ring at
            a time, so that it stays right as a place and large as a count; see `Replay.counts_up_to`. Under `vmap` it
            stays unbatched; see `Replay.axes`.
        tree: float32 sum tree of priorities to the exponent; None without.
        highest: float32[], the highest priority so far, which new rows get; None without.
    """

    rows: Row
    steps: Any
    tree: Any
    highest: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """Pure functions of a replay memory: init, append, sample and update_priorities.

    Donate the state, or carry it through a scan: rows are then written in place.

    Attributes:
        capacity: Rows over all environments, at most; each environment keeps its newest `capacity // num_envs`.
        num_envs: Environments, each of which appends a row per step.
        frame_shape: Shape of a row's frame.
        frame_dtype: dtype of a row's frame.
        stack: Frames of an observation, blank (0) before the episode's first; None if a frame is the observation.
        n_step: Rewards that are summed before the value is bootstrapped.
        discount: Factor per step, in [0, 1].
        prioritized: Draw rows by priority instead of uniformly.
        priority_exponent: How far priorities matter; 0 is uniform.
        importance_exponent: How far importance weights undo the bias.

    Raises:
        ValueError: If a field has a value that is not allowed, or the capacity is too small to ever sample.

    Example:
        >>> replay = Replay(capacity=8, num_envs=1, frame_shape=(), frame_dtype=jnp.float32, n_step=2, discount=0.5)
        >>> state = replay.init()
        >>> for step in range(4):
        ...     row = Row(jnp.float32([step]), jnp.array([step == 0]), jnp.int32([0]), jnp.float32([1.0]),
        ...               jnp.array([False]), jnp.array([True]))
        ...     state = replay.append(state, row)
        >>> batch = replay.sample(state, jax.random.key(0), 3)
        >>> batch.observation.tolist(), batch.next_observation.tolist(), batch.reward.tolist(), batch.discount.tolist()
        ([1.0, 0.0, 0.0], [3.0, 2.0, 2.0], [1.5, 1.5, 1.5], [0.25, 0.25, 0.25])

    Source: Mnih et al., Human-level Control Through Deep Reinforcement Learning (2015); Schaul et al., Prioritized
    Experience Replay (2016).
    """

    capacity: int
    num_envs: int
    frame_shape: tuple[int, ...]
    frame_dtype: Any
    stack: int | None = None
    n_step: int = 1
    discount: float = 0.99
    prioritized: bool = False
    priority_exponent: float = 0.5
    importance_exponent: float = 0.5

    def __post_init__(self) -> None:
        for name in ("capacity", "num_envs", "n_step") + (() if self.stack is None else ("stack",)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 30:
                raise ValueError(f"{name} is {value!r}; give an int from 1 to {(1 << 30) - 1}.")
        for name in ("discount", "priority_exponent", "importance_exponent"):
            check_fraction(name, getattr(self, name))
        if self._length < (least := self._reach + self.n_step):
            raise ValueError(
                f"capacity is {self.capacity}, {self._length} rows for each of {self.num_envs} environments, and a "
                f"window of {self.n_step} steps with stacks of {self._reach} needs {least}; give "
                f"{least * self.num_envs} or more."
            )

    @property
    def axes(self) -> ReplayState:
        """The state as `in_axes` and `out_axes` of a vmap over seeds: all lanes write at the same place."""
        has_tree = 0 if self.prioritized else None
        return ReplayState(rows=0, steps=None, tree=has_tree, highest=has_tree)  # type: ignore[arg-type]

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation in a batch."""
        return self.frame_shape if self.stack is None else (*self.frame_shape, self.stack)

    @property
    def counts_up_to(self) -> int:
        """The number of steps below which the state's `steps` is exact; above, it is this or more."""
        return _MOST_STEPS + 1 - self._length

    def bytes(self) -> int:
        """Memory of the state, in bytes."""
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(self.init)))

    def init(self) -> ReplayState:
        """The empty memory."""
        each = (self._length, self.num_envs)
        rows = Row(
            frame=jnp.zeros((*each, *self.frame_shape), self.frame_dtype),
            first=jnp.zeros(each, bool),
            action=jnp.zeros(each, jnp.int32),
            reward=jnp.zeros(each, jnp.float32),
            terminated=jnp.zeros(each, bool),
            usable=jnp.zeros(each, bool),
        )
        tree = empty_tree(self._length * self.num_envs) if self.prioritized else None
        return ReplayState(rows, jnp.int32(0), tree, jnp.float32(1.0) if self.prioritized else None)

    def append(self, state: ReplayState, row: Row) -> ReplayState:
        """The memory with one more row of every environment; the oldest go.

        Args:
            state: The memory.
            row: Row of arrays [environments, ...].

        Returns:
            The memory.
        """
        at = state.steps % self._length
        write = lambda ring, new: lax.dynamic_update_index_in_dim(ring, new.astype(ring.dtype), at, 0)  # noqa: E731
        rows = jax.tree.map(write, state.rows, row)
        steps = jnp.where(state.steps == _MOST_STEPS, self.counts_up_to, state.steps + 1)
        state = state._replace(rows=rows, steps=steps)
        if not self.prioritized:
            return state
        # One row's window is complete now; the stack of another has just lost its first frame.
        complete, cut = (at - self.n_step) % self._length, (at + self._reach - 1) % self._length
        is_new = rows.usable[complete] & (state.steps > self.n_step)
        values = jnp.concatenate([jnp.zeros(self.num_envs), jnp.where(is_new, state.highest, 0.0)])
        index = jnp.concatenate([self._index(cut), self._index(complete)])
        return state._replace(tree=set_priorities(state.tree, index, values))

    def sample(self, state: ReplayState, key: jax.Array, batch_size: int) -> Batch:
        """Rows whose whole window and stack are stored, drawn with replacement.

        Args:
            state: The memory. As long as no window is complete all weights are 0.
            key: JAX key.
            batch_size: How many.

        Returns:
            Batch of arrays [batch_size, ...].
        """
        if self.prioritized:
            index = sample_stratified(state.tree, key, batch_size)
            weight = importance_weights(get_priorities(state.tree, index), self.importance_exponent)
            weight = jnp.where(total_priority(state.tree) > 0, weight, 0.0)
        else:
            oldest = jnp.maximum(state.steps - self._length + self._reach - 1, 0)
            count = state.steps - self.n_step - oldest
            drawn = jax.random.randint(key, (batch_size,), 0, jnp.maximum(count, 1) * self.num_envs)
            # A place of the ring times environments fits an int32; a count of steps times environments does not.
            index = (drawn + oldest % self._length * self.num_envs) % (self._length * self.num_envs)
            weight = jnp.where(count > 0, 1.0, 0.0) * jnp.ones(batch_size)
        return self._read(state.rows, index, weight)

    def update_priorities(self, state: ReplayState, index: jax.Array, priorities: jax.Array) -> ReplayState:
        """The memory with new priorities of rows that were sampled.

        Args:
            state: The memory.
            index: int32[B], of the batch. A row that can't be sampled (any more) stays at priority 0.
            priorities: float32[B], sizes of errors. One that is no finite number counts as the highest so far.

        Returns:
            The memory; unchanged if it is not prioritized.
        """
        if not self.prioritized:
            return state
        powers = (jnp.abs(priorities) + _LEAST_PRIORITY) ** self.priority_exponent
        powers = jnp.where(jnp.isfinite(powers), powers, state.highest)
        highest = jnp.maximum(state.highest, jnp.max(powers))
        powers = jnp.where(get_priorities(state.tree, index) > 0, powers, 0.0)
        return state._replace(tree=set_priorities(state.tree, index, powers), highest=highest)

    @property
    def _length(self) -> int:
        """Rows per environment."""
        return self.capacity // self.num_envs

    @property
    def _reach(self) -> int:
        """Rows an observation is made of."""
        return 1 if self.stack is None else self.stack

    def _index(self, at: jax.Array) -> jax.Array:
        return at * self.num_envs + jnp.arange(self.num_envs, dtype=jnp.int32)

    def _read(self, rows: Row, index: jax.Array, weight: jax.Array) -> Batch:
        at, env = index // self.num_envs, index % self.num_envs
        window = (at[:, None] + jnp.arange(self.n_step + 1)[None, :]) % self._length
        reward, terminated, usable = (
            ring[window, env[:, None]] for ring in (rows.reward, rows.terminated, rows.usable)
        )
        # A row is in the window if no row before it ended the episode and it is, like all between, usable itself.
        goes_on = ~terminated[:, :-1] & usable[:, 1:]
        is_in = jnp.cumprod(goes_on[:, : self.n_step - 1], axis=1)
        is_in = jnp.concatenate([jnp.ones_like(at)[:, None], is_in], axis=1)
        factors = jnp.asarray(np.power(self.discount, np.arange(self.n_step + 1)), jnp.float32)
        taken = jnp.sum(is_in, axis=1)
        has_ended = jnp.any(terminated[:, :-1] & (is_in == 1), axis=1)
        return Batch(
            observation=self._observation(rows, at, env),
            action=rows.action[at, env],
            reward=jnp.sum(reward[:, :-1] * is_in * factors[None, :-1], axis=1),
            discount=jnp.where(has_ended, 0.0, factors[taken]),
            next_observation=self._observation(rows, (at + taken) % self._length, env),
            weight=jnp.where(usable[:, 0], weight, 0.0),
            index=index,
        )

    def _observation(self, rows: Row, at: jax.Array, env: jax.Array) -> jax.Array:
        if self.stack is None:
            return rows.frame[at, env]
        blank = jnp.zeros((), rows.frame.dtype)
        is_seen = jnp.ones(at.shape, bool)
        frames = []
        for back in range(self.stack):
            place = (at - back) % self._length
            seen = is_seen.reshape(-1, *(1,) * len(self.frame_shape))
            frames.append(jnp.where(seen, rows.frame[place, env], blank))
            is_seen &= ~rows.first[place, env]
        return jnp.stack(frames[::-1], axis=-1)
