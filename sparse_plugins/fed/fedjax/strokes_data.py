"""The synthetic handwriting of `fed.strokes` as FedJAX's `FederatedData`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fedjax
import numpy as np

from sparse_plugins.fed.strokes.writers import (
    MAX_DIFFICULTY,
    MAX_WRITERS,
    NUM_WRITERS,
    client_id,
    images,
    num_images,
)

__all__ = ["StrokesData", "load"]

_HELD_OUT = 10  # of so many images one is in the test split

Examples = dict[str, np.ndarray[Any, Any]]


def load(
    num_writers: int = NUM_WRITERS,
    *,
    seed: int = 0,
    difficulty: float = 0.7,
    only_digits: bool = False,
    cached_writers: int = 1024,
) -> tuple["StrokesData", "StrokesData"]:
    """Makes federated handwriting with EMNIST's features.

    A writer depends on seed, number and difficulty alone: it is the same in a set of ten and in one of thousands,
    on every machine, to the pixel. Its client id is that of its number, whatever the seed.

    Args:
        num_writers: clients, 1 to 10,000; EMNIST has 3,400. Each writes 220 images on average.
        seed: 0 or more; another seed gives other writers.
        difficulty: how much hands differ and how unsteady they are, above 0, at most 1.5. At 0.7 FedJAX's
          convolutional network reads 80-90% of the held-out images (docs/strokes.md has the budget).
        only_digits: the 10 digit classes only, half as many images.
        cached_writers: how many writers' images are kept in memory once made, the least recently used going
          first; 173 kB per writer on average, so 180 MB for the default and 590 MB for all of 3,400. 0 keeps none.

    Returns:
        Train and test data with the same writers and no image in common; nine images of ten are in train.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> train, test = load(num_writers=3)
        >>> [client_id.decode() for client_id in train.client_ids()][-1]
        '7374726f6b657300:f0002_00'
        >>> batch = next(iter(test.get_client(b"7374726f6b657300:f0002_00").batch(batch_size=8)))
        >>> {name: (feature.shape, str(feature.dtype)) for name, feature in batch.items()}
        {'x': ((8, 28, 28, 1), 'float32'), 'y': ((8,), 'int32'), 'domain_id': ((8,), 'int32')}
    """
    if not 1 <= num_writers <= MAX_WRITERS:
        raise ValueError(f"strokes can't have {num_writers} writers: choose num_writers from 1 to {MAX_WRITERS}.")
    if not 0 < difficulty <= MAX_DIFFICULTY:
        raise ValueError(f"difficulty {difficulty} is out of range: choose one above 0 and up to {MAX_DIFFICULTY}.")
    if seed < 0:
        raise ValueError(f"seed {seed} is out of range: choose 0 or more.")
    if cached_writers < 0:
        raise ValueError(f"cached_writers {cached_writers} is out of range: choose 0 (keep none) or more.")
    write = functools.partial(images, seed, difficulty=difficulty, only_digits=only_digits)
    count = functools.partial(num_images, seed, only_digits=only_digits)
    cached = functools.lru_cache(cached_writers)(write)
    writers = tuple(range(num_writers))
    return StrokesData(cached, count, False, writers), StrokesData(cached, count, True, writers)


@dataclasses.dataclass(frozen=True)
class StrokesData(fedjax.FederatedData):
    """One split of the handwriting as FedJAX wants it; `load` makes it.

    Images are made when a client's data is asked for. Sizes are known without making any; as in FedJAX's SQLite
    data they are those before client preprocessing. Clients come in the order of their ids.

    Attributes:
        write: writer's number -> ink uint8 [n, 28, 28] and classes int32 [n].
        count: writer's number -> n.
        held_out: whether this is the test split.
        writers: numbers of the writers, ascending.
        client_preprocessor: what is done to a client's examples.
        batch_preprocessor: what is done to a batch.
    """

    write: Callable[[int], tuple[Any, Any]]
    count: Callable[[int], int]
    held_out: bool
    writers: tuple[int, ...]
    client_preprocessor: Any = dataclasses.field(default_factory=fedjax.ClientPreprocessor)
    batch_preprocessor: Any = dataclasses.field(default_factory=fedjax.BatchPreprocessor)

    def slice(self, start: bytes | None = None, stop: bytes | None = None) -> "StrokesData":
        """The clients from id `start` on and before id `stop`; None is no limit."""
        kept = (
            writer
            for writer in self.writers
            if (start is None or client_id(writer) >= start) and (stop is None or client_id(writer) < stop)
        )
        return dataclasses.replace(self, writers=tuple(kept))

    def num_clients(self) -> int:
        """How many writers there are."""
        return len(self.writers)

    def client_ids(self) -> Iterator[bytes]:
        """The ids of all writers."""
        return map(client_id, self.writers)

    def client_sizes(self) -> Iterator[tuple[bytes, int]]:
        """Id and number of images of all writers."""
        return ((client_id(writer), self._size(writer)) for writer in self.writers)

    def client_size(self, client_id: bytes) -> int:
        """How many images a writer has in this split."""
        return self._size(self._writer(client_id))

    def clients(self) -> Iterator[tuple[bytes, Any]]:
        """Id and `fedjax.ClientDataset` of all writers."""
        return self.get_clients(self.client_ids())

    def shuffled_clients(self, buffer_size: int, seed: int | None = None) -> Iterator[tuple[bytes, Any]]:
        """Passes over all writers without end, each in a new order; `buffer_size` is not needed, ids are small."""
        rng = np.random.RandomState(seed)
        while self.writers:
            yield from self.get_clients(client_id(self.writers[i]) for i in rng.permutation(len(self.writers)))

    def get_clients(self, client_ids: Iterable[bytes]) -> Iterator[tuple[bytes, Any]]:
        """Id and `fedjax.ClientDataset` of each of these writers."""
        return ((client_id, self.get_client(client_id)) for client_id in client_ids)

    def get_client(self, client_id: bytes) -> Any:
        """The `fedjax.ClientDataset` of one writer.

        Raises:
            KeyError: there is no such client.
        """
        writer = self._writer(client_id)
        ink, classes = self.write(writer)
        rows = _rows(len(classes), self.held_out)
        y = classes[rows].copy()
        examples: Examples = {
            "x": ink[rows, ..., None].astype(np.float32) / np.float32(255),
            "y": y,
            "domain_id": np.full_like(y, fedjax.datasets.emnist.domain_id(client_id)),
        }
        return fedjax.ClientDataset(self.client_preprocessor(client_id, examples), self.batch_preprocessor)

    def preprocess_client(self, fn: Callable[[bytes, Examples], Examples]) -> "StrokesData":
        """The same data with one more step applied to all examples `x`, `y` and `domain_id` of a client."""
        return dataclasses.replace(self, client_preprocessor=self.client_preprocessor.append(fn))

    def preprocess_batch(self, fn: Callable[[Examples], Examples]) -> "StrokesData":
        """The same data with one more step applied to every batch."""
        return dataclasses.replace(self, batch_preprocessor=self.batch_preprocessor.append(fn))

    def _writer(self, client_id: bytes) -> int:
        writer = self._numbers.get(client_id)
        if writer is None:
            raise KeyError(f"no client {client_id!r} here; `client_ids()` lists the {self.num_clients()} there are")
        return writer

    @functools.cached_property
    def _numbers(self) -> dict[bytes, int]:
        return {client_id(writer): writer for writer in self.writers}

    def _size(self, writer: int) -> int:
        count = self.count(writer)
        return len(range(count)[_rows(count, self.held_out)])


def _rows(count: int, held_out: bool) -> slice:
    """Which of a writer's images belong to a split; they come in random order."""
    border = count // _HELD_OUT
    return slice(border) if held_out else slice(border, None)
