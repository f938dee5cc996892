"""Dopamine and our loops side by side: both really run, and what they hand back makes the table."""

import gin
import pytest

import sparse_plugins.rl.dopamine  # noqa: F401 - repairs Dopamine before it is imported
from experiments.benchmarks import rl_collect
from experiments.versus_dopamine import dopamine_side, our_side
from experiments.versus_dopamine.__main__ import report
from experiments.versus_dopamine.outcomes import DOPAMINE, OURS, REPAIRED, Run, table


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
    lines = table([*theirs, *ours]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        f"CartPole-v1, 2 x 64 units, {side}" for side in (DOPAMINE, REPAIRED, OURS)
    ]
    assert "last transitions kept" in report([*theirs, *ours])


def test_the_tables_difference_is_that_of_the_means():
    pace = {"episodes": 5, "steps_per_cpu_second": 100.0}
    runs = [
        Run(task="breakout", side=side, seed=seed, last_return=mean + seed, **pace)
        for side, mean in ((DOPAMINE, 1.0), (OURS, 4.0))
        for seed in range(3)
    ]
    first, second = table(runs).splitlines()[2:]
    assert "2.00" in first
    assert "+3.00" in first
    assert "5.00" in second
    assert "+" not in second


def test_the_benchmark_of_pong_runs_both_sides():
    ((phase, theirs, ours, ratio),) = rl_collect.measure(8, 1, 1, {"collect": 16})
    assert phase == "collect"
    assert min(float(theirs), float(ours.replace(",", "")), float(ratio)) > 0
