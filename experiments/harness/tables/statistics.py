"""Means over runs and tasks, with intervals that say how far other seeds may move them.

The interquartile mean and the stratified bootstrap of Agarwal et al., Deep Reinforcement Learning at the Edge of the
Statistical Precipice (2021), in plain NumPy: their package `rliable` needs older releases of NumPy and arch than ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Statistic = Callable[[Array], Array]


def mean(scores: Any) -> Array:
    """Mean over the last axis, which holds the runs of all tasks."""
    return np.asarray(np.mean(scores, axis=-1))


def iqm(scores: Any) -> Array:
    """Interquartile mean over the last axis: that of the middle half, after the lowest and highest quarter are gone.

    Args:
        scores: float[..., runs of all tasks].

    Returns:
        float64[...]. Of fewer than four scores it is the mean.
    """
    ordered = np.sort(scores, axis=-1)
    count = ordered.shape[-1]
    return mean(ordered[..., count // 4 : count - count // 4])


def interval(
    scores_by_task: Sequence[Any],
    statistic: Statistic,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a stratified bootstrap: each task's runs are redrawn among themselves.

    Args:
        scores_by_task: For every task, the scores of its runs; tasks may have different numbers of runs.
        statistic: `iqm`, `mean`, or another function of the last axis.
        confidence: Probability that the interval stands for, in (0, 1).
        resamples: How often all runs are redrawn.
        seed: Of the draws.

    Returns:
        Lower and upper end; both the statistic itself if no task has two runs that differ.

    Raises:
        ValueError: If a task has no run, a score is not finite, or confidence or resamples are out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence is {confidence}, in (0, 1), and resamples is {resamples}, 1 or more.")
    tasks = [np.asarray(scores, float) for scores in scores_by_task]
    if not tasks or any(task.ndim != 1 or task.size == 0 or not np.isfinite(task).all() for task in tasks):
        raise ValueError(f"every task needs one finite score or more, got {tasks}: leave failed runs out.")
    random = np.random.default_rng(seed)
    redrawn = [task[random.integers(task.size, size=(resamples, task.size))] for task in tasks]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(statistic(np.concatenate(redrawn, axis=-1)), [tail, 100 - tail])
    return float(low), float(high)
