"""Images of MNIST's format: reading files, and dealing what they hold to clients."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins.fed import datasets
from sparse_plugins.fed.fedjax.idx_data import IdxFileError, read_idx
from sparse_plugins.fed.partitions import dirichlet_partition, shard_partition

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """As the format's description has it: two zeros, 8 for bytes, the number of axes, their sizes, the entries."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, train: int = 200, test: int = 40, prefix: str = "", compressed: bool = False) -> list[Any]:
    """Four files of random images of ten classes; returns their arrays."""
    rng = np.random.default_rng(0)
    arrays: list[Any] = []
    for size in (train, test):
        arrays += [rng.integers(0, 256, (size, 28, 28)), np.arange(size) % 10]
    folder.mkdir(exist_ok=True)
    for name, array in zip(NAMES, arrays, strict=True):
        content = idx_bytes(array)
        path = folder / f"{prefix}{name}{'.gz' * compressed}"
        path.write_bytes(gzip.compress(content) if compressed else content)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("prefix", ["", "emnist-byclass-"])
def test_all_images_come_to_the_clients_once(tmp_path: Path, prefix: str, compressed: bool) -> None:
    images, labels, test_images, test_labels = write_idx(tmp_path, prefix=prefix, compressed=compressed)
    if prefix:
        images, test_images = images.swapaxes(1, 2), test_images.swapaxes(1, 2)
    splits = datasets.load("idx", data_dir=tmp_path, num_clients=4, alpha=1.0)
    for split, pixels, classes in zip(splits, (images, test_images), (labels, test_labels), strict=True):
        clients = [data.all_examples() for _, data in split.clients()]
        assert len(clients) == 4
        x, y = (np.concatenate([client[name] for client in clients]) for name in ("x", "y"))
        assert (x.dtype, x.shape[1:], y.dtype) == (np.float32, (28, 28, 1), np.int32)
        found = sorted((label, image.tobytes()) for label, image in zip(y.tolist(), np.rint(x * 255), strict=True))
        wanted = [(label, image.astype(np.float32).tobytes()) for label, image in zip(classes, pixels, strict=True)]
        assert found == sorted(wanted)
    batch = next(iter(splits[0].get_client(next(iter(splits[0].client_ids()))).batch(batch_size=4)))
    assert batch["x"].max() <= 1


def cut(content: bytes) -> bytes:
    return content[:-5]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NAMES[0], cut, "says that it holds 200 x 28 x 28 bytes, and 156795 are there"),
        (NAMES[3], lambda content: gzip.compress(content)[:-9], "is cut or damaged"),
        (NAMES[1], lambda content: b"", "no file of MNIST's format"),
        (NAMES[1], lambda content: b"\0\0\x0d" + content[3:], "no file of MNIST's format"),
        (NAMES[1], lambda content: content[:6], "no file of MNIST's format"),
        (NAMES[1], lambda content: idx_bytes(np.zeros(199)), "as many images of 28 x 28 pixels as labels"),
        (NAMES[2], lambda content: idx_bytes(np.zeros((40, 27, 28))), "as many images of 28 x 28 pixels as labels"),
    ],
)
def test_damage_is_told_by_file(tmp_path: Path, name: str, change: Any, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(IdxFileError) as caught:
        datasets.load("idx", data_dir=tmp_path, num_clients=4)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_what_is_missing_or_doubtful_is_told(tmp_path: Path) -> None:
    with pytest.raises(IdxFileError, match="is no folder"):
        datasets.load("idx", data_dir=tmp_path / "none")
    write_idx(tmp_path)
    (tmp_path / NAMES[2]).rename(tmp_path / "x")
    with pytest.raises(IdxFileError, match=r"has no t10k-images-idx3-ubyte, compressed by gzip or not; .* x"):
        datasets.load("idx", data_dir=tmp_path)
    write_idx(tmp_path)
    write_idx(tmp_path, prefix="emnist-digits-")
    with pytest.raises(IdxFileError, match="keep one data set in a folder of its own"):
        datasets.load("idx", data_dir=tmp_path)
    with pytest.raises(ValueError, match="partition is 'even'; allowed are dirichlet and shards"):
        datasets.load("idx", data_dir=tmp_path, partition="even")


def test_a_file_that_was_unpacked_beside_its_archive_is_taken(tmp_path: Path) -> None:
    write_idx(tmp_path, compressed=True)
    write_idx(tmp_path)
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(b"damaged")
    train, _ = datasets.load("idx", data_dir=tmp_path, num_clients=2, partition="shards", shards=1)
    assert sum(size for _, size in train.client_sizes()) == 200
    with pytest.raises(IdxFileError, match=r"gz is no file"):
        read_idx(tmp_path / f"{NAMES[0]}.gz")


@given(st.integers(1, 8), st.floats(0.05, 50), st.integers(0, 99))
def test_dirichlet_deals_every_row_once_and_leaves_no_client_out(clients: int, alpha: float, seed: int) -> None:
    labels = np.arange(400) % 7
    parts = dirichlet_partition(labels, clients, alpha, seed, min_examples=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(400))
    assert min(map(len, parts)) >= 3
    assert all((np.diff(rows) > 0).all() for rows in parts)
    again = dirichlet_partition(labels, clients, alpha, seed, min_examples=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_alpha_says_how_uneven_classes_are() -> None:
    labels = np.arange(10_000) % 10

    def unevenness(alpha: float) -> float:
        """Mean over clients of the share of their most frequent class."""
        parts = dirichlet_partition(labels, 20, alpha, seed=1)
        return float(np.mean([np.bincount(labels[rows]).max() / len(rows) for rows in parts]))

    assert 0.1 <= unevenness(1000.0) < 0.13
    assert unevenness(1000.0) < unevenness(1.0) < unevenness(0.1)


@given(st.integers(1, 10), st.integers(1, 4), st.integers(0, 99))
def test_shards_are_of_equal_size_and_of_few_classes(clients: int, shards: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, 240)
    parts = shard_partition(labels, clients, shards, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(240))
    size = 240 // (clients * shards)
    assert all(shards * size <= len(rows) <= shards * (size + 1) for rows in parts)
    borders = np.cumsum(np.bincount(labels, minlength=5))[:-1]
    most = shards + len(borders)  # a shard spans two classes where a border lies in it
    assert all(len(np.unique(labels[rows])) <= most for rows in parts)


@pytest.mark.parametrize(
    ("deal", "message"),
    [
        (lambda labels: dirichlet_partition(labels, 0, 1.0, 0), "num_clients is 0"),
        (lambda labels: dirichlet_partition(labels, 2, 0.0, 0), "alpha is 0.0"),
        (lambda labels: dirichlet_partition(labels, 9, 0.01, 0), "give fewer clients or a larger alpha"),
        (lambda labels: dirichlet_partition(labels / 2, 2, 1.0, 0), "labels are float64"),
        (lambda labels: shard_partition(labels, 2, 0, 0), "2 x 0 shards"),
        (lambda labels: shard_partition(labels, 9, 9, 0), "9 x 9 shards"),
    ],
)
def test_what_can_not_be_dealt_is_refused(deal: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deal(np.arange(40) % 4)
