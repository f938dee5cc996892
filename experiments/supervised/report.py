"""The rows of a study as Markdown: a line per cell, a table per further quantity, and what failed."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.supervised.record import Measurement, Row
from experiments.tables import markdown_table, percent


class Labels(NamedTuple):
    """How a domain calls and writes its numbers.

    Attributes:
        score: What a row's score is.
        factor: By which scores are multiplied for readers, such as 100 for percent.
        step: What a step is.
    """

    score: str
    factor: float
    step: str


class Outcome(NamedTuple):
    """How the runs of a cell ended.

    Attributes:
        cell: Its name.
        finished: The rows of each run that finished.
        failed: The last row of each run that failed.
    """

    cell: str
    finished: list[list[Row]]
    failed: list[Row]

    def ends(self, field: str) -> list[float]:
        """A field of the last rows of the finished runs, where it is not empty."""
        values = [getattr(rows[-1], field) for rows in self.finished]
        return [value for value in values if value is not None]


def outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """Groups rows by cell and run, in order of first appearance; runs that have not ended are left out."""
    runs: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        runs.setdefault((row.cell, row.seed), []).append(row)
    found: dict[str, Outcome] = {}
    for (cell, _), own in runs.items():
        outcome = found.setdefault(cell, Outcome(cell, [], []))
        if own[-1].failure:
            outcome.failed.append(own[-1])
        elif own[-1].is_last:
            outcome.finished.append(own)
    return list(found.values())


def spread(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    """Mean and sample standard deviation of numbers, of one the number itself.

    Example:
        >>> spread([0.5, 0.6], 1, factor=100), spread([0.25], 2), spread([], 2)
        ('55.0 ± 7.1', '0.25', '')
    """
    if not values:
        return ""
    text = f"{factor * statistics.fmean(values):.{digits}f}"
    return f"{text} ± {factor * statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def table(found: Sequence[Outcome], labels: Labels) -> str:
    """A line per cell, mean ± sample standard deviation over its finished runs, with the reasons of failed ones."""
    header = ("cell", "sparsity", labels.score, "test loss", "training loss", "runs", "failed")
    lines = [markdown_table(header, [_cells(outcome, labels) for outcome in found])]
    reasons = [f"- {row.cell}, seed {row.seed}, at step {row.step}: {row.failure}" for o in found for row in o.failed]
    return "\n".join([*lines, "", *reasons] if reasons else lines)


def _cells(outcome: Outcome, labels: Labels) -> tuple[str, ...]:
    measured = ["failed", "", "", ""]
    if outcome.finished:
        measured = [
            percent(statistics.fmean(outcome.ends("sparsity"))),
            spread(outcome.ends("score"), 2, labels.factor),
            *(spread(outcome.ends(field), 4) for field in ("loss", "training_loss")),
        ]
    return (outcome.cell, *measured, str(len(outcome.finished)), str(len(outcome.failed)))


def measurement_tables(measurements: Sequence[Measurement]) -> str:
    """For each quantity a table of its items by cells, means over seeds."""
    parts = []
    for quantity in dict.fromkeys(one.quantity for one in measurements):
        own = [one for one in measurements if one.quantity == quantity]
        cells, items = (list(dict.fromkeys(getattr(one, name) for one in own)) for name in ("cell", "item"))
        values: dict[tuple[str, str], list[float]] = {}
        for one in own:
            values.setdefault((one.item, one.cell), []).append(one.value)
        rows = [(item, *(_short(values.get((item, cell), [])) for cell in cells)) for item in items]
        parts += [f"## {quantity}", markdown_table(("", *cells), rows)]
    return "\n\n".join(parts)


def _short(values: Sequence[float]) -> str:
    """Their mean in three digits or more, nothing of none."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.3g}"


def report(
    title: str, about: str, prediction: str, rows: Iterable[Row], measurements: Sequence[Measurement], labels: Labels
) -> str:
    """The text of `results.md`.

    Args:
        title: Of the study.
        about: What was trained, in sentences.
        prediction: What was expected before.
        rows: All rows of the study.
        measurements: All measurements of the study.
        labels: Of the domain.
    """
    further = [measurement_tables(measurements)] if measurements else []
    notes = (
        f"Mean ± sample standard deviation over the runs that finished, after the last {labels.step}; sparsity is the"
        " fraction of zeros in the parameters that have masks. The settings and the command are in `config.json`,"
        " every evaluation is in `results.csv`."
    )
    parts = [f"# {title}", about, f"Predicted before: {prediction}", table(outcomes(rows), labels), *further, notes]
    return "\n\n".join(parts) + "\n"
