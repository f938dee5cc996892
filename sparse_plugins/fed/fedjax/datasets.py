"""Federated handwriting with EMNIST's features, and client sampling that the experiment's seed decides.

Every set comes as FedJAX's `FederatedData`; a batch holds

- `x`: float32 [n, 28, 28, 1], ink in [0, 1], 0 = background;
- `y`: int32 [n], the class;
- `domain_id`: int32 [n], FedJAX's collection site of the writer (0 high school, 1 census).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fedjax
import jax
import numpy as np

from sparse_plugins.fed.fedjax import idx_data, strokes_data

__all__ = ["DatasetUnavailableError", "SeededClientDataset", "SeededClientSampler", "load"]

Array = np.ndarray[Any, Any]

Splits = tuple[fedjax.FederatedData, fedjax.FederatedData]

NAMES = ("digits", "strokes", "emnist")
NUM_DIGITS_WRITERS = 13
_HELD_OUT_EVERY = 4


class DatasetUnavailableError(RuntimeError):
    """A data set is neither on this machine nor to be had from the network; the message says what to do."""


def load(name: str, *, only_digits: bool = False, cache_dir: str | Path | None = None, **options: Any) -> Splits:
    """Loads federated handwriting.

    Args:
        name: `digits`: scikit-learn's 1,797 real digits in 13 blocks, always at hand, 10 classes. `strokes`:
          3,400 synthetic writers, 62 classes, made on the fly. `emnist`: federated EMNIST, 3,400 writers,
          62 classes, from the cache folder or from FedJAX's server. `idx`: files of MNIST's format.
        only_digits: of EMNIST and strokes, only the 10 digit classes (EMNIST: 3,383 writers).
        cache_dir: folder of EMNIST's sqlite files; FedJAX's own, `~/.cache/fedjax`, when None.
        **options: of strokes: num_writers, seed, difficulty and cached_writers, as in `strokes.load`; of idx: data_dir,
          num_clients, partition, alpha, shards and seed, as in `idx_data.load`.

    Returns:
        Train and test `fedjax.FederatedData`, with the same writers and no image in common.

    Raises:
        ValueError: the name is not known, or an option is out of its range.
        TypeError: an option that this data set does not have.
        DatasetUnavailableError: EMNIST is neither in the cache nor to be downloaded, or can't be read.
        IdxFileError: a file of MNIST's format is missing, cut or another's.

    Example:
        >>> train, test = load("digits")
        >>> train.num_clients(), train.get_client(b"f0000_00").all_examples()["x"].shape
        (13, (104, 28, 28, 1))
    """
    if name == "strokes":
        return strokes_data.load(only_digits=only_digits, **options)
    if name == "idx":
        return idx_data.load(**options)
    if name in NAMES and options:
        raise TypeError(f"{name} has no option {', '.join(options)}: leave it out, or load strokes, which has options.")
    if name == "digits":
        return _load_digits()
    if name == "emnist":
        return _load_emnist(only_digits, Path(cache_dir or fedjax.datasets.downloads.default_cache_dir()))
    raise ValueError(f"Unknown dataset {name!r}. Known: {', '.join(NAMES)}, idx.")


def _load_digits() -> Splits:
    """Real handwriting that ships with scikit-learn.

    The images are those of 13 writers, one writer after the other, but the file does not say where a writer
    ends. The borders here are 13 equal cuts: most of a client's images share a hand, but not all.
    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = 1 - _enlarge(bunch.images.astype(np.float32) / 16)  # EMNIST's files store 1 for background.
    labels = bunch.target.astype(np.int32)
    splits: tuple[dict[bytes, Any], dict[bytes, Any]] = ({}, {})
    for writer, block in enumerate(np.array_split(np.arange(len(labels)), NUM_DIGITS_WRITERS)):
        by_class = block[np.argsort(labels[block], kind="stable")]
        held_out = np.arange(len(block)) % _HELD_OUT_EVERY == writer % _HELD_OUT_EVERY
        for split, rows in zip(splits, (by_class[~held_out], by_class[held_out]), strict=True):
            split[b"f%04d_00" % writer] = {"pixels": pixels[rows], "label": labels[rows]}
    train, test = (fedjax.datasets.emnist.preprocess_split(fedjax.InMemoryFederatedData(split)) for split in splits)
    return train, test


def _enlarge(images: Array) -> Array:
    """Bilinear from [n, 8, 8] to [n, 20, 20], then a margin of 4 as in EMNIST: [n, 28, 28]."""
    small, large = images.shape[1], 20
    positions = np.linspace(0, small - 1, large)
    weights = np.stack([np.interp(positions, np.arange(small), unit) for unit in np.eye(small)], axis=1)
    enlarged = np.einsum("ip,npq,jq->nij", weights, images, weights).astype(np.float32)
    return np.pad(enlarged, ((0, 0), (4, 4), (4, 4)))


def _load_emnist(only_digits: bool, cache_dir: Path) -> Splits:
    """Federated EMNIST through FedJAX's own loader, which downloads what the cache lacks."""
    import urllib3

    prefix = "federated_emnist_digitsonly_" if only_digits else "federated_emnist_"
    files = " and ".join(f"{prefix}{split}.sqlite" for split in ("train", "test"))
    advice = f"Put {files} into {cache_dir}, or use a dataset that needs no download: digits or strokes."
    try:
        train, test = fedjax.datasets.emnist.load_data(only_digits=only_digits, cache_dir=str(cache_dir))
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise DatasetUnavailableError(f"EMNIST can't be downloaded: {error}. {advice}") from error
    try:
        sizes = train.num_clients(), test.num_clients()
    except sqlite3.DatabaseError as error:
        raise DatasetUnavailableError(f"EMNIST in {cache_dir} can't be read: {error}. {advice}") from error
    if 0 in sizes:
        raise DatasetUnavailableError(f"EMNIST in {cache_dir} has no writers: {sizes} in train and test. {advice}")
    return train, test


class SeededClientDataset(fedjax.ClientDataset):
    """A client's data, read when it is needed, with its own shuffle.

    A round may have more clients than memory has room for their data. And a FedJAX algorithm holds one
    `ShuffleRepeatBatchHParams` for all rounds: with a seed in it, a client sees the same order in every round; without
    one, no run can be repeated. Here a batching seed left open is filled in with the client's.

    Args:
        read: gives the client's `fedjax.ClientDataset`.
        size: how many examples that has.
        seed: of its shuffles.
    """

    def __init__(self, read: Callable[[], fedjax.ClientDataset], size: int, seed: int) -> None:
        self._read, self._size, self.seed = read, size, seed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: slice) -> "SeededClientDataset":
        return SeededClientDataset(lambda: self._read()[index], len(range(self._size)[index]), self.seed)

    @property
    def raw_examples(self) -> Any:
        """All examples before the preprocessor, read anew."""
        return self._read().raw_examples

    @property
    def preprocessor(self) -> Any:
        """What makes batches of raw examples."""
        return self._read().preprocessor

    def shuffle_repeat_batch(self, hparams: Any = None, **kwargs: Any) -> Iterable[Any]:
        """As in FedJAX, but never seeded by the clock."""
        if kwargs.get("seed", getattr(hparams, "seed", None)) is None:
            kwargs["seed"] = self.seed
        return _Batches(self, lambda dataset: dataset.shuffle_repeat_batch(hparams, **kwargs))

    def padded_batch(self, hparams: Any = None, **kwargs: Any) -> Iterable[Any]:
        """As in FedJAX."""
        return _Batches(self, lambda dataset: dataset.padded_batch(hparams, **kwargs))

    def batch(self, hparams: Any = None, **kwargs: Any) -> Iterable[Any]:
        """As in FedJAX."""
        return _Batches(self, lambda dataset: dataset.batch(hparams, **kwargs))

    def _checked(self) -> fedjax.ClientDataset:
        dataset = self._read()
        if len(dataset) != self._size:
            raise ValueError(
                f"a client was announced with {self._size} examples and has {len(dataset)}: preprocess_client must not "
                "change their number, by which clients are weighted. Filter the data set beforehand."
            )
        return dataset


class _Batches:
    """Batches of a client whose data is in memory only while they are iterated over."""

    def __init__(self, dataset: SeededClientDataset, batches: Callable[[Any], Iterable[Any]]) -> None:
        self._dataset, self._batches = dataset, batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches(self._dataset._checked()))


class SeededClientSampler(fedjax.client_samplers.ClientSampler):
    """Uniform sampling in which seed and round decide the clients, their keys and their shuffles.

    FedJAX's `UniformGetClientSampler` draws the clients by the seed, but their keys by the round alone. Here
    a round is a pure function of seed and number, so a resumed run goes on as if it had never stopped.

    Args:
        data: `fedjax.FederatedData`.
        num_clients: clients per round, drawn without replacement, 1 to `data.num_clients()`.
        seed: the experiment's seed, 0 or more.
        start_round_num: number of the first round.

    Raises:
        ValueError: more clients are asked for than there are, or none.
    """

    def __init__(self, data: Any, num_clients: int, seed: int, start_round_num: int = 0) -> None:
        self._client_ids = list(data.client_ids())
        if not 1 <= num_clients <= len(self._client_ids):
            raise ValueError(
                f"{num_clients} clients per round are not to be had: the data has {len(self._client_ids)}."
                f" Choose 1 to {len(self._client_ids)}."
            )
        self._data, self._num_clients, self._seed = data, num_clients, seed
        self._round_num = start_round_num

    def sample(self) -> list[tuple[bytes, SeededClientDataset, jax.Array]]:
        """Draws the next round: client id, data and key for each of its clients."""
        rng = np.random.default_rng([self._seed, self._round_num])
        self._round_num += 1
        chosen = rng.choice(len(self._client_ids), self._num_clients, replace=False)
        shuffle_seeds = rng.integers(2**32, size=self._num_clients)
        keys = jax.random.split(jax.random.PRNGKey(rng.integers(2**31)), self._num_clients)
        clients = [self._client_ids[index] for index in chosen]
        return [
            (client, self._dataset(client, int(seed)), key)
            for client, seed, key in zip(clients, shuffle_seeds, keys, strict=True)
        ]

    def _dataset(self, client: bytes, seed: int) -> SeededClientDataset:
        return SeededClientDataset(lambda: self._data.get_client(client), self._data.client_size(client), seed)

    def set_round_num(self, round_num: int) -> None:
        """Makes `round_num` the next round to be drawn."""
        self._round_num = round_num
