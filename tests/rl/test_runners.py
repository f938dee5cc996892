"""Runners: seeds reach the environments, Dopamine's bindings keep working, and environments can be saved."""

import functools
import io
from pathlib import Path
from typing import Any

import gin
import gymnasium
import numpy as np
import pytest
from dopamine.discrete_domains import atari_lib, gym_lib

from sparse_plugins.core.storage.array_files import DamagedFileError, open_values, write_values
from sparse_plugins.core.storage.values import fields, whole
from sparse_plugins.rl.dopamine import runners
from sparse_plugins.rl.dopamine.checkpoints import logged_atari
from sparse_plugins.rl.dopamine.checkpoints.snapshots import restore_environment, seed_environment, take_snapshot
from sparse_plugins.rl.dopamine.environments import MINATAR_GAMES, create_minatar_environment
from tests.rl import resume_worker

SHORT = "Runner.num_iterations = 2"


def cartpole() -> Any:
    return gym_lib.create_gym_environment("CartPole", "v1")


def sticky_minatar() -> Any:
    from dopamine.labs.environments.minatar import minatar_env

    return minatar_env.create_minatar_env("breakout", sticky_actions=True, seed=1)


ENVIRONMENTS = {
    "CartPole": (cartpole, 2),
    "MinAtar": (lambda: create_minatar_environment("breakout"), 6),
    "MinAtar, sticky": (sticky_minatar, 6),
    "Pong": (lambda: atari_lib.create_atari_environment("Pong"), 6),
}


def play(environment: Any, actions: np.ndarray) -> list[bytes]:
    """What an agent sees; episodes that end begin again."""
    seen = []
    for action in actions:
        observation, reward, terminal, _ = environment.step(action if np.ndim(action) else int(action))
        seen.append(np.asarray(observation).tobytes() + repr((float(reward), bool(terminal))).encode())
        if terminal:
            seen.append(np.asarray(environment.reset()).tobytes())
    return seen


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_seed_decides_an_environment(name: str) -> None:
    make, actions = ENVIRONMENTS[name]
    chosen = np.random.default_rng(0).integers(actions, size=60)
    games = []
    for seed in (3, 3, 4):
        environment = make()
        seed_environment(environment, seed)
        environment.reset()
        games.append(play(environment, chosen))
    assert games[0] == games[1]
    assert games[0] != games[2]


def move(environment: Any, snapshot: Any) -> None:
    """Puts a snapshot into an environment through a file, as a run that goes on does."""
    write_values(file := io.BytesIO(), snapshot)
    with open_values(file) as stored:
        restore_environment(environment, stored)


CONTROL = {"Acrobot": ("v1", 3), "MountainCar": ("v0", 3), "Pendulum": ("v1", 0), "MountainCarContinuous": ("v0", 0)}
ALL_ENVIRONMENTS = {
    **ENVIRONMENTS,
    **{f"MinAtar, {game}": (functools.partial(create_minatar_environment, game), 6) for game in MINATAR_GAMES},
    **{
        name: (functools.partial(gym_lib.create_gym_environment, name, version), actions)
        for name, (version, actions) in CONTROL.items()
    },
}


def chosen(random: np.random.Generator, actions: int, steps: int) -> Any:
    return random.integers(actions, size=steps) if actions else random.uniform(-1, 1, (steps, 1)).astype(np.float32)


@pytest.mark.parametrize("name", ALL_ENVIRONMENTS)
def test_a_snapshot_goes_on_with_the_same_frames(name: str) -> None:
    """Also where two layers draw from one generator, as in MinAtar."""
    make, actions = ALL_ENVIRONMENTS[name]
    random = np.random.default_rng(1)
    environment, other = make(), make()
    seed_environment(environment, 1)
    seed_environment(other, 2)
    environment.reset()
    for steps in (20, 60):
        play(environment, chosen(random, actions, steps))
        move(other, take_snapshot(environment, in_episode=True))
        then = chosen(random, actions, 80)
        assert play(other, then) == play(environment, then)


def test_a_long_game_gets_a_fresh_seed_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few actions lead to where it is."""
    monkeypatch.setattr(logged_atari, "_RESEED_AFTER", 30)
    environment, other = (atari_lib.create_atari_environment("Pong") for _ in range(2))
    for seeded in (environment, other):
        seed_environment(seeded, 5)
    for steps in (5, 5, 5):
        environment.reset()
        play(environment, np.ones(steps))
    game = environment.environment.env
    assert len(game.get_state()["actions"]) == 20, "five steps of four frames"
    move(other, take_snapshot(environment, in_episode=True))
    assert play(other, np.arange(6)) == play(environment, np.arange(6))
    other.reset()
    environment.reset()
    assert play(other, np.arange(6)) == play(environment, np.arange(6)), "seeds to come are the same"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"actions": np.full(8, 200, np.uint8)}, "an action is 200; allowed is 0 to 5"),
        ({"actions": np.zeros(200_000, np.uint8)}, r"allowed is uint8\['up to 151,000'\]"),
        ({"actions": np.zeros(8, np.uint8)}, "lead elsewhere than when they were noted"),
        ({"seed": -1}, "the game's seed is -1"),
        ({"seed": None}, "allowed is a number where there are actions"),
        ({"ale": b"".decode()}, "the game has or lacks 'ale'"),
    ],
)
def test_a_forged_game_is_refused(change: dict[str, Any], problem: str) -> None:
    """The emulator's own state is not even taken: a changed one destroys the memory of the process."""
    environment, other = (atari_lib.create_atari_environment("Pong") for _ in range(2))
    for seeded in (environment, other):
        seed_environment(seeded, 5)
    environment.reset()
    play(environment, np.array([3, 3]))
    snapshot = take_snapshot(environment, in_episode=True)
    (game,) = (state["own"] for name, state in snapshot if name == "LoggedAtari")
    assert set(game) == {"seeds", "seed", "actions", "memory"}
    game.update(change)
    with pytest.raises(DamagedFileError, match=problem):
        move(other, snapshot)


class Slope(gymnasium.Env):
    """An environment of someone's own."""

    observation_space = action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.height = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.height = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.height += int(action)
        return self.height, 0.0, False, False, {}


class SavedSlope(Slope):
    """The same, with what it takes to be saved."""

    def get_state(self) -> dict[str, Any]:
        return {"height": self.height}

    def set_state(self, state: Any) -> None:
        (height,) = fields(state, ("height",), "the slope")
        self.height = whole(height, 0, 1000, "the height")


def test_an_environment_of_ones_own_says_what_its_state_is() -> None:
    with pytest.raises(TypeError, match=r"Slope can't be saved in a checkpoint: nobody knows .* Give it get_state"):
        take_snapshot(gym_lib.GymPreprocessing(Slope()), in_episode=False)
    environment, other = (gym_lib.GymPreprocessing(SavedSlope()) for _ in range(2))
    environment.reset()
    environment.step(1)
    snapshot = take_snapshot(environment, in_episode=True)
    move(other, snapshot)
    assert other.environment.height == 1
    snapshot[1][1]["own"]["height"] = -1
    with pytest.raises(DamagedFileError, match="the height is -1; allowed is a whole number from 0"):
        move(other, snapshot)


def test_a_simulator_behind_python_is_saved_between_episodes_only() -> None:
    class Simulator(gymnasium.Env, gymnasium.utils.EzPickle):
        """Stands for those that keep their state outside Python."""

        observation_space = action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
            super().reset(seed=seed)
            return int(self.np_random.integers(1 << 30)), {}

    environment, other = (gym_lib.GymPreprocessing(Simulator()) for _ in range(2))
    seed_environment(environment, 0)
    seed_environment(other, 1)
    move(other, take_snapshot(environment, in_episode=False))
    assert environment.reset() == other.reset()
    with pytest.raises(TypeError, match=r"in the middle of an episode; .* bind Runner.max_steps_per_episode"):
        take_snapshot(environment, in_episode=True)


def test_environments_that_do_not_fit_are_errors() -> None:
    snapshot = take_snapshot(cartpole(), in_episode=False)
    with pytest.raises(
        DamagedFileError, match=r"the snapshot is of .*CartPoleEnv, and the environment is .*AcrobotEnv"
    ):
        move(gym_lib.create_gym_environment("Acrobot", "v1"), snapshot)
    with pytest.raises(TypeError, match="nothing in object can be seeded"):
        seed_environment(object(), 0)


def test_one_seed_repeats_a_run_and_two_differ(tmp_path: Path) -> None:
    def rows(folder: str, *bindings: str) -> str:
        resume_worker.start(tmp_path / folder, SHORT, *bindings).run_experiment()
        return (tmp_path / folder / "metrics.csv").read_text()

    first = rows("first")
    assert rows("again") == first
    assert rows("other environments", "create_sparse_runner.seed = 9") != first
    assert rows("other agent", "JaxDQNAgent.seed = 1") != first


def test_training_and_evaluation_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = resume_worker.start(tmp_path, SHORT, "create_runner.schedule = 'continuous_train_and_eval'")
    runner.run_experiment()
    assert isinstance(runner, runners.SparseRunner)
    assert capsys.readouterr().out.startswith("SET: masks change 333 times")
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    columns = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    assert [row["iteration"] for row in columns] == ["0", "1"]
    assert all(float(row["eval_return"]) > 0 for row in columns)
    assert int(columns[1]["steps"]) > int(columns[0]["steps"]) >= 40
    clock, done = runner._agent.clock, int(columns[0]["optimizer_steps"])
    assert clock.environment_step(done - 1) <= int(columns[0]["steps"]) <= clock.environment_step(done + 1)


ATARI_100K = [
    "create_agent.agent_name = 'atari_100k_rainbow'",
    "Atari100kRainbowAgent.seed = 0",
    "JaxDQNAgent.min_replay_history = 1000",
    "JaxDQNAgent.observation_shape = (28, 28)",
    "AtariPreprocessing.screen_size = 28",
    "ReplayBuffer.max_capacity = 100",
    "ReplayBuffer.batch_size = 2",
    "PrioritizedSamplingDistribution.max_capacity = 100",
    "atari_lib.create_atari_environment.game_name = 'Pong'",
    "Runner.training_steps = 20",
    "Runner.max_steps_per_episode = 15",
    "Runner.use_legacy_logger = False",
    "DataEfficientAtariRunner.num_eval_episodes = 1",
    "DataEfficientAtariRunner.num_eval_envs = 1",
    "DataEfficientAtariRunner.max_noops = 4",
    "CollectorDispatcher.collectors = ()",
]


def run_atari_100k(folder: Path, iterations: int, *bindings: str) -> Any:
    gin.clear_config()
    gin.parse_config([*ATARI_100K, f"Runner.num_iterations = {iterations}", *bindings])
    runner = runners.create_sparse_runner(str(folder))
    runner.run_experiment()
    return runner


def test_the_runner_for_atari_100k_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = run_atari_100k(tmp_path / "whole", 2)
    run_atari_100k(tmp_path / "parts", 1)
    parts = run_atari_100k(tmp_path / "parts", 2)
    assert isinstance(parts, runners.SparseDataEfficientRunner)
    assert (tmp_path / "parts" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    for array, expected in zip(whole.train_state[:4], parts.train_state[:4], strict=True):
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(np.asarray(whole._agent._rng), np.asarray(parts._agent._rng))
    names = ["checkpoints/1/replay.npz"]
    assert all((tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_each_iteration_of_atari_100k_reports_its_own_episodes(tmp_path: Path) -> None:
    """Dopamine makes one step more than asked for; episodes have 15."""
    run_atari_100k(tmp_path, 3, "Runner.training_steps = 9")
    rows = [row.split(",") for row in (tmp_path / "metrics.csv").read_text().splitlines()]
    steps, returned, episodes = (
        [row[rows[0].index(name)] for row in rows[1:]] for name in ("steps", "train_return", "train_episodes")
    )
    assert steps == ["10", "20", "30"]
    assert episodes == ["0", "1", "1"]
    assert [text == "" for text in returned] == [True, False, False]
