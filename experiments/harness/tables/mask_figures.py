"""The masks of a study as pictures: sparsity by layer, how much changed by step, and what else was measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.harness.cells import Cell
from experiments.harness.tables import percent
from experiments.harness.tables.colours_and_labels import legend, panels, style_of
from experiments.harness.tables.outcomes import by_run
from experiments.harness.tables.stored import Stored


class Layer(NamedTuple):
    """A line of `layers.csv`."""

    cell: Cell
    seed: int
    step: int
    layer: str
    size: int
    kept: int
    changed: int | None


def layers_of(study: Stored) -> list[Layer]:
    """The lines of `layers.csv`, of cells that have rows."""
    layout = study.layout
    shown = {tuple(map(str, layout.key(run.cell))): run.cell for run in by_run(study.rows, layout)}
    found = []
    for line in study.layers:
        if (cell := shown.get(tuple(line[field] for field in layout.cell))) is not None:
            numbers = (int(line["seed"]), int(line[layout.step]), line["layer"], int(line["size"]), int(line["kept"]))
            found.append(Layer(cell, *numbers, int(line["changed"]) if line["changed"] else None))
    return found


def last_sparsities(lines: Sequence[Layer]) -> dict[tuple[Cell, str], float]:
    """By cell and layer the fraction of zeros at the last evaluation, mean over seeds."""
    last = {(line.cell, line.layer, line.seed): line for line in sorted(lines, key=lambda line: line.step)}
    grouped: dict[tuple[Cell, str], list[float]] = {}
    for (cell, layer, _), line in last.items():
        grouped.setdefault((cell, layer), []).append(1 - line.kept / line.size)
    return {place: statistics.fmean(values) for place, values in grouped.items()}


def churn(lines: Sequence[Layer]) -> dict[Cell, dict[int, float]]:
    """By cell and step the fraction of all mask entries that changed since the evaluation before, mean over seeds."""
    sums: dict[tuple[Cell, int, int], list[int]] = {}
    for line in lines:
        if line.changed is not None:
            total = sums.setdefault((line.cell, line.step, line.seed), [0, 0])
            total[0], total[1] = total[0] + line.changed, total[1] + line.size
    grouped: dict[Cell, dict[int, list[float]]] = {}
    for (cell, step, _), (changed, size) in sums.items():
        grouped.setdefault(cell, {}).setdefault(step, []).append(changed / size)
    return {cell: {step: statistics.fmean(steps[step]) for step in sorted(steps)} for cell, steps in grouped.items()}


def layers_figure(study: Stored, colours: Mapping[str, str]) -> Figure:
    """Sparsity of every layer at the end, a panel per group and target."""
    lines = layers_of(study)
    ends = last_sparsities(lines)
    places = _places(lines)
    figure, axes_of = panels([_title(place) for place in places], f"{study.layout.title}: layers at the end")
    for axes, place in zip(axes_of, places, strict=True):
        cells = [cell for cell in dict.fromkeys(line.cell for line in lines) if _place(cell) == place]
        layers = list(dict.fromkeys(line.layer for line in lines if line.cell in cells))
        for number, cell in enumerate(cells):
            pruned = [layer for layer in layers if (cell, layer) in ends]
            values = [100 * ends[cell, layer] for layer in pruned]
            width = 0.8 / len(cells)
            places_of = [layers.index(layer) + width * (number + 0.5) - 0.4 for layer in pruned]
            axes.bar(places_of, values, width, color=colours[cell.label], label=cell.label)
        for number, layer in enumerate(layers):
            if all(ends.get((cell, layer), 0.0) < 0.005 for cell in cells):
                axes.text(number, 1, "none", ha="center", fontsize="small")  # no bar would be seen
        axes.set_ylim(0, 100)
        axes.set_ylabel("zeros (%)")
        _name_ticks(axes, layers)
    legend(figure, axes_of)
    return figure


def churn_figure(study: Stored, colours: Mapping[str, str]) -> Figure:
    """Share of all mask entries that changed from one evaluation to the next, a panel per group and target."""
    lines = layers_of(study)
    changes, places = churn(lines), _places(lines)
    figure, axes_of = panels(
        [_title(place) for place in places], f"{study.layout.title}: masks, from evaluation to evaluation"
    )
    for axes, place in zip(axes_of, places, strict=True):
        for cell, steps in changes.items():
            if _place(cell) == place:
                shares = [100 * value for value in steps.values()]
                style = style_of(cell.label, colours)
                axes.plot([*steps], shares, linestyle=style, color=colours[cell.label], label=cell.label)
        axes.set_xlabel(study.layout.step_label)
        axes.set_ylabel("entries changed (%)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure, axes_of)
    return figure


def measurements_figure(study: Stored, colours: Mapping[str, str]) -> Figure:
    """For each quantity a panel, in which every cell has a point at every item: the mean over seeds."""
    measurements = study.measurements
    quantities = list(dict.fromkeys(line.quantity for line in measurements))
    cells = list(dict.fromkeys(line.cell for line in measurements))
    figure, axes_of = panels(quantities, study.layout.title)
    for axes, quantity in zip(axes_of, quantities, strict=True):
        lines = [line for line in measurements if line.quantity == quantity]
        items = list(dict.fromkeys(line.item for line in lines))
        for number, cell in enumerate(cells):
            values = {item: [line.value for line in lines if (line.cell, line.item) == (cell, item)] for item in items}
            there = [item for item in items if values[item]]
            means = [statistics.fmean(values[item]) for item in there]
            shown, colour = Cell("", cell), colours.get(cell, "#7F7F7F")
            _points(axes, [items.index(item) for item in there], means, (number, len(cells)), colour, shown)
        axes.set_ylim(bottom=0)
        _name_ticks(axes, items)
    legend(figure, axes_of)
    return figure


def _points(
    axes: Axes, places: Sequence[int], values: Sequence[float], turn: tuple[int, int], colour: str, cell: Cell
) -> None:
    """A cell's points, a little aside so that they do not hide others'."""
    aside = min(0.12 * turn[1], 0.6) * ((turn[0] + 0.5) / turn[1] - 0.5)
    axes.plot([place + aside for place in places], values, "o", markersize=4, color=colour, label=cell.label)


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize="x-small")


def _place(cell: Cell) -> tuple[str, float | None]:
    return cell.group, cell.sparsity


def _places(lines: Sequence[Layer]) -> list[tuple[str, float | None]]:
    """Groups in order of first appearance, and in each the targets from low to high."""
    groups = list(dict.fromkeys(line.cell.group for line in lines))
    found = {_place(line.cell) for line in lines}
    return sorted(found, key=lambda place: (groups.index(place[0]), place[1] or 0.0))


def _title(place: tuple[str, float | None]) -> str:
    group, sparsity = place
    return ", ".join(filter(None, [group, f"at {percent(sparsity)} sparsity" if sparsity else ""]))
