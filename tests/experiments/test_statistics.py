"""Means and bootstrap intervals against slow loops, and the look of tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.harness.tables import markdown_table, percent
from experiments.harness.tables.statistics import improvement, interval, iqm, mean

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(SCORES)
def test_the_interquartile_mean_is_that_of_the_middle_half(scores: list[float]) -> None:
    middle = sorted(scores)
    for _ in range(len(scores) // 4):
        middle = middle[1:-1]
    expected = sum(middle) / len(middle)
    assert iqm(scores) == pytest.approx(expected, abs=1e-6)
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25), abs=1e-6)


def test_an_outlier_moves_the_mean_and_not_the_interquartile_mean() -> None:
    scores = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 400.0]])
    assert iqm(scores).tolist() == [2.5, 2.5]
    assert mean(scores).tolist() == [2.5, 101.5]


def slow_interval(tasks: list[np.ndarray], resamples: int) -> tuple[float, float]:
    """The same draws, in loops."""
    random = np.random.default_rng(5)
    draws = [random.integers(len(task), size=(resamples, len(task))) for task in tasks]
    found = []
    for number in range(resamples):
        redrawn = [task[place] for task, drawn in zip(tasks, draws, strict=True) for place in drawn[number]]
        found.append(sum(redrawn) / len(redrawn))
    return np.quantile(found, 0.05), np.quantile(found, 0.95)


def test_the_interval_redraws_runs_within_their_task() -> None:
    tasks = [np.arange(6.0), 100 + np.arange(3.0) ** 2]
    ends = interval(tasks, mean, confidence=0.9, resamples=200, seed=5)
    assert ends == pytest.approx(slow_interval(tasks, 200))
    constant = [np.full(4, 1.0), np.full(4, 9.0)]
    assert interval(constant, mean) == (5.0, 5.0), "a draw across tasks would spread from 1 to 9"


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = interval([random.normal(size=20), random.normal(size=20)], mean, resamples=300, seed=trial)
        covered += low <= 0 <= high
    assert 0.88 < covered / 200 < 0.99


@pytest.mark.parametrize("scores", [[[3.0]], [[2.0, 2.0, 2.0]], [[1.0], [5.0]]])
@pytest.mark.parametrize("statistic", [iqm, mean])
def test_without_spread_the_interval_is_the_point(scores: list[list[float]], statistic: object) -> None:
    point = np.mean(np.concatenate(scores))
    assert interval(scores, statistic) == (point, point)


def test_one_seed_of_draws_repeats_and_two_differ() -> None:
    tasks = [np.random.default_rng(1).normal(size=10)]
    assert interval(tasks, iqm, seed=1) == interval(tasks, iqm, seed=1) != interval(tasks, iqm, seed=2)


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []], [[1.0, np.nan]], [[[1.0]]]])
def test_missing_scores_are_refused(scores: list) -> None:
    with pytest.raises(ValueError, match="every task needs one finite score or more"):
        interval(scores, mean)


@pytest.mark.parametrize("wrong", [{"confidence": 0.0}, {"confidence": 95}, {"resamples": 0}])
def test_what_is_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"confidence is .* and resamples is"):
        interval([[1.0]], mean, **wrong)


def test_tables_align_their_columns() -> None:
    lines = markdown_table(("name", "score"), [("a", "1.5"), ("longer", "10")]).splitlines()
    assert lines == ["| name   | score |", "| ------ | ----: |", "| a      |   1.5 |", "| longer |    10 |"]
    assert [percent(part) for part in (0, 0.5, 0.985, 0.98765)] == ["0 %", "50 %", "98.5 %", "98.77 %"]


def test_the_probability_of_improvement_counts_pairs_of_each_task() -> None:
    # By hand: 2 of 6 pairs above and 1 level; 1 of 1 above. Tasks count alike.
    point, ends = improvement([[1.0, 4.0], [9.0]], [[1.0, 2.0, 5.0], [8.0]])
    assert point == pytest.approx(((2 + 0.5) / 6 + 1) / 2)
    assert ends is None, "one run has no spread"


def test_it_is_that_of_mann_and_whitney() -> None:
    random = np.random.default_rng(3)
    ours, theirs = [random.normal(size=7), random.normal(size=5)], [random.normal(size=6), random.normal(size=9)]
    wanted = [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(ours, theirs, strict=True)]
    point, ends = improvement(ours, theirs)
    assert point == pytest.approx(np.mean(wanted))
    assert ends is not None
    redrawn = []
    for _ in range(2000):
        sides = [[task[random.integers(len(task), size=len(task))] for task in side] for side in (ours, theirs)]
        redrawn.append(np.mean([np.mean(np.sign(a[:, None] - b)) / 2 + 0.5 for a, b in zip(*sides, strict=True)]))
    assert ends == pytest.approx(np.percentile(redrawn, [2.5, 97.5]), abs=0.03)
    assert improvement(ours, ours)[0] == 0.5


def test_sides_without_the_same_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="0 and 0 tasks"):
        improvement([], [])
    with pytest.raises(ValueError, match="1 and 2 tasks"):
        improvement([[1.0]], [[1.0], [2.0]])
