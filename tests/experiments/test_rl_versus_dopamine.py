"""Dopamine and our loops side by side: both really run, and what they hand back makes the table."""

import pickle
import shutil
import subprocess
import sys

import gin
import pytest

import sparse_plugins.rl.dopamine  # noqa: F401 - repairs Dopamine before it is imported
from experiments.benchmarks import rl_collect
from experiments.demos.rl_demo import task as rl_demo
from experiments.harness.layout import Row
from experiments.harness.tables import report
from experiments.harness.tables.stored import Stored
from experiments.versus_dopamine import dopamine_side, our_side
from experiments.versus_dopamine import task as versus_dopamine
from experiments.versus_dopamine.__main__ import main
from experiments.versus_dopamine.layout import layout
from experiments.versus_dopamine.outcomes import DOPAMINE, OURS, REPAIRED, End

RECORD = {"settings": {"tasks": ["cartpole-small", "breakout"], "seeds": [0, 1, 2]}}


def stored(ends: list[tuple[str, str, int, End]]) -> Stored:
    rows = [Row(task=task, side=side, seed=seed, failure="", **end._asdict()) for task, side, seed, end in ends]
    return Stored((), (RECORD,), layout(RECORD), rows, [], [], {})


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin.clear_config()


def test_both_sides_learn_cartpole_and_share_a_table():
    task = "cartpole-small"
    theirs = [(task, side, 0, dopamine_side.run(task, side, 0, 1_250)) for side in (DOPAMINE, REPAIRED)]
    ours = [(task, OURS, seed, end) for seed, end in enumerate(our_side.run(task, [0, 1], 3_000))]
    for *_, end in theirs:  # an episode's return is its length, so those that are counted fill the last fifth
        assert 250 <= round(end.last_return * end.episodes) < 250 + 2 * 500
    for *_, end in ours:  # and here, in two environments, two stretches of a tenth
        assert end.last_return * end.episodes == pytest.approx(round(end.last_return * end.episodes), abs=1e-3)
        assert end.last_return * end.episodes < 600 + 2 * 500
    text = report.report(stored([*theirs, *ours]))
    lines = text[text.index("## CartPole-v1, 2 x 64 units") :].splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:7]] == [DOPAMINE, REPAIRED, OURS]
    assert "last transitions kept" in text


def test_the_tables_difference_is_that_of_the_means():
    runs = [
        ("breakout", side, seed, End(mean + seed, 5, 100.0))
        for side, mean in ((DOPAMINE, 1.0), (OURS, 4.0))
        for seed in range(3)
    ]
    text = report.tables(stored(runs))
    assert "2.00 ± 1.00" in text
    assert "5.00 ± 1.00" in text
    assert "| MinAtar Breakout, dopamine |" in text
    assert "+3.00 (" in text


def test_the_benchmark_of_pong_runs_both_sides(monkeypatch):
    paces = iter([2.0, 9.0])
    monkeypatch.setattr(rl_collect, "_pace", lambda run, steps: (run(steps), next(paces))[1])
    assert rl_collect.measure(8, 1, 1, {"collect": 16}) == [("collect", "2", "9", "4.50")]


def test_a_study_trains_our_seeds_together_and_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    asked = []

    def ours(task, seeds, steps):
        asked.append((OURS, task, [*seeds], steps))
        return [End(10.0 + seed, 5, 100.0) for seed in seeds]

    def theirs(task, side, seed, steps):
        asked.append((side, task, [seed], steps))
        return End(8.0 + seed, 4, 20.0)

    monkeypatch.setattr(our_side, "run", ours)
    monkeypatch.setattr(dopamine_side, "run", theirs)
    flags = ["--tasks", "cartpole-small", "--seeds=2", "--scale=0.1", "--jobs=1"]
    assert main([*flags, f"--output={tmp_path}", "--name=x"]) == 0
    each = [(side, "cartpole-small", [seed], 2_000) for side in (DOPAMINE, REPAIRED) for seed in (0, 1)]
    assert asked == [(OURS, "cartpole-small", [0, 1], 2_000), *each]
    text = (tmp_path / "x" / "results.md").read_text()
    assert "## CartPole-v1, 2 x 64 units" in text
    assert "10.50 ± 0.71" in text
    asked.clear()
    shutil.rmtree(tmp_path / "x" / "runs" / "cartpole-small-dopamine" / "seed-1")
    (tmp_path / "x" / "results.md").unlink()
    assert main([f"--resume={tmp_path / 'x'}"]) == 0
    assert asked == [(DOPAMINE, "cartpole-small", [1], 2_000)]
    assert (tmp_path / "x" / "results.md").read_text() == text
    capsys.readouterr()


def test_runs_that_end_before_they_learn_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--tasks", "cartpole", "breakout", "--scale=0.05"])
    assert "--scale must be 0.1 at least, got 0.05" in capsys.readouterr().err


@pytest.mark.parametrize("task", [versus_dopamine, rl_demo])
def test_other_processes_find_what_trains(task):
    """What a module that is run as a command defines, they do not."""
    (settings,) = (
        member for member in vars(task).values() if isinstance(member, type) and member.__module__ == task.__name__
    )
    code = f"import pickle; print(pickle.loads({pickle.dumps(task.plan(settings(name='x')).train)!r}).func.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == task.__name__
    assert not task.__name__.endswith("__main__")
