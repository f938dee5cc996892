"""Looks that the pictures of all studies share."""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008) and three more; dense is black.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195"),
    *("#7F7F7F", "#8C564B", "#A0A000"),
)
DENSE_COLOUR = "#111111"
LEGEND_COLUMNS = 6
POINTS: dict[str, Any] = {"capsize": 3, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.8}


def colours_of(algorithms: Iterable[str], dense: str) -> dict[str, str]:
    """A colour for each algorithm, the same in all pictures of a study.

    Args:
        algorithms: All of the study.
        dense: The name of dense training, among them or not.
    """
    sparse = [name for name in algorithms if name != dense]
    return {dense: DENSE_COLOUR} | {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(sparse)}


def tidy(axes: Axes) -> None:
    """Less frame, a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E8E8E8")
    axes.set_axisbelow(True)
