"""Where batches come from: arrays in memory, or tensorflow_datasets' random-access sources."""

import concurrent.futures
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Batch = Mapping[str, Array]


class DataUnavailableError(OSError):
    """A data set is not on this machine; the message says what to do."""


def shuffled_batches(arrays: Batch, batch_size: int, seed: int) -> Iterator[dict[str, Array]]:
    """Batches without end: every example once an epoch, in an order of its own each time.

    Args:
        arrays: By name [n, ...].
        batch_size: Examples of a batch, at most n.
        seed: Seed of the orders.

    Raises:
        ValueError: If there are fewer examples than a batch takes.

    Example:
        >>> batches = shuffled_batches({"x": np.arange(4)}, 2, seed=0)
        >>> sorted(np.concatenate([next(batches)["x"], next(batches)["x"]]).tolist())
        [0, 1, 2, 3]
    """
    for rows in shuffled_rows(len(next(iter(arrays.values()))), batch_size, seed):
        yield {name: array[rows] for name, array in arrays.items()}


def shuffled_rows(count: int, batch_size: int, seed: int) -> Iterator[Array]:
    """Rows of `shuffled_batches`, int [batch_size]; ValueError if there are too few."""
    if batch_size > count:
        raise ValueError(f"a batch takes {batch_size} examples and there are {count}: choose a smaller --batch-size.")
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def padded_batches(arrays: Batch, batch_size: int) -> Iterator[dict[str, Array]]:
    """All examples in order, in batches of one shape; `weight` is 0 where the last one is filled up, else 1.

    Args:
        arrays: By name [n, ...], n above 0.
        batch_size: Examples of a batch.

    Example:
        >>> [batch["weight"].tolist() for batch in padded_batches({"x": np.arange(3)}, 2)]
        [[1.0, 1.0], [1.0, 0.0]]
    """
    count = len(next(iter(arrays.values())))
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size)
        weight = (rows < count).astype(np.float32)
        yield {name: array[np.minimum(rows, count - 1)] for name, array in arrays.items()} | {"weight": weight}


def stacked(examples: Sequence[Batch]) -> dict[str, Array]:
    """One batch of single examples."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def read_ahead(batches: Iterable[Sequence[Any]], read: Callable[[Any], Batch], threads: int) -> Iterator[Batch]:
    """Reads the examples of one batch with several threads while another is in use.

    Args:
        batches: For every batch, what `read` makes its examples of.
        read: Makes an example.
        threads: How many.
    """
    batches = iter(batches)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        start = lambda wanted: [pool.submit(read, description) for description in wanted]  # noqa: E731
        waiting = [start(wanted) for wanted in itertools.islice(batches, 1)]
        while waiting:
            waiting += [start(wanted) for wanted in itertools.islice(batches, 1)]
            yield stacked([example.result() for example in waiting.pop(0)])


def tfds_sources(name: str, splits: Sequence[str]) -> list[Sequence[Mapping[str, Any]]]:
    """Splits of a data set that tensorflow_datasets has prepared on this machine, for random access.

    Args:
        name: As tensorflow_datasets names it, such as `imagenet2012` or `c4/en`.
        splits: Such as `train`.

    Returns:
        For each split a sequence of examples, NumPy arrays and bytes by name.

    Raises:
        DataUnavailableError: If the package is not installed or the data set not prepared.
    """
    prepare = f"Prepare it with: tfds build {name} --file_format=array_record"
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        raise DataUnavailableError(
            f"{name} comes through tensorflow_datasets, and {error.name} is not installed here. Install it with: pip"
            f" install tensorflow-datasets array-record. {prepare}. Or choose --data that needs no download."
        ) from error
    builder = tfds.builder(name, file_format="array_record")
    if not builder.is_prepared():
        raise DataUnavailableError(f"{name} is not prepared in {builder.data_dir}. {prepare}")
    return [builder.as_data_source(split) for split in splits]
