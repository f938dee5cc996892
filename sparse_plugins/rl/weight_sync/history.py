"""Which payloads bring a receiver to the newest weights: the deltas since its own, or a snapshot."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sparse_plugins.rl.weight_sync.channels import Request
from sparse_plugins.wire import DeltaHeader

__all__ = ["Published", "deltas_since", "is_known"]


class Published(NamedTuple):
    """A payload that was made.

    Attributes:
        header: What it says about itself.
        payload: Its bytes.
    """

    header: DeltaHeader
    payload: bytes


def is_known(request: Request, version: int, digest: bytes) -> bool:
    """Whether a receiver has these weights already."""
    return (request.version, request.digest) == (version, digest)


def deltas_since(request: Request, deltas: Sequence[Published], most: float = math.inf) -> Sequence[Published] | None:
    """The deltas that lead from what a receiver has to the newest weights.

    Args:
        request: What it asks with.
        deltas: In order, each built on the one before.
        most: Bytes from which a snapshot is as good.

    Returns:
        They; None if there are none, or they are longer.
    """
    bases = [(delta.header.base_version, delta.header.base_digest) for delta in deltas]
    asked = (request.version, request.digest)
    if request.version is None or asked not in bases:
        return None
    chain = deltas[bases.index(asked) :]
    return chain if sum(len(delta.payload) for delta in chain) <= most else None
