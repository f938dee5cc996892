"""A run that was stopped ends as the one that was not, bit for bit; where it can't, it says so and changes nothing."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import gin
import jax
import pytest
from dopamine.discrete_domains import run_experiment

from sparse_plugins import core
from sparse_plugins.checkpoints import SettingsMismatchError
from sparse_plugins.core.storage.array_files import numbers, open_values
from sparse_plugins.rl.dopamine.checkpoints import run_folder
from tests.rl import resume_worker

ROOT = Path(__file__).parents[2]
LAST = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with jax.numpy_rank_promotion("allow"):
        resume_worker.start(folder).run_experiment()
    return folder


def contents(folder: Path, iteration: int = LAST) -> dict[str, bytes]:
    """All that a run leaves behind; equal values are equal files."""
    checkpoints = folder / "checkpoints"
    files = (checkpoints / f"ckpt.{iteration}", checkpoints / str(iteration) / "replay.npz", folder / "metrics.csv")
    return {path.name: path.read_bytes() for path in files}


def assert_same(whole: Path, parts: Path, iteration: int = LAST) -> None:
    ours, theirs = contents(whole, iteration), contents(parts, iteration)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_run_killed_at_three_moments_ends_as_the_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for moment, iteration in (("in_training", 1), ("in_replay", 2), ("before_file", 3)):
        command = [sys.executable, resume_worker.__file__, str(tmp_path), moment, str(iteration)]
        killed = subprocess.run(command, env=environment, timeout=300, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        finished = [path.suffix for path in (tmp_path / "checkpoints").glob("sentinel*")]
        assert sorted(finished) == [f".{number}" for number in range(iteration)]
    with pytest.warns(RuntimeWarning, match=r"ended while the checkpoint of iteration 3 in .* is done again"):
        runner = resume_worker.start(tmp_path)
    assert runner._start_iteration == 3
    runner.run_experiment()
    assert_same(tmp_path, whole)


def test_masks_are_those_of_the_checkpoint_and_not_drawn_again(whole: Path, tmp_path: Path) -> None:
    fresh = resume_worker.start(tmp_path)._agent
    resumed = resume_worker.start(whole)._agent
    kept = core.summarize_intersection(fresh.sparse_state.masks, resumed.sparse_state.masks, True)
    assert float(kept["_total_intersection"]) < 0.9
    with open_values(whole / "checkpoints" / f"ckpt.{LAST}") as saved:
        stored = saved["run"]["agent"]
        for name, tree in (("optimizer_state", resumed.optimizer_state), ("online_params", resumed.sparse_params)):
            for (path, leaf), now in zip(stored[name], jax.tree.leaves(tree), strict=True):
                assert leaf.read().tobytes() == numbers(now).tobytes(), path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[zipfile.ZipFile(path).start_dir - 1] ^= 1  # type: ignore[attr-defined] # the end of the last array
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit in the file": (lambda folder: flip(folder / f"ckpt.{LAST}"), "has changed, or is not one of"),
    "a bit in the replay": (
        lambda folder: flip(folder / str(LAST) / "replay.npz"),
        "missing or changed replay memory",
    ),
    "no replay": (lambda folder: shutil.rmtree(folder / str(LAST)), "missing or changed replay memory"),
    "half a file": (lambda folder: os.truncate(folder / f"ckpt.{LAST}", 1000), "was cut off"),
    "no file": (lambda folder: (folder / f"ckpt.{LAST}").unlink(), "has lost its file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_an_iteration_and_no_bit(damage: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    inflict, problem = DAMAGES[damage]
    inflict(folder / "checkpoints")
    with pytest.warns(RuntimeWarning, match=rf"checkpoint of iteration {LAST} in .*{problem}.* that of iteration 3"):
        runner = resume_worker.start(folder)
    assert runner._start_iteration == LAST
    assert (folder / "damaged" / str(LAST) / f"sentinel_checkpoint_complete.{LAST}").exists()
    runner.run_experiment()
    assert_same(folder, whole)


def test_a_run_without_a_usable_checkpoint_stops_and_changes_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for file in (folder / "checkpoints").glob("ckpt.*"):
        flip(file)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(run_folder.CheckpointError, match=r"no checkpoint in .* can be used: that of iteration 4 was"):
        resume_worker.start(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_another_configuration_in_the_same_folder_is_refused(whole: Path) -> None:
    with pytest.raises(SettingsMismatchError) as caught:
        resume_worker.start(whole, "JaxDQNAgent.gamma = 0.9", "create_updater_from_config.sparsity = 0.5")
    message = str(caught.value)
    assert "\n+ JaxDQNAgent.gamma = 0.9\n" in message
    assert "\n+ create_updater_from_config.sparsity = 0.5\n" in message
    assert "JaxDQNAgent.seed" not in message


def test_a_finished_run_can_be_made_longer(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    runner = resume_worker.start(folder, "Runner.num_iterations = 6")
    runner.run_experiment()
    rows = (folder / "metrics.csv").read_text()
    assert rows.startswith((whole / "metrics.csv").read_text())
    assert rows.splitlines()[-1].startswith("5,")


def test_the_folder_of_a_dense_run_is_refused(tmp_path: Path) -> None:
    gin.parse_config([*resume_worker.BINDINGS, "Runner.num_iterations = 1"])
    run_experiment.TrainRunner(str(tmp_path), run_experiment.create_agent).run_experiment()
    with pytest.raises(run_folder.CheckpointError, match=r"no settings.gin: they are not those of a sparse run"):
        resume_worker.start(tmp_path)
    assert not (tmp_path / "settings.gin").exists()


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    hold = f"import fcntl; lock = open({str(tmp_path / '.lock')!r}, 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); "
    command = [sys.executable, "-c", f"{hold}print('held', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(run_folder.CheckpointError, match="another process is at work on"):
            resume_worker.start(tmp_path)
        other.communicate(b"\n")
    assert not (tmp_path / "settings.gin").exists()


CASES = {
    "an episode in progress, rare checkpoints": [
        "Runner.max_steps_per_episode = None",
        "Checkpointer.checkpoint_frequency = 2",
        "ReplayBuffer.checkpoint_duration = 1",
    ],
    "evaluation in between": ["create_runner.schedule = 'continuous_train_and_eval'"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_in_two_parts_is_one_run(case: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "one", tmp_path / "other"
    resume_worker.start(whole, *CASES[case]).run_experiment()
    resume_worker.start(parts, *CASES[case], "Runner.num_iterations = 4").run_experiment()
    resume_worker.start(parts, *CASES[case]).run_experiment()
    assert_same(parts, whole)
