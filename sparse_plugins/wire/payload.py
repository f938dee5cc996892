"""Masks and values as bytes, and back: what a federated message really costs, and what a server dares to read.

NumPy is all it needs: where JAX is loaded its arrays and trees are taken, too, and no byte is another.

Only entries inside the masks travel. Each leaf states its mask in the shortest form, next to nothing if the receiver
holds the same mask or can draw it from a seed. Decoding takes bytes from anyone: they give a message about the
receiver's own model or a `CodecError`, in time and memory proportional to that model.
"""

import dataclasses
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_plugins.wire.envelope import Flags, Header, open_payload, read_header, seal
from sparse_plugins.wire.leaves import Leaf, described_leaves, fingerprint, on_host
from sparse_plugins.wire.markers import NOT_PRUNED, is_pruned
from sparse_plugins.wire.mask_forms import (
    decode_mask,
    digest_of_bits,
    encode_mask,
    needs_base,
    needs_seed,
)
from sparse_plugins.wire.message_binding import Binding, pack_binding
from sparse_plugins.wire.reader import Buffer, CodecError, Reader
from sparse_plugins.wire.seeded_masks import SeededMasks
from sparse_plugins.wire.trees import PyTree, aligned, named_leaves, with_leaves
from sparse_plugins.wire.value_codes import DTYPES, decode_values, encode_values

__all__ = ["Decoded", "decode", "encode", "encode_sent", "masks_digest", "needed_base"]

Array = np.ndarray[Any, Any]

_SEED = struct.Struct("<III")
_SMALL_LEAF = 64  # bytes of a leaf that its size does not explain: form, counts, one scale


class Decoded(NamedTuple):
    """A message.

    Attributes:
        masks: uint8 masks of the leaves' shapes, 1 = sent; `core.NOT_PRUNED` where a leaf was sent whole.
        values: Arrays of the receiver's shapes and dtypes, 0 where nothing was sent.
        base_version: Version of the masks that the sender had, as it was given to `encode`: of a bound message, the
            round.
        forms: How each leaf stated its mask, in the order of `jax.tree.leaves`: 'whole', 'dense', 'bitmask', 'rice',
            'seed', 'same' or 'difference'.
        positions: Where the entries of each leaf stand that were sent, row-major; None where it was all of them.
    """

    masks: PyTree
    values: PyTree
    base_version: int
    forms: tuple[str, ...]
    positions: tuple[Array | None, ...]


def encode(
    masks: PyTree,
    values: PyTree,
    *,
    dtype: str = "float32",
    base: PyTree | None = None,
    base_version: int = 0,
    seed: SeededMasks | None = None,
    zstd: bool = False,
    binding: Binding | None = None,
) -> bytes:
    """Writes the entries inside the masks into one message.

    A client that trains inside the masks of a broadcast passes them as `masks` and as `base`: its upload then states
    no positions at all. Values are kept bit-exactly, unless `dtype` is narrower than their own.

    Args:
        masks: uint8 or bool masks of the values' shapes, 1 = sent; `core.NOT_PRUNED` where a leaf is sent whole.
            Masks at rest go through `core.unpack_masks` first.
        values: Arrays of numbers: parameters, an update, a gradient.
        dtype: Widest dtype in which floating values travel. float32; bfloat16 and float16, rounded to nearest; int8,
            with a float32 scale for every 256 values of a leaf, `max(abs(values)) / 127` rounded up: values are
            rounded to multiples of it, so they are off by at most half a scale, and zeros stay zeros. Narrower
            leaves and those that are not floating travel as they are.
        base: Masks that the receiver holds as well; it has to pass them to `decode`.
        base_version: A number in [0, 2**32) by which the receiver finds them; of a bound message, the round is it.
        seed: What random masks were drawn from. A leaf makes use of it if its mask really comes from there.
        zstd: Compress, with the bytes of values sorted by significance; needs the library zstandard.
        binding: Run, round, client and masks that the message belongs to, with its round given; the receiver can then
            refuse it where something else is expected.

    Returns:
        The payload. Its overhead is 39 bytes, 9 for a binding, and one to a few for a leaf.

    Raises:
        ValueError: If masks, values and base do not belong together, an argument is out of range, or `dtype` can't
            hold a value. The message names the leaf.
        ImportError: If zstandard is asked for and not installed.

    Example:
        >>> masks, values = {"w": np.array([1, 0, 1], np.uint8)}, {"w": np.array([0.5, 9.0, -2.0], np.float32)}
        >>> payload = encode(masks, values)
        >>> len(payload), decode(payload, like=values).values["w"].tolist()
        (49, [0.5, 0.0, -2.0])

    Source: gaps between positions are Rice-coded (Rice, Some practical universal noiseless coding techniques, 1979).
    """
    leaves = described_leaves(values)
    sent = [
        _sent(on_host(value, name).ravel(), _host_mask(mask, leaf))
        for (name, value), mask, leaf in zip(named_leaves(values), aligned(values, masks, "masks"), leaves, strict=True)
    ]
    options: dict[str, Any] = {"dtype": dtype, "base": base, "base_version": base_version}
    return encode_sent(masks, sent, values, seed=seed, zstd=zstd, binding=binding, **options)


def encode_sent(
    masks: PyTree,
    sent: Sequence[Array],
    like: PyTree,
    *,
    dtype: str = "float32",
    base: PyTree | None = None,
    base_version: int = 0,
    seed: SeededMasks | None = None,
    zstd: bool = False,
    binding: Binding | None = None,
) -> bytes:
    """What `encode` writes, for who has only the entries inside the masks at hand.

    Args:
        masks: As of `encode`.
        sent: For each leaf its entries inside the mask, in row-major order; all of them where there is no mask.
        like: The model: arrays or `jax.ShapeDtypeStruct` leaves.
        dtype: As of `encode`, and so are the others.
        base: Masks that the receiver holds as well.
        base_version: A number by which the receiver finds them.
        seed: What random masks were drawn from.
        zstd: Compress.
        binding: Run, round, client and masks that the message belongs to.

    Returns:
        The payload.

    Raises:
        ValueError: As `encode`, and if a leaf has not as many entries as its mask has ones.
        ImportError: If zstandard is asked for and not installed.

    Example:
        >>> masks, values = {"w": np.array([1, 0, 1], np.uint8)}, {"w": np.array([0.5, 9.0, -2.0], np.float32)}
        >>> encode_sent(masks, [np.array([0.5, -2.0], np.float32)], values) == encode(masks, values)
        True
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if not 0 <= base_version < 1 << 32:
        raise ValueError(f"base_version is {base_version}; give a number in [0, 2**32), such as the round's.")
    if binding is not None:
        base_version = _round_of(binding, base_version)
    leaves = _equipped(described_leaves(like), like, base, seed)
    bits = [_host_mask(mask, leaf) for mask, leaf in zip(aligned(like, masks, "masks"), leaves, strict=True)]
    forms = [encode_mask(mask, leaf) for mask, leaf in zip(bits, leaves, strict=True)]
    of_base, of_seed = any(map(needs_base, forms)), seed is not None and any(map(needs_seed, forms))
    parts = [_SEED.pack(*seed.words, seed.step)] if seed is not None and of_seed else []
    for entries, mask, leaf, form in zip(sent, bits, leaves, forms, strict=True):
        if entries.size != (inside := leaf.size if mask is None else np.count_nonzero(mask)):
            raise ValueError(f"leaf {leaf.name!r} has {inside} entries inside its mask, and {entries.size} are given.")
        parts += [form, encode_values(entries.astype(leaf.dtype, copy=False), dtype, leaf.name, shuffled=zstd)]
    is_bound = binding is not None
    header = Header(
        flags=Flags(Flags.ZSTD * zstd | Flags.BASE * of_base | Flags.SEED * of_seed | Flags.BOUND * is_bound),
        dtype=dtype,
        base_version=base_version,
        fingerprint=fingerprint(leaves),
        base_digest=_digest(leaves if of_base else None, binding),
        num_leaves=len(leaves),
        binding=pack_binding(binding) if binding is not None else b"",
    )
    return seal(header, b"".join(parts))


def decode(payload: Buffer, like: PyTree, *, base: PyTree | None = None, binding: Binding | None = None) -> Decoded:
    """Reads a message about a model, whoever wrote it.

    Memory stays below that of the result, the model once more if the payload is compressed, and 32 bytes for each
    entry of the largest leaf: what a payload announces is checked before it is allocated. The checksum finds damage,
    not forgery: values are as honest as their sender.

    Args:
        payload: What `encode` returned.
        like: The receiver's model: arrays or `jax.ShapeDtypeStruct` leaves; only paths, shapes and dtypes are read.
        base: Masks that `encode` was given as `base`; needed if `needed_base` says so.
        binding: What the message has to belong to, checked before it is decoded; None takes any, bound or not.

    Returns:
        Masks and values as NumPy arrays, and how they were sent.

    Raises:
        BindingError: If the payload belongs to something else than `binding`, or to nothing.
        CodecError: If it is damaged, forged, about another model or coded against other masks.
        ValueError: If `like` or `base` is no such tree.

    Example:
        >>> masks, update = {"w": np.array([1, 0, 1], np.uint8)}, {"w": np.array([0.5, 0.0, -2.0], np.float32)}
        >>> payload = encode(masks, update, base=masks, base_version=12)
        >>> needed_base(payload), decode(payload, like=update, base=masks).forms
        (12, ('same',))
    """
    leaves = described_leaves(like)
    header, content = open_payload(payload, sum(map(_most_bytes, leaves)) + _SEED.size, binding)
    _check_model(header, leaves)
    reader = Reader(content)
    seed = _read_seed(reader) if Flags.SEED in header.flags else None
    leaves = _equipped(leaves, like, _needed(base, header), seed)
    _check_base(header, leaves)
    masks, values, forms, positions = [], [], [], []
    for leaf in leaves:
        try:
            mask, form = decode_mask(reader, leaf)
            array, inside = _read_values(reader, mask, leaf, header)
        except CodecError as error:
            raise CodecError(f"leaf {leaf.name!r}: {error}") from error
        masks.append(NOT_PRUNED if mask is None else mask.view(np.uint8).reshape(leaf.shape))
        values.append(array.reshape(leaf.shape))
        forms.append(form)
        positions.append(inside)
    if reader.left:
        raise CodecError(f"{reader.left} bytes follow the last leaf: the payload was forged.")
    trees = with_leaves(like, masks), with_leaves(like, values)
    return Decoded(*trees, header.base_version, tuple(forms), tuple(positions))


def needed_base(payload: Buffer) -> int | None:
    """The version of the masks without which a payload can't be decoded.

    Args:
        payload: What `encode` returned.

    Returns:
        What `encode` was given as `base_version`; None if the payload needs no masks.

    Raises:
        CodecError: If it is damaged or no payload.

    Example:
        >>> needed_base(encode(NOT_PRUNED, np.ones(3))) is None
        True
    """
    header = read_header(payload)
    return header.base_version if Flags.BASE in header.flags else None


def masks_digest(masks: PyTree, like: PyTree) -> int:
    """A checksum by which two sides find out whether they hold the same masks, as in `Binding`.

    Args:
        masks: uint8 or bool masks of the model's shapes; `core.NOT_PRUNED` where a leaf has none.
        like: The model: arrays or `jax.ShapeDtypeStruct` leaves.

    Returns:
        A number below 2**32.

    Raises:
        ValueError: If they do not belong together.

    Example:
        >>> mask, like = np.array([1, 0], np.uint8), np.zeros(2)
        >>> masks_digest(mask, like) == masks_digest(mask != 0, like) != masks_digest(1 - mask, like)
        True
    """
    return digest_of_bits([leaf.base for leaf in _equipped(described_leaves(like), like, masks, None)])


def _sent(values: Array, mask: Array | None) -> Array:
    # By positions: where masks are neither sparse nor dense, NumPy takes five times as long by the masks.
    return values if mask is None else values[np.flatnonzero(mask)]


def _round_of(binding: Binding, base_version: int) -> int:
    if binding.round is None or base_version not in (0, binding.round):
        raise ValueError(
            f"binding has round {binding.round} and base_version is {base_version}; give the binding a round, which is "
            "the base version of a bound message, and leave base_version out."
        )
    return binding.round


def _digest(leaves: list[Leaf] | None, binding: Binding | None) -> int:
    """The digest of the base masks that a message makes use of, or of the masks it is bound to."""
    bound = None if binding is None else binding.masks
    digest = bound if leaves is None else digest_of_bits([leaf.base for leaf in leaves])
    if bound not in (None, digest):
        raise ValueError("base holds other masks than those of binding; use masks_digest(base, values).")
    return digest or 0


def _equipped(leaves: list[Leaf], tree: PyTree, base: PyTree | None, seed: SeededMasks | None) -> list[Leaf]:
    """The leaves of a tree with what their masks may refer to."""
    bases = [None] * len(leaves) if base is None else aligned(tree, base, "base")
    key_of = lambda name: None if seed is None else seed.key(name)  # noqa: E731
    return [
        dataclasses.replace(leaf, base=_host_mask(mask, leaf), key=key_of(leaf.name))
        for leaf, mask in zip(leaves, bases, strict=True)
    ]


def _host_mask(mask: Any, leaf: Leaf) -> Array | None:
    """bool[n]; None if the leaf has no mask."""
    if not is_pruned(mask):
        return None
    array = np.asarray(mask)
    if array.shape != leaf.shape or array.dtype not in (np.uint8, np.bool_):
        raise ValueError(
            f"the mask of leaf {leaf.name!r} has shape {array.shape} and dtype {array.dtype}; it has to be uint8 or "
            f"bool of shape {leaf.shape}. Masks at rest go through core.unpack_masks first."
        )
    return array.ravel() if array.dtype == np.bool_ else array.ravel() != 0


def _most_bytes(leaf: Leaf) -> int:
    return leaf.size * leaf.dtype.itemsize + leaf.size // 4 + _SMALL_LEAF


def _check_model(header: Header, leaves: list[Leaf]) -> None:
    if header.num_leaves != len(leaves) or header.fingerprint != fingerprint(leaves):
        raise CodecError(
            f"this payload is about another model: it has {header.num_leaves} leaves, `like` has {len(leaves)}, and "
            "all paths, shapes and dtypes have to agree."
        )


def _needed(base: PyTree | None, header: Header) -> PyTree | None:
    if Flags.BASE not in header.flags:
        return None
    if base is None:
        raise CodecError(
            f"this payload builds on the masks of version {header.base_version}: pass them as `base`, or ask for a "
            "message without."
        )
    return base


def _check_base(header: Header, leaves: list[Leaf]) -> None:
    if Flags.BASE in header.flags and header.base_digest != digest_of_bits([leaf.base for leaf in leaves]):
        raise CodecError(
            f"`base` holds other masks than those of version {header.base_version}, on which this payload builds."
        )


def _read_seed(reader: Reader) -> SeededMasks:
    first, second, step = _SEED.unpack(reader.take(_SEED.size))
    return SeededMasks((first, second), step)


def _read_values(reader: Reader, mask: Array | None, leaf: Leaf, header: Header) -> tuple[Array, Array | None]:
    """All entries, and the positions of those that were sent; None where it was all of them."""
    count = leaf.size if mask is None else int(np.count_nonzero(mask))
    values = decode_values(reader, count, leaf.dtype, header.dtype, shuffled=Flags.ZSTD in header.flags)
    if mask is None or count == leaf.size:
        return values.copy(), None
    array, inside = np.zeros(leaf.size, leaf.dtype), np.flatnonzero(mask)
    array[inside] = values
    return array, inside
