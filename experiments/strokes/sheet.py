"""The contact sheet: each row is a writer."""

from pathlib import Path

import numpy as np
from matplotlib import image

from sparse_plugins.fed import strokes

WRITERS, IMAGES = 16, 24


def save_sheet(path: Path) -> str:
    """Draws the first test and train images of the first writers, dark on white, two pixels a pixel.

    Returns:
        What was drawn, in a sentence.
    """
    train, _ = strokes.load(WRITERS)
    rows = [np.concatenate(dataset.all_examples()["x"][:IMAGES, ..., 0], axis=1) for _, dataset in train.clients()]
    sheet = 1 - np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1)
    image.imsave(path, sheet, cmap="gray", vmin=0, vmax=1)
    return f"{path}: {WRITERS} writers, {IMAGES} images each"
