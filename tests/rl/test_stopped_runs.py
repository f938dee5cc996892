"""Ctrl-C and SIGTERM at the command: what is saved, what is said, and that the run goes on."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_accumulator

from tests.rl.resume_worker import BINDINGS, start

ENDLESS = ["Runner.num_iterations = 9999", "Checkpointer.checkpoint_frequency = 1000"]


def rows(folder: Path) -> list[list[str]]:
    """Of the metrics, header first."""
    path = folder / "metrics.csv"
    return [line.split(",") for line in path.read_text().splitlines()] if path.exists() else []


def test_ctrl_c_at_the_command_saves_out_of_turn_and_names_the_command_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "cartpole.gin").write_text("\n".join([*BINDINGS, *ENDLESS]))
    folder, root = tmp_path / "a run", Path(__file__).parents[2]
    flags = [f"--gin_files={tmp_path}/cartpole.gin", f"--base_dir={folder}"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "sparse_plugins.rl.train", *flags]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 200
        while len(rows(folder)) < 3 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    done = len(rows(folder)) - 1
    assert "the iteration under way is finished and saved first; Ctrl-C again drops it" in said
    assert "Traceback" not in said
    again = shlex.join(["python", "-m", "sparse_plugins.rl.train", *flags])
    assert said.endswith(f"Stopped; {done} iterations are saved in {folder}. Go on with:\n  {again}\n")

    runner = start(folder, *ENDLESS, f"Runner.num_iterations = {done + 1}")
    assert runner.saved_iterations == done
    assert runner.run_experiment() == 0
    header, *lines = rows(folder)
    assert [line[0] for line in lines] == [str(i) for i in range(done + 1)]
    settings = (folder / "settings.gin").read_text()
    assert f"Runner.num_iterations = {done + 1}\n" in settings
    assert settings.startswith("# seeds: agent 0, environments 0\n")

    events = event_accumulator.EventAccumulator(str(folder / "metrics" / "tensorboard"))
    events.Reload()
    steps, sparsity = (header.index(name) for name in ("steps", "sparsity"))
    points = [(point.step, point.value) for point in events.Scalars("Sparse/sparsity")]
    assert points == [(int(line[steps]), pytest.approx(float(line[sparsity]))) for line in lines]


def stopping(runner: Any, iteration: int, *numbers: int) -> Any:
    """The runner, to which signals come at the end of an iteration's training."""
    original = runner._run_one_iteration

    def run(number: int) -> Any:
        statistics = original(number)
        if number == iteration:
            for signal_number in numbers:
                os.kill(os.getpid(), signal_number)
        return statistics

    runner._run_one_iteration = run
    return runner


def test_sigterm_saves_and_ctrl_c_again_drops_the_iteration(tmp_path: Path) -> None:
    assert stopping(start(tmp_path), 1, signal.SIGTERM).run_experiment() == 143
    assert len(rows(tmp_path)) == 3
    runner = stopping(start(tmp_path), 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        runner.run_experiment()
    assert runner.saved_iterations == 3
    assert stopping(start(tmp_path), 4, signal.SIGTERM).run_experiment() == 0, "the last iteration is done anyway"
    assert [row[0] for row in rows(tmp_path)[1:]] == ["0", "1", "2", "3", "4"]
