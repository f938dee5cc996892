"""A study as pictures: scores by step, sparsity and bytes, and the masks of its layers."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from experiments.harness.cells import Cell
from experiments.harness.layout import Curve, Row
from experiments.harness.tables import percent
from experiments.harness.tables.colours_and_labels import (
    DEVIATION,
    POINTS,
    colours_of,
    legend,
    panels,
    style_of,
)
from experiments.harness.tables.mask_figures import churn_figure, layers_figure, measurements_figure
from experiments.harness.tables.outcomes import Outcome
from experiments.harness.tables.statistics import Array
from experiments.harness.tables.stored import Stored


class Panel(NamedTuple):
    """Outcomes that are drawn together: of one group at one sparsity, and dense training."""

    title: str
    outcomes: list[Outcome]


def figures(study: Stored) -> dict[str, Figure]:
    """All pictures that the rows of a study are enough for, by the name of their file."""
    every = study.outcomes()  # those that failed have masks, too
    colours = colours_of(dict.fromkeys(outcome.cell.label for outcome in every))
    found = [outcome for outcome in every if outcome.finished]
    drawn: dict[str, Figure] = {}
    if found and study.layout.curve is not None:
        drawn["curves.png"] = curves_figure(study, found, colours)
    if found:
        drawn["sparsity.png"] = sparsity_figure(study, found, colours)
    if found and study.layout.traffic:
        drawn["bytes.png"] = bytes_figure(study, found, colours)
    if found and study.layout.costs:
        drawn["costs.png"] = costs_figure(study, found, colours)
    if study.layers:
        drawn["layers.png"] = layers_figure(study, colours)
        drawn["churn.png"] = churn_figure(study, colours)
    if study.measurements:
        drawn["measurements.png"] = measurements_figure(study, colours)
    return drawn


def panels_of(found: Sequence[Outcome]) -> list[Panel]:
    """The outcomes of each group and sparsity."""
    made = []
    for group in dict.fromkeys(outcome.cell.group for outcome in found):
        of_group = [outcome for outcome in found if outcome.cell.group == group]
        targets = sorted({o.cell.sparsity or 0.0 for o in of_group if not o.cell.is_dense}) or [0.0]
        for target in targets:
            shown = [o for o in of_group if o.cell.is_dense or (o.cell.sparsity or 0.0) == target]
            title = ", ".join(filter(None, [group, f"at {percent(target)} sparsity" if target else ""]))
            made.append(Panel(title, shown))
    return made


def by_step(outcome: Outcome, step: Callable[[Row], int], field: str) -> tuple[Array, Array, Array]:
    """Steps, int[n]; by them mean and sample standard deviation over the finished seeds, float[n].

    Steps at which no seed has the number are left out; where only one has it, the deviation is 0.
    """
    values: dict[int, list[float]] = {}
    for rows in outcome.finished.values():
        for row in rows:
            if (value := getattr(row, field)) is not None:
                values.setdefault(step(row), []).append(value)
    steps = sorted(values)
    means = [statistics.fmean(values[step]) for step in steps]
    deviations = [statistics.stdev(values[step]) if len(values[step]) > 1 else 0.0 for step in steps]
    return np.array(steps), np.array(means), np.array(deviations)


def curves_figure(study: Stored, found: Sequence[Outcome], colours: Mapping[str, str]) -> Figure:
    """Mean score by step with one standard deviation to either side, a panel per group and sparsity."""
    layout, made = study.layout, panels_of(found)
    assert layout.curve is not None
    figure, axes_of = panels([panel.title for panel in made], layout.title)
    for axes, panel in zip(axes_of, made, strict=True):
        for place, outcome in enumerate(panel.outcomes):
            steps, mean, deviation = by_step(outcome, layout.step_of, layout.curve.field)
            mean, deviation = layout.curve.factor * mean, layout.curve.factor * deviation
            colour, order = colours[outcome.cell.label], 3 - place / len(panel.outcomes)
            look = {"linestyle": style_of(outcome.cell.label, colours), "marker": "o" if len(steps) == 1 else None}
            axes.plot(steps, mean, color=colour, linewidth=1.8, label=outcome.cell.label, zorder=order, **look)
            axes.fill_between(
                steps, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0, zorder=order - 1
            )
        _name_deviation(axes, panel.outcomes)
        if layout.changes is not None:
            axes.axvspan(*layout.changes, color="#F1F1F1", zorder=0, label="masks change")
        axes.set_xlabel(layout.step_label)
        axes.set_ylabel(layout.curve.label)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure, axes_of)
    return figure


def sparsity_figure(study: Stored, found: Sequence[Outcome], colours: Mapping[str, str]) -> Figure:
    """The first score at the end against sparsity, a panel per group; dense training is the dashed level."""
    groups = list(dict.fromkeys(outcome.cell.group for outcome in found))
    figure, axes_of = panels(groups, f"{study.layout.title}, at the end")
    for axes, group in zip(axes_of, groups, strict=True):
        of_group = [outcome for outcome in found if outcome.cell.group == group]
        measure = study.layout.scores[0]
        levels = {outcome.cell: _level(outcome.values(measure)) for outcome in of_group}
        if len({cell.sparsity for cell in levels if not cell.is_dense}) > 1:
            _draw_by_sparsity(axes, levels, colours)
            _name_deviation(axes, of_group)
        else:
            _draw_side_by_side(axes, [(o.cell.label, o.values(measure)) for o in of_group], colours)
        axes.set_ylabel(measure.label)
    legend(figure, axes_of)
    return figure


def costs_figure(study: Stored, found: Sequence[Outcome], colours: Mapping[str, str]) -> Figure:
    """The first score at the end against what runs take, a panel for each cost; a line joins sparsities of a name."""
    layout, score = study.layout, study.layout.scores[0]
    figure, axes_of = panels([""] * len(layout.costs), f"{layout.title}, against what it takes")
    for axes, cost in zip(axes_of, layout.costs, strict=True):
        for name in dict.fromkeys(outcome.cell.label for outcome in found):
            shown = [o for o in found if o.cell.label == name and o.values(cost) and o.values(score)]
            at = [statistics.fmean(outcome.values(cost)) for outcome in shown]
            levels = [_level(outcome.values(score)) for outcome in shown]
            if shown:
                middles, deviations = zip(*levels, strict=True)
                axes.errorbar(at, middles, deviations, fmt="o-", color=colours[name], label=name, **POINTS)
        _name_deviation(axes, found)
        axes.set_xlim(left=0)
        axes.set_xlabel(cost.label)
        axes.set_ylabel(score.label)
    legend(figure, axes_of)
    return figure


def bytes_figure(study: Stored, found: Sequence[Outcome], colours: Mapping[str, str]) -> Figure:
    """Mean score by mean bytes so far: a panel per sparsity and direction."""
    layout = study.layout
    assert layout.curve is not None
    made = [(panel, direction) for panel in panels_of(found) for direction in layout.traffic]
    titles = [", ".join(filter(None, [panel.title, way.field.removesuffix("_bytes")])) for panel, way in made]
    figure, axes_of = panels(titles, f"{layout.title}, by bytes", len(layout.traffic))
    for axes, (panel, direction) in zip(axes_of, made, strict=True):
        for place, outcome in enumerate(panel.outcomes):
            spent, score = _spent(outcome, layout.step_of, layout.curve, direction)
            order = 3 - place / len(panel.outcomes)
            colour, style = colours[outcome.cell.label], style_of(outcome.cell.label, colours)
            axes.plot(spent, score, color=colour, linestyle=style, label=outcome.cell.label, zorder=order)
            axes.plot(spent[-1:], score[-1:], "o", color=colour, markersize=5, zorder=order + 3)  # where it ends
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(direction.label)
        axes.set_ylabel(layout.curve.label)
    legend(figure, axes_of)
    return figure


def _spent(
    outcome: Outcome, step: Callable[[Row], int], curve: Curve, direction: Curve
) -> tuple[list[float], list[float]]:
    """Bytes and scores, from the first evaluation after anything was sent."""
    _, spent, _ = by_step(outcome, step, direction.field)
    _, score, _ = by_step(outcome, step, curve.field)
    pairs = [(direction.factor * b, curve.factor * s) for b, s in zip(spent, score, strict=True) if b > 0]
    return [b for b, _ in pairs], [s for _, s in pairs]


def _draw_by_sparsity(axes: Axes, levels: Mapping[Cell, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """A line per algorithm; sparsities stand side by side, as most of them are close to 1."""
    sparse = list(dict.fromkeys(cell.label for cell in levels if not cell.is_dense))
    targets = sorted({cell.sparsity or 0.0 for cell in levels if not cell.is_dense})
    for number, name in enumerate(sparse):
        aside = 0.3 * ((number + 0.5) / len(sparse) - 0.5)  # so that bars do not hide each other
        points = sorted((cell.sparsity or 0.0, level) for cell, level in levels.items() if cell.label == name)
        places = [targets.index(at) + aside for at, _ in points]
        middles, deviations = zip(*(level for _, level in points), strict=True)
        axes.errorbar(places, middles, deviations, fmt="o-", color=colours[name], label=name, **POINTS)
    for name, (middle, deviation) in _dense_levels(levels):
        axes.axhline(middle, color=colours[name], linestyle="--", label=name)
        axes.axhspan(middle - deviation, middle + deviation, color=colours[name], alpha=0.07, linewidth=0)
    axes.set_xticks(range(len(targets)), [percent(at) for at in targets])
    axes.set_xlabel("target sparsity")


def _draw_side_by_side(axes: Axes, found: Sequence[tuple[str, list[float]]], colours: Mapping[str, str]) -> None:
    """Every seed as a point, and their means as bars."""
    for place, (name, values) in enumerate(found):
        axes.plot([place] * len(values), values, "o", color=colours[name], alpha=0.5, label=name)
        axes.plot([place], [statistics.fmean(values)] if values else [], "_", color=colours[name], markersize=24)
    axes.set_xticks(range(len(found)), [name for name, _ in found], rotation=30, ha="right")


def _dense_levels(levels: Mapping[Cell, tuple[float, float]]) -> Iterator[tuple[str, tuple[float, float]]]:
    return ((cell.label, level) for cell, level in levels.items() if cell.is_dense)


def _name_deviation(axes: Axes, shown: Sequence[Outcome]) -> None:
    """Says in the legend what bars and bands are, where seeds make some."""
    if any(len(outcome.finished) > 1 for outcome in shown):
        axes.fill_between([], [], color="#7F7F7F", alpha=0.3, linewidth=0, label=DEVIATION)


def _level(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; one value has none."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
