"""Masks, values and weights as bytes: what a message between two machines holds, and how a receiver checks it.

NumPy is all this needs. A client without JAX decodes and encodes the bytes that one with JAX does.
"""

from sparse_plugins.wire.deltas import (
    BaseMismatchError,
    DeltaHeader,
    apply,
    delta,
    most_delta_bytes,
    read_delta_header,
    weights_digest,
)
from sparse_plugins.wire.markers import NOT_PRUNED
from sparse_plugins.wire.message_binding import Binding, BindingError
from sparse_plugins.wire.payload import Decoded, decode, encode, masks_digest, needed_base
from sparse_plugins.wire.reader import CodecError
from sparse_plugins.wire.safetensors_patches import apply_safetensors, safetensors_delta
from sparse_plugins.wire.seeded_masks import SeededMasks

__all__ = [
    "NOT_PRUNED",
    "BaseMismatchError",
    "Binding",
    "BindingError",
    "CodecError",
    "Decoded",
    "DeltaHeader",
    "SeededMasks",
    "apply",
    "apply_safetensors",
    "decode",
    "delta",
    "encode",
    "masks_digest",
    "most_delta_bytes",
    "needed_base",
    "read_delta_header",
    "safetensors_delta",
    "weights_digest",
]
