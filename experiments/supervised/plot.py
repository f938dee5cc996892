"""The rows of a study as pictures: scores while training and at the end, and further quantities by item."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.figures import LEGEND_COLUMNS, colours_of, tidy
from experiments.supervised.record import Measurement
from experiments.supervised.report import Labels, Outcome
from experiments.supervised.settings import DENSE


def scores_figure(title: str, found: Sequence[Outcome], labels: Labels) -> Figure:
    """Left the mean score by step, in a band from the worst to the best seed; right every seed at the end."""
    found = [outcome for outcome in found if outcome.finished]
    colours = colours_of([outcome.cell for outcome in found], DENSE)
    figure = _figure(title, columns=2)
    curves, ends = figure.subplots(1, 2)
    for place, outcome in enumerate(found):
        by_step = list(zip(*outcome.finished, strict=True))
        steps = [rows[0].step for rows in by_step]
        scores = [[labels.factor * (row.score or 0.0) for row in rows] for rows in by_step]
        colour = colours[outcome.cell]
        curves.plot(steps, [statistics.fmean(own) for own in scores], color=colour, label=outcome.cell)
        curves.fill_between(steps, [*map(min, scores)], [*map(max, scores)], color=colour, alpha=0.15, linewidth=0)
        ends.plot([place] * len(scores[-1]), scores[-1], "o", color=colour, alpha=0.5)
        ends.plot([place], [statistics.fmean(scores[-1])], "_", color=colour, markersize=24, markeredgewidth=2)
    for axes in (curves, ends):
        tidy(axes)
        axes.set_ylabel(labels.score)
    curves.set_xlabel(labels.step)
    ends.set_xticks(range(len(found)), [outcome.cell for outcome in found], rotation=30, ha="right")
    _legend(figure, len(found))
    return figure


def measurements_figure(title: str, measurements: Sequence[Measurement]) -> Figure:
    """For each quantity a panel, in which every cell has a point at every item: the mean over seeds."""
    quantities = list(dict.fromkeys(one.quantity for one in measurements))
    cells = list(dict.fromkeys(one.cell for one in measurements))
    colours = colours_of(cells, DENSE)
    figure = _figure(title, columns=len(quantities))
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for axes, quantity in zip(panels, quantities, strict=True):
        own = [one for one in measurements if one.quantity == quantity]
        items = list(dict.fromkeys(one.item for one in own))
        for place, cell in enumerate(cells):
            aside = 0.5 * ((place + 0.5) / len(cells) - 0.5)  # so that points do not hide each other
            values = {item: [one.value for one in own if (one.cell, one.item) == (cell, item)] for item in items}
            there = [item for item in items if values[item]]
            means = [statistics.fmean(values[item]) for item in there]
            axes.plot([items.index(item) + aside for item in there], means, "o", color=colours[cell], label=cell)
        tidy(axes)
        axes.set_title(quantity)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(items)), items, rotation=60, ha="right", fontsize=7)
    _legend(figure, len(cells))
    return figure


def _figure(title: str, columns: int) -> Figure:
    figure = Figure(figsize=(6.2 * columns + 1, 5.2), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    figure.suptitle(title, fontsize=14, fontweight="bold")
    return figure


def _legend(figure: Figure, count: int) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = min(LEGEND_COLUMNS, max(count, 1))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
