"""Rebuilds the embedded vector file from the `hershey-fonts` package (MIT; `pip install hershey-fonts`)."""

import importlib
from pathlib import Path

import numpy as np

from sparse_plugins.fed.strokes.render import CLASSES

# Print, its heavy form, plain and double script, italic and roman with serifs: the order of the stored fonts.
FONTS = ("futural", "futuram", "scripts", "scriptc", "timesi", "timesr")


def build(path: Path) -> str:
    """Writes the polylines of all classes in all fonts, in the fonts' own integer units.

    Args:
        path: the npz file: `points` int8 [vertices, 2], x to the right and y down; `vertices` uint8 [strokes], how
          many of them each stroke has; `strokes` uint8 [fonts, 62], how many strokes each glyph has; fonts and
          classes in order.

    Returns:
        What was written, in a sentence.

    Raises:
        ModuleNotFoundError: `hershey-fonts` is not installed.
    """
    reader = importlib.import_module("HersheyFonts").HersheyFonts()
    points: list[tuple[int, int]] = []
    vertices: list[int] = []
    strokes: list[int] = []
    for font in FONTS:
        reader.load_default_font(font)
        for character in CLASSES:
            lines = [line for line in map(list, reader.strokes_for_text(character)) if len(line) > 1]
            points += [point for line in lines for point in line]
            vertices += [len(line) for line in lines]
            strokes.append(len(lines))
    np.savez_compressed(
        path,
        points=np.array(points, np.int8),
        vertices=np.array(vertices, np.uint8),
        strokes=np.array(strokes, np.uint8).reshape(len(FONTS), len(CLASSES)),
    )
    return f"{path}: {len(points)} vertices, {len(vertices)} strokes, {path.stat().st_size} bytes"
