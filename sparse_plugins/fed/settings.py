"""Settings of a run in words, for its checkpoints: they decide what it computes, and its state does not show them."""

import zlib
from typing import Any

from sparse_plugins.core.descriptions import readable
from sparse_plugins.fed.client_widths import ClientWidths
from sparse_plugins.fed.messages import Wire

__all__ = ["in_words", "of_messages", "of_widths"]


def in_words(**settings: Any) -> str:
    """Settings by name, without those that are None, False or 0, the defaults.

    Example:
        >>> in_words(growth="topk", personal_masks=False, max_norm=None, min_votes=3)
        "growth='topk', min_votes=3"
    """
    return ", ".join(f"{name}={readable(value)}" for name, value in settings.items() if value not in (None, False))


def of_messages(wire: Wire) -> Any:
    """Number formats by direction, which round what they carry; None if they are the widest.

    Example:
        >>> of_messages(Wire(up="float16")), of_messages(Wire(zstd=True))
        (('float32', 'float16'), None)
    """
    formats = wire.down, wire.up
    return None if formats == (Wire.down, Wire.up) else formats


def of_widths(widths: ClientWidths | None) -> Any:
    """Who gets what part of the channels, with a checksum of the groups; None if everybody has all.

    Example:
        >>> of_widths(ClientWidths((0.5, 1.0), "rolling"))
        ((0.5, 1.0), 'rolling', 0)
    """
    if widths is None:
        return None
    who = dict(widths.widths) if hasattr(widths.widths, "keys") else tuple(widths.widths)
    groups = () if widths.groups is None else (zlib.crc32(_text(widths.groups).encode()),)
    return (who, widths.channels, widths.seed, *groups)


def _text(groups: Any) -> str:
    return readable(groups) if isinstance(groups, dict) else str(groups)
