"""What Dopamine's own environment factories leave out: frames per step, and MinAtar with a seed and any game."""

from collections.abc import Iterator
from typing import Any

import gin
import gymnasium
from dopamine.discrete_domains import atari_lib

from sparse_plugins.missing import explain_import_error

__all__ = ["MINATAR_GAMES", "create_minatar_environment", "frames_per_step", "minatar_observation_shape"]

MINATAR_GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
_SKIPS_FRAMES = (atari_lib.AtariPreprocessing, gymnasium.wrappers.AtariPreprocessing)


def frames_per_step(environment: Any) -> int:
    """How many frames of the game pass while the agent takes one step.

    Args:
        environment: Dopamine's or gymnasium's, in any number of wrappers.

    Returns:
        The frame skip of the Atari preprocessing; 1 for everything else.

    Example:
        >>> frames_per_step(gymnasium.make("CartPole-v1"))
        1
    """
    return next((layer.frame_skip for layer in _unwrapped(environment) if isinstance(layer, _SKIPS_FRAMES)), 1)


@gin.configurable(module="sparse_plugins.rl")
def create_minatar_environment(game_name: str, sticky_action_prob: float = 0.1, seed: int | None = None) -> Any:
    """A MinAtar game as Dopamine's runners take it.

    Args:
        game_name: One of `MINATAR_GAMES`.
        sticky_action_prob: Probability in [0, 1] that the game repeats the last action instead of the agent's.
        seed: Seed of all that is random from the first reset on; None for an arbitrary one.

    Returns:
        An environment whose observations are bool arrays of `minatar_observation_shape(game_name)`.

    Raises:
        ValueError: For an unknown game.
        ImportError: If MinAtar is not installed.

    Example:
        >>> create_minatar_environment("breakout", seed=0).reset().shape
        (10, 10, 4)

    Source: Young and Tian, MinAtar (2019).
    """
    environment = _minatar_environment(game_name)
    environment.env.sticky_action_prob = sticky_action_prob
    environment.env.seed(seed)
    return environment


@gin.configurable(module="sparse_plugins.rl")
def minatar_observation_shape(game_name: str) -> tuple[int, ...]:
    """Shape of what an agent sees of a MinAtar game, for the agent's `observation_shape`.

    Args:
        game_name: One of `MINATAR_GAMES`.

    Returns:
        (height, width, channels).

    Raises:
        ValueError: For an unknown game.
        ImportError: If MinAtar is not installed.

    Example:
        >>> minatar_observation_shape("seaquest")
        (10, 10, 10)
    """
    return tuple(map(int, _minatar_environment(game_name).observation_space))


def _minatar_environment(game_name: str) -> Any:
    if game_name not in MINATAR_GAMES:
        raise ValueError(f"game_name is {game_name!r}; MinAtar has {', '.join(MINATAR_GAMES)}.")
    try:
        from dopamine.labs.environments.minatar import minatar_env
    except ImportError as error:
        extra = '"sparse-plugins[dopamine]"'
        raise explain_import_error(error, f"the game {game_name}", ("minatar",), extra) from error
    return minatar_env.MinAtarEnv(game_name)


def _unwrapped(environment: Any) -> Iterator[Any]:
    """The environment and all that it wraps, from the outside in."""
    while environment is not None:
        yield environment
        environment = getattr(environment, "environment", getattr(environment, "env", None))
