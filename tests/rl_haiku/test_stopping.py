"""Ctrl-C and SIGTERM: the first lets a training save, Ctrl-C again ends it; processes that it starts do not notice."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_plugins.checkpoints import Checkpoints
from sparse_plugins.rl.loops.runs import to_the_end
from sparse_plugins.rl.stopping import left_to_the_parent, stop_requests


class Count:
    """A training of nothing, to which signals come in some of its chunks."""

    def __init__(self, **signals: Any) -> None:
        self.count, self.signals = np.zeros((), int), signals

    def template(self) -> dict[str, np.ndarray]:
        return {"count": self.count}

    def begin(self) -> None:
        self.count = np.zeros((), int)

    def restore(self, tree: Any, extra: Any) -> None:
        self.count = np.asarray(tree["count"])

    def advance(self, iterations: int) -> int:
        self.count = self.count + iterations
        for number in self.signals.get(f"at_{self.count}", ()):
            os.kill(os.getpid(), number)
        return int(self.count)

    def save(self) -> tuple[dict[str, np.ndarray], None]:
        return {"count": self.count}, None


def trained(run: Count, folder: Path) -> tuple[list[Any], bool]:
    return to_the_end(run, 6, folder, {}, chunk_iterations=2, checkpoint_chunks=9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_chunk_be_saved(number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    assert trained(Count(at_4=[number]), tmp_path) == ([2, 4], False)
    assert "the chunk under way is finished and saved first; Ctrl-C again drops it" in capfd.readouterr().err
    assert signal.getsignal(number) is before
    assert trained(Count(), tmp_path) == ([2, 4, 6], True)


def test_a_signal_in_the_last_chunk_ends_what_comes_behind_it_too(tmp_path: Path) -> None:
    assert trained(Count(at_6=[signal.SIGTERM]), tmp_path) == ([2, 4, 6], False)
    resumed = Count()
    assert trained(resumed, tmp_path) == ([2, 4, 6], True)
    assert int(resumed.count) == 6


def test_ctrl_c_again_ends_it_at_once_and_sigterm_again_does_not(tmp_path: Path) -> None:
    trained(Count(at_2=[signal.SIGTERM, signal.SIGTERM]), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trained(Count(at_4=[signal.SIGTERM, signal.SIGINT]), tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2]
    assert trained(Count(), tmp_path) == ([2, 4, 6], True)


def test_other_threads_leave_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def listen() -> None:
        with stop_requests("") as request, left_to_the_parent():
            seen.append((bool(request), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_ctrl_c_of_a_terminal_does_not_end_the_workers() -> None:
    """It reaches every process in the foreground; that of `sleep` below would be ended by it."""
    with left_to_the_parent():
        worker = subprocess.Popen(
            [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], stdout=subprocess.PIPE
        )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"up\n"
    worker.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.3)
    worker.kill()
    worker.communicate()
