import functools
import os
import signal
import types
from typing import Any

import gymnasium
import hypothesis
import jax
import jax.numpy as jnp
import minatar
import numpy as np
import optax
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.rl.environments.atari.watchdog import Watchdog
from sparse_plugins.rl.environments.gymnasium_vector import gymnasium_vector
from sparse_plugins.rl.environments.gymnax_games import gymnax_environment
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure, VectorStep, check_network
from sparse_plugins.rl.learner import SparseLearner

MINATAR = {
    "Asterix-MinAtar": (5, 4),
    "Breakout-MinAtar": (3, 4),
    "Freeway-MinAtar": (3, 7),
    "Seaquest-MinAtar": (6, 10),
    "SpaceInvaders-MinAtar": (4, 6),
}


class Countdown(gymnasium.Env):
    """Shows how many steps an episode still has, and what was done; pays the action."""

    observation_space = gymnasium.spaces.Box(-1000, 1000, (2,), np.int16)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def __init__(self, breaks_at: int = -1, by_time: bool = False) -> None:
        self.left, self.breaks_at, self.by_time = 0, breaks_at, by_time

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 6))
        return np.array([self.left, 0], np.int16), {}

    def step(self, action: int) -> Any:
        if self.left == self.breaks_at:
            raise ArithmeticError("the ghost in the machine")
        assert self.action_space.contains(action)
        self.left -= 1
        ended = self.left == 0
        frame = np.array([self.left, action], np.int16)
        return frame, float(action), ended and not self.by_time, ended and self.by_time, {}


def countdowns(**arguments: Any) -> gymnasium.vector.SyncVectorEnv:
    return gymnasium.vector.SyncVectorEnv([Countdown, lambda: Countdown(by_time=True)], **arguments)


def cart_poles() -> gymnasium.vector.AsyncVectorEnv:
    # A fork of a process in which JAX runs may hang.
    return gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="async", vector_kwargs={"context": "spawn"})


def test_gymnasium_steps_follow_the_contract():
    environment = gymnasium_vector(countdowns(), seed=0, name="Countdown")
    assert (environment.name, environment.num_envs, environment.num_actions) == ("Countdown", 2, 3)
    assert (environment.frame_shape, environment.frame_dtype) == ((2,), np.int16)
    step = environment.reset()
    assert step.first.all()
    rng = np.random.default_rng(0)
    ends = np.zeros(2, int)
    for _ in range(60):
        before, actions = step, rng.integers(0, 3, 2)
        environment.send(actions)
        step = environment.recv()
        assert [part.dtype for part in step] == [np.int16, np.float32, bool, bool, bool]
        for slot in range(2):
            over = before.terminated[slot] or before.truncated[slot]
            assert step.first[slot] == over
            if over:
                assert (step.rewards[slot], step.frames[slot, 1]) == (0, 0)
                continue
            assert step.frames[slot].tolist() == [before.frames[slot, 0] - 1, actions[slot] + 5]
            assert step.rewards[slot] == actions[slot] + 5
            ended = step.frames[slot, 0] == 0
            assert [step.terminated[slot], step.truncated[slot]] == [ended and slot == 0, ended and slot == 1]
            ends[slot] += ended
    assert (ends > 5).all()
    environment.close()


def play(environment: Any, steps: int) -> list[VectorStep]:
    played = []
    for _ in range(steps):
        environment.send(np.ones(environment.num_envs, np.int32))
        played.append(environment.recv())
    return played


def test_worker_processes_change_nothing_and_a_killed_one_is_named():
    wrapped = gymnasium.wrappers.vector.TransformReward(cart_poles(), lambda reward: reward)
    environments = [
        gymnasium_vector(wrapped, seed=3),
        gymnasium_vector(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"), seed=3),
    ]
    assert [environment.name for environment in environments] == ["CartPole-v1"] * 2
    starts = [environment.reset() for environment in environments]
    for step, other_step in zip(
        *([start, *play(e, 20)] for start, e in zip(starts, environments, strict=True)), strict=True
    ):
        for mine, theirs in zip(step, other_step, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    os.kill(wrapped.unwrapped.processes[1].pid, signal.SIGKILL)
    message = r"CartPole-v1, 2 environments, step 2\d: the worker of environment 1 \(exit code -9\) is dead.*checkpoint"
    with pytest.raises(EnvironmentFailure, match=message):
        play(environments[0], 5)
    for environment in environments:
        environment.close()


def test_a_worker_that_hangs_is_a_failure_after_the_timeout():
    env = cart_poles()
    environment = gymnasium_vector(env, seed=0, timeout=0.3)
    environment.reset()
    os.kill(env.processes[0].pid, signal.SIGSTOP)
    with pytest.raises(EnvironmentFailure, match=r"an environment failed: TimeoutError.*0\.3 second"):
        play(environment, 1)
    environment.close()


def test_what_an_environment_raises_is_reported():
    env = gymnasium.vector.SyncVectorEnv([functools.partial(Countdown, breaks_at=1)])
    environment = gymnasium_vector(env, seed=0, name="ghost")
    environment.reset()
    with pytest.raises(EnvironmentFailure, match=r"ghost, 1 environments, step .*ArithmeticError: the ghost in the"):
        play(environment, 10)
    environment.close()


def test_gymnasium_restores_to_new_episodes_as_it_declares():
    environment = gymnasium_vector(countdowns(), seed=0)
    assert not environment.resumes_exactly
    environment.reset()
    play(environment, 7)
    saved = environment.save()
    step = environment.restore(saved)
    assert step.first.all()
    after = np.array([step.frames for step in play(environment, 30)])
    other = gymnasium_vector(countdowns(), seed=0)
    other.restore(saved)
    np.testing.assert_array_equal(after, [step.frames for step in play(other, 30)])
    fresh = gymnasium_vector(countdowns(), seed=0)
    fresh.reset()
    neighbour = gymnasium_vector(countdowns(), seed=0, first_slot=2)
    neighbour.reset()
    runs = [after, *(np.array([step.frames for step in play(environment, 30)]) for environment in (fresh, neighbour))]
    assert len({run.tobytes() for run in runs}) == 3


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_kinds_of_reset_are_refused(mode):
    with pytest.raises(ValueError, match=rf"autoreset_mode {mode}; .*AutoresetMode\.NEXT_STEP"):
        gymnasium_vector(countdowns(autoreset_mode=mode), seed=0)


def test_environments_that_the_loops_cannot_use_are_refused():
    env = gymnasium.make_vec("Pendulum-v1", 1, vectorization_mode="sync")
    with pytest.raises(ValueError, match=r"Pendulum-v1 has the action space Box\(.*need a Discrete one"):
        gymnasium_vector(env, seed=0)
    env.close()
    env = gymnasium.make("CartPole-v1")
    with pytest.raises(TypeError, match=r"CartPole-v1.*is no Gymnasium vector environment; give gymnasium.make_vec"):
        gymnasium_vector(env, seed=0)
    env.close()
    env = countdowns()
    env.single_observation_space = gymnasium.spaces.Dict({"x": Countdown.observation_space})
    with pytest.raises(ValueError, match=r"observation space Dict\(.*FlattenObservation"):
        gymnasium_vector(env, seed=0)
    for arguments, message in [({"seed": -1}, "seed is -1"), ({"seed": 0, "timeout": 0}, "timeout is 0")]:
        with pytest.raises(ValueError, match=message):
            gymnasium_vector(countdowns(), **arguments)


def test_calls_in_the_wrong_order_say_what_is_missing():
    environment = gymnasium_vector(countdowns(), seed=0)
    with pytest.raises(RuntimeError, match=r"send\(\) comes after reset\(\)"):
        environment.send(np.zeros(2, int))
    with pytest.raises(RuntimeError, match="a step that was never begun"):
        environment.recv()
    environment.reset()
    with pytest.raises(ValueError, match="one integer for each of 2 slots"):
        environment.send(np.zeros(2))
    environment.send(np.zeros(2, int))
    with pytest.raises(RuntimeError, match=r"send\(\) comes after recv\(\)"):
        environment.send(np.zeros(2, int))


def scan(environment: Any, steps: int, seed: int = 0) -> tuple[Any, Any]:
    """Random play of one environment: the steps, and the actions."""

    def act(state, key):
        action_key, step_key = jax.random.split(key)
        action = jax.random.randint(action_key, (), 0, environment.num_actions)
        state, step = environment.step(step_key, state, action)
        return state, (step, action)

    @jax.jit
    def run(key):
        state, observation = environment.reset(key)
        return observation, jax.lax.scan(act, state, jax.random.split(key, steps))[1]

    observation, (steps_, actions) = run(jax.random.key(seed))
    assert observation.dtype == environment.observation_dtype
    return jax.tree.map(np.asarray, steps_), np.asarray(actions)


@pytest.mark.parametrize("name", MINATAR)
def test_minatar_games_are_stored_as_booleans(name):
    environment = gymnax_environment(name)
    num_actions, channels = MINATAR[name]
    assert (environment.name, environment.num_actions) == (name, num_actions)
    assert environment.observation_shape == (10, 10, channels)
    assert environment.observation_dtype == np.dtype(bool)
    reset, step = (
        jax.eval_shape(environment.reset, jax.random.key(0)),
        jax.eval_shape(environment.step, jax.random.key(0), environment.reset(jax.random.key(0))[0], 1),
    )
    assert reset[1].dtype == step[1].observation.dtype == bool
    # Nothing is lost: gymnax itself shows zeros and ones.
    raw = environment.game.reset(jax.random.key(0), environment.params)[0]
    assert set(np.unique(raw)) == {0.0, 1.0}


def test_space_invaders_is_minatars():
    environment = gymnax_environment("SpaceInvaders-MinAtar", max_steps_in_episode=10**6)
    steps, actions = scan(environment, 400)
    game = minatar.Environment("space_invaders", sticky_action_prob=0.0)
    game.reset()
    for t, action in enumerate(actions):
        reward, terminated = game.act(game.minimal_action_set()[action])
        assert (steps.reward[t], steps.terminated[t], steps.truncated[t]) == (reward, terminated, False)
        if terminated:
            game.reset()
        np.testing.assert_array_equal(steps.observation[t], game.state())
    assert steps.terminated.sum() > 2


def test_a_time_limit_truncates_and_a_fall_terminates():
    steps, _ = scan(gymnax_environment("CartPole-v1", max_steps_in_episode=15), 300)
    assert steps.observation.dtype == np.float32
    assert steps.truncated.any()
    assert steps.terminated.any()
    assert not (steps.truncated & steps.terminated).any()
    length = 0
    for terminated, truncated, observation in zip(steps.terminated, steps.truncated, steps.observation, strict=True):
        length += 1
        assert truncated == (length == 15 and not terminated)
        if terminated or truncated:
            assert np.abs(observation).max() <= 0.05  # the next episode's first
            length = 0


def test_sticky_actions_repeat_the_action_before():
    keys = jax.random.split(jax.random.key(2), 400)

    def pushed_left(sticky_actions: float) -> tuple[int, int]:
        """How many of 400 games go left, and how many remember to have done so, where all are told to go right."""
        game = gymnax_environment("CartPole-v1", sticky_actions=sticky_actions)
        start, _ = game.reset(keys[0])
        states, steps = jax.jit(jax.vmap(lambda key: game.step(key, start, 1)))(keys)
        return int((steps.observation[:, 1] < 0).sum()), int((states.last_action == 0).sum())

    assert pushed_left(0.0) == (0, 0)
    assert pushed_left(1.0) == (400, 400)  # before the first action there was action 0
    left, remembered = pushed_left(0.5)
    assert left == remembered
    assert 160 < left < 240


def test_unknown_games_and_parameters_list_what_there_is():
    with pytest.raises(ValueError, match=r"no game 'Breakout'; did you mean Breakout-MinAtar"):
        gymnax_environment("Breakout")
    with pytest.raises(ValueError, match=r"no game '!!'; allowed are CartPole-v1, "):
        gymnax_environment("!!")
    with pytest.raises(ValueError, match=r"no parameter max_steps; allowed are max_steps_in_episode, use_minimal_"):
        gymnax_environment("Breakout-MinAtar", max_steps=5)
    with pytest.raises(ValueError, match=r"Pendulum-v1 has the action space .*Box"):
        gymnax_environment("Pendulum-v1")
    with pytest.raises(ValueError, match="sticky_actions is 2"):
        gymnax_environment("CartPole-v1", sticky_actions=2)
    assert gymnax_environment("Breakout-MinAtar", use_minimal_action_set=False).num_actions == 6


def learner_for(size: int, num_actions: int) -> SparseLearner:
    def values(params, x):
        return x.astype(jnp.float32).reshape(x.shape[0], -1) @ params["w"]

    return SparseLearner(
        network=(
            lambda key, x: {"w": jnp.ones((size, num_actions)) + 0 * values({"w": jnp.ones((size, 1))}, x).sum()},
            None,
        ),
        loss_fn=lambda params, target, key, x: (jnp.sum(values(params, x)), {}),
        act_fn=lambda params, key, x, epsilon: jnp.argmax(values(params, x), axis=-1),
        optimizer=optax.sgd(0.1),
        updater=core.NoPruning(),
    )


def test_networks_are_checked_against_environments():
    game = gymnax_environment("Breakout-MinAtar")
    check_network(game, learner_for(400, 3), num_actions=3)
    with pytest.raises(
        ValueError, match=r"Breakout-MinAtar gives observations bool\[1, 10, 10, 4\], which the network"
    ):
        check_network(game, learner_for(4, 3))
    with pytest.raises(ValueError, match=r"Breakout-MinAtar has 3 actions, the network gives values for 6"):
        check_network(game, learner_for(400, 6), num_actions=6)
    pixels = types.SimpleNamespace(name="Pong", num_envs=8, num_actions=6, frame_shape=(84, 84), frame_dtype=np.uint8)
    check_network(pixels, learner_for(84 * 84 * 4, 6), stack=4)
    with pytest.raises(ValueError, match=r"Pong gives observations uint8\[8, 84, 84\], which the network can't take"):
        check_network(pixels, learner_for(84 * 84 * 4, 6))


def test_a_network_that_chooses_no_actions_is_refused():
    game = types.SimpleNamespace(name="game", num_envs=2, num_actions=3, frame_shape=(4,), frame_dtype=np.float32)
    learner = types.SimpleNamespace(init=lambda key, x: 0, act=lambda state, x, epsilon: (x, state), num_actions=3)
    with pytest.raises(ValueError, match=r"chooses actions float32\[2, 4\]; it should choose .* int32\[2\]"):
        check_network(game, learner)
    learner.num_actions = 4
    with pytest.raises(ValueError, match="values for 4"):
        check_network(game, learner)


@hypothesis.settings(max_examples=5)
@hypothesis.given(st.integers(1, 200))
def test_short_blocks_do_not_wake_the_watchdog(blocks):
    dog = Watchdog(30.0, lambda: None)
    for _ in range(blocks):
        with dog:
            pass
    dog.close()
    assert not dog.fired
