"""Weights as what changed since the receiver's: every bit comes back, and next to nothing travels where little changed.

NumPy is all it needs; arrays and trees of JAX are taken where JAX is loaded. Masks are leaves like any other: put them
into the tree, and where they did not change they cost a byte a leaf.

Layout, lowest byte first: magic, format, flags, two bytes of zeros, version and base version (8 bytes each),
fingerprint of the model (8), digests of base and result (16 each), number of leaves (4), length of the payload (8);
for each leaf the length of its code and the code, see `block_codes`; CRC32 of all before it (4).
"""

import dataclasses
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from sparse_plugins.wire.bit_patterns import patterns, signed_by_top_bit
from sparse_plugins.wire.block_codes import decode_blocks, encode_blocks, most_bytes
from sparse_plugins.wire.leaves import Leaf, described_leaves, fingerprint, on_host
from sparse_plugins.wire.reader import Buffer, CodecError, Reader, varint
from sparse_plugins.wire.trees import PyTree, named_leaves, with_leaves

__all__ = [
    "BaseMismatchError",
    "DeltaHeader",
    "apply",
    "delta",
    "most_delta_bytes",
    "read_delta_header",
    "weights_digest",
]

Array = np.ndarray[Any, Any]
In = TypeVar("In")
Out = TypeVar("Out")

_MAGIC, _FORMAT = b"SpDl", 1
_SNAPSHOT = 1
_HEADER = struct.Struct("<4sBBxxQQ8s16s16sIQ")
_CRC = struct.Struct("<I")
_DIGEST_SIZE = 16
_LONGEST_LENGTH = 9


class BaseMismatchError(CodecError):
    """A delta builds on other weights than those it is applied to."""


@dataclasses.dataclass(frozen=True)
class DeltaHeader:
    """What a payload says about itself.

    Attributes:
        version: Number of the result, below 2**64.
        base_version: Number of the weights it builds on; None for a snapshot, which builds on none.
        fingerprint: 8 bytes that name the model.
        base_digest: `weights_digest` of the weights it builds on; zeros for a snapshot.
        digest: `weights_digest` of the result.
        num_leaves: Leaves of the model.
    """

    version: int
    base_version: int | None
    fingerprint: bytes
    base_digest: bytes
    digest: bytes
    num_leaves: int


def delta(
    new: PyTree,
    base: PyTree | None = None,
    *,
    version: int = 0,
    base_version: int = 0,
    base_digest: bytes | None = None,
    zstd: bool = False,
    threads: int = 1,
) -> bytes:
    """Writes what makes `new` of `base`, bit for bit: NaNs, signed zeros and denormals included.

    Beside both trees this needs memory for the payload and, for each thread, one leaf that is on no host yet and 64 MB.

    Args:
        new: Arrays of numbers.
        base: The receiver's arrays, of the same tree, shapes and dtypes; None writes a snapshot, which needs none.
        version: A number for the result, below 2**64.
        base_version: The number of `base`.
        base_digest: `weights_digest(base)` where it is known already, such as from the last delta's header.
        zstd: Compress bytes of values by zstd where that is smaller, instead of deflate; needs the library zstandard.
        threads: Leaves that are coded at once.

    Returns:
        The payload. Its overhead is 80 bytes and two for a leaf.

    Raises:
        ValueError: If the trees are not alike, a leaf holds no numbers, or a version is out of range.
        ImportError: If zstandard is asked for and not installed.

    Example:
        >>> base = {"w": np.linspace(-1, 1, 10_000, dtype=np.float32)}
        >>> new = {"w": base["w"].copy()}
        >>> new["w"][17] = np.nextafter(new["w"][17], 1, dtype=np.float32)
        >>> payload = delta(new, base, version=2, base_version=1)
        >>> len(payload), bool((apply(payload, base)["w"] == new["w"]).all())
        (95, True)

    Source: Miahi and Belilovsky, Understanding and Exploiting Weight Update Sparsity for Communication-Efficient
    Distributed RL (2026), which sends positions and values of the bfloat16 numbers that changed.
    """
    for number in (version, base_version):
        if not 0 <= number < 1 << 64:
            raise ValueError(f"a version is {number}; give numbers in [0, 2**64), such as optimizer steps.")
    leaves = described_leaves(new)
    bases = [None] * len(leaves) if base is None else _alike(leaves, base)
    values = [value for _, value in named_leaves(new)]

    def encoded(task: tuple[Leaf, Any, Any]) -> tuple[bytes, bytes, bytes]:
        leaf, value, old = task
        pattern = _patterns(value, leaf)
        before = None if old is None else _patterns(old, leaf)
        code = encode_blocks(pattern, before, signed_by_top_bit(leaf.dtype), zstd)
        is_hashed = before is not None and base_digest is None
        return code, _leaf_digest(pattern), _leaf_digest(before) if is_hashed and before is not None else b""

    codes, of_new, of_base = [], [], []
    for code, digest, digest_before in _mapped(encoded, zip(leaves, values, bases, strict=True), threads):
        codes += [varint(len(code)), code]
        of_new.append(digest)
        of_base.append(digest_before)
    model = fingerprint(leaves)
    if base is None:
        base_digest = bytes(_DIGEST_SIZE)
    elif base_digest is None:
        base_digest = _joined(model, of_base)
    content = b"".join(codes)
    header = _HEADER.pack(
        _MAGIC,
        _FORMAT,
        _SNAPSHOT if base is None else 0,
        version,
        base_version,
        model,
        base_digest,
        _joined(model, of_new),
        len(leaves),
        _HEADER.size + len(content) + _CRC.size,
    )
    return b"".join([header, content, _CRC.pack(zlib.crc32(content, zlib.crc32(header)))])


def apply(payload: Buffer, base: PyTree, *, threads: int = 1) -> PyTree:
    """The weights that a payload makes of the receiver's.

    Beside base and result this needs 64 MB for each thread, whatever the bytes say. The base is not touched: where
    the payload is refused, the receiver has what it had. The result is compared with the sender's digest.

    Args:
        payload: What `delta` returned.
        base: The weights it builds on; for a snapshot any tree of the model, `jax.ShapeDtypeStruct` leaves too.
        threads: Leaves that are decoded at once.

    Returns:
        A tree of new NumPy arrays.

    Raises:
        BaseMismatchError: If `base` holds other weights than those that it builds on, and the result is not the
            sender's therefore.
        CodecError: If it is damaged, forged, or about another model.
        ValueError: If `base` is no tree of arrays of numbers.

    Example:
        >>> base, new = {"w": np.zeros(3, np.float32)}, {"w": np.ones(3, np.float32)}
        >>> apply(delta(new), base)["w"].tolist()
        [1.0, 1.0, 1.0]
        >>> apply(delta(new, new, base_version=7), base)
        Traceback (most recent call last):
        sparse_plugins.wire.deltas.BaseMismatchError: these are other weights than version 7, ...
    """
    header = read_delta_header(payload)
    leaves = described_leaves(base)
    if header.num_leaves != len(leaves) or header.fingerprint != fingerprint(leaves):
        raise CodecError(
            f"this delta is about another model: it has {header.num_leaves} leaves, this one {len(leaves)}, and all "
            "paths, shapes and dtypes have to agree."
        )
    try:
        return with_leaves(base, _decoded(payload, header, leaves, base, threads))
    except CodecError:
        if header.base_version is not None and weights_digest(base) != header.base_digest:
            raise BaseMismatchError(
                f"these are other weights than version {header.base_version}, on which this delta builds: apply those "
                "before it in their order, or ask for a snapshot."
            ) from None
        raise


def read_delta_header(payload: Buffer) -> DeltaHeader:
    """Checks a payload as far as that goes without the model, and reads its header.

    Args:
        payload: What `delta` returned.

    Returns:
        What it says about itself.

    Raises:
        CodecError: If it is cut off, damaged, no delta at all or of another format.

    Example:
        >>> read_delta_header(delta(np.ones(3), version=5)).version
        5
    """
    payload, least = memoryview(payload).cast("B"), _HEADER.size + _CRC.size
    if len(payload) < least:
        raise CodecError(f"a delta has at least {least} bytes, this has {len(payload)}: it was cut off or is none.")
    magic, form, flags, version, base_version, model, before, after, num_leaves, length = _HEADER.unpack_from(payload)
    if magic != _MAGIC:
        raise CodecError(f"a delta starts with {_MAGIC!r}, this with {magic!r}: it was made by something else.")
    if form != _FORMAT or flags > _SNAPSHOT:
        raise CodecError(
            f"this delta has format {form} with flags {flags}, and format {_FORMAT} with flags up to {_SNAPSHOT} is "
            "read: update the older side."
        )
    if length != len(payload):
        state = "it was cut off" if length > len(payload) else "bytes were appended"
        raise CodecError(f"this delta should have {length} bytes and has {len(payload)}: {state}.")
    if zlib.crc32(payload[: -_CRC.size]) != _CRC.unpack_from(payload, length - _CRC.size)[0]:
        raise CodecError("the checksum is wrong: the delta was damaged on its way; ask for it again.")
    return DeltaHeader(version, None if flags & _SNAPSHOT else base_version, model, before, after, num_leaves)


def weights_digest(weights: PyTree, *, threads: int = 1) -> bytes:
    """Sixteen bytes by which two sides find out whether they hold the same weights, to the bit.

    Args:
        weights: Arrays of numbers.
        threads: Leaves that are hashed at once.

    Returns:
        A digest (SHA-256, cut) of paths, shapes, dtypes and values.

    Raises:
        ValueError: If a leaf holds no numbers.

    Example:
        >>> weights_digest(np.array([0.0])) == weights_digest(np.array([-0.0]))
        False
    """
    leaves = described_leaves(weights)
    hashed = lambda task: _leaf_digest(_patterns(task[1], task[0]))  # noqa: E731
    values = (value for _, value in named_leaves(weights))
    return _joined(fingerprint(leaves), _mapped(hashed, zip(leaves, values, strict=True), threads))


def most_delta_bytes(like: PyTree) -> int:
    """How long a payload about a model can be: a receiver asks this before it takes bytes from anyone.

    Args:
        like: Arrays or `jax.ShapeDtypeStruct` leaves.

    Returns:
        Bytes.

    Example:
        >>> most_delta_bytes({"w": np.ones(1000, np.float32)})
        4094
    """
    widths = [(leaf, patterns(np.empty(0, leaf.dtype)).itemsize) for leaf in described_leaves(like)]
    codes = (most_bytes(leaf.size * (leaf.dtype.itemsize // width), width) for leaf, width in widths)
    return _HEADER.size + _CRC.size + sum(_LONGEST_LENGTH + code for code in codes)


def _decoded(payload: Buffer, header: DeltaHeader, leaves: list[Leaf], base: PyTree, threads: int) -> list[Array]:
    reader = Reader(memoryview(payload).cast("B")[_HEADER.size : -_CRC.size])
    codes = [reader.take(reader.varint(reader.left, f"length of leaf {leaf.name!r}")) for leaf in leaves]
    if reader.left:
        raise CodecError(f"{reader.left} bytes follow the last leaf: the delta was forged.")

    def decoded(task: tuple[Leaf, memoryview, Any]) -> tuple[Array, bytes]:
        leaf, code, old = task
        array = np.empty(leaf.shape, leaf.dtype)
        try:
            before = None if header.base_version is None else _patterns(old, leaf)
            _decode_leaf(Reader(code), before, array)
        except CodecError as error:
            raise CodecError(f"leaf {leaf.name!r}: {error}") from error
        return array, _leaf_digest(patterns(array))

    tasks = zip(leaves, codes, (value for _, value in named_leaves(base)), strict=True)
    arrays, digests = [], []
    for array, digest in _mapped(decoded, tasks, threads):
        arrays.append(array)
        digests.append(digest)
    if _joined(header.fingerprint, digests) != header.digest:
        raise CodecError("the result is not what the sender had: the delta was forged, or made by a broken sender.")
    return arrays


def _decode_leaf(reader: Reader, before: Array | None, array: Array) -> None:
    decode_blocks(reader, before, patterns(array), signed_by_top_bit(array.dtype))
    if reader.left:
        raise CodecError(f"{reader.left} bytes follow its last block.")
    if array.dtype == np.bool_ and np.any(array.view(np.uint8) > 1):
        raise CodecError("a truth value is neither 0 nor 1.")


def _alike(leaves: list[Leaf], base: PyTree) -> list[Any]:
    others = described_leaves(base)
    for leaf, other in zip(leaves, others, strict=False):
        if (leaf.name, leaf.shape, leaf.dtype) != (other.name, other.shape, other.dtype):
            raise ValueError(
                f"the new weights have leaf {leaf.name!r} of shape {leaf.shape} and dtype {leaf.dtype}, base has "
                f"{other.name!r} of shape {other.shape} and dtype {other.dtype}: give the weights of one model, or no "
                "base for a snapshot."
            )
    if len(leaves) != len(others):
        raise ValueError(
            f"the new weights have {len(leaves)} leaves and base has {len(others)}: give the weights of one model, or "
            "no base for a snapshot."
        )
    return [value for _, value in named_leaves(base)]


def _patterns(value: Any, leaf: Leaf) -> Array:
    return patterns(on_host(value, leaf.name).astype(leaf.dtype, copy=False))


def _leaf_digest(pattern: Array) -> bytes:
    return hashlib.sha256(pattern.view(np.uint8).data).digest()


def _joined(model: bytes, digests: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"".join([model, *digests])).digest()[:_DIGEST_SIZE]


def _mapped(function: Callable[[In], Out], tasks: Iterable[In], threads: int) -> Iterator[Out]:
    if threads <= 1:
        yield from map(function, tasks)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, tasks)
