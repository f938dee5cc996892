"""The random numbers and the state of an environment: set, taken and put back.

Dopamine seeds no environment and leaves environments out of its checkpoints. An environment is a stack of wrappers
here, outermost first. A layer says what its state is with `get_state()`, which gives numbers and arrays in lists and
dictionaries, and `set_state(state)`, which gets them back as a file has them: arrays not read yet, and anything that
whoever wrote the file put there. For Gymnasium's classic control, MinAtar and Dopamine's wrappers there is a table.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import jax
import numpy as np

from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.core.storage.values import fields, listed
from sparse_plugins.rl.dopamine.checkpoints.environment_fields import (
    EPISODE_SUMS,
    field_values,
    set_field_values,
    state_fields,
)
from sparse_plugins.rl.dopamine.checkpoints.logged_atari import LoggedAtari

__all__ = ["restore_environment", "seed_environment", "take_snapshot"]

_LINKS = ("environment", "env")  # where a wrapper keeps what it wraps
_BETWEEN_EPISODES = ("np_random",)


def seed_environment(environment: Any, seed: int) -> None:
    """Makes everything random in an environment follow from a seed.

    Atari games are wrapped in a `LoggedAtari`, without which they can't be saved.

    Args:
        environment: A Dopamine environment around Gymnasium or MinAtar.
        seed: 0 or more.

    Raises:
        TypeError: If nothing in the environment can be seeded.

    Example:
        >>> from dopamine.discrete_domains import gym_lib
        >>> environment = gym_lib.create_gym_environment("CartPole", "v1")
        >>> seed_environment(environment, 3); first = environment.reset()
        >>> seed_environment(environment, 3); bool((first == environment.reset()).all())
        True
    """
    inner, sticky = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    found = False
    _log_atari(environment)
    for layer in _layers(environment):
        if isinstance(layer, gymnasium.Env):
            layer.reset(seed=inner)
            return
        if isinstance(getattr(layer, "_rng", None), jax.Array):  # Dopamine's sticky actions for MinAtar
            layer._rng, found = jax.random.PRNGKey(sticky), True
        if callable(getattr(layer, "seed", None)):
            layer.seed(inner)
            found = True
    if not found:
        raise TypeError(
            f"nothing in {_described(environment)} can be seeded; give the innermost one a method seed(seed), or wrap "
            "an environment of Gymnasium."
        )


def take_snapshot(environment: Any, *, in_episode: bool) -> list[Any]:
    """What an environment needs to go on elsewhere as if nothing had happened.

    Args:
        environment: A Dopamine environment around Gymnasium or MinAtar, seeded by `seed_environment`.
        in_episode: Whether the next call is `step`; otherwise it is `reset`, for which random numbers are enough.

    Returns:
        Numbers and arrays for `write_values`.

    Raises:
        TypeError: If the state is out of reach: a layer that is not known and has no `get_state` and `set_state`, or a
            simulator behind Python in the middle of an episode.
    """
    return [[_name(layer), _state(layer, in_episode)] for layer in _layers(environment)]


def restore_environment(environment: Any, snapshot: Any) -> None:
    """Puts a snapshot back into an environment that was made in the same way.

    Args:
        environment: The environment to change, seeded by `seed_environment`.
        snapshot: What `take_snapshot` gave, as read from a file.

    Raises:
        DamagedFileError: If the environment consists of other wrappers, or the snapshot has something that is no state
            of theirs.
    """
    layers = list(_layers(environment))
    pairs = listed(snapshot, 100, "the snapshot of the environment")
    taken_of = [pair[0] if isinstance(pair, list) and len(pair) == 2 else None for pair in pairs]
    if taken_of != [_name(layer) for layer in layers]:
        raise DamagedFileError(
            f"the snapshot is of {' around '.join(map(str, taken_of))[:300]}, and the environment is "
            f"{_described(environment)}; create the environment as in the run that took it"
        )
    for layer, (name, state) in zip(layers, pairs, strict=True):
        sums, values = fields(state, ("sums", "own"), name)
        if _has_sums(layer):
            set_field_values(layer, EPISODE_SUMS, sums, name)
        if _speaks(layer):
            layer.set_state(values)
        else:
            names = state_fields(layer)
            set_field_values(layer, _BETWEEN_EPISODES if names is None else names, values, name)
    _look(layers, _described(environment))


def _log_atari(environment: Any) -> None:
    for layer in _layers(environment):
        inner = getattr(layer, "__dict__", {}).get("env")
        if hasattr(inner, "ale") and not isinstance(inner, LoggedAtari) and isinstance(inner, gymnasium.Env):
            layer.env = LoggedAtari(inner)


def _layers(environment: Any) -> Iterator[Any]:
    while environment is not None:
        yield environment
        if isinstance(environment, LoggedAtari):
            return
        attributes = getattr(environment, "__dict__", {})
        environment = next((attributes[link] for link in _LINKS if link in attributes), None)


def _state(layer: Any, in_episode: bool) -> dict[str, Any]:
    sums = field_values(layer, EPISODE_SUMS) if _has_sums(layer) else None
    if _speaks(layer):
        return {"sums": sums, "own": layer.get_state()}
    names = state_fields(layer)
    if names is None:
        names = _BETWEEN_EPISODES
        # What it simulates is not in Python, as its class says, and `reset` makes it anew.
        if not isinstance(layer, gymnasium.utils.EzPickle) or isinstance(layer, gymnasium.Wrapper):
            raise TypeError(
                f"{_name(layer)} can't be saved in a checkpoint: nobody knows what its state is. Give it get_state(), "
                "which returns numbers and arrays in lists and dictionaries, and set_state(state), which checks them "
                "and puts them back; a wrapper that remembers nothing returns {}."
            )
        if in_episode:
            raise TypeError(
                f"{_name(layer)} can't be saved in the middle of an episode; let episodes end with the iteration: "
                "bind Runner.max_steps_per_episode to a number instead of None."
            )
    return {"sums": sums, "own": field_values(layer, names)}


def _speaks(layer: Any) -> bool:
    return all(callable(getattr(type(layer), name, None)) for name in ("get_state", "set_state"))


def _has_sums(layer: Any) -> bool:
    return all(name in getattr(layer, "__dict__", {}) for name in EPISODE_SUMS)


def _look(layers: list[Any], described: str) -> None:
    """Lets MinAtar draw, which fails if anything is where nothing can be."""
    for layer in layers:
        if type(layer).__module__ == "minatar.environment":
            try:
                layer.state()
            except (IndexError, TypeError, ValueError) as error:
                raise DamagedFileError(f"{described} can't be in the state of the snapshot ({error})") from error


def _name(layer: Any) -> str:
    return type(layer).__qualname__


def _described(environment: Any) -> str:
    return " around ".join(_name(layer) for layer in _layers(environment))
