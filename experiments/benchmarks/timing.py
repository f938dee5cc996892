"""Interleaved timing: machines drift, so only ratios taken side by side mean something."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax


class Timing(NamedTuple):
    """Time of one contestant.

    Attributes:
        milliseconds: Median wall time of a call.
        ratio: Median over rounds of its time / the baseline's time in the same round.
        low: Lower quartile of that ratio.
        high: Upper quartile of that ratio.
    """

    milliseconds: float
    ratio: float
    low: float
    high: float


def interleave(contestants: Mapping[str, Callable], baseline: str, rounds: int, seed: int = 0) -> dict[str, Timing]:
    """Runs every contestant once a round, in shuffled order.

    Args:
        contestants: Functions without arguments that return arrays; called twice before counting.
        baseline: Name of the contestant that is 1.
        rounds: Counted rounds, at least 3.
        seed: Of the order.

    Returns:
        A `Timing` per contestant.
    """
    for run in contestants.values():
        for _ in range(2):
            jax.block_until_ready(run())
    order, shuffle = list(contestants), random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            jax.block_until_ready(contestants[name]())
            seconds[name].append(time.perf_counter() - start)
    return {name: _against(times, seconds[baseline]) for name, times in seconds.items()}


def _against(times: list[float], base: list[float]) -> Timing:
    ratios = [own / other for own, other in zip(times, base, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Timing(1e3 * statistics.median(times), statistics.median(ratios), low, high)


def table(timings: Mapping[str, Timing], notes: Mapping[str, str]) -> str:
    """A Markdown table of timings, one row a contestant."""
    rows = ["| | ratio | quartiles | ms | |", "|---|---|---|---|---|"]
    for name, (milliseconds, ratio, low, high) in timings.items():
        rows.append(f"| {name} | {ratio:.3f} | {low:.3f}-{high:.3f} | {milliseconds:.1f} | {notes.get(name, '')} |")
    return "\n".join(rows)
