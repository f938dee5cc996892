"""Folders of version 0.1.0, whose checkpoints are pickles, become folders of this one, on request alone."""

import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from dopamine.jax.replay_memory import replay_buffer

from sparse_plugins.rl.dopamine import convert_old_run, runners
from sparse_plugins.rl.dopamine.checkpoints import run_folder, snapshots
from tests.rl import resume_worker
from tests.rl.test_hostile_folders import Trap, values_of

OPTIONS = ("Runner.num_iterations = 2", "Runner.use_legacy_logger = True", "Runner.max_steps_per_episode = None")


def attributes(environment: Any) -> bytes:
    """The snapshot that version 0.1.0 took: plain attributes of every layer."""
    plain = (bool, int, float, np.ndarray, np.random.Generator, type(None))
    layers = [
        (type(layer).__qualname__, {name: value for name, value in vars(layer).items() if isinstance(value, plain)})
        for layer in snapshots._layers(environment)
    ]
    return pickle.dumps(layers)


def sealed(content: bytes) -> bytes:
    return content + b"sparse-plugins sha256 " + hashlib.sha256(content).digest()


def write_old(runner: Any, folder: Path, iteration: int) -> None:
    """A checkpoint as version 0.1.0 wrote it, with Dopamine's own file for the replay."""
    agent = runner._agent
    data = agent.bundle_now(runner._checkpoint_dir)
    replay_buffer.ReplayBuffer.save(agent._replay, str(folder), iteration)
    episode = {"action": runner.action, "episode_ended": runner.episode_ended}
    run = {"steps": runner._steps, "episode": episode, "environment": attributes(runner._environment)}
    data |= {"current_iteration": iteration, "run": run, "logs": runner._logger.data, "replay_checksums": {}}
    content = pickle.dumps(data)
    (folder / f"ckpt.{iteration}").write_bytes(sealed(content))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the same with checkpoints as they were."""
    new, old = (tmp_path_factory.mktemp("runs") / name for name in ("new", "old"))
    with jax.numpy_rank_promotion("allow"), pytest.MonkeyPatch.context() as patches:
        runner = resume_worker.start(new, *OPTIONS)
        (old / "checkpoints").mkdir(parents=True)
        save = runners.SparseTrainRunner._checkpoint_experiment

        def save_both(self: Any, iteration: int, is_last: bool) -> None:
            save(self, iteration, is_last)
            write_old(self, old / "checkpoints", iteration)

        patches.setattr(runners.SparseTrainRunner, "_checkpoint_experiment", save_both)
        runner.run_experiment()
    for path in (new / "checkpoints").glob("sentinel*"):
        shutil.copy(path, old / "checkpoints")
    for name in ("settings.gin", "metrics.csv"):
        shutil.copy(new / name, old)
    return new, old


def test_a_converted_run_has_the_files_of_a_new_one(both: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = both[0], tmp_path / "old"
    shutil.copytree(both[1], old)
    with pytest.raises(run_folder.CheckpointError, match=rf"is a pickle .*convert_old_run {old}"):
        resume_worker.start(old, *OPTIONS)
    assert convert_old_run.convert(old) == [0, 1]
    for name in ("0/replay.npz", "1/replay.npz"):
        assert (old / "checkpoints" / name).read_bytes() == (new / "checkpoints" / name).read_bytes()
    for name in ("ckpt.0", "ckpt.1"):
        ours, theirs = (values_of(folder / "checkpoints" / name) for folder in (old, new))
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert resume_worker.start(old, *OPTIONS)._start_iteration == 2
    assert (old / "pickled" / "ckpt.1").read_bytes()[:1] == b"\x80"


def test_it_wants_to_be_told_that_the_folder_is_trusted(tmp_path: Path, capsys: Any) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "sentinel_checkpoint_complete.0").touch()
    content = pickle.dumps({"run": Trap(tmp_path / "sprung")})
    (checkpoints / "ckpt.0").write_bytes(content)
    assert convert_old_run.main([str(tmp_path)]) == 2
    assert "runs whatever their writer put into them" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()
    assert convert_old_run.main([str(tmp_path / "none"), "--i_trust_this_folder"]) == 2
    assert "no finished checkpoint that is a pickle" in capsys.readouterr().err
    assert convert_old_run.main([str(tmp_path), "--i_trust_this_folder"]) == 2
    assert "ckpt.0 was cut off or has changed" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()
    (checkpoints / "ckpt.0").write_bytes(sealed(content))
    with pytest.raises(KeyError):
        convert_old_run.convert(tmp_path)
    assert (tmp_path / "sprung").exists(), "it says that it runs what is in the files, and does"


def test_an_atari_game_under_way_is_refused_and_the_next_gets_a_fresh_seed() -> None:
    layers = [("AtariPreprocessing", {"game_over": False, "lives": 0, "screen_buffer": []}), ("AtariEnv", {})]
    snapshot = pickle.dumps(layers)
    with pytest.raises(ValueError, match="it was taken in the middle of an Atari game"):
        convert_old_run._snapshot(snapshot, in_episode=True, what="it")
    names = [name for name, _ in convert_old_run._snapshot(snapshot, in_episode=False, what="it")]
    assert names == ["AtariPreprocessing", "LoggedAtari"]
    with pytest.raises(ValueError, match="nobody knows what the state of Weather is"):
        convert_old_run._snapshot(pickle.dumps([("Weather", {"rain": 1})]), in_episode=False, what="it")
