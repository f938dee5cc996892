"""zstd, where it is installed: frames of which the receiver knows how large they become."""

import importlib
from typing import Any

from sparse_plugins.missing import explain_import_error
from sparse_plugins.wire.reader import Buffer, CodecError

__all__ = ["compressed", "decompressed", "decompressed_size"]

_SMALLEST_WINDOW_LOG = 10


def compressed(content: bytes) -> bytes:
    """One frame.

    Raises:
        ImportError: If zstandard is not installed.

    Example:
        >>> decompressed(compressed(bytes(1000)), 1000) == bytes(1000)
        True
    """
    return _zstandard().ZstdCompressor().compress(content)


def decompressed_size(content: Buffer) -> int:
    """Bytes that a frame says it has; -1 if it says nothing.

    Raises:
        CodecError: If it is no frame, or zstandard is not installed.
    """
    zstandard = _zstandard_of_receiver()
    try:
        return zstandard.frame_content_size(content)
    except zstandard.ZstdError as error:
        raise CodecError(f"the content is no zstd frame: {error}.") from error


def decompressed(content: Buffer, size: int) -> bytes:
    """The content of a frame.

    Args:
        content: The frame.
        size: What `decompressed_size` says, which has to be checked first.

    Raises:
        CodecError: If it can't be decompressed.
    """
    zstandard = _zstandard_of_receiver()
    # A frame may ask for a window far larger than its content.
    window = 1 << max(size.bit_length(), _SMALLEST_WINDOW_LOG)
    try:
        return zstandard.ZstdDecompressor(max_window_size=window).decompress(content, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"the content can't be decompressed: {error}.") from error


def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise explain_import_error(error, "zstd=True", ("zstandard",), '"sparse-plugins[zstd]"') from error


def _zstandard_of_receiver() -> Any:
    try:
        return _zstandard()
    except ImportError as error:
        raise CodecError(f"this payload is compressed: {error}") from error
