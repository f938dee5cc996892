"""T5 1.1 against loops over its definition, span corruption, its data, and the studies end to end, briefly."""

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.supervised.layers import RMSNorm
from experiments.common.supervised.studies import storage_cells, study_of
from experiments.harness.command import main
from experiments.harness.tables.stored import read_study
from experiments.registry import LAYOUTS
from experiments.registry import STUDIES as REGISTRY
from experiments.t5 import data
from experiments.t5.budgets import PARTS, favouring
from experiments.t5.model import BASE, T5, TINY
from experiments.t5.positions import relative_buckets
from experiments.t5.spans import END, corrupt, encode, lengths, random_parts
from experiments.t5.studies import FACTOR, STUDIES
from experiments.t5.task import SIZES, T5Settings, task
from sparse_plugins import core
from sparse_plugins.core.checks import check_targets
from sparse_plugins.core.trees import leaf_names

TOKENS = jnp.zeros((1, 4), jnp.int32)
SMALL = dataclasses.replace(TINY, width=32, heads=4, head_dim=8, mlp_dim=64, layers=1)


@functools.cache
def shapes_of(config: Any) -> Any:
    return jax.eval_shape(lambda key: nn.unbox(T5(config).init(key, TOKENS, TOKENS)), jax.random.key(0))["params"]


def test_base_has_the_published_number_of_parameters() -> None:
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(BASE))) == 247_577_856


def test_parameters_have_the_names_and_axes_of_t5x() -> None:
    boxed = jax.eval_shape(lambda key: T5(TINY).init(key, TOKENS, TOKENS), jax.random.key(0))
    specs = nn.get_partition_spec(boxed)["params"]
    found = {name: tuple(specs["decoder"]["layers_1"]["mlp"][name]["kernel"]) for name in ("wi_0", "wi_1", "wo")}
    assert found == {"wi_0": ("embed", "mlp"), "wi_1": ("embed", "mlp"), "wo": ("mlp", "embed")}
    attention = specs["decoder"]["layers_0"]["encoder_decoder_attention"]
    assert tuple(attention["query"]["kernel"]) == ("embed", "joined_kv")
    assert tuple(attention["out"]["kernel"]) == ("joined_kv", "embed")
    assert tuple(specs["encoder"]["relpos_bias"]["rel_embedding"]) == ("heads", "relpos_buckets")
    assert tuple(specs["token_embedder"]["embedding"]) == ("vocab", "embed")
    assert tuple(specs["logits_dense"]["kernel"]) == ("embed", "vocab")
    assert [name for name in specs["encoder"] if "relpos" in name] == ["relpos_bias"]
    assert not [name for name in leaf_names(shapes_of(BASE)) if name.endswith("bias")]


def test_the_norm_divides_by_the_root_mean_square_alone() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 8), np.float32)
    scale = np.linspace(0.5, 2, 8, dtype=np.float32)
    found = RMSNorm().apply({"params": {"scale": scale}}, x)
    for place in itertools.product(range(3), range(5)):
        values = [float(value) for value in x[place]]
        root = math.sqrt(sum(value * value for value in values) / 8 + 1e-6)
        np.testing.assert_allclose(found[place], [s * v / root for s, v in zip(scale, values, strict=True)], rtol=1e-5)


def bucket(ahead: int, bidirectional: bool, buckets: int, farthest: int) -> int:
    """The definition in whole numbers: the far bucket k begins where distance^m >= exact^(m - k) farthest^k."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if ahead > 0 else 0
        distance = abs(ahead)
    else:
        distance = max(-ahead, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    m = buckets - exact
    far = max(k for k in range(200) if distance**m >= exact**m * farthest**k // exact**k)
    return first + min(exact + far, buckets - 1)


@pytest.mark.parametrize(("bidirectional", "buckets", "farthest"), [(True, 32, 128), (False, 32, 128), (True, 8, 16)])
def test_relative_positions_fall_into_the_buckets_of_the_definition(
    bidirectional: bool, buckets: int, farthest: int
) -> None:
    found = relative_buckets(150, 140, bidirectional, buckets, farthest)
    for query, key in itertools.product(range(0, 150, 7), range(140)):
        assert found[query, key] == bucket(key - query, bidirectional, buckets, farthest), (query, key)
    assert found.max() == buckets - 1
    assert found.min() == 0


@pytest.fixture(scope="module")
def small() -> Any:
    """A small model with parameters, of any lengths."""
    model = T5(SMALL)
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS, TOKENS))
    return functools.partial(jax.jit(model.apply), variables)


def test_a_later_token_does_not_move_earlier_logits(small: Any) -> None:
    inputs, first = np.arange(3, 10)[None], np.arange(20, 26)[None]
    second = first.copy()
    second[0, 4] = 99
    logits, changed = small(inputs, first), small(inputs, second)
    assert logits.shape == (1, 6, 384)
    np.testing.assert_array_equal(logits[:, :4], changed[:, :4])
    assert (np.abs(logits[:, 4:] - changed[:, 4:]).max(axis=-1) > 1e-4).all()


def test_every_input_token_is_seen_and_padding_is_not(small: Any) -> None:
    inputs, decoder = np.arange(3, 10)[None], np.arange(20, 26)[None]
    changed = inputs.copy()
    changed[0, 6] = 50
    assert (np.abs(small(inputs, decoder) - small(changed, decoder)).max(axis=-1) > 1e-5).all()
    padded = inputs.copy()
    padded[0, 5:] = 0
    np.testing.assert_allclose(small(padded, decoder), small(inputs[:, :5], decoder), rtol=1e-4, atol=1e-5)


def test_lengths_are_those_of_t5s_pre_training() -> None:
    assert lengths(568)[3:] == (512, 114)
    with pytest.raises(ValueError, match="a text has 3 tokens"):
        lengths(3)


def restored(batch: Mapping[str, Any], vocabulary: int, spans: int) -> list[int]:
    """The text that inputs and targets came from."""
    sentinels = [vocabulary - 1 - i for i in range(spans)]
    hidden: dict[int, list[int]] = {}
    for token in batch["targets"][:-1].tolist():
        if token in sentinels:
            hidden[token] = []
            last = token
        else:
            hidden[last].append(token)
    assert list(hidden) == sentinels
    assert all(hidden.values())
    return [token for shown in batch["inputs"][:-1].tolist() for token in hidden.get(shown, [shown])]


@pytest.mark.parametrize("length", [4, 7, 96, 300])
def test_nothing_of_a_text_is_lost_and_lengths_do_not_depend_on_it(length: int) -> None:
    size = lengths(length)
    for seed in range(5):
        text = np.random.default_rng(seed).integers(3, 259, length)
        batch = corrupt(text, 384, np.random.default_rng([seed, 1]))
        assert (len(batch["inputs"]), len(batch["targets"])) == (size.inputs, size.targets)
        assert restored(batch, 384, size.spans) == text.tolist()
        assert batch["inputs"][-1] == batch["targets"][-1] == END
        assert batch["decoder_inputs"].tolist() == [0, *batch["targets"][:-1].tolist()]


def test_fifteen_hundredths_are_hidden_in_spans_of_three_that_the_seed_places() -> None:
    size = lengths(1000)
    assert (size.noise, size.spans) == (150, 50)
    text = np.arange(3, 203)
    first, same, other = (corrupt(text, 384, np.random.default_rng(seed))["inputs"].tolist() for seed in (0, 0, 1))
    assert first == same != other
    with pytest.raises(ValueError, match="200 spans need a vocabulary of 459, got 384"):
        corrupt(np.arange(3, 103).repeat(40), 384, np.random.default_rng(0))


def test_every_way_to_cut_is_as_likely() -> None:
    rng = np.random.default_rng(0)
    drawn = [tuple(random_parts(5, 3, rng).tolist()) for _ in range(1200)]
    counts = {cut: drawn.count(cut) for cut in set(drawn)}
    assert len(counts) == 6
    assert all(sum(cut) == 5 and min(cut) >= 1 for cut in counts)
    assert 150 < min(counts.values()) <= max(counts.values()) < 250


def test_the_manual_is_split_by_topic_and_known_by_its_hash() -> None:
    train, test, digest = data.manual()
    assert not set(train) & set(test)
    assert sum(map(len, train + test)) > 300_000
    assert 0.05 < sum(map(len, test)) / sum(map(len, train)) < 0.35
    texts = data.load("manual", 32, 384)
    assert digest[:12] in texts.about
    first, second, third = (next(texts.train(3, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["inputs"], second["inputs"])
    assert (first["inputs"] != third["inputs"]).any()
    tests = [list(texts.test()), list(texts.test())]
    assert len(tests[0]) == data.TEST_TEXTS // data.TEST_BATCH
    np.testing.assert_array_equal(tests[0][1]["targets"], tests[1][1]["targets"])


def test_texts_of_a_source_are_joined_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    source = [{"text": text} for text in (b"first", "sécond", b"third")]
    whole = np.concatenate([*map(encode, [text["text"] for text in source] * 8)]).tolist()
    for seed in range(8):
        found = data.window(source, 12, np.random.default_rng(seed)).tolist()
        assert any(whole[i : i + 12] == found for i in range(len(whole)))

    def builder(name: str, file_format: str) -> Any:
        assert name == "c4/en"
        return SimpleNamespace(is_prepared=lambda: True, as_data_source=lambda split: source)

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(builder=builder))
    texts = data.load("c4", 20, 384)
    drawn = [next(texts.train(4, seed))["inputs"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert next(iter(texts.test()))["targets"].shape == (data.TEST_BATCH, lengths(20).targets)
    with pytest.raises(ValueError, match="allowed are manual, c4"):
        data.load("wiki", 20, 384)


@pytest.mark.parametrize("part", [None, *PARTS])
def test_budgets_that_favour_a_part_keep_as_much_in_all(part: str | None) -> None:
    shapes = shapes_of(TINY)
    plan = core.uniform(shapes, 0.0, filter_fn=lambda path, leaf: False, rules=favouring(shapes, part, FACTOR, 0.8))
    pruned = [
        (leaf.size, target)
        for leaf, target in zip(jax.tree.leaves(shapes), jax.tree.structure(shapes).flatten_up_to(plan), strict=True)
        if isinstance(target, float)
    ]
    assert sum(size for size, _ in pruned) == sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim > 1) - 256
    assert sum(size * (1 - target) for size, target in pruned) == pytest.approx(
        0.2 * sum(size for size, _ in pruned), rel=1e-6
    )
    assert len({target for _, target in pruned}) == (1 if part is None else 2)


def test_a_budget_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention at 1\.2 of its entries leaves"):
        favouring(shapes_of(SMALL), "attention", 1.5, 0.2)


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_of_every_preset_fits_its_model(name: str) -> None:
    for preset in STUDIES[name].presets.values():
        settings = T5Settings(name="study", **preset)
        shapes = shapes_of(SIZES[settings.model])
        for cell, keywords in STUDIES[name].variants(settings, shapes).items():
            updater = settings.updater(keywords, core.kernels_only)
            assert updater.prunes == (cell != "dense")
            if updater.prunes:
                check_targets(updater, shapes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cell of the study of budgets, with what the study of memory measures."""
    question = STUDIES["budgets"]._replace(probe=STUDIES["memory"].probe)
    study = REGISTRY["t5"]._replace(questions={"budgets": question})
    command = ["budgets", "--only", "denser embeddings", "--seeds", "0", "1", "--steps=4", "--batch-size=4"]
    command += ["--length=24", "--evaluations=1", "--changes=2", "--name=x"]
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patches:
        patches.setitem(SIZES, "tiny", SMALL)
        patches.setattr(data, "TEST_TEXTS", data.TEST_BATCH)
        assert main(study, T5Settings, study_of(task), [*command, f"--output={output}"]) == 0
    return output / "x"


def test_runs_end_as_sparse_as_they_are_meant_to_be(folder: Path) -> None:
    ends = [row for row in read_study(folder, LAYOUTS).rows if row.is_last]
    assert [(row.cell, row.seed, row.failure) for row in ends] == [("denser embeddings", seed, "") for seed in (0, 1)]
    assert [row.sparsity for row in ends] == pytest.approx([0.8, 0.8], abs=1e-3)
    assert all(0 < row.loss < 9 and 0 <= row.score <= 1 for row in ends)
    assert "topics of Python's manual as bytes" in (folder / "results.md").read_text()


def test_bytes_are_those_of_the_state_and_of_what_is_exported(folder: Path) -> None:
    found = read_study(folder, LAYOUTS).measurements
    value = {line.item: round(1000 * line.value) for line in found if line.seed == 0}
    sizes = {leaf.ndim: 0 for leaf in jax.tree.leaves(shapes_of(SMALL))}
    for leaf in jax.tree.leaves(shapes_of(SMALL)):
        sizes[leaf.ndim] += leaf.size
    assert value["parameters"] == value["arrays, dense"] == 4 * sum(sizes.values())
    assert 8 * sum(sizes.values()) <= value["optimizer"] < 8.1 * sum(sizes.values())
    assert value["one step"] > value["parameters"] + value["optimizer"] + value["masks"]
    assert value["file, sparse"] < 0.5 * value["file, dense"]
    assert value["arrays, BCOO"] < 0.7 * value["arrays, dense"]  # a value and two indices for each fifth weight
    assert {line.quantity for line in found} == {"state, kB", "peak, kB", "after training, kB"}


def test_masks_take_a_byte_or_a_bit_or_nothing_for_each_weight() -> None:
    settings = T5Settings(name="study", **STUDIES["memory"].presets["short"])
    shapes = shapes_of(BASE)
    kernels = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim > 1) - BASE.vocabulary * BASE.width
    kernels -= 2 * 32 * BASE.heads
    found = {}
    for name, keywords in storage_cells().items():
        tx = settings.updater(keywords, core.kernels_only).wrap_optax(settings.transformation())
        found[name] = core.export.nbytes(jax.eval_shape(tx.init, shapes).masks)
    assert found == {"dense": 0, "masks uint8": kernels, "masks packed": kernels // 8, "masks zeros": 0}
