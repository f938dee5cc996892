"""A whole training of a JAX environment in one `lax.scan`, for many seeds and hyper-parameters at once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.layers.channel_groups import ChannelGraph
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.environments.interfaces import JaxEnvironment, check_network
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.loops.pace import Pace
from sparse_plugins.rl.replay import Replay, ReplayState, Row
from sparse_plugins.rl.shrinking import shrunk_learners

__all__ = ["FusedMetrics", "FusedState", "FusedTrainer"]


class FusedState(NamedTuple):
    """All that a fused training goes on from, with a leading axis of seeds S; E environments each.

    Attributes:
        learner: States of the learners.
        environment: States of the environments [S, E, ...].
        observation: What they show [S, E, ...].
        first: bool[S, E], whether that opens an episode.
        returns: float32[S, E], rewards of the episode so far.
        key: [S] keys of the environments and of sampling.
        replay: The memories; their `steps` is the one counter, shared by all seeds, and says what is due.
        hyper: Hyper-parameters [S, ...], or None.
    """

    learner: LearnerState
    environment: PyTree
    observation: jax.Array
    first: jax.Array
    returns: jax.Array
    key: jax.Array
    replay: ReplayState
    hyper: PyTree


class FusedMetrics(NamedTuple):
    """What happened in the iterations of one `run`.

    Attributes:
        episodes: int32[S], episodes that ended.
        return_sum: float32[S], sum of their returns, rewards unclipped.
        loss: float32[S], mean loss.
    """

    episodes: jax.Array
    return_sum: jax.Array
    loss: jax.Array

    @property
    def mean_return(self) -> np.ndarray:
        """float32[S], mean return of the episodes that ended; NaN where none did."""
        episodes, total = np.asarray(self.episodes), np.asarray(self.return_sum)
        return np.divide(total, episodes, out=np.full_like(total, np.nan), where=episodes > 0)


@dataclasses.dataclass(frozen=True, eq=False)
class FusedTrainer:
    """Plays, remembers and learns on the device alone; nothing comes back before `run` ends.

    Seeds never meet. Each has its own masks, also random ones, whatever the updater's `rng_seed`, which is joined to
    its key. What one computes beside others may differ from what it computes alone in the last bits of floating-point
    sums.

    Attributes:
        environment: The game.
        learner_of: A learner, whose loss gives back {'loss': float32[], 'priorities': float32[B]} beside itself; or a
            function from hyper-parameters, traced scalars, to such a learner, so that they differ by seed too.
        config: How to play, remember and learn: a `FusedConfig` (DQN and its relatives) or a `PQNConfig`.

    Raises:
        TypeError: If `learner_of` is neither, or `config` no `FusedConfig`.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> from sparse_plugins.rl import haiku
        >>> from sparse_plugins.rl.environments.gymnax_games import gymnax_environment
        >>> from sparse_plugins.rl.loops.config import FusedConfig
        >>> learner_of = lambda hyper: haiku.SparseDQN(
        ...     num_actions=2, torso=haiku.mlp_torso((8,)), optimizer=optax.adam(hyper["lr"]), updater=core.NoPruning())
        >>> config = FusedConfig(num_envs=2, capacity=64, batch_size=4, warm_up=8)
        >>> trainer = FusedTrainer(gymnax_environment("CartPole-v1"), learner_of, config)
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> state = trainer.init(keys, {"lr": jnp.array([1e-3, 1e-3, 1e-4])})
        >>> state, metrics = trainer.run(state, iterations=10)
        >>> trainer.environment_steps(state), metrics.loss.shape
        (28, (3,))
    """

    environment: JaxEnvironment
    learner_of: SparseLearner | Callable[[Any], SparseLearner]
    config: Pace

    def __post_init__(self) -> None:
        if not isinstance(self.learner_of, SparseLearner) and not callable(self.learner_of):
            raise TypeError(
                f"learner_of is {self.learner_of!r}; give a SparseLearner, or a function from hyper-parameters to one."
            )
        if not isinstance(self.config, Pace):
            raise TypeError(f"config is {self.config!r}; give an rl.FusedConfig or an rl.PQNConfig.")
        self.config.check_memory()
        # Made once, so that what is compiled for one number of iterations is found again.
        jitted = {
            "_init": jax.jit(self._start),
            "_run": jax.jit(self._iterate, static_argnums=1, donate_argnums=0),
            "_evaluate": jax.jit(self._play_out, static_argnums=(1, 2)),
        }
        for name, function in jitted.items():
            object.__setattr__(self, name, function)

    def init(self, keys: jax.Array, hyper: PyTree = None) -> FusedState:
        """Fresh learners and environments, after the warm-up.

        Args:
            keys: One JAX key per seed, typed [S] or uint32[S, 2].
            hyper: Hyper-parameters of `learner_of`, every leaf [S, ...]; None if it is a learner.

        Returns:
            The state.

        Raises:
            TypeError: If `keys` is no array.
            ValueError: If a seed repeats with the same hyper-parameters, or these or the network don't fit.
        """
        self._check_seeds(keys, hyper)
        check_network(self.environment, self._learner(jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], hyper)))
        return self._init(keys, hyper)  # type: ignore[attr-defined]

    def template(self, keys: jax.Array, hyper: PyTree = None) -> FusedState:
        """What `init` returns as shapes and dtypes, to restore a checkpoint without the memory of a second state."""
        self._check_seeds(keys, hyper)
        return jax.eval_shape(self._start, keys, hyper)

    def run(self, state: FusedState, iterations: int) -> tuple[FusedState, FusedMetrics]:
        """Goes on for some iterations.

        Args:
            state: The state; its memory is used again, so go on with the one returned.
            iterations: How many, 1 or more. A number that comes for the first time is compiled first.

        Returns:
            The state and what happened.

        Raises:
            ValueError: If there is nothing to do, or more than the metrics can count.
        """
        most = ((1 << 31) - 1) // (self.config.vector_steps * self.config.num_envs)
        if not 1 <= iterations <= most:
            raise ValueError(f"iterations is {iterations}; give 1 or more, and {most} at most.")
        return self._run(state, iterations)  # type: ignore[attr-defined]

    def evaluate(
        self, state: FusedState, episodes: int, key: jax.Array, epsilon: float = 0.0, longest: int = 27_000
    ) -> np.ndarray:
        """Returns of whole episodes, in environments of their own; training does not notice.

        Args:
            state: The state.
            episodes: Episodes per seed.
            key: JAX key of the episodes.
            epsilon: Probability of a random action.
            longest: Environment steps after which an episode must have ended.

        Returns:
            float32[S, episodes].

        Raises:
            ValueError: If an episode has not ended then.
        """
        keys = jax.random.split(key, state.key.shape[0])
        returns, has_ended = self._evaluate(  # type: ignore[attr-defined]
            (state.learner, state.hyper), episodes, longest, keys, jnp.float32(epsilon)
        )
        if missing := int(np.sum(~np.asarray(has_ended))):
            raise ValueError(
                f"{missing} of {has_ended.size} episodes of {self.environment.name} have not ended after {longest} "
                "steps; give a larger `longest`, or an environment with a time limit."
            )
        return np.asarray(returns)

    def shrunk(self, state: FusedState, graph: ChannelGraph) -> tuple[Self, FusedState]:
        """The training without the channels that masks have pruned, which goes on where this one is.

        Every seed keeps the channels of its own masks, and these stay as they are from now on. Environments, memories
        and keys are the same.

        Args:
            state: The state, after the last change of masks.
            graph: Groups of the channels of one seed's network; see `rl.haiku.SparseDQN.shrunk`.

        Returns:
            A trainer, and the state it goes on from.

        Raises:
            TypeError: If the learner's network cannot be replaced.
            ValueError: If masks are still going to change, no channels can leave, or values would differ.
        """
        learner = self._learner(jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], state.hyper))
        small, learners = shrunk_learners(learner, graph, state.learner)
        if isinstance(self.learner_of, SparseLearner):
            learner_of: Any = self.learner_of.with_channels(small)  # type: ignore[attr-defined]
        else:
            learner_of = lambda hyper: self._learner(hyper).with_channels(small)  # type: ignore[attr-defined]  # noqa: E731
        return dataclasses.replace(self, learner_of=learner_of), state._replace(learner=learners)

    def environment_steps(self, state: FusedState) -> int:
        """Environment steps of each seed so far.

        Raises:
            OverflowError: Beyond 2**31 steps of every environment, which the state can't count; go by iterations.
        """
        if (steps := int(state.replay.steps)) >= self._replay.counts_up_to:
            raise OverflowError(
                f"this is a state after {steps:,} steps of every environment or more, and it counts no further; use "
                "config.environment_steps(iterations)."
            )
        return steps * self.config.num_envs

    @functools.cached_property
    def _replay(self) -> Replay:
        return self.config.replay(self.environment)

    @property
    def _axes(self) -> FusedState:
        return FusedState(0, 0, 0, 0, 0, 0, self._replay.axes, 0)  # type: ignore[arg-type]

    def _learner(self, hyper: PyTree) -> SparseLearner:
        if isinstance(self.learner_of, SparseLearner):
            return self.learner_of
        shape = (self.config.num_envs, *self.environment.observation_shape)
        dtype = jnp.result_type(self.environment.observation_dtype)
        return self.learner_of(hyper).reading(jax.ShapeDtypeStruct(shape, dtype))

    def _check_seeds(self, keys: jax.Array, hyper: PyTree) -> None:
        if isinstance(self.learner_of, SparseLearner) != (hyper is None):
            raise ValueError(
                "hyper-parameters belong to a learner_of that is a function of them: give both or neither."
            )
        if not hasattr(keys, "dtype"):
            raise TypeError(
                f"keys is {keys!r}; give an array of JAX keys, e.g. jax.random.split(jax.random.key(0), 8)."
            )
        is_typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
        words = np.asarray(jax.random.key_data(keys) if is_typed else keys)
        if words.ndim != 2:
            raise ValueError(f"keys have shape {keys.shape}; give one per seed, e.g. jax.random.split(key, 8).")
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(hyper)]
        if any(leaf.shape[:1] != words.shape[:1] for leaf in leaves):
            shapes = [leaf.shape for leaf in leaves]
            raise ValueError(f"hyper-parameters have shapes {shapes}; each needs one entry per seed, {len(words)}.")
        seen: dict[bytes, int] = {}
        for i in range(len(words)):
            who = b"|".join(part[i].tobytes() for part in (words, *leaves))
            if seen.setdefault(who, i) != i:
                raise ValueError(
                    f"seeds {seen[who]} and {i} are the same, hyper-parameters included, and would count one run "
                    "twice; give each its own key, e.g. jax.random.split(key, 8)."
                )

    # Of all seeds.

    def _start(self, keys: jax.Array, hyper: PyTree) -> FusedState:
        state = jax.vmap(self._start_seed, out_axes=self._axes)(keys, hyper)
        play = jax.vmap(lambda state: self._play(state)[0], in_axes=(self._axes,), out_axes=self._axes)
        steps = self.config.warm_up // self.config.num_envs
        return lax.scan(lambda state, _: (play(state), None), state, None, steps)[0]

    def _iterate(self, state: FusedState, iterations: int) -> tuple[FusedState, FusedMetrics]:
        iteration = jax.vmap(self._iteration, in_axes=(self._axes,), out_axes=(self._axes, 0))

        def step(carry: tuple[FusedState, FusedMetrics], _: None) -> tuple[tuple[FusedState, FusedMetrics], None]:
            state, total = carry
            state, new = iteration(state)
            return (state, jax.tree.map(jnp.add, total, new)), None

        lanes = state.key.shape[0]
        nothing = FusedMetrics(jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes), jnp.zeros(lanes))
        (state, total), _ = lax.scan(step, (state, nothing), None, iterations)
        return state, total._replace(loss=total.loss / iterations)

    def _play_out(
        self, agents: PyTree, episodes: int, longest: int, keys: jax.Array, epsilon: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def begin(agent: PyTree, key: jax.Array) -> PyTree:
            acting_key, reset_key = jax.random.split(key)
            environment, observation = jax.vmap(self.environment.reset)(jax.random.split(reset_key, episodes))
            learner = agent[0]._replace(key=acting_key)
            return learner, agent[1], environment, observation, jnp.zeros(episodes), jnp.zeros(episodes, bool)

        def step(carry: PyTree) -> PyTree:
            learner, hyper, environment, observation, returns, has_ended = carry
            environment, observation, learner, _, after = self._act(learner, hyper, environment, observation, epsilon)
            returns = returns + jnp.where(has_ended, 0.0, after.reward)
            return learner, hyper, environment, observation, returns, has_ended | after.terminated | after.truncated

        goes_on = lambda carry: (carry[0] < longest) & ~jnp.all(carry[1][-1])  # noqa: E731
        begun = (jnp.int32(0), jax.vmap(begin)(agents, keys))
        _, ended = lax.while_loop(goes_on, lambda carry: (carry[0] + 1, jax.vmap(step)(carry[1])), begun)
        return ended[-2:]

    # Of one seed.

    def _start_seed(self, key: jax.Array, hyper: PyTree) -> FusedState:
        run_key, learner_key, masks_key, reset_key = jax.random.split(key, 4)
        environments = self.config.num_envs
        environment, observation = jax.vmap(self.environment.reset)(jax.random.split(reset_key, environments))
        return FusedState(
            learner=self._learner(hyper).seeded(masks_key).init(learner_key, observation),
            environment=environment,
            observation=observation,
            first=jnp.ones(environments, bool),
            returns=jnp.zeros(environments),
            key=run_key,
            replay=self._replay.init(),
            hyper=hyper,
        )

    def _act(
        self, learner: LearnerState, hyper: PyTree, environment: PyTree, observation: jax.Array, epsilon: jax.Array
    ) -> tuple[PyTree, jax.Array, LearnerState, jax.Array, Any]:
        key, step_key = jax.random.split(learner.key)
        action, learner = self._learner(hyper).act(learner._replace(key=key), observation, epsilon)
        keys = jax.random.split(step_key, observation.shape[0])
        environment, after = jax.vmap(self.environment.step)(keys, environment, action)
        return environment, after.observation, learner, action, after

    def _play(self, state: FusedState) -> tuple[FusedState, tuple[jax.Array, jax.Array]]:
        """One step of all environments; also how many episodes ended and the sum of their returns."""
        epsilon = self.config.epsilon(state.replay.steps)
        environment, observation, learner, action, after = self._act(
            state.learner, state.hyper, state.environment, state.observation, epsilon
        )
        has_ended = after.terminated | after.truncated
        row = Row(
            frame=state.observation,
            first=state.first,
            action=action,
            reward=jnp.clip(after.reward, -1.0, 1.0) if self.config.clip_rewards else after.reward,
            terminated=after.terminated,
            usable=after.terminated | ~after.truncated,
        )
        returns = state.returns + after.reward
        ended = (jnp.sum(has_ended, dtype=jnp.int32), jnp.sum(jnp.where(has_ended, returns, 0.0)))
        state = state._replace(
            learner=learner,
            environment=environment,
            observation=observation,
            first=has_ended,
            returns=jnp.where(has_ended, 0.0, returns),
            replay=self._replay.append(state.replay, row),
        )
        return state, ended

    def _iteration(self, state: FusedState) -> tuple[FusedState, FusedMetrics]:
        state, ended = lax.scan(lambda state, _: self._play(state), state, None, self.config.vector_steps)
        key, learning_key = jax.random.split(state.key)
        learner_state, replay, loss = self.config.learn(
            self._learner(state.hyper), state.learner, self._replay, state.replay, state.observation, learning_key
        )
        episodes, total = jax.tree.map(lambda each: jnp.sum(each, axis=0), ended)
        return state._replace(learner=learner_state, key=key, replay=replay), FusedMetrics(episodes, total, loss)
