"""Means over runs and tasks, with intervals that say how far other seeds may move them.

The interquartile mean, the stratified bootstrap and the probability of improvement of Agarwal et al., Deep
Reinforcement Learning at the Edge of the Statistical Precipice (2021), in plain NumPy: their package `rliable` needs
older releases of NumPy and arch than ours, and studies end with a table on machines without SciPy, too.
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
        seed: Seed of the draws.

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
    return _middle(statistic(np.concatenate(redrawn(tasks, resamples, seed), axis=-1)), confidence)


def redrawn(samples: Sequence[Array], resamples: int = 2000, seed: int = 0) -> list[Array]:
    """Every sample, float[n], drawn again from itself so many times, float[resamples, n]."""
    random = np.random.default_rng(seed)
    return [sample[random.integers(sample.size, size=(resamples, sample.size))] for sample in samples]


def _middle(values: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Ends of the middle part of values."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Our mean less theirs, and its 95 % percentile interval of a bootstrap that redraws each side."""
    sides = [np.asarray(side, float) for side in (ours, theirs)]
    means = [mean(side) for side in redrawn(sides)]
    return float(mean(sides[0]) - mean(sides[1])), _middle(means[0] - means[1])


def improvement(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[float, tuple[float, float] | None]:
    """Probability that a run of ours ends above a run of theirs on the same task; ties count half, tasks alike.

    Args:
        ours: For every task, the scores of its runs.
        theirs: The same of the others, with the same tasks in the same order.

    Returns:
        The probability, and its 95 % percentile interval of a bootstrap that redraws each side's runs of each task;
        None in its place if a side has fewer than two runs of a task.

    Raises:
        ValueError: If there is no task, or the sides have different numbers of them.

    Example:
        >>> improvement([[3.0, 5.0]], [[4.0, 5.0]])[0]  # of four pairs one is above, one is level
        0.375

    Source: Agarwal et al. (2021), whose statistic is that of Mann and Whitney (1947).
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"there are {len(ours)} and {len(theirs)} tasks; give the same ones of both, one or more.")
    samples = [np.asarray(task, float) for pair in zip(ours, theirs, strict=True) for task in pair]
    point = float(_above(*samples))
    if min(map(len, samples)) < 2:
        return point, None
    return point, _middle(_above(*redrawn(samples)))


def _above(*samples: Array) -> Array:
    """Mean over tasks, of which samples hold ours and theirs in turn, of how often ours are above."""
    pairs = [
        np.sign(ours[..., :, None] - theirs[..., None, :])
        for ours, theirs in zip(samples[::2], samples[1::2], strict=True)
    ]
    return np.mean([0.5 + pair.mean(axis=(-2, -1)) / 2 for pair in pairs], axis=0)
