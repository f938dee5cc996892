"""The export benchmark as a picture: time by sparsity for every kernel and batch, and sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")


class Measured(Protocol):
    """What speeds and sizes have in common."""

    @property
    def shape(self) -> tuple[int, int]:
        """[in, out] of the kernel."""

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""


def save_plot(path: Path, speeds: Sequence[Any], sizes: Sequence[Any]) -> None:
    """Draws the measurements; below the line at 1 a form beats dense.

    Args:
        path: PNG file to write.
        speeds: With shape, batch, sparsity, and timings by form.
        sizes: With shape, sparsity, and ratios by form.
    """
    batches, shapes = sorted({speed.batch for speed in speeds}), list(dict.fromkeys(size.shape for size in sizes))
    figure = Figure(figsize=(4.2 * len(shapes) + 0.6, 3.2 * (len(batches) + 1)), dpi=130, layout="constrained")
    figure.suptitle("Sparse forms of a float32 kernel, against dense = 1", fontsize=14, fontweight="bold")
    grid = figure.subplots(len(batches) + 1, len(shapes), squeeze=False, sharex=True, sharey="row")
    colours = dict(zip(sizes[0].ratios, COLOURS, strict=False))
    for column, shape in enumerate(shapes):
        for row, batch in enumerate(batches):
            own = [speed for speed in speeds if (speed.shape, speed.batch) == (shape, batch)]
            forms = [name for name in own[0].timings if name != "dense"]
            lines = {name: [speed.timings[name].ratio for speed in own] for name in forms}
            _draw(grid[row][column], own, lines, colours)
            grid[row][column].set_title(f"time, {shape[0]} x {shape[1]}, batch {batch}", fontsize=10)
        of_shape = [size for size in sizes if size.shape == shape]
        lines = {name: [size.ratios[name] for size in of_shape] for name in of_shape[0].ratios}
        _draw(grid[-1][column], of_shape, lines, colours)
        grid[-1][column].set_title(f"bytes, {shape[0]} x {shape[1]}", fontsize=10)
        grid[-1][column].set_xlabel("sparsity (%)")
    handles, labels = grid[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def _draw(
    axes: Axes, measured: Sequence[Measured], lines: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> None:
    """One line a form, evenly spaced by sparsity: the interesting ones lie close together."""
    places = range(len(measured))
    for name, ratios in lines.items():
        in_file = "file" in name
        style = "s--" if in_file else "o-"
        axes.plot(places, ratios, style, color=colours[name], label=name, linewidth=1.8, markersize=5)
    axes.axhline(1, color="#111111", linewidth=1.2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(places, [f"{100 * one.sparsity:g}" for one in measured])
    axes.grid(color="#E8E8E8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
