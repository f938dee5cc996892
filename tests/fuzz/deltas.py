"""Deltas of weights as a fuzz target: a small model of every dtype, a corpus with every form, and what must hold.

A fuzzer can't guess checksums and digests, but an attacker computes them. So each input is also read after `repaired`
has put length, fingerprint and checksum of the model into it; what is read at all has to be what the digest says.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from sparse_plugins.wire import CodecError, apply, delta, read_delta_header, weights_digest
from sparse_plugins.wire.reader import Reader

Tree = dict[str, Any]

_FINGERPRINT, _LEAVES, _LENGTH, _CONTENT = slice(24, 32), slice(64, 68), slice(68, 76), 76


def _model() -> Tree:
    rng = np.random.default_rng(0)
    return {
        "complex": rng.normal(size=3).astype(np.complex64),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False, True, False]),
        "half": rng.normal(size=(3, 40)).astype(np.float16),
        "kernel": rng.normal(size=(30, 20)).astype(np.float32),
        "quarter": rng.normal(size=50).astype(ml_dtypes.float8_e4m3fn),
        "scalar": np.int32(7),
        "short": (rng.normal(size=600) * (rng.random(600) < 0.4)).astype(jnp.bfloat16),
        "wide": rng.normal(size=5),
    }


BASE = _model()


def _moved(share: float, factor: float) -> Tree:
    rng = np.random.default_rng(1)
    chosen = {name: rng.random(leaf.shape) < share for name, leaf in BASE.items()}
    moved = {name: (leaf * leaf.dtype.type(factor)).astype(leaf.dtype) for name, leaf in BASE.items()}
    moved["flags"], moved["scalar"] = ~BASE["flags"], np.int32(9)
    return {name: np.where(chosen[name], moved[name], leaf).astype(leaf.dtype) for name, leaf in BASE.items()}


NEW = _moved(0.1, 1.01)


def corpus() -> Iterator[bytes]:
    """Valid payloads that between them use every form of blocks, steps and planes."""
    for share in (0.0, 0.1, 0.6, 1.0):
        for factor in (1.01, -3.0, 0.0):
            for zstd in (False, True):
                yield delta(_moved(share, factor), BASE, version=5, base_version=4, zstd=zstd)
    yield delta(NEW, version=5)
    yield delta(BASE, jax.tree.map(np.zeros_like, BASE))


def forms(payload: bytes) -> Iterator[int]:
    """The form of the first block of every leaf that has one."""
    reader = Reader(payload[_CONTENT:-4])
    for _ in BASE:
        code = reader.take(reader.varint(reader.left, "length"))
        yield from code[:1]


_VALID = delta(NEW, BASE)


def repaired(data: bytes) -> bytes:
    """The same content behind a header that passes every check which an attacker can pass."""
    if len(data) < _CONTENT + 4:
        return data
    front = bytearray(data[:-4])
    front[:5], front[5:8] = _VALID[:5], bytes([front[5] & 1, 0, 0])
    for field in (_FINGERPRINT, _LEAVES):
        front[field] = _VALID[field]
    front[_LENGTH] = struct.pack("<Q", len(data))
    return bytes(front) + struct.pack("<I", zlib.crc32(front))


def check(data: bytes) -> None:
    """Reads an input as it is and repaired.

    Raises:
        AssertionError: If something was read that is not what its digest says, or the base was touched.
        Exception: Anything but `CodecError`: a finding.
    """
    for payload in (data, repaired(data)):
        before = weights_digest(BASE)
        try:
            result = apply(payload, BASE)
        except CodecError:
            assert weights_digest(BASE) == before
            continue
        assert weights_digest(result) == read_delta_header(payload).digest
        assert {name: (leaf.shape, leaf.dtype) for name, leaf in result.items()} == {
            name: (leaf.shape, leaf.dtype) for name, leaf in BASE.items()
        }
