"""The random numbers and the state of an environment: set, taken and put back.

Dopamine seeds no environment and leaves environments out of its checkpoints. An environment is a stack of wrappers
here, outermost first; what each remembers are its attributes, and of the Arcade Learning Environment a clone.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import jax
import numpy as np

from sparse_plugins.rl.dopamine import safe_pickle

__all__ = ["restore_environment", "seed_environment", "take_snapshot"]

_LINKS = ("environment", "env")  # where a wrapper keeps what it wraps
_NO_STATE = ("spec", "_cached_spec")
_RANDOM = ("_np_random", "_np_random_seed")


def seed_environment(environment: Any, seed: int) -> None:
    """Makes everything random in an environment follow from a seed.

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


def take_snapshot(environment: Any, *, in_episode: bool) -> bytes:
    """What an environment needs to go on elsewhere as if nothing had happened.

    Args:
        environment: A Dopamine environment around Gymnasium or MinAtar.
        in_episode: Whether the next call is `step`; otherwise it is `reset`, for which random numbers are enough.

    Returns:
        Bytes for `restore_environment`.

    Raises:
        TypeError: If the state is out of reach: a simulator behind Python, in the middle of an episode.
    """
    return safe_pickle.dumps([(_name(layer), _state(layer, in_episode)) for layer in _layers(environment)])


def restore_environment(environment: Any, snapshot: bytes) -> None:
    """Puts a snapshot back into an environment that was made in the same way.

    Args:
        environment: The environment to change.
        snapshot: What `take_snapshot` gave.

    Raises:
        ValueError: If the environment consists of other wrappers.
    """
    layers, states = list(_layers(environment)), safe_pickle.loads(snapshot)
    taken_of = " around ".join(name for name, _ in states)
    if taken_of != _described(environment):
        raise ValueError(
            f"the snapshot is of {taken_of}, and the environment is {_described(environment)}; "
            "create the environment as in the run that took it."
        )
    for layer, (_, state) in zip(layers, states, strict=True):
        emulator = state.pop("ale", None)
        vars(layer).update(state)
        if emulator is not None:
            layer.ale.restoreState(emulator)


def _layers(environment: Any) -> Iterator[Any]:
    while environment is not None:
        yield environment
        attributes = getattr(environment, "__dict__", {})
        environment = next((attributes[link] for link in _LINKS if link in attributes), None)


def _state(layer: Any, in_episode: bool) -> dict[str, Any]:
    attributes = vars(layer)
    if hasattr(attributes.get("ale"), "cloneState"):
        emulator = attributes["ale"].cloneState(include_rng=True)
        return {"ale": emulator} | {name: attributes[name] for name in _RANDOM if name in attributes}
    # Its pickle would be a new environment: what it simulates is not in Python.
    if isinstance(layer, gymnasium.utils.EzPickle):
        if in_episode:
            raise TypeError(
                f"{_name(layer)} can't be saved in the middle of an episode; let episodes end with the iteration: "
                "bind Runner.max_steps_per_episode to a number instead of None."
            )
        return {name: attributes[name] for name in _RANDOM if name in attributes}
    state = {}
    for name, value in attributes.items():
        if name in _LINKS or name in _NO_STATE or callable(value):
            continue
        try:
            safe_pickle.dumps(value)
        except Exception as error:  # whatever the attribute's type raises
            raise TypeError(
                f"{_name(layer)}.{name} is a {type(value).__name__}, which can't be saved in a checkpoint ({error})."
            ) from error
        state[name] = value
    return state


def _name(layer: Any) -> str:
    return type(layer).__qualname__


def _described(environment: Any) -> str:
    return " around ".join(_name(layer) for layer in _layers(environment))
