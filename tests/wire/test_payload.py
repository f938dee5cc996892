import functools
import sys
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from sparse_plugins import core
from sparse_plugins.core.masks import IN_ZEROS, NOT_PRUNED
from sparse_plugins.wire import CodecError, SeededMasks, decode, encode, needed_base
from tests.wire.cases import Tree, inside, messages, same_bits

OVERHEAD = 39
NARROW = (np.float32, jnp.bfloat16, np.float16, np.int32, np.bool_)


@given(messages(dtypes=NARROW), st.booleans(), st.booleans())
@settings(max_examples=200)
def test_masks_and_values_come_back_bit_for_bit(message: tuple[Tree, Tree, Tree], with_base: bool, zstd: bool) -> None:
    masks, values, base = message
    held = base if with_base else None
    payload = encode(masks, values, base=held, base_version=7, zstd=zstd)
    decoded = decode(payload, like=jax.eval_shape(lambda: values), base=held)
    same_bits(decoded.masks, masks)
    same_bits(decoded.values, inside(masks, values))
    assert decoded.base_version == 7
    assert len(decoded.forms) == len(values)
    assert payload == encode(masks, values, base=held, base_version=7, zstd=zstd)


@given(messages(dtypes=(np.float32, jnp.bfloat16, np.int32)), st.sampled_from(["bfloat16", "float16", "int8"]))
def test_narrow_values_stay_where_they_were(message: tuple[Tree, Tree, Tree], dtype: str) -> None:
    masks, values, _ = message
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: np.asarray(rng.integers(-99, 100, leaf.shape), leaf.dtype), values)
    decoded = decode(encode(masks, values, dtype=dtype), like=values)
    same_bits(decoded.masks, masks)
    for name, [expected] in inside(masks, values).items():
        assert np.all(decoded.values[name][0][expected == 0] == 0)
        error = np.abs(decoded.values[name][0].astype(np.float64) - expected.astype(np.float64))
        assert np.all(error <= 0.5), "99 / 127 of a unit is the widest step"


def test_jax_arrays_and_bool_masks_are_the_same_to_it() -> None:
    values = {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}
    masks = {"w": (values["w"] % 3 == 0).astype(np.uint8)}
    on_device = jax.tree.map(jnp.asarray, (masks, values))
    assert encode(masks, values) == encode(*on_device) == encode(jax.tree.map(np.bool_, masks), values)
    assert encode(masks, values) == encode(masks, {"w": values["w"].astype(">f4")})
    assert encode(masks, values) == encode(masks, {"w": np.asfortranarray(values["w"])})


def test_buffers_are_read_like_bytes() -> None:
    values = {"w": np.ones(5, np.float32)}
    payload = encode({"w": np.eye(1, 5, dtype=np.uint8)[0]}, values)
    for buffer in (bytearray(payload), memoryview(payload)):
        same_bits(decode(buffer, values).values, {"w": np.eye(1, 5, dtype=np.float32)[0]})


N = 20_000


def exact_mask(density: float, n: int = N, seed: int = 0) -> np.ndarray:
    mask = np.zeros(n, np.uint8)
    mask[np.random.default_rng(seed).choice(n, round(density * n), replace=False)] = 1
    return mask


def flipped(mask: np.ndarray, count: int) -> np.ndarray:
    changed = mask.copy()
    changed[np.random.default_rng(1).choice(mask.size, count, replace=False)] ^= 1
    return changed


SEED = SeededMasks.of(seed=5, step=3)
LIKE = {"w": np.linspace(-1, 1, N).astype(np.float32)}
DRAWN = SEED.masks(LIKE, {"w": 700})["w"]


@pytest.mark.parametrize(
    ("form", "mask", "options", "most"),
    [
        ("whole", NOT_PRUNED, {}, 1),
        ("dense", np.ones(N, np.uint8), {}, 1),
        ("dense", np.ones(N, np.uint8), {"base": np.ones(N, np.uint8)}, 1),
        ("bitmask", exact_mask(0.5), {}, 1 + N / 8),
        ("rice", exact_mask(0.05), {}, 8 + 0.30 * N / 8),
        ("rice", exact_mask(0.95), {}, 8 + 0.30 * N / 8),
        ("rice", np.zeros(N, np.uint8), {}, 3),
        ("seed", DRAWN, {"seed": SEED}, 12 + 3),
        ("rice", exact_mask(0.035), {"seed": SEED}, 8 + 0.23 * N / 8),
        ("same", exact_mask(0.5), {"base": exact_mask(0.5)}, 1),
        ("same", DRAWN, {"base": DRAWN, "seed": SEED}, 1),
        ("difference", flipped(exact_mask(0.5), 60), {"base": exact_mask(0.5)}, 100),
        ("rice", exact_mask(0.05), {"base": exact_mask(0.5, seed=2)}, 8 + 0.30 * N / 8),
        ("rice", exact_mask(0.05), {"base": NOT_PRUNED}, 8 + 0.30 * N / 8),
        ("whole", NOT_PRUNED, {"base": exact_mask(0.5)}, 1),
    ],
)
def test_each_leaf_takes_its_shortest_form(form: str, mask: Any, options: dict[str, Any], most: float) -> None:
    base = {"w": options["base"]} if "base" in options else None
    payload = encode({"w": mask}, LIKE, base=base, seed=options.get("seed"))
    decoded = decode(payload, LIKE, base=base)
    assert decoded.forms == (form,)
    same_bits(decoded.masks, {"w": mask})
    sent = N if mask is NOT_PRUNED else np.count_nonzero(mask)
    assert len(payload) - 4 * sent - OVERHEAD <= most
    assert (needed_base(payload) is None) == (form not in ("same", "difference"))


def test_an_upload_inside_the_broadcast_masks_has_a_byte_a_leaf_for_positions() -> None:
    values = {name: np.ones((50, 40), np.float32) for name in "abc"}
    masks = {name: exact_mask(0.1, 2000).reshape(50, 40) for name in "abc"}
    assert len(encode(masks, values, base=masks)) == OVERHEAD + 3 + 3 * 200 * 4


def test_decoded_masks_are_the_callers_own() -> None:
    base, values = {"w": np.array([True, False, True])}, {"w": np.ones(3, np.float32)}
    decoded = decode(encode(base, values, base=base), values, base=base)
    assert decoded.forms == ("same",)
    decoded.masks["w"][:] = 0
    assert base["w"].tolist() == [True, False, True]


def test_a_difference_costs_what_the_change_carries() -> None:
    """Conditional on the old mask, within 3 % of the entropy of what was dropped and of what was grown."""
    n, kept, changed = 200_000, 40_000, 4_000
    rng = np.random.default_rng(0)
    old = exact_mask(kept / n, n)
    new = old.copy()
    new[rng.choice(np.flatnonzero(old), changed, replace=False)] = 0
    new[rng.choice(np.flatnonzero(old == 0), changed, replace=False)] = 1
    like = {"w": np.zeros(n, np.float32)}
    payload = encode({"w": new}, like, base={"w": old})
    bound = (kept * entropy(changed / kept) + (n - kept) * entropy(changed / (n - kept))) / 8
    assert len(payload) - 4 * kept - OVERHEAD <= 1.03 * bound


def entropy(density: float) -> float:
    return -density * np.log2(density) - (1 - density) * np.log2(1 - density)


@pytest.mark.parametrize(("sparsity", "factor"), [(0.8, 1.025), (0.9, 1.02), (0.95, 1.015), (0.98, 1.015)])
def test_a_message_is_close_to_the_entropy_bound(sparsity: float, factor: float) -> None:
    n, density = 100_000, 1 - sparsity
    mask = exact_mask(density, n)
    values = {"w": np.random.default_rng(0).normal(size=n).astype(np.float32)}
    bound = n * entropy(density) / 8 + 4 * density * n
    assert bound <= len(encode({"w": mask}, values)) <= factor * bound


@pytest.mark.thorough
def test_seeded_masks_are_those_of_the_random_updaters() -> None:
    params = {"a": {"kernel": jnp.ones((30, 20))}, "b": jnp.ones((64, 3))}
    masks_of = functools.partial(core.uniform, sparsity=0.9)
    static = core.StaticRandomSparse(sparsity_distribution_fn=masks_of, rng_seed=11)
    masks = core.unpack_masks(params, static.init_state(params).masks)
    payload = encode(masks, params, seed=SeededMasks.of(11))
    assert decode(payload, params).forms == ("seed", "seed")
    same_bits(decode(payload, params).masks, jax.tree.map(np.asarray, masks))

    pruning = core.RandomPruning(sparsity_distribution_fn=masks_of, rng_seed=11)
    masks = pruning.instant_sparsify(params)[1]
    assert decode(encode(masks, params, seed=SeededMasks.of(11)), params).forms == ("seed", "seed")


def test_a_seed_that_drew_other_masks_is_not_sent() -> None:
    plain = encode({"w": DRAWN}, LIKE)
    assert encode({"w": DRAWN}, LIKE, seed=SeededMasks.of(6, 3)) == plain
    assert encode({"w": DRAWN}, LIKE, seed=SeededMasks.of(5, 2)) == plain
    assert decode(encode({"v": DRAWN}, {"v": LIKE["w"]}, seed=SEED), {"v": LIKE["w"]}).forms == ("rice",)


@pytest.mark.parametrize(("words", "step"), [((0, 1 << 32), 0), ((0, 1), -1), ((1,), 0)])
def test_seeds_out_of_range_are_errors(words: tuple[int, int], step: int) -> None:
    with pytest.raises(ValueError, match=r"give two numbers and one, all in \[0, 2\*\*32\)"):
        SeededMasks(words, step)


def test_zstd_makes_floats_smaller() -> None:
    values = {"w": np.random.default_rng(0).normal(size=N).astype(np.float32)}
    masks = {"w": exact_mask(0.2)}
    plain, small = (encode(masks, values, zstd=zstd) for zstd in (False, True))
    assert len(small) < 0.95 * len(plain)
    same_bits(decode(small, values).values, decode(plain, values).values)


def test_without_zstandard_both_sides_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, values = {"w": exact_mask(0.2)}, LIKE
    payload = encode(masks, values, zstd=True)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs zstandard.*pip install "sparse-plugins\[zstd\]"'):
        encode(masks, values, zstd=True)
    with pytest.raises(CodecError, match=r'needs zstandard.*pip install "sparse-plugins\[zstd\]"'):
        decode(payload, values)


MASK, VALUE = np.array([1, 0, 1], np.uint8), np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({"w": MASK}, {"w": VALUE}), {"dtype": "float64"}, "dtype is 'float64'; choose one of float32"),
        (({"w": MASK}, {"w": VALUE}), {"base_version": -1}, "base_version is -1"),
        (({"v": MASK}, {"w": VALUE}), {}, "masks and the parameters have different tree structures"),
        (({"w": MASK}, {"w": VALUE}), {"base": {"v": MASK}}, "base and the parameters have different tree structures"),
        (({"w": MASK[:2]}, {"w": VALUE}), {}, "mask of leaf 'w' has shape .2,."),
        (({"w": IN_ZEROS}, {"w": VALUE}), {}, "core.unpack_masks"),
        (({"w": VALUE}, {"w": VALUE}), {}, "dtype float32; it has to be uint8 or bool"),
        (({"w": MASK}, {"w": VALUE}), {"base": {"w": MASK[:1]}}, "mask of leaf 'w' has shape .1,."),
        (({"w": MASK}, {"w": 1.0}), {}, "leaf 'w' is a float; only arrays are sent"),
        (({"w": MASK}, {"w": np.array(["a", "b", "c"])}), {}, "leaf 'w' has dtype <U1"),
        (({"w": MASK}, {"w": VALUE.astype(jnp.int4)}), {}, "leaf 'w' has dtype int4; send whole bytes"),
        (({"w": MASK}, {"w": VALUE * np.nan}), {"dtype": "int8"}, "leaf 'w' has values that are not finite"),
        (({"w": MASK}, {"w": VALUE * 1e6}), {"dtype": "float16"}, "leaf 'w' has values of up to 1e.06"),
        (({"w": NOT_PRUNED}, {"w": jax.random.key(0)}), {}, "leaf 'w' has dtype key<fry>"),
    ],
)
def test_what_cannot_be_sent_is_named(arguments: tuple, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(*arguments, **options)


def test_values_that_stay_here_may_be_anything() -> None:
    values = {"w": np.array([1.0, np.nan, 2.0], np.float32)}
    assert decode(encode({"w": MASK}, values, dtype="float16"), values).values["w"].tolist() == [1.0, 0.0, 2.0]
    assert decode(encode({"w": MASK}, values, dtype="int8"), values).values["w"][1] == 0


def test_a_traced_leaf_is_an_error() -> None:
    with pytest.raises(ValueError, match="leaf 'w' is traced"):
        jax.jit(lambda values: encode({"w": MASK}, values))({"w": VALUE})


def test_leaves_of_2_to_the_31_entries_are_an_error() -> None:
    like = {"w": jax.ShapeDtypeStruct((1 << 16, 1 << 15), jnp.float32)}
    with pytest.raises(ValueError, match=r"leaf 'w' has 2147483648 entries; a message takes fewer than 2\*\*31"):
        decode(encode({}, {}), like)
