"""Frames per step through any wrapper, and MinAtar whose seed reaches everything."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from dopamine.discrete_domains import atari_lib, gym_lib

from sparse_plugins.rl.dopamine.environments import (
    MINATAR_GAMES,
    create_minatar_environment,
    frames_per_step,
    minatar_observation_shape,
)


def observations(environment: Any, steps: int) -> list[np.ndarray]:
    """What a fixed sequence of actions leads to."""
    actions = np.random.default_rng(0).integers(6, size=steps)
    seen = [environment.reset()]
    for action in actions:
        observation, reward, ended, _ = environment.step(action)
        seen += [observation, np.full(3, reward)]
        if ended:
            seen.append(environment.reset())
    return seen


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def test_a_step_of_atari_is_as_many_frames_as_its_preprocessing_skips() -> None:
    pong = atari_lib.create_atari_environment(game_name="Pong")
    assert frames_per_step(pong) == 4
    assert frames_per_step(atari_lib.AtariPreprocessing(pong.environment, frame_skip=3)) == 3
    assert (
        frames_per_step(gymnasium.wrappers.TimeLimit(gymnasium.wrappers.AtariPreprocessing(pong.environment), 9)) == 4
    )


def test_a_step_of_anything_else_is_one_frame() -> None:
    assert frames_per_step(gym_lib.create_gym_environment("Pendulum", "v1")) == 1
    assert frames_per_step(create_minatar_environment("breakout")) == 1


@pytest.mark.parametrize("game", MINATAR_GAMES)
def test_every_minatar_game_shows_the_shape_it_declares(game: str) -> None:
    environment = create_minatar_environment(game, seed=0)
    observation = environment.reset()
    assert observation.shape == minatar_observation_shape(game)
    assert observation.dtype == bool
    assert environment.action_space.n == 6


@pytest.mark.parametrize("game", MINATAR_GAMES)
def test_one_seed_of_minatar_repeats_and_two_differ(game: str) -> None:
    first, again, other = (observations(create_minatar_environment(game, seed=seed), 300) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_minatar_without_a_seed_is_arbitrary() -> None:
    assert not same(*(observations(create_minatar_environment("breakout"), 300) for _ in range(2)))


def test_sticky_actions_of_minatar_can_be_turned_off() -> None:
    """Then the only thing left to chance in Breakout is where the ball starts, which two seeds share."""
    starts: dict[bytes, list[list[np.ndarray]]] = {}
    for seed in range(6):
        seen = observations(create_minatar_environment("breakout", sticky_action_prob=0.0, seed=seed), 8)
        starts.setdefault(seen[0].tobytes(), []).append(seen)
    assert len(starts) < 6
    assert all(same(group[0], seen) for group in starts.values() for seen in group)


def test_an_unknown_game_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'pong'; MinAtar has asterix, breakout, freeway, seaquest, space_invaders\."):
        create_minatar_environment("pong")
    with pytest.raises(ValueError, match="'pong'"):
        minatar_observation_shape("pong")
