"""The codec without JAX: the same trees, the same random masks, the same bytes."""

import collections
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

from sparse_plugins import core
from sparse_plugins.core.selection.random_scores import joined_seed, key_words, leaf_keys, random_scores
from sparse_plugins.core.selection.structured_topk import create_mask
from sparse_plugins.core.trees import leaf_names
from sparse_plugins.wire import SeededMasks, decode, encode
from sparse_plugins.wire.trees import aligned, named_leaves, with_leaves

ROOT = Path(__file__).parents[2]


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    inside: Any


def without_jax() -> Any:
    """What asks for JAX that is loaded gets none, as in a process without."""
    return mock.patch.dict(sys.modules, {"jax": None, "optax": None})


KEYS = st.sampled_from(["w", "b", "layer_10", "layer_2", ""])
CONTAINERS = {
    "dict": lambda part: st.dictionaries(KEYS, part, max_size=3),
    "numbered": lambda part: st.dictionaries(st.integers(0, 20), part, max_size=3),
    "ordered": lambda part: st.dictionaries(KEYS, part, max_size=3).map(collections.OrderedDict),
    "default": lambda part: st.dictionaries(KEYS, part, max_size=3).map(lambda d: collections.defaultdict(list, d)),
    "list": lambda part: st.lists(part, max_size=3),
    "tuple": lambda part: st.lists(part, max_size=3).map(tuple),
    "named": lambda part: st.tuples(part, part).map(lambda pair: Pair(*pair)),
    "marker": lambda part: st.just(core.NOT_PRUNED),
}
TREES = st.recursive(
    st.one_of(st.none(), st.integers(0, 9).map(np.asarray)),
    lambda part: st.one_of([make(part) for make in CONTAINERS.values()]),
    max_leaves=8,
)


@given(TREES)
def test_trees_have_the_leaves_that_jax_finds_with_and_without_it(tree: Any) -> None:
    leaves, treedef = jax.tree.flatten(tree)
    expected = list(zip(leaf_names(tree), leaves, strict=True))
    others = [object() for _ in leaves]
    rebuilt = jax.tree.unflatten(treedef, others)
    for found, again in (read(tree, others), read_without_jax(tree, others)):
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert all(leaf is other for (_, leaf), (_, other) in zip(found, expected, strict=True))
        assert again == rebuilt
        assert jax.tree.structure(again) == treedef


def read(tree: Any, others: list[Any]) -> tuple[list[tuple[str, Any]], Any]:
    return named_leaves(tree), with_leaves(tree, others)


def read_without_jax(tree: Any, others: list[Any]) -> tuple[list[tuple[str, Any]], Any]:
    with without_jax():
        return read(tree, others)


@given(TREES, TREES)
def test_trees_are_laid_beside_each_other_as_jax_does(params: Any, tree: Any) -> None:
    try:
        expected = jax.tree.structure(params).flatten_up_to(tree)
    except ValueError:
        for call in (aligned, aligned_without_jax):
            with pytest.raises(ValueError, match="masks and the parameters have different tree structures"):
                call(params, tree, "masks")
        return
    for found in (aligned(params, tree, "masks"), aligned_without_jax(params, tree, "masks")):
        assert all(node is wanted for node, wanted in zip(found, expected, strict=True))


def aligned_without_jax(params: Any, tree: Any, what: str) -> list[Any]:
    with without_jax():
        return aligned(params, tree, what)


def test_what_only_jax_can_open_is_opened_where_it_is_loaded_and_named_elsewhere() -> None:
    values = {"layers": [Registered(np.ones(3, np.float32))]}
    masks = {"layers": [Registered(np.array([1, 0, 1], np.uint8))]}
    assert [name for name, _ in named_leaves(values)] == leaf_names(values) == ["layers/0/inside"]
    assert decode(encode(masks, values), values).values["layers"][0].inside.tolist() == [1, 0, 1]
    with (
        without_jax(),
        pytest.raises(ValueError, match=r"leaf 'layers/0' is a Registered.*import that library"),
    ):
        encode(masks, values)


def test_a_hidden_part_has_no_masks() -> None:
    values = {"a": {"b": np.ones(3, np.float32), "c": np.ones(2, np.float32)}, "d": np.ones(2, np.float32)}
    masks = {"a": optax.MaskedNode(), "d": np.array([0, 1], np.uint8)}
    assert decode(encode(masks, values), values).forms == ("whole", "whole", "bitmask")


def test_dicts_whose_keys_have_no_order_are_an_error() -> None:
    with pytest.raises(ValueError, match="keys of a dict can't be sorted"):
        named_leaves({1: 0, "a": 0})


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.text(max_size=8))
@settings(max_examples=50)
def test_keys_are_those_of_the_core(seed: int, step: int, name: str) -> None:
    masks = SeededMasks.of(seed, step)
    assert list(masks.words) == key_words(seed).tolist()
    tree = {name: jnp.zeros(1)}
    assert list(masks.key(name)) == leaf_keys(tree, key_words(seed), np.uint32(step))[name].tolist()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 2), (300, 41), (2, 0)])
def test_masks_are_those_of_the_core(shape: tuple[int, ...]) -> None:
    scores = random_scores({"w": jnp.zeros(shape)}, key_words(3), 4)["w"]
    size = int(np.prod(shape))
    for count in sorted({0, min(1, size), size // 3, max(size - 1, 0), size}):
        mask = SeededMasks.of(3, 4).masks({"w": np.zeros(shape)}, {"w": count})["w"]
        expected = create_mask(scores, core.Unstructured(), 1.0 - count / max(size, 1))
        np.testing.assert_array_equal(mask, expected, strict=True)
        assert mask.sum() == count


def test_seeds_may_be_keys_of_any_form() -> None:
    for seed in (jax.random.key(5), jax.random.key(5, impl="rbg"), jax.random.PRNGKey(5), joined_seed(2, 7)):
        assert list(SeededMasks.of(seed).words) == key_words(seed).tolist()
    assert SeededMasks.of(np.array([1, 2], np.uint32)).words == (1, 2)
    for seed in (jax.random.split(jax.random.key(0)), 1.5, True, np.zeros(2, np.int32), None):
        with pytest.raises(TypeError, match="give an int or one JAX key"):
            SeededMasks.of(seed)
    with pytest.raises(ValueError, match="rng_seed is 18446744073709551616; give an int from"):
        SeededMasks.of(1 << 64)


@pytest.mark.parametrize("count", [-1, 7])
def test_more_than_there_is_cannot_be_drawn(count: int) -> None:
    with pytest.raises(ValueError, match=f"leaf 'w' has 6 entries and cannot keep {count}; give 0 to 6"):
        SeededMasks.of(0).masks({"w": np.zeros((2, 3))}, {"w": count})


# What a client does in a round, in a process with or without JAX; it prints what it made of it.
CLIENT = """
import hashlib, json, sys
if sys.argv[1] == "without":
    sys.modules["jax"] = sys.modules["optax"] = None  # as where they are not installed
else:
    import jax
import numpy as np
from collections import OrderedDict, namedtuple
rng = np.random.default_rng(0)
before = set(sys.modules)
from sparse_plugins.wire import NOT_PRUNED, Binding, CodecError, SeededMasks, apply, decode, delta, encode, masks_digest

Layer = namedtuple("Layer", "kernel bias")
leaf = lambda dtype, *shape: rng.normal(size=shape).astype(dtype)
params = {
    "conv": [Layer(leaf("float32", 3, 3, 8, 16), leaf("float16", 16)), None],
    "dense": OrderedDict(w=leaf("bfloat16", 200, 30), a=leaf("float32", 30)),
}
masks = {
    "conv": [Layer((rng.random((3, 3, 8, 16)) < 0.1).astype(np.uint8), NOT_PRUNED), None],
    "dense": OrderedDict(w=rng.random((200, 30)) < 0.3, a=NOT_PRUNED),
}
made = []
for seed in (None, SeededMasks.of((1 << 40) + 7, 3)):
    if seed is not None:
        counts = {"conv": [Layer(50, 16), None], "dense": OrderedDict(w=900, a=30)}
        masks = seed.masks(params, counts)
    broadcast = Binding("broadcast", "digits", 3, masks=masks_digest(masks, params))
    down = encode(masks, params, seed=seed, binding=broadcast)
    got = decode(down, params, binding=broadcast)
    made += [down, repr(got.forms).encode()]
    for base in (None, got.masks):
        for dtype in ("float32", "bfloat16", "int8"):
            for zstd in (False, True):
                up = encode(got.masks, got.values, base=base, dtype=dtype, zstd=zstd)
                back = decode(up, params, base=base)
                made += [up, back.values["dense"]["w"].tobytes(), repr(back.forms).encode()]
for base in (None, got.values):
    for zstd in (False, True):
        moved = delta(params, base, zstd=zstd, threads=2)
        made += [moved, apply(moved, got.values)["dense"]["w"].tobytes()]
try:
    decode(down[:-1], params)
except CodecError as error:
    made.append(str(error).encode())
known = {*sys.stdlib_module_names, "numpy"}
print(json.dumps({
    "digest": hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in made)).hexdigest(),
    "parts": len(made),
    "type": type(back.values["dense"]["w"]).__module__,
    "foreign": sorted({name.partition(".")[0] for name in {*sys.modules} - before} - known),
}))
"""


def client(jax_is: str) -> dict[str, Any]:
    run = subprocess.run([sys.executable, "-c", CLIENT, jax_is], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def test_a_process_without_jax_makes_and_reads_the_same_bytes() -> None:
    without, with_jax = client("without"), client("with")
    assert without.pop("foreign") == ["ml_dtypes", "sparse_plugins", "zstandard"]
    assert with_jax.pop("foreign") == ["sparse_plugins"]
    assert without == with_jax
    assert without["parts"] == 2 * (2 + 12 * 3) + 4 * 2 + 1
