"""Rows that need an accelerator: what is typed is understood, and what a budget stops goes on."""

import contextlib
import signal
import threading
import time
from pathlib import Path

import pytest

from experiments.fed_emnist.__main__ import main as fed_emnist
from experiments.harness.budget import Stopped, split_budget, stopping_after
from experiments.published.__main__ import commands, main, run
from experiments.published.rows import ROWS
from sparse_plugins.rl.stopping import handled
from tests.experiments import digits_study


def test_every_row_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--output={tmp_path}"]) == 0
    said = capsys.readouterr().out
    for name, row in ROWS.items():
        assert f"{name}: {row.about}" in said
        assert row.expected in said
    assert f"--output={tmp_path} --name=published-mspacman" in said
    assert said.count("missing here: nothing") == len(ROWS)


def test_a_study_that_was_begun_goes_on(tmp_path: Path) -> None:
    (tmp_path / "published-federated").mkdir()
    assert commands("federated", tmp_path) == [["experiments.fed_emnist", f"--resume={tmp_path}/published-federated"]]


def test_unknown_rows_and_missing_packages_are_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["pacman"])
    assert "there is no row pacman; there are correct, costs" in capsys.readouterr().err
    monkeypatch.setitem(ROWS, "costs", ROWS["costs"]._replace(needs=("jax", "no_such_package")))
    with pytest.raises(SystemExit):
        main(["costs"])
    assert "not installed here: no_such_package for costs" in capsys.readouterr().err


def test_what_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    assert run(["sleeper"], 0.5) == 143
    assert time.monotonic() - began < 30
    assert run(["sleeper"], 0) == 143
    monkeypatch.setitem(ROWS, "costs", ROWS["costs"]._replace(commands=(("sleeper",),)))
    assert main(["costs", "--budget-minutes=0.005"]) == 143


def as_in_a_terminal() -> contextlib.AbstractContextManager[None]:
    """What a shell starts in the background ignores Ctrl-C, and so would this process."""
    return handled(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_lets_what_runs_come_to_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = f"""
import os, pathlib, signal, time
os.kill(os.getppid(), signal.SIGINT)
time.sleep(1)
pathlib.Path({str(tmp_path / "saved")!r}).touch()
"""
    (tmp_path / "saver.py").write_text(saver)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with as_in_a_terminal():
        assert run(["saver"], 60) == 130
    assert (tmp_path / "saved").exists()


def test_a_budget_stops_a_study_which_then_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--seeds=1", "--steps=6", "--only", "dense", "magnitude", f"--output={tmp_path}"]
    assert digits_study.run([*flags, "--name=whole"]) == 0
    measured, calls = digits_study.measured_sparsity, []

    def slow(params: object, state: object) -> float:
        calls.append(0)
        if len(calls) == 5:  # in the second run, after its first row
            time.sleep(60)
        return measured(params, state)

    monkeypatch.setattr(digits_study, "measured_sparsity", slow)
    assert digits_study.run([*flags, "--name=stopped", "--budget-minutes=0.05"]) == 143
    folder = tmp_path / "stopped"
    assert f"Stopped; go on with --resume {folder}" in capsys.readouterr().out
    assert digits_study.run([f"--resume={folder}", "--budget-minutes=10"]) == 0
    assert len(calls) == 5 + 3, "the first run was not trained again"
    assert (folder / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()


BY_SIGNAL = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)


@BY_SIGNAL
def test_a_study_that_is_stopped_before_its_folder_is_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    monkeypatch.setattr(digits_study, "load_digits", lambda **_: signal.raise_signal(number))
    with as_in_a_terminal():
        assert digits_study.run([f"--output={tmp_path}", "--name=early"]) == status
    assert "Stopped before anything was trained; the same command begins again." in capsys.readouterr().out
    assert not (tmp_path / "early").exists()


@BY_SIGNAL
def test_a_study_that_is_stopped_while_it_trains_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    monkeypatch.setattr(digits_study, "measured_sparsity", lambda *_: signal.raise_signal(number))
    flags = ["--seeds=1", "--steps=6", "--only", "dense", f"--output={tmp_path}", "--name=stopped"]
    with as_in_a_terminal():
        assert digits_study.run(flags) == status
    assert f"Stopped; go on with --resume {tmp_path / 'stopped'}" in capsys.readouterr().out


def test_a_budget_has_to_be_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    for bad in ("0", "-1", "nan", "inf", "1e300"):
        with pytest.raises(SystemExit):
            split_budget([f"--budget-minutes={bad}"])
        assert "must be above 0" in capsys.readouterr().err
    assert split_budget(["--seeds", "2"]) == (None, ["--seeds", "2"])
    with pytest.raises(SystemExit):
        fed_emnist(["--help"])
    assert "--budget-minutes" in capsys.readouterr().out


def test_a_term_from_outside_is_told_and_handled_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), stopping_after(None):
        signal.raise_signal(signal.SIGTERM)
    with stopping_after(60.0):
        assert any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
    assert signal.getsignal(signal.SIGTERM) == before
