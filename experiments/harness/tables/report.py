"""A study as Markdown: a line per cell with mean and spread over seeds, the paper's numbers, and what differs."""

import statistics
from collections.abc import Sequence

from experiments.harness.cells import Cell
from experiments.harness.layout import Layout, Measure, Published, Row
from experiments.harness.tables import markdown_table, percent
from experiments.harness.tables.outcomes import Outcome, spread
from experiments.harness.tables.statistics import interval, mean
from experiments.harness.tables.stored import Stored, commit


def report(study: Stored) -> str:
    """The text of `results.md`."""
    layout = study.layout
    prediction = f"Predicted before: {layout.prediction}" if layout.prediction else ""
    parts = [f"# {layout.title}", layout.about, prediction, tables(study), _references(study), _notes(study)]
    return "\n\n".join(filter(None, parts)) + "\n"


def tables(study: Stored) -> str:
    """A table per group of cells, what failed, and what else the domain tables."""
    layout, found = study.layout, study.outcomes()
    parts = []
    for group in dict.fromkeys(outcome.cell.group for outcome in found):
        parts += [f"## {group}"] if group else []
        parts.append(_table([outcome for outcome in found if outcome.cell.group == group], study))
    failures = [_failure(outcome.cell, row, layout) for outcome in found for row in outcome.failed]
    parts += ["Failed, and left out of the means:", "\n".join(failures)] if failures else []
    parts += layout.sections(found)
    parts += [measurement_tables(study.measurements)] if study.measurements else []
    return "\n\n".join(parts)


def measurement_tables(measurements: Sequence[Row]) -> str:
    """For each quantity a table of its items by cells, means over seeds."""
    parts = []
    for quantity in dict.fromkeys(line.quantity for line in measurements):
        lines = [line for line in measurements if line.quantity == quantity]
        cells, items = (list(dict.fromkeys(getattr(line, name) for line in lines)) for name in ("cell", "item"))
        values: dict[tuple[str, str], list[float]] = {}
        for line in lines:
            values.setdefault((line.item, line.cell), []).append(line.value)
        rows = [(item, *(_short(values.get((item, cell), [])) for cell in cells)) for item in items]
        parts += [f"## {quantity}", markdown_table(("", *cells), rows)]
    return "\n\n".join(parts)


def _table(found: Sequence[Outcome], study: Stored) -> str:
    """A line per outcome; columns in which nothing would stand are left out."""
    layout, cells = study.layout, [outcome.cell for outcome in found]
    columns = [
        ("algorithm", [cell.label for cell in cells]),
        ("target", ["" if cell.sparsity is None else percent(cell.sparsity) for cell in cells]),
        ("zeros", [_zeros(outcome, layout) for outcome in found]),
    ]
    for measure in layout.scores:
        columns.append((measure.label, [_score(outcome, measure) for outcome in found]))
        if measure.has_interval:
            columns.append(("95 %", [_interval(outcome.values(measure), measure.digits) for outcome in found]))
    if layout.published:
        columns.append((f"published ({layout.published.what})", [_published(cell, layout.published) for cell in cells]))
    columns = [(head, texts) for head, texts in columns if any(texts)]
    columns += [
        ("n", [str(len(outcome.finished)) for outcome in found]),
        ("failed", [str(len(outcome.failed)) for outcome in found]),
        ("commit", [_commits(cell, study) for cell in cells]),
    ]
    header, texts = zip(*columns, strict=True)
    return markdown_table(header, list(zip(*texts, strict=True)))


def _zeros(outcome: Outcome, layout: Layout) -> str:
    values = outcome.values(layout.sparsity) if layout.sparsity else []
    return percent(statistics.fmean(values)) if values else ""


def _score(outcome: Outcome, measure: Measure) -> str:
    return spread(outcome.values(measure), measure.digits) if outcome.finished else "failed"


def _interval(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    low, high = interval([values], mean)
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def _commits(cell: Cell, study: Stored) -> str:
    return ", ".join(dict.fromkeys(commit(record) for run, record in study.origins.items() if run.cell == cell))


def _published(cell: Cell, published: Published | None) -> str:
    number = None if published is None else published.of(cell)
    return "" if published is None or number is None else f"{number:.{published.digits}f}"


def _failure(cell: Cell, row: Row, layout: Layout) -> str:
    return f"- {cell}, seed {row.seed}, at {layout.step_label} {layout.step_of(row):,}: {row.failure}"


def _references(study: Stored) -> str:
    """Where the paper's numbers stand, and what differs from their setting."""
    layout, parts = study.layout, []
    if layout.published and any(_published(outcome.cell, layout.published) for outcome in study.outcomes()):
        parts.append(f"Published: {layout.published.source}")
    if layout.deviations:
        parts.append("What differs from the published setting, so that its numbers are a reference only:")
        parts.append("\n".join(f"- {line}" for line in layout.deviations))
    return "\n\n".join(parts)


def _notes(study: Stored) -> str:
    layout = study.layout
    seeds = ", ".join(map(str, layout.seeds))
    of_many = f"Mean ± sample standard deviation over the n seeds that finished, of {seeds}."
    lines = [
        f"{of_many if len(layout.seeds) > 1 else f'One seed, {seeds}.'} {layout.notes}".strip(),
        "Every evaluation is in `results.csv`"
        + (", the masks of every layer at each of them are in `layers.csv`" if study.layers else "")
        + "; command, settings, versions and platform are in `config.json`.",
    ]
    if len(study.records) > 1:  # whose commands one would otherwise look for
        listed = (
            f"- `{record['settings']['name']}`: commit {commit(record)}, `{record['command']}`"
            for record in study.records
        )
        lines.append("\n".join(listed))
    return "\n\n".join(lines)


def _short(values: Sequence[float]) -> str:
    """Their mean in three digits or more, nothing of none."""
    if not values:
        return ""
    middle = statistics.fmean(values)
    return f"{middle:,.0f}" if abs(middle) >= 1000 else f"{middle:.3g}"
