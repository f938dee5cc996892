"""Looks that the pictures of all studies share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008) and three more; dense is black.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195"),
    *("#7F7F7F", "#8C564B", "#A0A000"),
)
DENSE_COLOUR = "#111111"
LEGEND_COLUMNS = 6
PANEL_COLUMNS = 3
STYLES = ("-", "--", "-.", (0, (1, 1)))  # so that curves that coincide are seen
POINTS: dict[str, Any] = {"capsize": 3, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.8}


def colours_of(names: Iterable[str], dense: str) -> dict[str, str]:
    """A colour for each name, the same in all pictures of a study.

    Args:
        names: All of the study.
        dense: The name of dense training, among them or not.
    """
    sparse = [name for name in names if name != dense]
    return {dense: DENSE_COLOUR} | {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(sparse)}


def style_of(name: str, colours: Mapping[str, str]) -> Any:
    """The line style of a name, the same in all pictures of a study; neighbours differ.

    Args:
        name: One of the study.
        colours: By name, all of the study.
    """
    return STYLES[list(colours).index(name) % len(STYLES)]


def panels(titles: Sequence[str], title: str, most: int = PANEL_COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, at most so many side by side."""
    columns = min(max(len(titles), 1), most)
    lines = math.ceil(max(len(titles), 1) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(max(5.2 * columns, 8), 4.2 * lines + 1.2), dpi=150, layout=layout)
    figure.suptitle(title, fontsize=15, fontweight="bold")
    every = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in every[len(titles) :]:
        axes.remove()
    for axes, text in zip(every, titles, strict=False):
        axes.set_title(text)
        tidy(axes)
    return figure, every[: len(titles)]


def legend(figure: Figure, shown: Sequence[Axes]) -> None:
    """One for all panels."""
    handles = {name: handle for axes in shown for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = min(LEGEND_COLUMNS, max(len(handles), 1))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def tidy(axes: Axes) -> None:
    """Less frame, a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E8E8E8")
    axes.set_axisbelow(True)
