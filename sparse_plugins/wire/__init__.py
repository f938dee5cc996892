"""Masks and values as bytes: what a message between two machines holds, and how a receiver checks it."""

from sparse_plugins.wire.binding import Binding, BindingError
from sparse_plugins.wire.mask_forms import SeededMasks
from sparse_plugins.wire.payload import Decoded, decode, encode, masks_digest, needed_base
from sparse_plugins.wire.reader import CodecError

__all__ = [
    "Binding",
    "BindingError",
    "CodecError",
    "Decoded",
    "SeededMasks",
    "decode",
    "encode",
    "masks_digest",
    "needed_base",
]
