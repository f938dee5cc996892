import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis.extra import numpy as arrays

from sparse_plugins.wire.position_codes import COMPLEMENT, decode_positions, encode_positions, fewest_bytes
from sparse_plugins.wire.reader import CodecError, Reader, varint
from sparse_plugins.wire.rice_codes import rice_parameter


def slow_bits(stream: bytes) -> list[int]:
    return [byte >> place & 1 for byte in stream for place in range(7, -1, -1)]


def slow_varint(code: list[int]) -> int:
    number, shift = 0, 0
    while True:
        byte = code.pop(0)
        number += (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number


def slow_decode(code: bytes, n: int) -> list[bool]:
    """One bit after the other, as the description of the format says."""
    tag, rest = code[0], list(code[1:])
    if tag == 0:
        return [bit == 1 for bit in slow_bits(bytes(rest))[:n]]
    complement, parameter = divmod(tag, COMPLEMENT)
    count, num_unary = slow_varint(rest), slow_varint(rest)
    unary, planes = slow_bits(bytes(rest[:num_unary])), slow_bits(bytes(rest[num_unary:]))
    entries, position, read = [False] * n, -1, 0
    for number in range(count):
        quotient = 0
        while unary[read] == 0:
            quotient, read = quotient + 1, read + 1
        read += 1
        low = sum(planes[place * count + number] << place for place in range(parameter - 1))
        position += (quotient << (parameter - 1)) + low + 1
        entries[position] = True
    return [entry != bool(complement) for entry in entries]


sparse_bits = st.builds(
    lambda n, density, seed: np.random.default_rng(seed).random(n) < density,
    st.integers(0, 3000),
    st.sampled_from((0.0, 0.001, 0.02, 0.2, 0.5, 0.9, 0.999, 1.0)),
    st.integers(0, 2**32),
)


@given(sparse_bits | arrays.arrays(np.bool_, st.integers(0, 40)))
@example(np.zeros(0, bool))
@example(np.arange(3000) == 2999)
@example(np.arange(3000) != 0)
def test_positions_come_back_and_read_as_described(chosen: np.ndarray) -> None:
    code = encode_positions(chosen)
    reader = Reader(code)
    np.testing.assert_array_equal(decode_positions(reader.byte(), reader, chosen.size), chosen)
    assert reader.left == 0
    assert fewest_bytes(chosen.size, int(chosen.sum())) <= len(code) <= 1 + -(-chosen.size // 8)
    assert slow_decode(code, chosen.size) == chosen.tolist()


@given(st.lists(st.integers(0, 5000), max_size=30))
def test_rice_parameter_is_the_best_of_all(gaps: list[int]) -> None:
    bits = [len(gaps) * (1 + p) + sum(gap >> p for gap in gaps) for p in range(15)]
    assert rice_parameter(np.array(gaps, np.int64)) == bits.index(min(bits))


@given(st.integers(0, 2**63 - 1))
def test_varints_come_back_and_end(number: int) -> None:
    code = varint(number)
    assert Reader(code).varint(number, "number") == number == slow_varint(list(code))
    assert len(code) == max(1, -(-number.bit_length() // 7))
    with pytest.raises(CodecError, match="are left"):
        Reader(code[:-1]).varint(number, "number")


def forged(tag: int, count: int, num_unary: int, streams: bytes) -> bytes:
    return bytes([tag]) + varint(count) + varint(num_unary) + streams


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (bytes([0]), "2 bytes are due"),
        (bytes([6]), "Rice parameter 5"),
        (bytes([COMPLEMENT]), "Rice parameter -1"),
        (bytes([2 * COMPLEMENT + 1]), "no position code 129"),
        (forged(1, 9, 1, b"\xff"), "number of gaps is 9"),
        (forged(1, 2**62, 1, b"\xff"), "number of gaps"),
        (forged(1, 2, 3, b"\xff\xff\xff"), "length of the unary stream is 3"),
        (forged(4, 8, 1, b"\xff\xff\xff\xff"), "more than their bitmask"),
        (forged(1, 3, 1, b"\x80"), "ends 1 gaps, but 3"),
        (forged(1, 0, 1, b"\x01"), "ends 1 gaps, but 0"),
        (forged(4, 2, 1, b"\x11\xff"), "lead to entry"),
        (forged(5, 1, 1, b"\x40\x00"), "lead to entry 17 of 16"),
        (forged(4, 2, 1, b""), "1 bytes are due"),
        (bytes([1]) + b"\xff" * 12, "number of gaps is 9223372036854775808"),
        (bytes([1]) + b"\xff" * 3, "are left"),
    ],
)
def test_forged_positions_are_refused(code: bytes, message: str) -> None:
    reader = Reader(code)
    with pytest.raises(CodecError, match=message):
        decode_positions(reader.byte(), reader, 16)


@given(st.binary(max_size=30), st.integers(0, 100))
def test_any_bytes_are_positions_or_refused(code: bytes, n: int) -> None:
    reader = Reader(code)
    try:
        entries = decode_positions(reader.byte(), reader, n)
    except CodecError:
        return
    assert (entries.shape, entries.dtype) == ((n,), np.bool_)
