"""Training on vector environments of the host, such as Atari: several runs at once, in halves that take turns.

While the device acts and learns for one half of the environments, the emulators of the other half work. Only the newest
frames travel; stacks, replay, masks and networks stay on the device.
"""

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.layers.channel_groups import ChannelGraph
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.storage.archives import Archive, damage
from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.core.storage.values import fields, listed, whole
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.environments.interfaces import VectorEnvironment, VectorStep, check_network
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.loops.vector_step import RunState, VectorAgent, VectorConfig
from sparse_plugins.rl.shrinking import shrunk_learners
from sparse_plugins.rl.stopping import left_to_the_parent

__all__ = ["Episode", "Group", "VectorTrainer"]

_LARGEST = 1 << 28  # bytes of the state of a vector of environments


class Episode(NamedTuple):
    """An episode that has ended.

    Attributes:
        group: Name of its group.
        seed: The seed of its run.
        step: Environment steps of the run by then.
        score: Sum of its rewards, as the game pays them.
        length: Its environment steps.
    """

    group: str
    seed: int
    step: int
    score: float
    length: int


class Group(NamedTuple):
    """Runs of one agent, computed together.

    Attributes:
        name: For episodes and tables.
        learner: The agent; its loss gives back {'loss': float32[], 'priorities': float32[B]} beside itself.
        seeds: One run each, of environments, agent, masks and replay.
    """

    name: str
    learner: SparseLearner
    seeds: tuple[int, ...]


class VectorTrainer:
    """Several runs on vector environments, each as if it were alone.

    Args:
        make_environment: (seed, first slot, number of environments) -> `VectorEnvironment`, such as
            `lambda seed, first, size: AtariVector("Pong", size, seed=seed, first_slot=first)`.
        groups: What is trained: agents that differ in code, each with its seeds.
        config: How all of them play and learn.

    Attributes:
        name: The name of the game.
        iterations: How many are done.
        states: Per group its `RunState`, with a leading axis of seeds.

    Raises:
        TypeError: If an argument is of another type, or `make_environment` gives something else than environments.
        ValueError: If names or seeds repeat, `make_environment` gives more or fewer environments than it is asked for,
            or a network can't take what they show.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> from sparse_plugins.rl import haiku
        >>> from sparse_plugins.rl.environments import atari
        >>> agent = haiku.SparseDQN(
        ...     num_actions=6, torso=haiku.mlp_torso((8,)), optimizer=optax.adam(1e-4), updater=core.NoPruning())
        >>> trainer = VectorTrainer(
        ...     lambda seed, first, size: atari.AtariVector("Pong", size, seed=seed, first_slot=first),
        ...     [Group("dense", agent, seeds=(0,))],
        ...     VectorConfig(num_envs=2, capacity=100, batch_size=4, warm_up=10))
        >>> trainer.advance(iterations=8)
        []
        >>> trainer.environment_steps, int(trainer.states[0].learner.steps[0])
        (16, 3)
        >>> trainer.close()
    """

    def __init__(
        self,
        make_environment: Callable[[int, int, int], VectorEnvironment],
        groups: Sequence[Group],
        config: VectorConfig,
    ) -> None:
        _check_groups(groups)
        if not isinstance(config, VectorConfig):
            raise TypeError(f"config is {config!r}; give an rl.VectorConfig.")
        config.check_memory()
        self.groups, self.iterations = tuple(groups), 0
        size = config.num_envs // config.num_halves
        firsts = [half * size for half in range(config.num_halves)]
        with left_to_the_parent():  # workers of environments, so that Ctrl-C lets `train_vector` save
            self._environments = [
                [[_made(make_environment, seed, first, size) for seed in group.seeds] for first in firsts]
                for group in groups
            ]
        example = self._environments[0][0][0]
        self.config = config = config.for_frames(example.frame_shape)
        self.name, self._replay = example.name, config.replay(example)
        for group in groups:
            check_network(example, group.learner, stack=config.stacked(example.frame_shape))
        self._programs = [self._program_of(group) for group in groups]
        self._first_checks = [FirstCheck(group.learner.updater) for group in groups]
        self._steps = self._each(lambda environment: environment.reset())
        self._scores = [np.zeros((config.num_halves, len(group.seeds), size)) for group in groups]
        self._lengths = [np.zeros_like(scores) for scores in self._scores]

    @functools.cached_property  # a trainer that goes on from a checkpoint never needs the memory of a second replay
    def states(self) -> list[RunState]:  # noqa: D102 - see the class
        return [program.init(_keys(group.seeds)) for program, group in zip(self._programs, self.groups, strict=True)]

    def template(self) -> PyTree:
        """The tree of `save` as shapes and dtypes, to restore a checkpoint into."""
        programs = zip(self._programs, self.groups, strict=True)
        return [jax.eval_shape(program.init, _keys(group.seeds)) for program, group in programs]

    @property
    def environment_steps(self) -> int:
        """Environment steps of each run so far."""
        return self.iterations * self.config.vector_steps * self.config.num_envs

    def learner(self, group: str, seed: int) -> LearnerState:
        """The parameters, masks and optimizer state of one run, without the axis of seeds.

        Args:
            group: Name of its group.
            seed: Its seed.

        Raises:
            KeyError: If there is no such run.

        Example: `trainer.learner("corridor", seed=1).params`
        """
        seeds = {trained.name: trained.seeds for trained in self.groups}
        if seed not in seeds.get(group, ()):
            raise KeyError(f"there is no run of {group!r} with seed {seed}; there are {seeds}.")
        return self.states[[*seeds].index(group)].learner.of_seed(seeds[group].index(seed))

    def summarize(self) -> dict[str, dict[str, jax.Array]]:
        """By group, the sparsity of its networks over all seeds; see `core.summarize_sparsity`."""
        return {group.name: state.learner.summarize() for group, state in zip(self.groups, self.states, strict=True)}

    def advance(self, iterations: int) -> list[Episode]:
        """Plays and learns; see `FusedConfig` for what an iteration is. During the warm-up nothing is learnt.

        Args:
            iterations: How many.

        Returns:
            The episodes that ended meanwhile.

        Raises:
            EnvironmentFailure: If an environment broke. The trainer is then of no further use.
        """
        episodes: list[Episode] = []
        for _ in range(iterations):
            for turn in range(self.config.turns):
                episodes += self._turn(turn)
            self.iterations += 1
        for group in range(len(self.groups)):  # so that environments are idle between two calls
            for half in range(self.config.num_halves):
                self._received(group, half)
        steps = self.config.learnt_steps(self.environment_steps)
        for check, state in zip(self._first_checks, self.states, strict=True):
            check.of_first_seed(steps, state.learner.params, state.learner.optimizer_state)
        return episodes

    def save(self) -> tuple[PyTree, dict[str, Any]]:
        """All that `restore` needs: a tree of arrays, and what JSON takes; see `Checkpoints.save`."""
        extra = {
            "iterations": self.iterations,
            "environments": self._each(lambda environment: _to_text(environment.save())),
            "played": [_to_text({"scores": s, "lengths": n}) for s, n in zip(self._scores, self._lengths, strict=True)],
        }
        return self.states, extra

    def restore(self, tree: PyTree, extra: dict[str, Any]) -> None:
        """Goes on from what `save` gave, in mid-episode if the environments can.

        Raises:
            DamagedFileError: If `extra` is not what `save` gave; the environments check what they are given.
        """
        iterations, environments, played = fields(extra, ("iterations", "environments", "played"), "the run")
        now = self._each(lambda environment: environment)
        if jax.tree.structure(environments) != jax.tree.structure(now):
            raise DamagedFileError("the states of environments are not those of this run's groups, halves and seeds")
        sums = [_from_text(part) for part in listed(played, len(self.groups), "the episodes in progress")]
        if [_described(part) for part in sums] != [
            _described({"scores": s, "lengths": n}) for s, n in zip(self._scores, self._lengths, strict=True)
        ]:
            raise DamagedFileError("the episodes in progress are not those of this run's groups, halves and seeds")
        self.states, self.iterations = list(tree), whole(iterations, 0, 1 << 53, "the run's iterations")
        saved = iter(jax.tree.leaves(environments))
        self._steps = self._each(lambda environment: environment.restore(_from_text(next(saved))))
        for i, part in enumerate(sums):
            self._scores[i], self._lengths[i] = part["scores"], part["lengths"]

    def shrink(self, graphs: Mapping[str, ChannelGraph]) -> None:
        """Takes the channels that masks have pruned out of some groups, which go on where they are.

        Every seed keeps the channels of its own masks, and these stay as they are from now on. To go on from a
        checkpoint of a smaller network, make the trainer with the groups of this one.

        Args:
            graphs: By name of a group the groups of its network's channels; see `rl.haiku.SparseDQN.shrunk`.

        Raises:
            TypeError: If a learner's network cannot be replaced.
            ValueError: If there is no such group, masks are still going to change, no channels can leave, or values
                would differ; nothing has changed then.
        """
        names = [group.name for group in self.groups]
        if unknown := sorted(set(graphs) - set(names)):
            raise ValueError(f"graphs are for groups {unknown}, and the groups are {names}.")
        groups, states = list(self.groups), list(self.states)
        for i, group in enumerate(groups):
            if group.name in graphs:
                small, learners = shrunk_learners(group.learner, graphs[group.name], states[i].learner)
                groups[i] = group._replace(learner=group.learner.with_channels(small))  # type: ignore[attr-defined]
                states[i] = states[i]._replace(learner=learners)
        self.groups, self.states = tuple(groups), states
        self._programs = [self._program_of(group) for group in groups]

    def _program_of(self, group: Group) -> "_Program":
        return _program(VectorAgent(group.learner, self._replay, self.config), len(group.seeds))

    def close(self) -> None:
        """Lets go of the environments."""
        self._each(lambda environment: environment.close())

    def _each(self, function: Callable[[VectorEnvironment], Any]) -> list[Any]:
        return [[[function(environment) for environment in half] for half in group] for group in self._environments]

    def _turn(self, turn: int) -> list[Episode]:
        half, episodes, actions = turn % self.config.num_halves, [], []
        for i, program in enumerate(self._programs):
            step = self._received(i, half)
            self.states[i], chosen = program.act(self.states[i], half, step)
            episodes += self._noted(i, half, step)
            actions.append(chosen)
        for i, chosen in enumerate(actions):
            for environment, action in zip(self._environments[i][half], np.asarray(chosen), strict=True):
                environment.send(action)
            self._steps[i][half] = None
        updates = self.config.updates_in_turn(turn)
        if updates and self._turn_step(turn) > self.config.warm_up:
            for i, program in enumerate(self._programs):
                self.states[i] = program.learn(self.states[i], updates)
        return episodes

    def _received(self, group: int, half: int) -> VectorStep:
        """What the environments of a group show, with a leading axis of seeds; waits for it."""
        if self._steps[group][half] is None:
            self._steps[group][half] = [environment.recv() for environment in self._environments[group][half]]
        return VectorStep(*map(np.stack, zip(*self._steps[group][half], strict=True)))

    def _turn_step(self, turn: int) -> int:
        """Environment steps of each run after a turn of the iteration that is under way."""
        return self.environment_steps + (turn + 1) * self.config.num_envs // self.config.num_halves

    def _noted(self, group: int, half: int, step: VectorStep) -> list[Episode]:
        """The episodes that end with a step."""
        scores, lengths = self._scores[group][half], self._lengths[group][half]
        scores[:] = np.where(step.first, 0.0, scores + step.rewards)
        lengths[:] = np.where(step.first, 0.0, lengths + 1)
        name, _, seeds = self.groups[group]
        return [
            Episode(name, seeds[run], self.environment_steps, float(scores[run, slot]), int(lengths[run, slot]))
            for run, slot in np.argwhere(step.terminated | step.truncated)
        ]


class _Program:
    """The functions of an agent, compiled for its seeds."""

    def __init__(self, agent: VectorAgent, seeds: int) -> None:
        axes = agent.axes
        for_all = _single_seed if seeds == 1 else jax.vmap

        def act(state: RunState, half: int, *step: Any) -> tuple[RunState, jax.Array]:
            act_in_half = lambda state, *step: agent.act(state, half, *step)  # noqa: E731
            return for_all(act_in_half, in_axes=(axes, 0, 0, 0, 0), out_axes=(axes, 0))(state, *step)

        def learn(state: RunState, updates: int) -> RunState:
            return for_all(lambda state: agent.learn(state, updates), in_axes=(axes,), out_axes=axes)(state)

        self.init = jax.jit(for_all(agent.init, in_axes=(0,), out_axes=axes))
        self.learn = jax.jit(learn, static_argnums=1, donate_argnums=0)
        self._act = jax.jit(act, static_argnums=1, donate_argnums=0)

    def act(self, state: RunState, half: int, step: VectorStep) -> tuple[RunState, jax.Array]:
        return self._act(state, half, step.frames, step.rewards, step.terminated, step.first)


@functools.lru_cache(maxsize=32)  # so that another trainer of the same agent compiles nothing
def _program(agent: VectorAgent, seeds: int) -> _Program:
    return _Program(agent, seeds)


def _single_seed(function: Callable[..., Any], in_axes: tuple[Any, ...], out_axes: Any) -> Callable[..., Any]:
    """As `jax.vmap` over one seed, whose convolutions a CPU then computes much faster."""
    without = lambda leaf: leaf.reshape(leaf.shape[1:])  # noqa: E731
    alone = lambda *arguments: function(*_at_axes(without, in_axes, arguments))  # noqa: E731
    return lambda *arguments: _at_axes(lambda leaf: leaf[None], out_axes, alone(*arguments))


def _at_axes(function: Callable[[jax.Array], jax.Array], axes: PyTree, tree: PyTree) -> PyTree:
    """The tree with what has an axis of seeds mapped."""
    mapped = lambda axis, part: part if axis is None else jax.tree.map(function, part)  # noqa: E731
    return jax.tree.map(mapped, axes, tree, is_leaf=lambda axis: axis is None)


def _described(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}


def _keys(seeds: Sequence[int]) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def _check_groups(groups: Sequence[Group]) -> None:
    if isinstance(groups, Group) or not all(isinstance(group, Group) for group in groups):
        raise TypeError(f"groups is {groups!r}; give a list of rl.Group(name, learner, seeds), also of one.")
    names = [group.name for group in groups]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"groups are called {names}; give one or more, each with a name of its own.")
    for name, _, seeds in groups:
        if not isinstance(seeds, Sequence):
            raise TypeError(f"seeds of {name!r} are {seeds!r}; give a tuple, such as (0,) for one run.")
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds of {name!r} are {list(seeds)}; give one or more, each once.")


def _made(make: Callable[[int, int, int], VectorEnvironment], seed: int, first: int, size: int) -> VectorEnvironment:
    """The environments of a half, if they are what was asked for."""
    environment, asked = make(seed, first, size), f"make_environment(seed={seed}, first={first}, size={size})"
    needed = sorted(name for name in vars(VectorEnvironment) if not name.startswith("_"))
    if missing := [name for name in needed if not hasattr(environment, name)]:
        raise TypeError(
            f"{asked} gave {type(environment).__name__}, which is no VectorEnvironment: it lacks {', '.join(missing)}. "
            "Wrap a Gymnasium vector in rl.vector_environments.gymnasium_vector(vector, seed=seed, first_slot=first)."
        )
    if environment.num_envs != size:
        raise ValueError(
            f"{asked} gave {environment.num_envs} environments; it is called for each half, and has to make {size} "
            "then: use its argument `size`."
        )
    return environment


def _to_text(arrays: dict[str, Any]) -> str:
    np.savez_compressed(file := io.BytesIO(), **arrays)
    return base64.b64encode(file.getvalue()).decode()


def _from_text(text: Any) -> dict[str, np.ndarray]:
    """The arrays of `_to_text`, if they are no more than `_LARGEST` bytes."""
    with damage():
        return Archive(io.BytesIO(base64.b64decode(text, validate=True))).arrays(limit=_LARGEST)
