"""The export benchmark as a picture: time by sparsity for every kernel and batch, and sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from experiments.harness.tables.colours_and_labels import COLOURS, PALETTE, legend, panels


def save_plot(path: Path, speeds: Sequence[Any], sizes: Sequence[Any]) -> None:
    """Draws the measurements; below the line at 1 a form beats dense.

    Args:
        path: PNG file to write.
        speeds: With shape, batch, sparsity, and timings by form.
        sizes: With shape, sparsity, and ratios by form.
    """
    batches, shapes = sorted({speed.batch for speed in speeds}), list(dict.fromkeys(size.shape for size in sizes))
    titles = [f"time, {shape[0]} x {shape[1]}, batch {batch}" for batch in batches for shape in shapes]
    titles += [f"bytes, {shape[0]} x {shape[1]}" for shape in shapes]
    figure, axes_of = panels(titles, "Sparse forms of a float32 kernel, against dense = 1", len(shapes))
    shown = iter(axes_of)
    colours = dict(zip(sizes[0].ratios, PALETTE, strict=False))
    for batch in batches:
        for shape in shapes:
            matching = [speed for speed in speeds if (speed.shape, speed.batch) == (shape, batch)]
            forms = [name for name in matching[0].timings if name != "dense"]
            lines = {name: [speed.timings[name].ratio for speed in matching] for name in forms}
            _draw(next(shown), [speed.sparsity for speed in matching], lines, colours)
    for shape in shapes:
        of_shape = [size for size in sizes if size.shape == shape]
        lines = {name: [size.ratios[name] for size in of_shape] for name in of_shape[0].ratios}
        _draw(next(shown), [size.sparsity for size in of_shape], lines, colours)
    legend(figure, axes_of[-1:])
    figure.savefig(path)


def _draw(
    axes: Axes, sparsities: Sequence[float], lines: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> None:
    """One line a form, evenly spaced by sparsity: the interesting ones lie close together."""
    places = range(len(sparsities))
    for name, ratios in lines.items():
        style = "s--" if "file" in name else "o-"
        axes.plot(places, ratios, style, color=colours[name], label=name, linewidth=1.8, markersize=5)
    axes.axhline(1, color=COLOURS["dense"], linewidth=1.2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(places, [f"{100 * sparsity:g}" for sparsity in sparsities])
    axes.set_xlabel("sparsity (%)")
