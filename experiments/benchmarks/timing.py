"""Interleaved timing: machines drift, so only ratios taken side by side mean something."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.tables import markdown_table


class Timing(NamedTuple):
    """Time of one contestant.

    Attributes:
        milliseconds: Median wall time of a call.
        ratio: Median over rounds of its time / the baseline's time in the same round.
        low: Lower quartile of that ratio.
        high: Upper quartile of that ratio.
        cpu_ratio: Median over rounds of the processor time of all its threads / the baseline's in the same round; on a
            machine that others use as well it wanders less than wall time.
    """

    milliseconds: float
    ratio: float
    low: float
    high: float
    cpu_ratio: float = math.nan


def interleave(
    contestants: Mapping[str, Callable], baseline: str, rounds: int, seed: int = 0, warm: int = 2
) -> dict[str, Timing]:
    """Runs every contestant once a round, in shuffled order.

    Args:
        contestants: Functions without arguments that return arrays.
        baseline: Name of the contestant that is 1.
        rounds: Counted rounds, at least 3.
        seed: Seed of the order.
        warm: Calls of each before counting.

    Returns:
        A `Timing` per contestant.
    """
    for run in contestants.values():
        for _ in range(warm):
            jax.block_until_ready(run())
    order, shuffle = list(contestants), random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    busy: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            spent, start = time.process_time(), time.perf_counter()
            jax.block_until_ready(contestants[name]())
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - spent)
    cpu = {name: statistics.median(_ratios(times, busy[baseline])) for name, times in busy.items()}
    return {name: _against(times, seconds[baseline], cpu[name]) for name, times in seconds.items()}


def carrying(step: Callable[[Any], tuple[Any, Any]], state: Any) -> Callable[[], Any]:
    """A contestant that goes on from where it was.

    Args:
        step: From a state, whose memory it may use again, to the next and what to wait for.
        state: Where it begins; it is copied.
    """
    carried = [jax.tree.map(jnp.copy, state)]

    def run() -> Any:
        carried[0], done = step(carried[0])
        return done

    return run


def _against(times: list[float], base: list[float], cpu_ratio: float) -> Timing:
    ratios = _ratios(times, base)
    low, _, high = statistics.quantiles(ratios, n=4)
    return Timing(1e3 * statistics.median(times), statistics.median(ratios), low, high, cpu_ratio)


def _ratios(times: list[float], base: list[float]) -> list[float]:
    return [time / other if other else math.nan for time, other in zip(times, base, strict=True)]


def table(timings: Mapping[str, Timing], notes: Mapping[str, str]) -> str:
    """A Markdown table of timings, one row a contestant."""
    rows = [
        (
            name,
            f"{timing.ratio:.3f}",
            f"{timing.low:.3f}-{timing.high:.3f}",
            f"{timing.cpu_ratio:.3f}",
            f"{timing.milliseconds:.1f}",
            notes.get(name, ""),
        )
        for name, timing in timings.items()
    ]
    return markdown_table(("", "ratio", "quartiles", "of cpu time", "ms", ""), rows)


def compare(title: str, sides: Mapping[str, Callable], arguments: tuple, rounds: int) -> dict[str, Timing]:
    """Times jitted functions of the same arguments against the first of them and prints a table; the first runs twice.

    Args:
        title: Its heading.
        sides: Functions that must return the same values.
        arguments: What all of them are called with.
        rounds: Counted rounds, at least 3.

    Returns:
        What the table says.

    Raises:
        AssertionError: If a side returns something else than the first.
    """
    runs: dict[str, Callable] = {}
    notes, expected = {}, None
    for name, function in sides.items():
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        seconds = time.perf_counter() - start
        temporary = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
        notes[name] = f"temporary {temporary / 1e6:.1f} MB, compile {seconds:.1f} s"
        runs[name] = lambda compiled=compiled: compiled(*arguments)
        got = runs[name]()
        expected = got if expected is None else expected
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    baseline = next(iter(runs))
    return told(title, interleave(runs | {f"{baseline}, again": runs[baseline]}, baseline, rounds, warm=1), notes)


def told(title: str, timings: dict[str, Timing], notes: Mapping[str, str] = {}) -> dict[str, Timing]:
    """The same timings, printed as a table under a heading."""
    print(f"### {title}\n\n{table(timings, notes)}\n", flush=True)
    return timings
