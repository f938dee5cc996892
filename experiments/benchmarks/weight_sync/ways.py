"""Ways to send weights to somebody who has those before, all lossless; what each makes is checked to the bit."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import zstandard

from sparse_plugins import wire
from sparse_plugins.wire.bit_patterns import patterns
from sparse_plugins.wire.trees import named_leaves

Tree = Any
Bits = list[np.ndarray]


class Way(NamedTuple):
    """Both ends.

    Attributes:
        encode: (new weights, base) -> what travels.
        apply: (that, base) -> bits of the new weights.
    """

    encode: Callable[[Tree, Tree], Any]
    apply: Callable[[Any, Tree], Bits]


class Cost(NamedTuple):
    """What one way cost, over all versions.

    Attributes:
        share: Bytes / dense bytes.
        encode_speed: Megabytes of model in a second of one core.
        apply_speed: The same at the receiver.
    """

    share: float
    encode_speed: float
    apply_speed: float


def bits(tree: Tree) -> Bits:
    """Patterns of all leaves."""
    return [patterns(np.asarray(leaf)) for _, leaf in named_leaves(tree)]


def _zstd(leaves: Bits) -> list[bytes]:
    return [zstandard.ZstdCompressor().compress(leaf.data) for leaf in leaves]


def _unzstd(frames: list[bytes], base: Tree) -> Bits:
    loose = map(zstandard.ZstdDecompressor().decompress, frames)
    return [np.frombuffer(content, old.dtype) for content, old in zip(loose, bits(base), strict=True)]


def _changed(new: Tree, base: Tree) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places and bits of what changed, by leaf."""
    pairs = zip(bits(new), bits(base), strict=True)
    return [(places := np.flatnonzero(after != before), after[places]) for after, before in pairs]


def _gaps(places: np.ndarray) -> np.ndarray:
    gaps = np.diff(places, prepend=-1) - 1
    return gaps.astype(np.uint16 if gaps.max(initial=0) < 1 << 16 else np.uint32)


def _put(found: Sequence[tuple[np.ndarray, np.ndarray]], base: Tree) -> Bits:
    leaves = [before.copy() for before in bits(base)]
    for leaf, (places, values) in zip(leaves, found, strict=True):
        leaf[places] = values
    return leaves


def ways(base_digest: Callable[[], bytes]) -> dict[str, Way]:
    """All of them, by name.

    Args:
        base_digest: Gives the digest of the base, which a sender knows from the version before.
    """
    coo = lambda new, base: [(places.astype(np.int32), values) for places, values in _changed(new, base)]  # noqa: E731
    gaps = lambda new, base: [(_gaps(places), values) for places, values in _changed(new, base)]  # noqa: E731
    ungap = lambda found: [(np.cumsum(gap.astype(np.int64) + 1) - 1, values) for gap, values in found]  # noqa: E731
    xor = lambda new, base: [a ^ b for a, b in zip(bits(new), bits(base), strict=True)]  # noqa: E731
    known = lambda new, base: wire.delta(new, base, base_digest=base_digest())  # noqa: E731
    return {
        "full copy": Way(lambda new, base: [leaf.copy() for leaf in bits(new)], lambda found, base: found),
        "zstd of the full copy": Way(lambda new, base: _zstd(bits(new)), _unzstd),
        "zstd of the XOR": Way(
            lambda new, base: _zstd(xor(new, base)),
            lambda found, base: [a ^ b for a, b in zip(_unzstd(found, base), bits(base), strict=True)],
        ),
        "int32 positions, values": Way(coo, _put),
        "16-bit gaps, values": Way(gaps, lambda found, base: _put(ungap(found), base)),
        "wire.delta": Way(known, lambda payload, base: bits(wire.apply(payload, base))),
        "wire.delta, base hashed": Way(wire.delta, lambda payload, base: bits(wire.apply(payload, base))),
        "wire.delta, snapshot": Way(
            lambda new, base: wire.delta(new), lambda payload, base: bits(wire.apply(payload, base))
        ),
    }


def size(sent: Any) -> int:
    """Bytes of what travels."""
    if isinstance(sent, bytes):
        return len(sent)
    if isinstance(sent, np.ndarray):
        return sent.nbytes
    return sum(map(size, sent))


def entropy_bound(new: Tree, base: Tree) -> float:
    """Bytes: by leaf, of positions as if each changed at random, and of steps between patterns as they are spread."""
    total = 0.0
    for after, before in zip(bits(new), bits(base), strict=True):
        places = np.flatnonzero(after != before)
        if not places.size:
            continue
        _, counts = np.unique(after[places] - before[places], return_counts=True)
        share = places.size / after.size
        total += after.size * _entropy(np.array([share, 1 - share])) + places.size * _entropy(counts / counts.sum())
    return total / 8


def changed_share(new: Tree, base: Tree) -> float:
    """How many of all entries changed."""
    found = [places.size for places, _ in _changed(new, base)]
    return sum(found) / sum(leaf.size for leaf in bits(new))


def measured(versions: Sequence[Tree], rounds: int) -> dict[str, Cost]:
    """Sends every version to somebody who has the one before, in every way.

    Args:
        versions: Weights, in order.
        rounds: Times of which the shortest counts, since others use this machine, too.

    Returns:
        The cost by way.

    Raises:
        AssertionError: If what arrives is not what was sent.
    """
    digest = b""
    seconds: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    dense = 0
    for base, new in itertools.pairwise(versions):
        digest, expected = wire.weights_digest(base), bits(new)
        dense += sum(leaf.nbytes for leaf in expected)
        for name, way in ways(lambda: digest).items():  # noqa: B023 - called at once
            encoding, applying = [], []
            for _ in range(rounds):
                start = time.thread_time()
                sent = way.encode(new, base)
                encoding.append(time.thread_time() - start)
                start = time.thread_time()
                came = way.apply(sent, base)
                applying.append(time.thread_time() - start)
            for decoded, leaf in zip(came, expected, strict=True):
                np.testing.assert_array_equal(decoded, leaf)
            sizes[name] = sizes.get(name, 0) + size(sent)
            before = seconds.get(name, [0.0, 0.0])
            seconds[name] = [before[0] + min(encoding), before[1] + min(applying)]
    return {
        name: Cost(sizes[name] / dense, *(dense / 1e6 / each if each else math.inf for each in seconds[name]))
        for name in sizes
    }


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return -float(np.sum(shares * np.log2(shares)))
