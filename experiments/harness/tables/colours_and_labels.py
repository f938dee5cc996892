"""Looks that the pictures of all studies share."""

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# One colour an algorithm, in every picture; readers who see no red or no green can tell them apart (Okabe and Ito,
# 2008, and the wine of Tol).
COLOURS = {
    "dense": "#111111",
    "magnitude": "#0072B2",
    "global_magnitude": "#56B4E9",
    "saliency": "#009E73",
    "magnitude_ste": "#CC79A7",
    "rigl": "#D55E00",
    "set": "#E69F00",
    "static_sparse": "#882255",
    "random": "#BBBBBB",
}
PALETTE = (*(colour for name, colour in COLOURS.items() if name != "dense"), "#8C564B", "#A0A000")
LOOK: Any = {"font.size": 13}  # pictures are shown at two thirds of their size or less
WIDTH = 9.6  # inches, at least
PANEL_COLUMNS = 2
DEVIATION = "± one standard deviation"
STYLES = ("-", "--", "-.", (0, (1, 1)))  # so that curves that coincide are seen
POINTS: dict[str, Any] = {"capsize": 3, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.8}


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: an algorithm's own; for others, those that are left, the same in a study's pictures.

    Example:
        >>> colours_of(["magnitude", "2:4"]) == {"magnitude": "#0072B2", "2:4": "#56B4E9"}
        True
    """
    names = list(names)
    taken = {COLOURS[name] for name in names if name in COLOURS}
    left = itertools.cycle([colour for colour in PALETTE if colour not in taken] or PALETTE)
    return {name: COLOURS[name] if name in COLOURS else next(left) for name in names}


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
    figure = Figure(figsize=(max(4.8 * columns, WIDTH), 4 * lines + 0.8), dpi=150, layout=layout)
    figure.suptitle(textwrap.fill(title, 60), fontsize="large", fontweight="bold")
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
    fitting = int(figure.get_figwidth() / (0.11 * max(map(len, handles), default=1) + 0.7))
    columns = min(max(fitting, 1), max(len(handles), 1))
    figure.set_figheight(figure.get_figheight() + 0.28 * math.ceil(len(handles) / columns))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def tidy(axes: Axes) -> None:
    """Less frame, a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E8E8E8")
    axes.set_axisbelow(True)
