"""How far a study is, how fast it goes and how long it will take."""

import time
from collections.abc import Sequence
from typing import Any

from experiments.harness.cells import Cell

try:
    from tqdm import tqdm
except ModuleNotFoundError:
    tqdm = None


class Progress:
    """A bar per batch, and a line as soon as the pace is known: after the stretch that did not compile anything.

    Without tqdm there are lines instead of a bar, one for each tenth of a batch.

    Args:
        batches: All of the study; they are trained in this order, but for those that have ended.
        steps: Environment steps of a run.
        seeds: Runs of each cell.
    """

    def __init__(self, batches: Sequence[Sequence[Cell]], steps: int, seeds: int) -> None:
        self._batches, self._steps, self._seeds = [tuple(batch) for batch in batches], steps, seeds
        self._left: list[int] = []
        self._first: tuple[int, float] | None = None
        self._is_told = False
        self._bar: Any = None

    def begin(self, batch: Sequence[Cell]) -> None:
        """A batch begins, or goes on."""
        if tqdm is None and not self._left:
            print("No bar: tqdm is not installed here. A line tells each tenth of a batch instead.", flush=True)
        self._first, self._left = None, [len(cells) for cells in self._batches[self._batches.index(tuple(batch)) :]]
        title = str(batch[0]) + (f" and {len(batch) - 1} more" if len(batch) > 1 else "")
        bar = _Lines if tqdm is None else tqdm
        self._bar = bar(total=self._steps, desc=title, unit="step", unit_scale=True, leave=False, disable=None)

    def reach(self, step: int) -> None:
        """It has made so many environment steps per run."""
        self._bar.update(step - self._bar.n)
        if self._first is None:
            self._first = step, time.perf_counter()
        elif not self._is_told:
            self._is_told = True
            rate = (step - self._first[0]) / (time.perf_counter() - self._first[1]) * self._left[0] * self._seeds
            minutes = (sum(self._left) * self._steps - self._left[0] * step) * self._seeds / rate / 60
            print(
                f"{rate:,.0f} environment steps a second over {self._left[0] * self._seeds} runs: about {minutes:.0f}"
                f" minutes for {sum(self._left)} cells, and as long as it takes to compile them.",
                flush=True,
            )

    def end(self) -> None:
        """The batch has ended, or was stopped."""
        self._bar.close()


class _Lines:
    """What of a bar is used here, as lines."""

    def __init__(self, total: int, desc: str, **_: Any) -> None:
        self.n, self._total, self._title = 0, total, desc

    def update(self, more: int) -> None:
        before, self.n = self.n, self.n + more
        if 10 * before // self._total < 10 * self.n // self._total:
            print(f"{self._title}: {self.n:,} of {self._total:,} steps", flush=True)

    def close(self) -> None:
        """A line needs no end."""
