"""Weights as what changed: every bit comes back, next to nothing travels, and whatever does not fit is refused."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.wire import (
    BaseMismatchError,
    CodecError,
    apply,
    block_codes,
    delta,
    most_delta_bytes,
    read_delta_header,
    weights_digest,
)
from sparse_plugins.wire.bit_patterns import patterns, signed_by_top_bit, stepped, steps
from sparse_plugins.wire.rank_index import RankIndex, num_words, pack_into
from tests.fuzz import deltas as fuzz
from tests.wire.cases import SHAPES, random_leaf, same_bits

DTYPES = (
    *(np.float32, np.float16, np.float64, np.complex64, np.complex128, jnp.bfloat16),
    *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.float8_e8m0fnu),
    *(np.bool_, np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64),
)


def moved(rng: np.random.Generator, base: np.ndarray, share: float, how: str) -> np.ndarray:
    """An array in which a share of the entries is another: any bits at all, or a few steps away."""
    other = random_leaf(rng, base.shape, base.dtype.type)
    if how == "steps" and base.dtype != np.bool_:
        pattern = patterns(base)
        far = rng.integers(1, rng.choice((3, 40, 250)), pattern.size).astype(pattern.dtype)
        other = stepped(pattern, far, signed_by_top_bit(base.dtype)).view(base.dtype).reshape(base.shape)
    if how == "zeros":
        other = np.zeros_like(base)
    return np.where(rng.random(base.shape) < share, other, base).astype(base.dtype)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    new, base = {}, {}
    for number in range(draw(st.integers(0, 4))):
        leaf = random_leaf(rng, draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES)))
        if draw(st.booleans()):
            leaf = moved(rng, leaf, 0.8, "zeros")
        share, how = (
            draw(st.sampled_from((0.0, 0.02, 0.3, 0.6, 1.0))),
            draw(st.sampled_from(("bits", "steps", "zeros"))),
        )
        name = f"leaf{number}"
        base[name], new[name] = [leaf, NOT_PRUNED], [moved(rng, leaf, share, how), NOT_PRUNED]
    return new, base


@given(pairs(), st.booleans(), st.sampled_from((1, 2)))
@settings(max_examples=150)
def test_every_bit_comes_back(pair: tuple[Any, Any], zstd: bool, threads: int) -> None:
    new, base = pair
    before = jax.tree.map(np.copy, base)
    payload = delta(new, base, version=9, base_version=8, zstd=zstd, threads=threads)
    same_bits(apply(payload, base, threads=threads), new)
    same_bits(base, before)
    assert len(payload) <= most_delta_bytes(new)
    header = read_delta_header(payload)
    assert (header.version, header.base_version) == (9, 8)
    assert (header.base_digest, header.digest) == (weights_digest(base), weights_digest(new, threads=threads))
    assert delta(new, base, version=9, base_version=8, base_digest=header.base_digest, zstd=zstd) == payload
    snapshot = delta(new, version=9, zstd=zstd)
    same_bits(apply(snapshot, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), new)), new)
    assert len(snapshot) <= most_delta_bytes(new)
    assert read_delta_header(snapshot).base_version is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_count_the_numbers_between(dtype: Any) -> None:
    """All pairs of 8-bit patterns, and the ends of wider ones, against an order made by hand."""
    width = np.dtype(f"u{np.dtype(dtype).itemsize // (2 if np.dtype(dtype).kind == 'c' else 1)}")
    ends = np.iinfo(width).max
    some = np.arange(256) if width.itemsize == 1 else [0, 1, 2, ends // 2, ends // 2 + 1, ends // 2 + 2, ends - 1, ends]
    new, base = (grid.ravel() for grid in np.meshgrid(np.array(some, width), np.array(some, width)))
    is_signed = signed_by_top_bit(np.dtype(dtype))
    assert is_signed == (np.dtype(dtype).kind not in "biu")
    moves = steps(new, base, is_signed)
    np.testing.assert_array_equal(stepped(base, moves, is_signed), new, strict=True)
    bits = 8 * width.itemsize

    def order(pattern: int) -> int:
        if not is_signed:
            return pattern
        magnitude, is_negative = pattern % 2 ** (bits - 1), pattern >> (bits - 1)
        return -magnitude - 1 if is_negative else magnitude

    for of_new, of_base, move in zip(new.tolist(), base.tolist(), moves.tolist(), strict=True):
        distance = (order(of_new) - order(of_base) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        assert move == (-2 * distance - 1 if distance < 0 else 2 * distance)


@given(st.integers(0, 400), st.sampled_from((0.0, 0.03, 0.5, 1.0)), st.integers(0, 99))
def test_ranks_and_places_are_those_of_a_list(n: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.random(n) < density
    words = np.zeros(num_words(n), np.uint64)
    pack_into(words, 0, chosen)
    index, expected = RankIndex(words), np.flatnonzero(chosen)
    assert index.count == expected.size
    np.testing.assert_array_equal(index.places(np.arange(index.count)), expected)
    np.testing.assert_array_equal(index.ranks(np.arange(n)), np.cumsum(chosen) - chosen)


def trained(size: int, lr: float, sparsity: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """bfloat16 weights before and after a step of a size that does not depend on the weight, as Adam takes it."""
    rng = np.random.default_rng(seed)
    masters = np.where(rng.random(size) < sparsity, 0, 0.02 * rng.normal(size=size))
    after = np.where(masters == 0, 0, masters + lr * rng.normal(size=size))
    return after.astype(jnp.bfloat16), masters.astype(jnp.bfloat16)


def entropy_bound(new: np.ndarray, base: np.ndarray) -> float:
    """Bytes of which positions that change at random and independent changes need as many at least."""
    after, before = patterns(new).astype(np.int64), patterns(base).astype(np.int64)
    is_changed = after != before
    _, counts = np.unique((after - before)[is_changed], return_counts=True)
    bits = lambda shares: -float(np.sum(shares * np.log2(shares)))  # noqa: E731
    share = np.mean(is_changed)
    return (after.size * bits(np.array([share, 1 - share])) + is_changed.sum() * bits(counts / counts.sum())) / 8


@pytest.mark.parametrize(("lr", "share_of_dense"), [(1e-7, 0.003), (1e-6, 0.015), (1e-5, 0.07), (1e-4, 0.25)])
def test_a_step_takes_less_than_changes_at_random_places(lr: float, share_of_dense: float) -> None:
    new, base = trained(1 << 18, lr)
    payload = delta(new, base)
    assert apply(payload, base).tobytes() == new.tobytes()
    assert len(payload) <= 0.93 * entropy_bound(new, base)
    assert len(payload) <= share_of_dense * new.nbytes


def test_positions_outside_masks_cost_nothing() -> None:
    new, base = trained(1 << 18, 1e-3, sparsity=0.9)
    dense_new, dense_base = (array[base != 0] for array in (new, base))
    assert len(delta(new, base)) <= len(delta(dense_new, dense_base)) + 64


def test_masks_are_leaves_that_cost_a_byte_where_they_stay() -> None:
    new, base = trained(1 << 16, 1e-6)
    mask = (patterns(base) % 5 == 0).astype(np.uint8)
    alone = delta({"params": new}, {"params": base})
    kept = delta({"params": new, "masks": mask}, {"params": base, "masks": mask})
    assert len(kept) == len(alone) + 2
    flipped = mask.copy()
    flipped[[5, 77]] ^= 1
    tree = {"params": new, "masks": flipped}
    same_bits(apply(delta(tree, {"params": base, "masks": mask}), {"params": base, "masks": mask}), tree)


def test_what_is_spread_wide_travels_as_planes_and_never_costs_more_than_a_snapshot() -> None:
    rng = np.random.default_rng(0)
    base, new = (rng.normal(size=1 << 16).astype(np.float32) for _ in range(2))
    assert len(delta(new, base)) <= len(delta(new)) < 0.95 * new.nbytes
    sparse = np.where(rng.random(new.size) < 0.05, new, 0)
    assert len(delta(sparse)) < 0.06 * new.nbytes


def test_blocks_of_a_leaf_are_coded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_codes, "_BLOCK", 512)
    monkeypatch.setattr(block_codes, "_IN_CACHE", 128)
    new, base = trained(3000, 1e-5)
    same_bits(apply(delta(new, base), base), new)
    same_bits(apply(delta(new), base), new)


def test_arrays_of_jax_of_any_layout_and_byte_order_are_taken() -> None:
    base = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    payload = delta(jnp.asarray(base + 1), np.asfortranarray(base.astype(">f4")))
    same_bits(apply(payload, jnp.asarray(base)), base + 1)
    with pytest.raises(ValueError, match="leaf 'w' is traced, but a message has its values"):
        jax.jit(lambda w: delta({"w": w}))(base)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"w": np.zeros(3, np.float16)}, "leaf 'w' of shape .3,. and dtype float32, base has 'w' .* dtype float16"),
        ({"w": np.zeros((1, 3), np.float32)}, "base has 'w' of shape .1, 3."),
        ({"v": np.zeros(3, np.float32)}, "base has 'v'"),
        ({"w": np.zeros(3, np.float32), "z": np.zeros(1)}, "new weights have 1 leaves and base has 2"),
        ({"w": "text"}, "leaf 'w' is a str; only arrays are sent"),
    ],
)
def test_a_base_of_another_model_is_an_error_of_the_sender(base: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delta({"w": np.zeros(3, np.float32)}, base)


def test_numbers_out_of_range_are_errors() -> None:
    with pytest.raises(ValueError, match=r"a version is -1; give numbers in \[0, 2\*\*64\)"):
        delta(np.zeros(3), version=-1)
    with pytest.raises(ValueError, match="numbers of dtype float128 have 128 bits; give 64 at most"):
        delta(np.zeros(3, np.longdouble))


NEW, BASE = fuzz.NEW, fuzz.BASE
PAYLOAD = delta(NEW, BASE, version=5, base_version=4)


def resealed(payload: bytes) -> bytes:
    return payload[:-4] + struct.pack("<I", zlib.crc32(payload[:-4]))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "a delta has at least 80 bytes, this has 0"),
        (b"PK" + PAYLOAD[2:], "starts with b'SpDl', this with b'PKDl'"),
        (PAYLOAD[:4] + b"\2" + PAYLOAD[5:], "has format 2 with flags 0, and format 1"),
        (PAYLOAD[:5] + b"\2" + PAYLOAD[6:], "with flags 2"),
        (PAYLOAD[:-9], "it was cut off"),
        (PAYLOAD + b"\0", "bytes were appended"),
        (PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1]), "the checksum is wrong"),
        (resealed(PAYLOAD[:60] + b"\xff" + PAYLOAD[61:]), "not what the sender had"),
        (resealed(PAYLOAD[:24] + b"\xff" + PAYLOAD[25:]), "about another model"),
    ],
)
def test_damaged_and_forged_deltas_are_refused_by_name(payload: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message) as caught:
        apply(payload, BASE)
    assert not isinstance(caught.value, BaseMismatchError)


def test_every_truncation_is_refused() -> None:
    for length in range(len(PAYLOAD)):
        with pytest.raises(CodecError, match="cut off"):
            apply(PAYLOAD[:length], BASE)


def test_flipped_bits_with_a_repaired_checksum_never_give_other_weights() -> None:
    before = jax.tree.map(np.copy, BASE)
    for bit in range(8 * 76, 8 * (len(PAYLOAD) - 4), 7):
        flipped = bytearray(PAYLOAD)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            result = apply(resealed(bytes(flipped)), BASE)
        except CodecError:
            continue
        same_bits(result, NEW)  # a bit that fills up a byte means nothing
    same_bits(BASE, before)


def test_a_delta_is_applied_to_its_base_only_and_once() -> None:
    later = NEW | {"short": np.where(np.arange(600) % 9, NEW["short"], 3 * NEW["short"])}
    second = delta(later, NEW, version=6, base_version=5)
    same_bits(apply(second, apply(PAYLOAD, BASE)), later)
    for payload, base, number in ((second, BASE, 5), (second, later, 5), (PAYLOAD, NEW, 4)):
        with pytest.raises(BaseMismatchError, match=f"other weights than version {number}, on which this delta builds"):
            apply(payload, base)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: {name: leaf for name, leaf in tree.items() if name != "kernel"},
        lambda tree: tree | {"kernel": tree["kernel"].T},
        lambda tree: tree | {"kernel": tree["kernel"].view(np.int32)},
        lambda tree: {"params": tree},
    ],
)
def test_a_delta_for_another_model_is_refused(change: Callable[[Any], Any]) -> None:
    with pytest.raises(CodecError, match="this delta is about another model"):
        apply(PAYLOAD, change(BASE))


def test_a_truth_value_is_zero_or_one() -> None:
    base = np.zeros(40, np.bool_)
    code = delta(np.full(40, 2, np.uint8), base.view(np.uint8))
    header = read_delta_header(delta(~base, base))
    forged = bytearray(code)
    forged[24:32], forged[32:48] = header.fingerprint, header.base_digest
    with pytest.raises(CodecError, match="leaf '': a truth value is neither 0 nor 1"):
        apply(resealed(bytes(forged)), base)


def test_the_fuzz_corpus_has_every_form_of_blocks() -> None:
    forms = {code for payload in fuzz.corpus() for code in fuzz.forms(payload)}
    assert forms == {0, 1, 2, 3}


@pytest.mark.thorough
def test_memory_beside_base_and_result_has_a_bound() -> None:
    size = 1 << 22
    for lr in (1e-6, 1e-2):
        new, base = trained(size, lr)
        tracemalloc.start()
        try:
            payload = delta({"w": new}, {"w": base})
            of_delta = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            result = apply(payload, {"w": base})
            of_apply = tracemalloc.get_traced_memory()[1] - result["w"].nbytes - len(payload)
        finally:
            tracemalloc.stop()
        assert max(of_delta - 2 * len(payload), of_apply) <= 64 << 20
