"""Which attributes of known environments and wrappers are their state; nothing else of them is saved or set.

All other layers say themselves what their state is, with `get_state()` and `set_state(state)`.
"""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from sparse_plugins.core.storage.array_files import StoredArray
from sparse_plugins.core.storage.values import fields, like_tree, listed, refuse, stored_array
from sparse_plugins.rl.dopamine.checkpoints.random_states import random_state, set_random_state

__all__ = ["EPISODE_SUMS", "field_values", "fields_of_old", "set_field_values", "state_fields"]

_GYMNASIUM, _DOPAMINE, _MINATAR = "gymnasium", "dopamine", "minatar.environments"
_CONTROL, _WRAPPERS = f"{_GYMNASIUM}.envs.classic_control", f"{_GYMNASIUM}.wrappers"
_FIELDS: dict[str, tuple[str, ...]] = {
    f"{_CONTROL}.cartpole.CartPoleEnv": ("np_random", "state", "steps_beyond_terminated"),
    f"{_CONTROL}.acrobot.AcrobotEnv": ("np_random", "state"),
    f"{_CONTROL}.mountain_car.MountainCarEnv": ("np_random", "state"),
    f"{_CONTROL}.continuous_mountain_car.Continuous_MountainCarEnv": ("np_random", "state"),
    f"{_CONTROL}.pendulum.PendulumEnv": ("np_random", "state", "last_u"),
    f"{_WRAPPERS}.common.TimeLimit": ("_elapsed_steps",),
    f"{_WRAPPERS}.common.OrderEnforcing": ("_has_reset",),
    f"{_WRAPPERS}.common.PassiveEnvChecker": ("checked_reset", "checked_step"),
    f"{_DOPAMINE}.discrete_domains.gym_lib.GymPreprocessing": ("game_over",),
    f"{_DOPAMINE}.discrete_domains.atari_lib.AtariPreprocessing": ("game_over", "lives", "screen_buffer"),
    f"{_DOPAMINE}.discrete_domains.atari_lib.GameOverWrapper": ("game_over",),
    f"{_DOPAMINE}.labs.environments.minatar.minatar_env.MinAtarEnv": ("game_over",),
    f"{_DOPAMINE}.labs.environments.minatar.minatar_env.StickyMinAtarEnv": ("game_over", "_prev_action", "_rng"),
    "minatar.environment.Environment": ("random", "last_action"),
    f"{_MINATAR}.asterix.Env": (
        *("random", "player_x", "player_y", "entities", "shot_timer", "spawn_speed", "spawn_timer", "move_speed"),
        *("move_timer", "ramp_timer", "ramp_index", "terminal"),
    ),
    f"{_MINATAR}.breakout.Env": (
        *("random", "ball_y", "ball_x", "ball_dir", "pos", "brick_map", "strike", "last_x", "last_y", "terminal"),
    ),
    f"{_MINATAR}.freeway.Env": ("random", "cars", "pos", "move_timer", "terminate_timer", "terminal"),
    f"{_MINATAR}.seaquest.Env": (
        *("random", "oxygen", "diver_count", "sub_x", "sub_y", "sub_or", "f_bullets", "e_bullets", "e_fish", "e_subs"),
        *("divers", "e_spawn_speed", "e_spawn_timer", "d_spawn_timer", "move_speed", "ramp_index", "shot_timer"),
        *("surface", "terminal"),
    ),
    f"{_MINATAR}.space_invaders.Env": (
        *("random", "pos", "f_bullet_map", "e_bullet_map", "alien_map", "alien_dir", "enemy_move_interval"),
        *("alien_move_timer", "alien_shot_timer", "ramp_index", "shot_timer", "terminal"),
    ),
}
_STATELESS = tuple(f"{_WRAPPERS}.transform_{what}" for what in ("observation", "action", "reward"))
EPISODE_SUMS = ("cum_length", "cum_reward")  # Dopamine's runner for Atari 100k puts these on its environments
_GENERATORS = (np.random.Generator, np.random.RandomState)
_LARGEST, _LONGEST, _DEEPEST, _SMALL = 1 << 53, 1000, 3, 64


def state_fields(layer: Any) -> tuple[str, ...] | None:
    """Names of the attributes that are a layer's state.

    Args:
        layer: An environment or a wrapper.

    Returns:
        The names; None if nothing is known about its class. Subclasses of known ones are not known.

    Example:
        >>> import gymnasium
        >>> state_fields(gymnasium.make("CartPole-v1").unwrapped)
        ('np_random', 'state', 'steps_beyond_terminated')
    """
    if type(layer).__module__ in _STATELESS:
        return ()
    return _FIELDS.get(f"{type(layer).__module__}.{type(layer).__qualname__}")


def fields_of_old(name: str, attributes: Collection[str]) -> tuple[str, ...]:
    """The same for a class that an earlier version noted by its name alone; simulators only kept random numbers.

    Args:
        name: Name of the class.
        attributes: What was noted of it, by which games of one name are told apart.

    Raises:
        ValueError: If nothing is known about it.
    """
    noted = {*attributes, "np_random"}
    for known, names in _FIELDS.items():
        if known.rpartition(".")[2] == name and noted >= set(names):
            return names
    if set(attributes) <= {"_np_random", "_np_random_seed", *EPISODE_SUMS}:
        return ("np_random",) if "_np_random" in attributes else ()
    raise ValueError(f"nobody knows what the state of {name} is, so its checkpoints can't be converted.")


def field_values(layer: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The values of some attributes, random generators as their states."""
    values = {name: getattr(layer, name) for name in names}
    return {name: random_state(value) if isinstance(value, _GENERATORS) else value for name, value in values.items()}


def set_field_values(layer: Any, names: tuple[str, ...], stored: Any, what: str) -> None:
    """Sets these attributes, and no others, to what a file has.

    Args:
        layer: What `field_values` was taken of, or one made in the same way.
        names: The attributes.
        stored: What `field_values` gave, as read from a file.
        what: The layer, for messages.

    Raises:
        DamagedFileError: If anything is of another kind than the attribute.
    """
    for name, value in zip(names, fields(stored, names, what), strict=True):
        now, place = getattr(layer, name), f"{what}.{name}"
        if isinstance(now, _GENERATORS):
            set_random_state(now, value, place)
        elif isinstance(now, jax.Array):
            setattr(layer, name, like_tree([["", value]], now, place))
        else:
            setattr(layer, name, _like(value, now, place, 0))


def _like(value: Any, now: Any, what: str, depth: int) -> Any:
    """Numbers, small lists of them, and arrays, of the shape that is there now if there is one."""
    if isinstance(value, StoredArray):
        if isinstance(now, np.ndarray):
            return stored_array(value, "biuf", now.shape, what)
        if np.prod(value.shape) > _SMALL:
            refuse(what, value, f"at most {_SMALL} numbers")
        return stored_array(value, "biuf", value.shape, what)[()]
    if isinstance(value, list) and depth < _DEEPEST:
        parts = now if isinstance(now, list) and len(now) == len(value) else [None] * len(value)
        both = zip(listed(value, _LONGEST, what), parts, strict=True)
        return [_like(part, at, f"{what}[{i}]", depth + 1) for i, (part, at) in enumerate(both)]
    if value is None or (isinstance(value, bool | int | float) and abs(value) <= _LARGEST):
        return value
    return refuse(what, value, "a number, or a small list of numbers")
