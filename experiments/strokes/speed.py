"""How fast images are made on one core, against reading the same images from the SQLite form of FedJAX."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.timing import interleave, table
from sparse_plugins import fed
from sparse_plugins.fed import strokes

fedjax = fed.import_fedjax()


def speed(num_writers: int, rounds: int) -> str:
    """Gets all training data of some writers in three ways, interleaved in one process.

    Args:
        num_writers: how many writers' images a call gets.
        rounds: counted calls of each way, at least 3.

    Returns:
        A Markdown table; in its notes, training images per second. Both sides hand out the same features, but
        made images cost their writer's test images, too.
    """
    made, _ = strokes.load(num_writers, cached_writers=0)
    kept, _ = strokes.load(num_writers, cached_writers=num_writers)
    total = sum(size for _, size in made.client_sizes())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "strokes_train.sqlite"
        with fedjax.SQLiteFederatedDataBuilder(str(path)) as builder:
            builder.add_many((client_id, _stored(dataset.all_examples())) for client_id, dataset in made.clients())
        read = fedjax.datasets.emnist.preprocess_split(fedjax.SQLiteFederatedData.new(str(path)))
        ways = {"read from SQLite": read, "made": made, "kept in memory": kept}
        timings = interleave({name: _getter(data) for name, data in ways.items()}, "read from SQLite", rounds)
    notes = {name: f"{1e3 * total / timing.milliseconds:,.0f} images/s" for name, timing in timings.items()}
    return f"{total:,} images of {num_writers} writers\n\n{table(timings, notes)}"


def _stored(examples: dict[str, Any]) -> dict[str, Any]:
    """Features as in EMNIST's files, where 1 is background."""
    return {"pixels": 1 - examples["x"][..., 0], "label": examples["y"]}


def _getter(data: Any) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: np.stack([dataset.all_examples()["y"][0] for _, dataset in data.clients()])
