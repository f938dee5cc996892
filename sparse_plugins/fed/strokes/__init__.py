"""Handwriting of thousands of synthetic writers, in 62 classes, made on the fly from embedded vector strokes.

It has EMNIST's shapes, classes and pixel convention, and needs neither a download nor a file. It is not EMNIST:
every image is computed, and results on it are to be reported as results on `strokes`. Making images needs NumPy only;
`load` and `StrokesData`, which import FedJAX, are loaded when they are asked for.
"""

import typing

from sparse_plugins import on_demand
from sparse_plugins.fed.strokes.writers import (
    MAX_DIFFICULTY,
    MAX_WRITERS,
    NUM_WRITERS,
    client_id,
    images,
    num_images,
)

if typing.TYPE_CHECKING:
    from sparse_plugins.fed.fedjax.strokes_data import StrokesData, load
else:
    __getattr__, __dir__ = on_demand.loaders(
        __name__, dict.fromkeys(["StrokesData", "load"], "sparse_plugins.fed.fedjax.strokes_data")
    )

__all__ = [
    "MAX_DIFFICULTY",
    "MAX_WRITERS",
    "NUM_WRITERS",
    "StrokesData",
    "client_id",
    "images",
    "load",
    "num_images",
]
