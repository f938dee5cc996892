"""Games of gymnax, such as MinAtar's and CartPole, for loops that run inside jit."""

import dataclasses
import difflib
import importlib
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.missing import explain_import_error
from sparse_plugins.rl.environments.interfaces import JaxEnvironment, JaxStep

__all__ = ["gymnax_environment"]


def gymnax_environment(name: str, *, sticky_actions: float = 0.0, **params: Any) -> JaxEnvironment:
    """A game of gymnax as a `JaxEnvironment`.

    Observations of MinAtar games are stored as bool, all others as gymnax gives them. Beside the package `minatar`,
    whose difficulty also rises with time, these games differ in three ways: no action is repeated (there, each is with
    probability 0.1), an episode is truncated after 1,000 steps (there, there is no limit but Freeway's, after 2,500
    steps, which terminates), and actions without effect are left out, as in its `minimal_action_set`.

    Args:
        name: gymnax's name of the game, such as 'CartPole-v1' or 'Breakout-MinAtar'.
        sticky_actions: Probability that the action of the step before is repeated, which gymnax itself never does.
        **params: What else gymnax lets one choose: fields of the game's parameters, such as `max_steps_in_episode`, or
            arguments of its class, such as `use_minimal_action_set`.

    Returns:
        The environment.

    Raises:
        ImportError: If gymnax or something it imports is not installed, or gymnax is too old.
        ValueError: If there is no such game or parameter, or the game's actions are not discrete.

    Example:
        >>> game = gymnax_environment("Breakout-MinAtar", max_steps_in_episode=500)
        >>> game.num_actions, game.observation_shape, game.observation_dtype
        (3, (10, 10, 4), dtype('bool'))
        >>> state, observation = game.reset(jax.random.key(0))
        >>> state, step = game.step(jax.random.key(1), state, 2)
        >>> float(step.reward), bool(step.terminated)
        (0.0, False)

    Source: Lange, gymnax (2022); Young and Tian, MinAtar (2019).
    """
    gymnax = _gymnax()
    repeat = check_fraction("sticky_actions", sticky_actions)
    if name not in gymnax.registered_envs:
        near = difflib.get_close_matches(name, gymnax.registered_envs, n=5, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"allowed are {', '.join(gymnax.registered_envs)}."
        raise ValueError(f"gymnax has no game {name!r}; {hint}")
    game, default = gymnax.make(name)
    fields = {field.name for field in dataclasses.fields(default)}
    arguments = set(inspect.signature(type(game)).parameters)
    if unknown := sorted(set(params) - fields - arguments):
        allowed = ", ".join(sorted(fields | arguments))
        raise ValueError(f"{name} has no parameter {', '.join(unknown)}; allowed are {allowed}.")
    game, default = gymnax.make(name, **{key: value for key, value in params.items() if key in arguments})
    chosen = dataclasses.replace(default, **{key: value for key, value in params.items() if key in fields})
    actions = game.action_space(chosen)
    if (num_actions := getattr(actions, "n", None)) is None:
        raise ValueError(
            f"{name} has the action space {actions}; agents that choose among actions need a Discrete one."
        )
    observation, _ = jax.eval_shape(game.reset, jax.eval_shape(jax.random.key, 0), chosen)
    dtype = jnp.dtype(bool) if name.endswith("-MinAtar") else observation.dtype
    return _Gymnax(name, int(num_actions), observation.shape, dtype, game, chosen, repeat)


class _State(NamedTuple):
    game: Any
    last_action: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class _Gymnax:
    name: str
    num_actions: int
    observation_shape: tuple[int, ...]
    observation_dtype: Any
    game: Any
    params: Any
    sticky_actions: float

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        observation, state = self.game.reset(key, self.params)
        return _State(state, jnp.int32(0)), observation.astype(self.observation_dtype)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, JaxStep]:
        action = jnp.asarray(action, jnp.int32)
        if self.sticky_actions:
            key, repeat_key = jax.random.split(key)
            action = jnp.where(jax.random.bernoulli(repeat_key, self.sticky_actions), state.last_action, action)
        observation, after, reward, terminated, truncated, _ = self.game.step(key, state.game, action, self.params)
        terminated = jnp.asarray(terminated, bool)
        step = JaxStep(
            observation.astype(self.observation_dtype),
            jnp.asarray(reward, jnp.float32),
            terminated,
            jnp.asarray(truncated, bool) & ~terminated,
        )
        return _State(after, action), step


def _gymnax() -> Any:
    extra = '"sparse-plugins[gymnax]"'
    try:
        gymnax = importlib.import_module("gymnax")
    except ImportError as error:
        raise explain_import_error(error, "gymnax_environment", ("gymnax", "six"), extra) from error
    if not hasattr(gymnax.environments.environment.Environment, "is_truncated"):
        raise ImportError(
            "this gymnax does not tell time limits from ends of a game, release 1.0 does; run: pip install --upgrade "
            f"{extra}"
        )
    return gymnax
