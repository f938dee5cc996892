"""The rows of a study as a picture: accuracy against the bytes that it took."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator

from experiments.fed_emnist.config import DENSE, StudyConfig
from experiments.fed_emnist.plot import means_by_round
from experiments.fed_emnist.record import Row
from experiments.fed_emnist.report import Outcome, outcomes
from experiments.figures import LEGEND_COLUMNS, colours_of, tidy
from experiments.tables import percent

DIRECTIONS = {"down_bytes": "from the server to all clients", "up_bytes": "from all clients to the server"}


def bytes_figure(config: StudyConfig, rows: Sequence[Row]) -> Figure:
    """Draws a line of panels per sparsity, left by the bytes sent down, right by those sent up."""
    ended = [outcome for outcome in outcomes(rows) if outcome.finished]
    height = 4.3 * len(config.sparsities) + 1.2
    figure = Figure(figsize=(12.5, height), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    figure.suptitle(f"Accuracy by bytes, federated averaging on {config.dataset}", fontsize=15, fontweight="bold")
    grid = figure.subplots(len(config.sparsities), 2, squeeze=False, sharex="col")
    for line, sparsity in zip(grid, config.sparsities, strict=True):
        shown = [outcome for outcome in ended if outcome.algorithm == DENSE or outcome.sparsity == sparsity]
        for axes, field in zip(line, DIRECTIONS, strict=True):
            _draw(axes, shown, rows, field, colours_of(config.algorithms, DENSE))
            axes.set_title(f"At {percent(sparsity)} sparsity")
    for axes, text in zip(grid[-1], DIRECTIONS.values(), strict=True):
        axes.set_xlabel(f"megabytes {text}")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(labels)), frameon=False)
    return figure


def _draw(axes: Axes, shown: Sequence[Outcome], rows: Sequence[Row], field: str, colours: Mapping[str, str]) -> None:
    """Mean accuracy by mean bytes so far, from the first evaluation after training began."""
    for place, outcome in enumerate(shown):
        _, accuracy, _ = means_by_round(outcome, rows, "test_accuracy")
        _, spent, _ = means_by_round(outcome, rows, field)
        style: dict[str, Any] = {"color": colours[outcome.algorithm], "linewidth": 2, "zorder": 3 - place / len(shown)}
        axes.plot(spent[1:] / 1e6, 100 * accuracy[1:], label=outcome.label, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("test accuracy (%)")
    tidy(axes)
