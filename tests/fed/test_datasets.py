"""Federated handwriting: EMNIST's convention, honest splits, and seeds that reach everything."""

from collections import Counter
from pathlib import Path
from typing import Any

import fedjax
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from sparse_plugins.fed import datasets, strokes
from tests.fed.emnist_files import WRITERS, write_emnist


def content(data: Any) -> dict[bytes, dict[str, np.ndarray]]:
    return {client_id: dataset.all_examples() for client_id, dataset in data.clients()}


def images(*splits: Any) -> Counter[tuple[bytes, int]]:
    """Every image and its label. Bilinear values are multiples of 1 / (19 * 19 * 16), so integers compare safely."""
    return Counter(
        (np.rint(x[..., 0] * 19 * 19 * 16).astype(np.int32).tobytes(), int(y))
        for split in splits
        for client in content(split).values()
        for x, y in zip(client["x"], client["y"], strict=True)
    )


@pytest.mark.parametrize("split", [0, 1])
def test_digits_have_emnists_features(split: int) -> None:
    clients = content(datasets.load("digits")[split])
    assert len(clients) == 13
    for client_id, client in clients.items():
        n = len(client["y"])
        assert {name: (array.shape, array.dtype) for name, array in client.items()} == {
            "x": ((n, 28, 28, 1), np.float32),
            "y": ((n,), np.int32),
            "domain_id": ((n,), np.int32),
        }
        assert client["x"].min() == 0
        assert client["x"].max() == 1
        assert not client["x"][:, [0, 3, 24, 27]].any(), "the margin is background"
        assert set(client["y"]) == set(range(10)), "every writer has every class in either split"
        assert set(client["domain_id"]) == {fedjax.datasets.emnist.domain_id(client_id)}


def test_digits_are_all_of_scikit_learns_images_each_in_one_split() -> None:
    bunch = load_digits()
    large = ndimage.zoom(bunch.images / 16, (1, 2.5, 2.5), order=1)
    expected = [
        (np.rint(np.pad(image, 4) * 19 * 19 * 16).astype(np.int32).tobytes(), int(label))
        for image, label in zip(large, bunch.target, strict=True)
    ]
    train, test = datasets.load("digits")
    assert images(train, test) == Counter(expected)
    assert not images(train) & images(test)
    assert 0.24 < images(test).total() / len(expected) < 0.26


def test_digits_keep_the_order_of_the_writers() -> None:
    labels = load_digits().target
    train, test = map(content, datasets.load("digits"))
    start = 0
    for client_id, client in sorted(train.items()):
        both = [*client["y"], *test[client_id]["y"]]
        assert Counter(both) == Counter(labels[start : start + len(both)])
        start += len(both)
    assert start == len(labels)


def test_digits_are_the_same_every_time() -> None:
    first, second = (datasets.load("digits") for _ in range(2))
    for ours, theirs in zip(map(content, first), map(content, second), strict=True):
        for client_id, client in ours.items():
            for name, array in client.items():
                np.testing.assert_array_equal(array, theirs[client_id][name])


@pytest.mark.parametrize(
    ("only_digits", "prefix"), [(False, "federated_emnist_"), (True, "federated_emnist_digitsonly_")]
)
def test_emnist_is_read_by_fedjaxs_loader(tmp_path: Path, only_digits: bool, prefix: str) -> None:
    written = write_emnist(tmp_path, prefix)
    splits = datasets.load("emnist", only_digits=only_digits, cache_dir=tmp_path)
    for data, split in zip(splits, ("train", "test"), strict=True):
        clients = content(data)
        assert tuple(clients) == WRITERS
        assert [int(client["domain_id"][0]) for client in clients.values()] == [1, 0, 1]
        for writer, client in clients.items():
            np.testing.assert_array_equal(client["x"], 1 - written[split][writer]["pixels"][..., None])
            np.testing.assert_array_equal(client["y"], written[split][writer]["label"])
            assert (client["x"].dtype, client["y"].dtype) == (np.float32, np.int32)


def test_emnist_that_can_not_be_had_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there: no network, at once
    with pytest.raises(datasets.DatasetUnavailableError) as caught:
        datasets.load("emnist", cache_dir=tmp_path / "cache")
    for part in ("federated_emnist_train.sqlite", "federated_emnist_test.sqlite", str(tmp_path), "digits", "strokes"):
        assert part in str(caught.value)


def test_damaged_and_empty_emnist_files_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"federated_emnist_{split}.sqlite").write_bytes(b"an interrupted copy" * 100)
    with pytest.raises(datasets.DatasetUnavailableError, match="can't be read: file is not a database"):
        datasets.load("emnist", cache_dir=tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
        with fedjax.SQLiteFederatedDataBuilder(str(file)):
            pass
    with pytest.raises(datasets.DatasetUnavailableError, match="no writers"):
        datasets.load("emnist", cache_dir=tmp_path)


def test_an_unknown_dataset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown dataset 'mnist'. Known: digits, strokes, emnist."):
        datasets.load("mnist")


def test_options_reach_strokes_and_are_refused_elsewhere(tmp_path: Path) -> None:
    train, _ = datasets.load("strokes", num_writers=2, seed=3, difficulty=0.5, only_digits=True, cached_writers=1)
    expected, _ = strokes.load(2, seed=3, difficulty=0.5, only_digits=True)
    for client_id, client in content(expected).items():
        np.testing.assert_array_equal(client["x"], train.get_client(client_id).all_examples()["x"])
    for name in ("digits", "emnist"):
        with pytest.raises(TypeError, match=f"{name} has no option num_writers, seed: leave it out, or load strokes"):
            datasets.load(name, cache_dir=tmp_path, num_writers=2, seed=3)


def drawn(seed: int, rounds: int = 3, start: int = 0) -> list[tuple[Any, ...]]:
    """Per round: client ids, keys, and the labels of every client's batches in two FedJAX-style passes."""
    sampler = datasets.SeededClientSampler(datasets.load("digits")[0], 4, seed, start)
    hparams = fedjax.ShuffleRepeatBatchHParams(batch_size=32, num_epochs=1)
    result = []
    for _ in range(rounds):
        clients = sampler.sample()
        batches = [
            np.concatenate([batch["x"].sum((1, 2, 3)) for batch in dataset.shuffle_repeat_batch(hparams)]).tolist()
            for _, dataset, _ in clients
        ]
        result.append(([c for c, _, _ in clients], [np.asarray(key).tolist() for *_, key in clients], batches))
    return result


def test_one_seed_repeats_and_two_differ_in_clients_keys_and_shuffles() -> None:
    assert drawn(seed=1) == drawn(seed=1)
    for ours, theirs in zip(drawn(seed=1), drawn(seed=2), strict=True):
        for what in range(3):
            assert ours[what] != theirs[what]


def test_a_round_is_a_function_of_its_number() -> None:
    rounds = drawn(seed=0)
    assert drawn(seed=0, rounds=1, start=2) == rounds[2:]
    assert len({str(keys) for _, keys, _ in rounds}) == 3
    sampler = datasets.SeededClientSampler(datasets.load("digits")[0], 4, 0)
    sampler.set_round_num(2)
    assert [client_id for client_id, *_ in sampler.sample()] == rounds[2][0]


def test_a_client_shuffles_anew_in_every_round_and_keeps_a_seed_it_is_given() -> None:
    train, _ = datasets.load("digits")
    sampler = datasets.SeededClientSampler(train, 13, seed=0)

    def order(**options: Any) -> list[float]:
        dataset = {client_id: dataset for client_id, dataset, _ in sampler.sample()}[b"f0003_00"]
        batches = dataset[:64].shuffle_repeat_batch(batch_size=64, **options)
        return next(iter(batches))["x"].sum((1, 2, 3)).tolist()

    first, second = order(), order()
    assert first != second
    assert sorted(first) == sorted(second)
    assert order(seed=5) == order(seed=5)


@pytest.mark.parametrize("num_clients", [0, 14])
def test_a_round_can_not_have_more_clients_than_there_are(num_clients: int) -> None:
    with pytest.raises(ValueError, match=rf"{num_clients} clients per round .* has 13\. Choose 1 to 13\."):
        datasets.SeededClientSampler(datasets.load("digits")[0], num_clients, seed=0)


class Watched:
    """The digits; notes which clients are read, and may announce another size."""

    def __init__(self, off_by: int = 0) -> None:
        self._data, self._off_by = datasets.load("digits")[0], off_by
        self.read: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def client_size(self, client_id: bytes) -> int:
        return self._data.client_size(client_id) + self._off_by

    def get_client(self, client_id: bytes) -> Any:
        self.read.append(client_id)
        return self._data.get_client(client_id)


def test_clients_are_read_one_at_a_time_and_only_when_they_train() -> None:
    train = Watched()
    clients = datasets.SeededClientSampler(train, 4, seed=0).sample()
    batches = [data.shuffle_repeat_batch(batch_size=32) for _, data, _ in clients]
    assert [len(data) for _, data, _ in clients] == [train.client_size(client) for client, _, _ in clients]
    assert train.read == []
    for position, client_batches in enumerate(batches):
        assert sum(len(batch["y"]) for batch in client_batches) >= len(clients[position][1])
        assert train.read == [client for client, _, _ in clients[: position + 1]]


def test_lazy_data_batches_and_slices_as_fedjaxs() -> None:
    train = datasets.load("digits")[0]
    client, data, _ = datasets.SeededClientSampler(train, 1, seed=0).sample()[0]
    plain = train.get_client(client)
    pairs = [
        (data.padded_batch(batch_size=8), plain.padded_batch(batch_size=8)),
        (data.batch(batch_size=8), plain.batch(batch_size=8)),
        ([data[:3].all_examples()], [plain[:3].all_examples()]),
    ]
    for ours, theirs in pairs:
        for batch, expected in zip(ours, theirs, strict=True):
            assert batch.keys() == expected.keys()
            for name in batch:
                np.testing.assert_array_equal(batch[name], expected[name])
    assert len(data[:3]) == 3


def test_a_client_of_another_size_than_announced_is_an_error_not_a_wrong_weight() -> None:
    (_, data, _), *_ = datasets.SeededClientSampler(Watched(off_by=1), 2, seed=0).sample()
    with pytest.raises(ValueError, match="preprocess_client must not change their number"):
        next(iter(data.shuffle_repeat_batch(batch_size=4)))
