"""The codec as a fuzz target: a small model with every kind of leaf, a corpus with every form, and what must hold.

A fuzzer can't guess checksums, but an attacker computes them. So each input is also read after `repaired` has put
the right length, fingerprint of the model, digest of the base masks and checksum into it.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.wire import Binding, CodecError, Decoded, SeededMasks, decode, encode, masks_digest

Tree = dict[str, Any]

# Header: magic and version, then free, fingerprint, digest, leaves, length.
_HEADER = struct.Struct("<5s6s8sIIQ")


def _model() -> Tree:
    rng = np.random.default_rng(0)
    return {
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False, True, False]),
        "half": rng.normal(size=(3, 40)).astype(np.float16),
        "kernel": rng.normal(size=(30, 20)).astype(np.float32),
        "scalar": np.int32(7),
        "short": rng.normal(size=300).astype(jnp.bfloat16),
        "wide": rng.normal(size=5),
    }


LIKE = _model()


def random_masks(density: float) -> Tree:
    """Independent masks of all leaves but the scalar, which is sent whole."""
    rng = np.random.default_rng(1)
    masks = {name: np.asarray(rng.random(leaf.shape) < density, np.uint8) for name, leaf in LIKE.items()}
    return masks | {"scalar": NOT_PRUNED}


BASE = random_masks(0.2)
BINDING = Binding("update", "fuzz", 3, "anna", masks_digest(BASE, LIKE))


def corpus() -> Iterator[bytes]:
    """Valid payloads that between them use every form, dtype and flag."""
    kernel = BASE["kernel"].copy()
    kernel.flat[[1, 100]] ^= 1
    near = BASE | {"kernel": kernel}
    seed = SeededMasks.of(seed=1)
    drawn = seed.masks(LIKE, {name: leaf.size // 3 for name, leaf in LIKE.items()})
    for dtype in ("float32", "bfloat16", "float16", "int8"):
        for density in (0.0, 0.03, 0.5, 0.97, 1.0):
            yield encode(random_masks(density), LIKE, dtype=dtype)
        yield encode(BASE, LIKE, dtype=dtype, base=BASE, base_version=3)
        yield encode(near, LIKE, dtype=dtype, base=BASE)
        yield encode(drawn, LIKE, dtype=dtype, seed=seed)
        yield encode(near, LIKE, dtype=dtype, zstd=True)
        yield encode(near, LIKE, dtype=dtype, base=BASE, binding=BINDING)
    yield encode(dict.fromkeys(LIKE, NOT_PRUNED), LIKE)


_VALID = encode(BASE, LIKE, base=BASE)
_START, _, _FINGERPRINT, _DIGEST, _NUM_LEAVES, _ = _HEADER.unpack_from(_VALID)


def repaired(data: bytes) -> bytes:
    """The same content behind a header that passes every check which an attacker can pass."""
    if len(data) < _HEADER.size + 4:
        return data
    header = _HEADER.pack(_START, data[5:11], _FINGERPRINT, _DIGEST, _NUM_LEAVES, len(data))
    front = header + data[_HEADER.size : -4]
    return front + struct.pack("<I", zlib.crc32(front))


def check(data: bytes) -> None:
    """Reads an input as it is and repaired, with and without base and binding.

    Raises:
        AssertionError: If something was decoded that is no message about the model, or can't be sent on.
        Exception: Anything but `CodecError` that decoding raised: a finding.
    """
    for payload in (data, repaired(data)):
        for base, binding in ((None, None), (BASE, None), (BASE, BINDING)):
            try:
                decoded = decode(payload, LIKE, base=base, binding=binding)
            except CodecError:
                continue
            check_message(decoded)


def check_message(decoded: Decoded) -> None:
    """Shapes and dtypes are the model's, nothing lies outside the masks, and the message survives sending it on.

    Raises:
        AssertionError: If not.
    """
    for name, leaf in LIKE.items():
        value, mask = decoded.values[name], decoded.masks[name]
        assert (value.shape, value.dtype) == (leaf.shape, leaf.dtype), name
        assert value.dtype != np.bool_ or value.view(np.uint8).max(initial=0) <= 1, name
        if mask is not NOT_PRUNED:
            assert (mask.shape, mask.dtype) == (leaf.shape, np.uint8), name
            assert mask.max(initial=0) <= 1, name
            assert not np.frombuffer(value[mask == 0].tobytes(), np.uint8).any(), name
    # float64 values need not fit into a float32, so that leaf goes as what it is worth as one.
    with np.errstate(over="ignore", invalid="ignore"):
        values = decoded.values | {"wide": decoded.values["wide"].astype(np.float32)}
    again = decode(encode(decoded.masks, values), values)
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), (again.masks, again.values), (decoded.masks, values))
    assert all(jax.tree.leaves(same)), "a message changed when it was sent on"
