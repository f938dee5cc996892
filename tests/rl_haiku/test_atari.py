import shutil

import ale_py
import numpy as np
import pytest

from sparse_plugins.rl.environments.atari import AtariProtocol, AtariVector, atari_100k, machado
from sparse_plugins.rl.environments.atari.action_log import slot_seeds
from sparse_plugins.rl.environments.atari.roms import rom_file
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure, VectorStep

FREE = {"sticky_actions": 0.0, "noop_starts": 0}


def actions_of(steps: int, num_envs: int, num_actions: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_actions, (steps, num_envs))


def play(environment: AtariVector, actions: np.ndarray) -> list[VectorStep]:
    steps = []
    for row in actions:
        environment.send(row)
        steps.append(environment.recv())
    return steps


def assert_same(some: list[VectorStep], others: list[VectorStep]) -> None:
    assert len(some) == len(others)
    for step, other_step in zip(some, others, strict=True):
        for field, mine, theirs in zip(VectorStep._fields, step, other_step, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=field)


class SlowGame:
    """One game played through ALE's plain interface."""

    def __init__(self, name: str, seed: int, protocol: AtariProtocol) -> None:
        self.ale, self.protocol = ale_py.ALEInterface(), protocol
        self.ale.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale.setFloat("repeat_action_probability", protocol.sticky_actions)
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(rom_file(name))
        self.ale.reset_game()
        self.ended, self.frames = False, 0

    def step(self, action: int) -> tuple[float, bool, bool, bool]:
        opens, reward, lives, lost = self.ended, 0, self.ale.lives(), False
        if opens and (self.ale.game_over() or self.frames >= self.protocol.max_frames):
            self.ale.reset_game()
            self.ended, self.frames = False, 0
            return 0.0, False, False, True
        action = 0 if opens else action
        for _ in range(self.protocol.frame_skip):
            reward += self.ale.act(self.ale.getMinimalActionSet()[action])
            self.frames += 1
            lost = self.protocol.episodic_life and 0 < self.ale.lives() < lives
            if self.ale.game_over() or self.frames >= self.protocol.max_frames:
                break
        if opens:
            assert not self.ale.game_over()
            self.ended = False
            return 0.0, False, False, True
        terminated = self.ale.game_over() or lost
        truncated = self.frames >= self.protocol.max_frames and not terminated
        self.ended = terminated or truncated
        return float(reward), terminated, truncated, False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"first_slot": -1}, "first_slot is -1"),
        ({"first_slot": 16_384}, "pass slot 16,383"),
        ({"reseed_after": 0}, "reseed_after is 0"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"timeout": 0}, "timeout is 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        AtariVector(**{"game": "pong", "num_envs": 1, "seed": 0, **arguments})


@pytest.mark.parametrize("protocol", [machado(max_frames=1300), atari_100k(noop_starts=0, max_frames=1300)])
def test_steps_agree_with_ales_plain_interface(protocol):
    environment = AtariVector("Breakout", 2, seed=5, protocol=protocol)
    assert environment.reset().first.all()
    actions = actions_of(400, 2, environment.num_actions)
    steps = play(environment, actions)
    for slot, seed in enumerate(slot_seeds(5, np.arange(2), np.zeros(2, int))):
        game = SlowGame("breakout", int(seed), protocol)
        slow = [game.step(int(action)) for action in actions[:, slot]]
        fast = [(s.rewards[slot], s.terminated[slot], s.truncated[slot], s.first[slot]) for s in steps]
        assert fast == slow
        assert sum(truncated for _, _, truncated, _ in slow) + sum(terminated for _, terminated, _, _ in slow) >= 1
    environment.close()


def test_frames_are_the_games_pictures():
    environment = AtariVector("Breakout", 1, seed=0, protocol=machado(frame_shape=(210, 160), sticky_actions=0.0))
    frame = environment.reset().frames[0]
    assert (frame.shape, frame.dtype) == (environment.frame_shape, environment.frame_dtype)
    game = SlowGame("breakout", 0, machado(**FREE))
    np.testing.assert_array_equal(frame, game.ale.getScreenGrayscale())
    environment.send(np.array([3]))
    pictures = []
    for _ in range(4):
        game.ale.act(game.ale.getMinimalActionSet()[3])
        pictures.append(game.ale.getScreenGrayscale())
    np.testing.assert_array_equal(environment.recv().frames[0], np.maximum(pictures[2], pictures[3]))
    environment.close()


def test_threads_and_halves_change_nothing_and_slots_differ():
    whole = AtariVector("Pong", 4, seed=3, num_threads=1)
    halves = [AtariVector("Pong", 2, seed=3, first_slot=first, num_threads=2) for first in (0, 2)]
    other = AtariVector("Pong", 1, seed=4)
    for environment in (whole, *halves, other):
        environment.reset()
    actions = np.repeat(actions_of(60, 1, 6), 4, axis=1)
    steps = play(whole, actions)
    for half, columns in zip(halves, (slice(0, 2), slice(2, 4)), strict=True):
        assert_same(play(half, actions[:, columns]), [VectorStep(*(x[columns] for x in step)) for step in steps])
    last = [*steps[-1].frames, play(other, actions[:, :1])[-1].frames[0]]
    assert len({frame.tobytes() for frame in last}) == 5
    for environment in (whole, *halves, other):
        environment.close()


def test_all_actions_are_available_on_request():
    environment = AtariVector("Pong", 1, seed=0, protocol=machado(full_action_set=True))
    environment.reset()
    assert environment.num_actions == 18
    assert_same(play(environment, np.array([[17]]))[:0], [])
    environment.close()


def test_a_second_reset_plays_other_games():
    environment = AtariVector("Pong", 1, seed=0)
    actions = actions_of(60, 1, 6)
    environment.reset()
    first_game = play(environment, actions)
    assert environment.reset().first.all()
    assert (play(environment, actions)[-1].frames != first_game[-1].frames).any()
    environment.close()


RESUMED = {
    "truncated Pong": ("Pong", machado(max_frames=300), 40, 150),
    "Breakout, new seeds": ("Breakout", machado(), 40, 400),
    "Breakout, lives": ("Breakout", atari_100k(), 250, 400),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_restored_run_is_the_run_that_went_on(case):
    game, protocol, reseed_after, half = RESUMED[case]

    def make(**arguments):
        return AtariVector(game, 2, seed=1, protocol=protocol, reseed_after=reseed_after, **arguments)

    environment = make()
    environment.reset()
    actions = actions_of(2 * half, 2, environment.num_actions)
    before = play(environment, actions[:half])
    saved = environment.save()
    after = play(environment, actions[half:])
    assert (saved["renewals"] >= 1).any()
    assert (environment.save()["renewals"] > saved["renewals"]).any()
    assert game == "Pong" or saved["lengths"][0] != saved["lengths"][1]
    restored = make(num_threads=1)
    assert_same([restored.restore(saved)], before[-1:])
    assert_same(play(restored, actions[half:]), after)
    for key, value in environment.save().items():
        np.testing.assert_array_equal(restored.save()[key], value, err_msg=key)
    # The same object can go back, too.
    assert_same([restored.restore(saved)], before[-1:])
    assert_same(play(restored, actions[half : half + 50]), after[:50])
    for played in (environment, restored):
        played.close()


def test_what_was_saved_right_after_a_reset_is_restored():
    environment = AtariVector("Pong", 1, seed=0)
    first = environment.reset()
    saved = environment.save()
    assert_same([environment.restore(saved)], [first])
    environment.close()


def test_new_seeds_are_given_at_ends_of_games_only():
    environment = AtariVector("Breakout", 2, seed=1, reseed_after=1)
    environment.reset()
    renewals = environment.save()["renewals"]
    assert renewals.tolist() == [0, 0]
    for row in actions_of(400, 2, 4):
        environment.send(row)
        step = environment.recv()
        saved = environment.save()
        assert (saved["renewals"] - renewals).tolist() == step.first.tolist()
        assert (saved["lengths"][step.first] == 0).all()
        assert not (step.first & (step.terminated | step.truncated)).any()
        renewals = saved["renewals"]
    assert (renewals > 0).all()
    environment.close()


def test_a_lost_life_ends_the_episode_but_not_the_game():
    environment = AtariVector("Breakout", 1, seed=1, protocol=atari_100k(**FREE))
    environment.reset()
    steps = play(environment, actions_of(150, 1, 4))
    ends = [t for t, step in enumerate(steps) if step.terminated[0]]
    assert len(ends) >= 3
    start = environment.reset().frames
    for end in ends[:3]:
        assert steps[end + 1].first[0]
        assert (steps[end + 1].frames != start).any()
    environment.close()


def test_a_game_that_ends_before_the_next_life_begins_starts_anew():
    def run(max_frames):
        environment = AtariVector("Breakout", 1, seed=1, protocol=atari_100k(max_frames=max_frames, **FREE))
        start = environment.reset()
        steps = play(environment, actions_of(60, 1, 4))
        environment.close()
        return start, steps

    _, steps = run(108_000)
    lost = next(t for t, step in enumerate(steps) if step.terminated[0])
    start, steps = run(4 * (lost + 2))
    assert steps[lost].terminated[0]
    assert_same([steps[lost + 1]], [start])
    assert not steps[lost + 2].first[0]


def test_calls_in_the_wrong_order_say_what_is_missing():
    environment = AtariVector("Pong", 2, seed=0)
    for call in (lambda: environment.send(np.zeros(2, int)), environment.save):
        with pytest.raises(RuntimeError, match=r"comes after reset\(\) or restore"):
            call()
    with pytest.raises(RuntimeError, match="a step that was never begun"):
        environment.recv()
    environment.reset()
    saved = environment.save()
    environment.send(np.zeros(2, int))
    for call in (lambda: environment.send(np.zeros(2, int)), environment.save, lambda: environment.restore(saved)):
        with pytest.raises(RuntimeError, match=r"comes between two steps; call recv\(\) first"):
            call()
    environment.recv()
    environment.close()


def test_actions_are_checked():
    environment = AtariVector("Pong", 2, seed=0)
    environment.reset()
    for actions in (np.zeros(3, int), np.zeros(2), np.zeros((2, 1), int)):
        with pytest.raises(ValueError, match="give one integer for each of 2 slots"):
            environment.send(actions)
    for actions in ([0, 6], [-1, 0]):
        with pytest.raises(ValueError, match="pong has actions 0 to 5"):
            environment.send(np.array(actions))
    environment.close()


def test_restoring_into_another_environment_is_refused():
    environment = AtariVector("Pong", 1, seed=0)
    environment.reset()
    saved = environment.save()
    other = AtariVector("Pong", 1, seed=2, protocol=machado(frame_skip=2))
    with pytest.raises(
        ValueError, match=r"saved with seed 0 \(here 2\), frame_skip 4 \(here 2\); make it with the same"
    ):
        other.restore(saved)
    with pytest.raises(ValueError, match=r"slots \[0\] show other frames than when they were saved"):
        environment.restore({**saved, "checksums": saved["checksums"] + 1})
    for played in (environment, other):
        played.close()


def test_a_worker_that_dies_is_reported_and_leaves_nothing_hanging():
    environment = AtariVector("Pong", 2, seed=0, timeout=4.0)
    environment.reset()
    play(environment, actions_of(3, 2, 6))
    environment.num_actions = 1000  # lets an action through at which a worker of ALE throws
    environment.send(np.array([0, 999]))
    with pytest.raises(EnvironmentFailure, match=r"pong, slots 0 to 1, step 3: .*999.* go on from the last checkpoint"):
        environment.recv()
    environment.close()


def test_a_rom_file_that_vanishes_is_reported(tmp_path, monkeypatch):
    shutil.copy(rom_file("breakout"), tmp_path)
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    environment = AtariVector("Breakout", 1, seed=1, reseed_after=1)
    environment.reset()
    (tmp_path / "breakout.bin").unlink()
    with pytest.raises(EnvironmentFailure, match=r"breakout\.bin is gone, and slots \[0\] need it"):
        play(environment, actions_of(400, 1, 4))
    environment.close()
