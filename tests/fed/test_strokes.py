"""Synthetic handwriting as FedJAX sees it: EMNIST's features, the same writers everywhere, ids of its own."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import fedjax
import numpy as np
import pytest

from sparse_plugins.fed import datasets, strokes
from tests.fed.emnist_files import WRITERS

ROOT = Path(__file__).parents[2]


def content(data: Any) -> dict[bytes, dict[str, np.ndarray]]:
    return {client_id: dataset.all_examples() for client_id, dataset in data.clients()}


# What a client gets.


def test_batches_have_emnists_features_and_nothing_else() -> None:
    for data in strokes.load(4):
        for client_id, client in content(data).items():
            n = data.client_size(client_id)
            assert {name: (array.shape, array.dtype) for name, array in client.items()} == {
                "x": ((n, 28, 28, 1), np.float32),
                "y": ((n,), np.int32),
                "domain_id": ((n,), np.int32),
            }
            assert client["x"].min() == 0
            assert 0.3 < client["x"].max() <= 1
            assert np.median(client["x"][:, [0, -1]]) == 0  # background, as in EMNIST, is 0
            assert 0 <= client["y"].min() <= client["y"].max() < 62


def test_both_splits_have_the_same_writers_and_share_no_image() -> None:
    train, test = map(content, strokes.load(30))
    assert list(train) == list(test)
    seen = [{x.tobytes() for client in split.values() for x in client["x"]} for split in (train, test)]
    assert seen[0].isdisjoint(seen[1])
    ratio = sum(len(client["y"]) for client in test.values()) / sum(len(client["y"]) for client in train.values())
    assert ratio == pytest.approx(1 / 9, rel=0.05)


def test_only_digits_are_ten_classes_and_half_as_many_images() -> None:
    train, _ = strokes.load(20, only_digits=True)
    digits = np.concatenate([client["y"] for client in content(train).values()])
    assert set(digits) == set(range(10))
    everything = sum(size for _, size in strokes.load(20)[0].client_sizes())
    assert len(digits) == pytest.approx(everything / 2, rel=0.02)


def test_a_writer_writes_as_much_as_one_of_emnists() -> None:
    train, test = strokes.load()
    sizes = np.array([size for _, size in train.client_sizes()])
    assert train.num_clients() == len(sizes) == 3400
    assert sizes.mean() == pytest.approx(197.5, abs=3)
    assert np.mean([size for _, size in test.client_sizes()]) == pytest.approx(22.8, abs=2)
    centred = (sizes - sizes.mean()) / sizes.std()
    assert sizes.std() == pytest.approx(77, abs=4)
    assert 0.5 < np.mean(centred**3) < 1.2


def test_a_writer_of_a_set_has_these_classes_too() -> None:
    classes = np.concatenate([client["y"] for client in content(strokes.load(60)[0]).values()])
    assert (classes < 10).mean() == pytest.approx(0.5, abs=0.02)
    assert len(set(classes)) == 62


def test_high_school_is_fedjaxs_domain_0() -> None:
    train, _ = strokes.load(2102)
    late = [train.get_client(strokes.client_id(writer)).all_examples() for writer in (2099, 2100)]
    assert [set(client["domain_id"]) for client in late] == [{1}, {0}]


# The same everywhere.

WRITE_ALONE = """
import json, zlib
from sparse_plugins.fed import strokes
client = strokes.load(3, cached_writers=0)[0].get_client(strokes.client_id(2)).all_examples()
print(json.dumps([zlib.crc32(client[name].tobytes()) for name in ("x", "y")]))
"""


def test_a_writer_is_the_same_alone_and_among_many_in_any_order_and_process() -> None:
    """The other process does without every SIMD instruction that NumPy can do without."""
    train, _ = strokes.load(12)
    backwards = dict(train.get_clients(reversed(list(train.client_ids()))))
    ours = backwards[strokes.client_id(2)].all_examples()
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))}
    run = [sys.executable, "-c", WRITE_ALONE]
    theirs = subprocess.run(run, cwd=ROOT, env=os.environ | plain, check=True, capture_output=True, text=True).stdout
    assert json.loads(theirs) == [zlib.crc32(ours[name].tobytes()) for name in ("x", "y")]


def test_another_seed_gives_other_writers_under_the_same_ids() -> None:
    first, second = (content(strokes.load(3, seed=seed)[0]) for seed in (0, 1))
    assert list(first) == list(second)
    for client_id, client in first.items():
        assert len(client["y"]) != len(second[client_id]["y"])


# FedJAX's side.


def features(data: Any) -> dict[bytes, list[Any]]:
    """All that clients hold, for comparison to the bit."""
    return {client_id: bits(client) for client_id, client in content(data).items()}


def bits(examples: Any) -> list[Any]:
    return sorted((name, array.dtype, array.shape, array.tobytes()) for name, array in examples.items())


def test_it_is_what_fedjaxs_own_in_memory_data_would_be() -> None:
    """Every way of asking, before and after preprocessing and slicing."""

    def two_thirds(client_id: bytes, examples: Any) -> dict[str, Any]:
        return {name: array[: 2 * len(array) // 3] for name, array in examples.items()}

    def flat(batch: Any) -> dict[str, Any]:
        return {**batch, "x": batch["x"].reshape(len(batch["x"]), -1)}

    ours, _ = strokes.load(6)
    theirs = fedjax.InMemoryFederatedData(content(ours))
    ids = [strokes.client_id(writer) for writer in range(6)]
    for start, stop in [
        (None, None),
        (ids[2], None),
        (None, ids[2]),
        (ids[1], ids[5]),
        (ids[4], b"z"),
        (ids[3], ids[3]),
    ]:
        assert list(ours.slice(start, stop).client_ids()) == [
            client_id for client_id in ids if (start or b"") <= client_id < (stop or b"z")
        ]
    ours, theirs = (
        data.slice(ids[1], ids[5]).preprocess_client(two_thirds).preprocess_batch(flat) for data in (ours, theirs)
    )
    assert ours.num_clients() == theirs.num_clients() == 4
    assert features(ours) == features(theirs)
    wanted = [ids[4], ids[1], ids[4]]
    for (got_id, got), (want_id, want) in zip(ours.get_clients(wanted), theirs.get_clients(wanted), strict=True):
        assert got_id == want_id
        batches = [
            [bits(batch) for batch in data.shuffle_repeat_batch(batch_size=16, num_epochs=2, seed=3)]
            for data in (got, want)
        ]
        assert batches[0] == batches[1]
    for mine, other in zip(
        fedjax.padded_batch_federated_data(ours, batch_size=32),
        fedjax.padded_batch_federated_data(theirs, batch_size=32),
        strict=True,
    ):
        assert bits(mine) == bits(other)
    subset = fedjax.SubsetFederatedData(ours, ids[2:4])
    assert features(subset) == {client_id: features(ours)[client_id] for client_id in ids[2:4]}


def test_shuffled_clients_pass_over_all_again_and_again_by_the_seed() -> None:
    data, _ = strokes.load(5)
    passes = [[client_id for client_id, _ in itertools.islice(data.shuffled_clients(2, seed=s), 50)] for s in (7, 7, 8)]
    assert passes[0] == passes[1] != passes[2]
    orders = list(zip(*[iter(passes[0])] * 5, strict=True))
    assert {frozenset(order) for order in orders} == {frozenset(data.client_ids())}
    assert len(set(orders)) > 1
    assert list(data.slice(stop=b"").shuffled_clients(2)) == []


def test_it_is_drawn_from_by_the_seeded_sampler() -> None:
    data, _ = strokes.load(8)
    sampler = datasets.SeededClientSampler(data, 3, seed=0)
    for client_id, dataset, _ in sampler.sample():
        assert len(dataset) == data.client_size(client_id)
        first, again = (next(iter(dataset.shuffle_repeat_batch(batch_size=20)))["x"] for _ in range(2))
        np.testing.assert_array_equal(first, again)


def test_sizes_are_known_without_drawing_an_image() -> None:
    def fail(writer: int) -> Any:
        raise AssertionError(f"writer {writer} was drawn")

    for data in strokes.load(50):
        blank = dataclasses.replace(data, write=fail)
        assert dict(blank.client_sizes()) == dict(data.client_sizes())
        assert blank.client_size(strokes.client_id(7)) == data.client_size(strokes.client_id(7))
        with pytest.raises(AssertionError, match="writer 7 was drawn"):
            blank.get_client(strokes.client_id(7))


def test_the_cache_serves_both_splits_is_bounded_and_can_not_be_spoilt() -> None:
    train, test = strokes.load(4, cached_writers=2)
    cache: Any = train.write
    first = train.get_client(strokes.client_id(0)).all_examples()
    test.get_client(strokes.client_id(0))
    assert (cache.cache_info().hits, cache.cache_info().misses) == (1, 1)
    kept = bits(first)
    for array in first.values():
        array[:] = 0
    assert bits(train.get_client(strokes.client_id(0)).all_examples()) == kept
    content(train)
    assert cache.cache_info().currsize == 2
    none, _ = strokes.load(4, cached_writers=0)
    assert features(none) == features(train)


def test_ids_are_its_own_and_files_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data, _ = datasets.load("strokes", cache_dir=tmp_path / "emnist")
    ids = list(data.client_ids())
    assert len(set(ids)) == 3400
    assert ids == sorted(ids)
    assert {len(client_id) for client_id in ids} == {25}
    assert {bytes.fromhex(client_id[:16].decode()) for client_id in ids} == {b"strokes\0"}
    assert set(ids).isdisjoint(WRITERS)
    domains = Counter(map(fedjax.datasets.emnist.domain_id, ids))
    assert domains == {0: 500, 1: 2900}
    data.get_client(ids[-1])
    assert list(tmp_path.rglob("*")) == []


def test_a_client_that_is_not_there_is_named() -> None:
    data, _ = strokes.load(3)
    for lookup in (data.get_client, data.client_size, data.slice(stop=strokes.client_id(2)).get_client):
        with pytest.raises(KeyError, match=r"no client b'.*:f0003_00' here; `client_ids\(\)` lists the [32] there are"):
            lookup(strokes.client_id(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_writers": 0}, "0 writers: choose num_writers from 1 to 10000"),
        ({"num_writers": 10_001}, "10001 writers: choose num_writers from 1 to 10000"),
        ({"difficulty": 0}, "difficulty 0 is out of range: choose one above 0 and up to 1.5"),
        ({"difficulty": 1.6}, "difficulty 1.6 is out of range"),
        ({"difficulty": math.nan}, "difficulty nan is out of range"),
        ({"seed": -1}, "seed -1 is out of range: choose 0 or more"),
        ({"cached_writers": -1}, "cached_writers -1 is out of range"),
    ],
)
def test_an_argument_out_of_range_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.load("strokes", **options)
