"""What stands around the content of a payload: a header, a checksum, optional compression.

Layout, lowest byte first: magic, version, flags, dtype of values, version of the base masks (4 bytes), fingerprint of
the model (8), digest of the base masks (4), number of leaves (4), length of the payload (8), binding (9, if flagged),
content, CRC32 of all before it (4). Version 1 knew no bindings, and is read.
"""

import dataclasses
import enum
import struct
import zlib

from sparse_plugins.wire.message_binding import BINDING_SIZE, Binding, check_binding
from sparse_plugins.wire.reader import Buffer, CodecError
from sparse_plugins.wire.value_codes import DTYPES
from sparse_plugins.wire.zstd_frames import compressed, decompressed, decompressed_size

__all__ = ["BOUND_OVERHEAD", "Flags", "Header", "open_payload", "read_header", "seal"]

MAGIC, VERSION = b"SpFd", 2
_HEADER = struct.Struct("<4sBBBI8sIIQ")
_CRC = struct.Struct("<I")
BOUND_OVERHEAD = _HEADER.size + BINDING_SIZE + _CRC.size  # bytes of a bound payload around its content


class Flags(enum.IntFlag):
    """What a payload makes use of."""

    ZSTD = 1
    SEED = 2
    BASE = 4
    BOUND = 8


_FLAGS_OF_VERSION = {1: 3, VERSION: len(Flags)}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a payload says about itself.

    Attributes:
        flags: What it makes use of.
        dtype: Widest dtype of its floating values.
        base_version: Version of the masks at the sender that it may refer to, below 2**32.
        fingerprint: 8 bytes that name the model.
        base_digest: Checksum of the masks it refers to, below 2**32.
        num_leaves: Leaves of the model.
        binding: What `pack_binding` returned; empty if it is bound to nothing.
    """

    flags: Flags
    dtype: str
    base_version: int
    fingerprint: bytes
    base_digest: int
    num_leaves: int
    binding: bytes = b""


def seal(header: Header, content: bytes) -> bytes:
    """Puts header and checksum around the content, which is compressed first if the header says so.

    Args:
        header: What stands in front.
        content: Everything else, not compressed.

    Returns:
        The payload.

    Raises:
        ImportError: If zstandard is asked for and not installed.

    Example:
        >>> header = Header(Flags(0), "float32", 7, bytes(8), 0, 1)
        >>> payload = seal(header, b"content")
        >>> len(payload), open_payload(payload, limit=7) == (header, b"content")
        (46, True)
    """
    if Flags.ZSTD in header.flags:
        content = compressed(content)
    packed = _HEADER.pack(
        MAGIC,
        VERSION,
        header.flags,
        DTYPES.index(header.dtype),
        header.base_version,
        header.fingerprint,
        header.base_digest,
        header.num_leaves,
        _HEADER.size + len(header.binding) + len(content) + _CRC.size,
    )
    packed += header.binding
    return b"".join([packed, content, _CRC.pack(zlib.crc32(content, zlib.crc32(packed)))])


def read_header(payload: Buffer) -> Header:
    """Checks a payload as far as that goes without knowing the model, and reads its header.

    Raises:
        CodecError: If it is cut off, damaged, no payload at all or of another version.
    """
    payload, least = memoryview(payload).cast("B"), _HEADER.size + _CRC.size
    if len(payload) < least:
        raise CodecError(f"a payload has at least {least} bytes, this has {len(payload)}: it was cut off or is none.")
    magic, version, flags, dtype, *middle, length = _HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise CodecError(f"a payload starts with {MAGIC!r}, this with {magic!r}: it was made by something else.")
    if version not in _FLAGS_OF_VERSION:
        raise CodecError(
            f"this payload has version {version}, and versions 1 to {VERSION} are read: update the older side."
        )
    if length != len(payload):
        state = "it was cut off" if length > len(payload) else "bytes were appended"
        raise CodecError(f"this payload should have {length} bytes and has {len(payload)}: {state}.")
    if zlib.crc32(payload[: -_CRC.size]) != _CRC.unpack_from(payload, length - _CRC.size)[0]:
        raise CodecError("the checksum is wrong: the payload was damaged on its way; ask for it again.")
    if flags >= 1 << _FLAGS_OF_VERSION[version] or dtype >= len(DTYPES):
        raise CodecError(f"flags {flags} and dtype {dtype} have no meaning in version {version}.")
    size = BINDING_SIZE if flags & Flags.BOUND else 0
    if length < least + size:
        raise CodecError(f"a bound payload has at least {least + size} bytes, this has {length}: it was forged.")
    base_version, fingerprint, base_digest, num_leaves = middle
    binding = bytes(payload[_HEADER.size : _HEADER.size + size])
    return Header(Flags(flags), DTYPES[dtype], base_version, fingerprint, base_digest, num_leaves, binding)


def open_payload(payload: Buffer, limit: int, binding: Binding | None = None) -> tuple[Header, Buffer]:
    """The header and the content of a payload.

    Args:
        payload: What `seal` returned, or anything else.
        limit: Bytes that the content of this model may have.
        binding: What it has to belong to, which is found out before the content is looked at; None: anything.

    Returns:
        The header, and the content, no longer compressed.

    Raises:
        CodecError: If it can't be read, or is larger than the limit, which is found out before memory is allocated.
    """
    header = read_header(payload)
    if binding is not None:
        check_binding(binding, header.binding, header.base_version, header.base_digest)
    content: Buffer = memoryview(payload).cast("B")[_HEADER.size + len(header.binding) : -_CRC.size]
    size = decompressed_size(content) if Flags.ZSTD in header.flags else len(content)
    if not 0 <= size <= limit:
        raise CodecError(f"the content has {size} bytes, but no message about this model needs more than {limit}.")
    return header, decompressed(content, size) if Flags.ZSTD in header.flags else content
