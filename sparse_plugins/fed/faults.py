"""Clients that drop out, answer too late or send damaged bytes: simulated, by seed."""

import dataclasses
import zlib
from collections.abc import Hashable
from typing import Any

import numpy as np

from sparse_plugins.core.selection.counts import check_fraction

__all__ = ["Faults"]


@dataclasses.dataclass(frozen=True)
class Faults:
    """What goes wrong between clients and server; nothing by default.

    Whether it does depends on seed, round and client alone, so a resumed run sees the same faults. Subclass it to
    model other channels.

    Attributes:
        drop_out: Fraction of clients that get the broadcast and are never heard of again.
        late: Fraction of updates that arrive when the round is over: sent, counted, not used.
        damage: Fraction of updates of which a bit is flipped on the way.
        seed: What all draws derive from.

    Raises:
        ValueError: If a fraction is outside [0, 1] or the seed is negative.

    Example:
        >>> faults = Faults(drop_out=0.5, seed=1)
        >>> [faults.takes_part(0, client) for client in (b"anna", b"ben", b"carl")]
        [False, False, True]
        >>> Faults(late=1.0).deliver(0, b"anna", b"...") is None
        True
    """

    drop_out: float = 0.0
    late: float = 0.0
    damage: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("drop_out", "late", "damage"):
            check_fraction(name, getattr(self, name))
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give a number of 0 or more.")

    def takes_part(self, round_num: int, client: Hashable) -> bool:
        """Whether a client that got the broadcast of a round is heard of again."""
        return bool(self._draws(round_num, client)[0] >= self.drop_out)

    def deliver(self, round_num: int, client: Hashable, payload: bytes) -> bytes | None:
        """What arrives of an update: the payload, a damaged one, or None if the round is over by then."""
        _, late, damage, place = self._draws(round_num, client)
        if late < self.late:
            return None
        if damage >= self.damage or not payload:
            return payload
        damaged = bytearray(payload)
        bit = int(place * 8 * len(payload))
        damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)

    def _draws(self, round_num: int, client: Hashable) -> np.ndarray[Any, Any]:
        return np.random.default_rng([self.seed, round_num, zlib.crc32(repr(client).encode())]).random(4)
