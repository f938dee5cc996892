"""Bytes from a sender who wants harm: everything is a message about the model or a CodecError, within bounds."""

import dataclasses
import importlib
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.wire import CodecError, SeededMasks, decode, encode, envelope, needed_base
from sparse_plugins.wire.envelope import Flags, Header
from sparse_plugins.wire.reader import varint
from tests.fuzz import codec as fuzz
from tests.quick import thorough
from tests.wire.cases import same_bits

LIKE = {"b": np.arange(3, dtype=np.int32), "w": np.linspace(-1, 1, 40, dtype=np.float32)}
MASKS = {"b": NOT_PRUNED, "w": (np.arange(40) % 13 == 5).astype(np.uint8)}
PAYLOAD = encode(MASKS, LIKE)
HEADER = envelope.read_header(PAYLOAD)
CONTENT_AT, CRC_SIZE = 35, 4


def outcome(payload: bytes, like: Any = None, base: Any = None) -> Any:
    """What was decoded, with shapes and dtypes checked; None if it was refused."""
    like = LIKE if like is None else like
    try:
        decoded = decode(payload, like, base=base)
    except CodecError:
        return None
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert described(decoded.values) == described(like)
    return decoded


def sealed(content: bytes, **changes: Any) -> bytes:
    """A payload with any content that passes length and checksum."""
    return envelope.seal(dataclasses.replace(HEADER, **changes), content)


def test_every_truncation_is_refused() -> None:
    for length in range(len(PAYLOAD)):
        assert outcome(PAYLOAD[:length]) is None
        with pytest.raises(CodecError, match="at least 39 bytes" if length < 39 else "it was cut off"):
            needed_base(PAYLOAD[:length])


def test_every_truncation_of_the_content_is_refused_with_a_good_checksum() -> None:
    content = PAYLOAD[CONTENT_AT:-CRC_SIZE]
    for length in range(len(content)):
        with pytest.raises(CodecError, match=r"leaf '[bw]': .*left"):
            decode(sealed(content[:length]), LIKE)


def bit_flips(payload: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def test_every_flipped_bit_is_found_by_the_checksum() -> None:
    assert all(outcome(flipped) is None for flipped in bit_flips(PAYLOAD))


MESSAGES = {
    "gaps": encode(fuzz.random_masks(0.03), fuzz.LIKE),
    "bitmask, int8": encode(fuzz.random_masks(0.4), fuzz.LIKE, dtype="int8"),
    "base": encode(fuzz.BASE, fuzz.LIKE, base=fuzz.BASE),
    "zstd": encode(fuzz.random_masks(0.03), fuzz.LIKE, zstd=True),
    "bound": encode(fuzz.BASE, fuzz.LIKE, base=fuzz.BASE, binding=fuzz.BINDING),
}


@pytest.mark.parametrize("name", [name if name in ("gaps", "zstd") else thorough(name) for name in MESSAGES])
def test_every_flipped_bit_with_a_repaired_checksum_is_refused_or_read(name: str) -> None:
    outcomes = [outcome(fuzz.repaired(flipped), fuzz.LIKE, fuzz.BASE) for flipped in bit_flips(MESSAGES[name])]
    read = [decoded for decoded in outcomes if decoded is not None]
    assert len(outcomes) - len(read) > 30, "forms, counts and lengths are checked"
    assert len(read) > 30, "values are the sender's own affair"
    for decoded in read[::20]:
        fuzz.check_message(decoded)


@given(st.sampled_from(list(MESSAGES)), st.data())
@settings(max_examples=300)
def test_mutated_messages_are_refused_or_read(name: str, data: st.DataObject) -> None:
    payload = bytearray(MESSAGES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(payload)))
        payload[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    fuzz.check(bytes(payload))


@given(st.binary(max_size=200))
def test_any_content_is_refused_or_read(content: bytes) -> None:
    for flags in (Flags(0), Flags.SEED, Flags.BASE):
        outcome(sealed(content, flags=flags), base=MASKS)


WHOLE, DENSE, SAME, DIFFERENCE, SEEDED = (bytes([128 + form]) for form in range(5))
B = WHOLE + LIKE["b"].tobytes()
W = WHOLE + LIKE["w"].tobytes()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "at least 39 bytes, this has 0"),
        (b"PK" + PAYLOAD[2:], "starts with b'SpFd', this with b'PKFd'"),
        (PAYLOAD[:4] + b"\x03" + PAYLOAD[5:], "has version 3, and versions 1 to 2 are read"),
        (PAYLOAD + b"\0", "bytes were appended"),
        (PAYLOAD[:27] + b"\xff" * 8 + PAYLOAD[35:], "should have 18446744073709551615 bytes"),
        (PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1]), "checksum is wrong"),
        (sealed(B + W, flags=Flags(16)), "flags 16 and dtype 0 have no meaning in version 2"),
        (sealed(b"", flags=Flags.BOUND), "a bound payload has at least 48 bytes, this has 39"),
        (sealed(B + W, num_leaves=3), "another model: it has 3 leaves, `like` has 2"),
        (sealed(B + W, fingerprint=bytes(8)), "paths, shapes and dtypes have to agree"),
        (sealed(B + W + b"\0"), "1 bytes follow the last leaf"),
        (sealed(B), "leaf 'w': 1 bytes are due and 0 are left"),
        (sealed(bytes(10_000)), "the content has 10000 bytes, but no message about this model needs more than"),
        (sealed(bytes([140])), "leaf 'b': there is no mask form 140"),
        (sealed(B + SAME), "leaf 'w': its mask refers to a base mask"),
        (sealed(B + SEEDED + varint(3)), "leaf 'w': its mask comes from a seed, but the payload holds none"),
        (sealed(b"\0" * 5, flags=Flags.SEED), "12 bytes are due and 5 are left"),
        (sealed(bytes(12) + B + SEEDED + varint(41), flags=Flags.SEED), "number of kept entries is 41"),
        (sealed(B + DENSE + bytes(159)), "leaf 'w': 160 bytes are due and 159 are left"),
        (sealed(B + bytes([3]) + varint(1 << 60)), "leaf 'w': the number of gaps is 1152921504606846976"),
    ],
)
def test_forged_payloads_are_refused_by_name(payload: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        decode(payload, LIKE)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(CodecError, match="dtype 9 have no meaning"):
        decode(fuzz.repaired(PAYLOAD[:6] + b"\x09" + PAYLOAD[7:]), LIKE)


def test_a_base_must_be_there_and_be_the_same() -> None:
    masks = {"b": NOT_PRUNED, "w": MASKS["w"]}
    other = {"b": NOT_PRUNED, "w": 1 - MASKS["w"]}
    payload = encode(masks, LIKE, base=masks, base_version=41)
    assert needed_base(payload) == 41
    with pytest.raises(CodecError, match="builds on the masks of version 41: pass them as `base`"):
        decode(payload, LIKE)
    with pytest.raises(CodecError, match="`base` holds other masks than those of version 41"):
        decode(payload, LIKE, base=other)
    with pytest.raises(CodecError, match="`base` holds other masks"):
        decode(payload, LIKE, base={"b": np.ones(3, np.uint8), "w": MASKS["w"]})
    with pytest.raises(ValueError, match="base and the parameters have different tree structures"):
        decode(payload, LIKE, base={"w": MASKS["w"]})


def test_a_base_that_no_leaf_uses_is_not_needed() -> None:
    payload = encode({"b": NOT_PRUNED, "w": NOT_PRUNED}, LIKE, base=MASKS, base_version=41)
    assert needed_base(payload) is None
    same_bits(decode(payload, LIKE).values, LIKE)


@pytest.mark.parametrize(
    "like",
    [
        {"b": LIKE["b"], "v": LIKE["w"]},
        {"b": LIKE["b"], "w": LIKE["w"].reshape(4, 10)},
        {"b": LIKE["b"], "w": LIKE["w"].astype(np.float64)},
        {"b": LIKE["b"].view(np.float32), "w": LIKE["w"]},
        {"w": LIKE["w"]},
        LIKE["w"],
    ],
)
def test_a_payload_for_another_model_is_refused(like: Any) -> None:
    with pytest.raises(CodecError, match="this payload is about another model"):
        decode(PAYLOAD, like)


LARGE = {"w": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)}
# The result (values and mask), and 32 bytes for each entry of the largest leaf.
ALLOWED = (4 + 1 + 32) * (1 << 20)


def large(content: bytes, flags: int = 0, dtype: str = "float32") -> bytes:
    header = envelope.read_header(encode({"w": NOT_PRUNED}, {"w": np.zeros(1 << 20, np.float32)}))
    return envelope.seal(Header(Flags(flags), dtype, 0, header.fingerprint, 0, 1), content)


@pytest.mark.parametrize(
    ("make", "is_read"),
    [
        (lambda: large(bytes([1]) + varint(1 << 19) + varint(1 << 17) + b"\xaa" * (1 << 17)), False),
        (lambda: large(bytes([20]) + varint(50_000) + varint(6_250) + b"\xff" * 130_000), False),
        (lambda: large(bytes([1]) + varint(1 << 19) + varint(1 << 17) + b"\x55" * (1 << 17) + bytes(2 << 20)), True),
        (lambda: large(bytes([1 + 64]) + varint(0) + varint(0) + bytes(4 << 20)), True),
        (lambda: large(bytes([1]) + varint(0) + varint(0)), True),
        (lambda: large(DENSE + bytes(4 << 20)), True),
        (lambda: large(DENSE + bytes(4 << 20), Flags.ZSTD), True),
        (lambda: large(DENSE + bytes(4 << 12) + bytes(1 << 20), dtype="int8"), True),
        (lambda: large(DENSE), False),
        (lambda: large(bytes(1 << 26)), False),
        (lambda: large(bytes(1 << 26), Flags.ZSTD), False),
    ],
)
def test_memory_is_bounded_by_the_model(make: Callable[[], bytes], is_read: bool) -> None:
    payload = make()
    tracemalloc.start()
    try:
        assert (outcome(payload, LARGE) is not None) == is_read
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= ALLOWED


def test_what_is_announced_but_missing_allocates_next_to_nothing() -> None:
    contents = (DENSE, WHOLE, bytes([0]), bytes([1]) + varint(1 << 19) + varint(1 << 17))
    for payload in map(large, contents):
        tracemalloc.start()
        try:
            assert outcome(payload, LARGE) is None
            assert tracemalloc.get_traced_memory()[1] <= (1 << 20) + (1 << 16), "the mask of a dense leaf at most"
        finally:
            tracemalloc.stop()


def test_a_zstd_frame_that_hides_its_size_or_is_followed_by_another_is_refused() -> None:
    zstandard = importlib.import_module("zstandard")
    plain = zstandard.ZstdCompressor(write_content_size=False).compress(B + W)
    good = zstandard.ZstdCompressor().compress(B + W)
    for frame, message in ((plain, "the content has -1 bytes"), (good + good, "can't be decompressed"), (b"", "frame")):
        front = sealed(frame, flags=Flags(0))
        payload = front[:5] + bytes([Flags.ZSTD]) + front[6:]
        with pytest.raises(CodecError, match=message):
            decode(resealed(payload), LIKE)


def resealed(payload: bytes) -> bytes:
    return payload[:-4] + struct.pack("<I", zlib.crc32(payload[:-4]))


def test_a_forged_seed_draws_masks_of_the_model_only() -> None:
    content = np.array([7, 8, 9], "<u4").tobytes() + B + SEEDED + varint(5) + bytes(20)
    decoded = decode(sealed(content, flags=Flags.SEED), LIKE)
    same_bits(decoded.masks["w"], SeededMasks((7, 8), 9).masks(LIKE, {"b": 0, "w": 5})["w"])


def test_the_fuzz_corpus_uses_every_form_and_dtype() -> None:
    forms, headers = set(), []
    for payload in fuzz.corpus():
        fuzz.check(payload)
        forms |= set(decode(payload, fuzz.LIKE, base=fuzz.BASE).forms)
        headers.append(envelope.read_header(payload))
    assert forms == {"whole", "dense", "bitmask", "rice", "seed", "same", "difference"}
    assert {header.dtype for header in headers} == {"float32", "bfloat16", "float16", "int8"}
    assert {flag for header in headers for flag in header.flags} == set(Flags)
