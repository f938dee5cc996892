"""Images in the format of MNIST's files as federated data: MNIST itself, EMNIST, KMNIST, Fashion-MNIST."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import fedjax
import numpy as np

from sparse_plugins.fed.partitions import dirichlet_partition, shard_partition

__all__ = ["IdxFileError", "load", "read_idx"]

Array = np.ndarray[Any, Any]
Splits = tuple[fedjax.FederatedData, fedjax.FederatedData]

_WORDS = {"train": ("train",), "test": ("t10k", "test")}  # of the names of files
_FORMS = {"images": "idx3", "labels": "idx1"}
_SIDE = 28
_UINT8 = 8


class IdxFileError(OSError):
    """A file of a data set is missing, cut or of another format; the message names it and says what to do."""


def load(
    data_dir: str | Path,
    num_clients: int = 100,
    partition: str = "dirichlet",
    alpha: float = 0.3,
    shards: int = 2,
    seed: int = 0,
) -> Splits:
    """Federated images from the four files of a data set.

    Args:
        data_dir: Folder that holds images and labels to train on and to test with, as they are distributed, compressed
            by gzip or not: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte.gz`, `emnist-byclass-test-images-...`.
        num_clients: Clients to which the images to train on are dealt; those to test with are dealt to them in turn.
        partition: 'dirichlet' or 'shards', of `fed.partitions`.
        alpha: Concentration of `dirichlet_partition`, above 0.
        shards: Shards of each client, for `shard_partition`.
        seed: Seed of the partition.

    Returns:
        Train and test `fedjax.FederatedData` with the features of `datasets`; `domain_id` is 0. EMNIST's files store
        images on their side, so those of names that begin with 'emnist' are turned upright.

    Raises:
        IdxFileError: A file is missing, cut or of another format, or images and labels do not belong together.
        ValueError: The images can't be dealt so.
    """
    folder = Path(data_dir)
    if partition not in ("dirichlet", "shards"):
        raise ValueError(f"partition is {partition!r}; allowed are dirichlet and shards.")
    (images, labels), (test_images, test_labels) = (_split(folder, split) for split in _WORDS)
    if partition == "dirichlet":
        parts = dirichlet_partition(labels, num_clients, alpha, seed)
    else:
        parts = shard_partition(labels, num_clients, shards, seed)
    in_turn = [np.arange(client, len(test_labels), num_clients) for client in range(num_clients)]
    return _federated(images, labels, parts), _federated(test_images, test_labels, in_turn)


def read_idx(path: Path) -> Array:
    """The array of a file, uint8.

    Args:
        path: The file, compressed by gzip or not.

    Raises:
        IdxFileError: It is cut, or not of this format.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise IdxFileError(f"{path} is cut or damaged: {error}. Get it again.") from error
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    if content[:2] != b"\0\0" or content[2:3] != bytes([_UINT8]) or not axes or len(content) < start:
        raise IdxFileError(
            f"{path} is no file of MNIST's format: it does not begin as one of bytes does. Get it again."
        )
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise IdxFileError(
            f"{path} is cut or damaged: it says that it holds {' x '.join(map(str, shape))} bytes, and"
            f" {len(content) - start} are there. Get it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _split(folder: Path, split: str) -> tuple[Array, Array]:
    paths = {content: _find(folder, split, content) for content in _FORMS}
    images, labels = (read_idx(path) for path in paths.values())
    if images.ndim != 3 or images.shape[1:] != (_SIDE, _SIDE) or labels.ndim != 1 or len(images) != len(labels):
        raise IdxFileError(
            f"{paths['images']} holds {images.shape} and {paths['labels']} {labels.shape}: they need as many images of"
            f" {_SIDE} x {_SIDE} pixels as labels."
        )
    if paths["images"].name.startswith("emnist"):
        images = images.swapaxes(1, 2)
    return images, labels.astype(np.int32)


def _find(folder: Path, split: str, content: str) -> Path:
    if not folder.is_dir():
        raise IdxFileError(f"{folder} is no folder: name the one that holds the files of the data set.")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    fitting = {
        path.name.removesuffix(".gz"): path  # the last one of two, which is not compressed
        for path in reversed(files)
        if content in path.name and _FORMS[content] in path.name and any(word in path.name for word in _WORDS[split])
    }
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if fitting:
        raise IdxFileError(f"{folder} holds {', '.join(sorted(fitting))}: keep one data set in a folder of its own.")
    raise IdxFileError(
        f"{folder} has no {_WORDS[split][0]}-{content}-{_FORMS[content]}-ubyte, compressed by gzip or not; it needs"
        " images and labels for train and t10k (or test), and holds"
        f" {', '.join(path.name for path in files) or 'nothing'}."
    )


def _federated(images: Array, labels: Array, parts: list[Array]) -> fedjax.FederatedData:
    """Bytes until a batch is made of them, for they take a quarter of the memory."""
    clients = {
        b"c%05d" % client: {"x": images[rows, ..., None], "y": labels[rows], "domain_id": np.zeros(len(rows), np.int32)}
        for client, rows in enumerate(parts)
    }
    return fedjax.InMemoryFederatedData(clients).preprocess_batch(_as_ink)


def _as_ink(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "x": batch["x"].astype(np.float32) / np.float32(255)}
