"""Dopamine and our loops side by side: both really run, and what they hand back makes the table."""

import gin
import pytest

import sparse_plugins.rl.dopamine  # noqa: F401 - repairs Dopamine before it is imported
from experiments.benchmarks import rl_collect
from experiments.harness.tables import report
from experiments.harness.tables.stored import Stored
from experiments.versus_dopamine import dopamine_side, our_side
from experiments.versus_dopamine.layout import layout
from experiments.versus_dopamine.outcomes import DOPAMINE, OURS, REPAIRED, Run


def stored(runs: list[Run]) -> Stored:
    record = {"settings": {"tasks": ["cartpole-small", "breakout"], "seeds": [0, 1, 2]}}
    return Stored((), (record,), layout(record), runs, [], [], {})


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin.clear_config()


def test_both_sides_learn_cartpole_and_share_a_table():
    theirs = [dopamine_side.run("cartpole-small", side, 0, 1_250) for side in (DOPAMINE, REPAIRED)]
    ours = our_side.run("cartpole-small", [0, 1], 3_000)
    for run in (*theirs, *ours):
        assert 8 < run.last_return <= 500
        assert run.episodes > 0
        assert run.steps_per_cpu_second > 0
    text = report.report(stored([*theirs, *ours]))
    lines = text[text.index("## CartPole-v1, 2 x 64 units") :].splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:7]] == [DOPAMINE, REPAIRED, OURS]
    assert "last transitions kept" in text


def test_the_tables_difference_is_that_of_the_means():
    pace = {"episodes": 5, "steps_per_cpu_second": 100.0}
    runs = [
        Run(task="breakout", side=side, seed=seed, last_return=mean + seed, **pace)
        for side, mean in ((DOPAMINE, 1.0), (OURS, 4.0))
        for seed in range(3)
    ]
    text = report.tables(stored(runs))
    assert "2.00 ± 1.00" in text
    assert "5.00 ± 1.00" in text
    assert "| MinAtar Breakout, dopamine |" in text
    assert "+3.00 (" in text


def test_the_benchmark_of_pong_runs_both_sides():
    ((phase, theirs, ours, ratio),) = rl_collect.measure(8, 1, 1, {"collect": 16})
    assert phase == "collect"
    assert min(float(theirs), float(ours.replace(",", "")), float(ratio)) > 0
