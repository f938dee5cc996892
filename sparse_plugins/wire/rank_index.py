"""The how-manieth of its kind an entry is, and back, from one bit an entry: rank and select.

Source: Jacobson, Space-efficient static trees and graphs, 1989.
"""

from typing import Any

import numpy as np

__all__ = ["RankIndex", "num_words", "pack_into"]

Array = np.ndarray[Any, Any]

_LOG_WORD = 6
_WORD = 1 << _LOG_WORD
# Place of the k-th one of a byte, at [byte, k]; flat, at [8 * byte + k].
_PLACES = np.zeros((256, 8), np.uint8)
for _byte in range(256):
    _ones = [place for place in range(8) if _byte >> place & 1]
    _PLACES[_byte, : len(_ones)] = _ones
_PLACES_IN_BYTES = _PLACES.reshape(-1)


def num_words(size: int) -> int:
    """Words that a `RankIndex` of so many entries has: one of zeros lies behind them.

    Example:
        >>> num_words(64), num_words(65)
        (2, 3)
    """
    return -(-size // _WORD) + 1


def pack_into(words: Array, start: int, chosen: Array) -> None:
    """Writes truth values as bits, lowest first.

    Args:
        words: uint64[m], which are written.
        start: The bit to start at, a multiple of 8.
        chosen: bool[n].

    Example:
        >>> words = np.zeros(num_words(11), np.uint64)
        >>> pack_into(words, 8, np.array([True, False, True]))
        >>> words.tolist()
        [1280, 0]
    """
    packed = np.packbits(chosen, bitorder="little")
    words.view(np.uint8)[start // 8 :][: packed.size] = packed


class RankIndex:
    """Counts the entries that are meant, a word of 64 at a time.

    Args:
        words: uint64[num_words(n)], see `pack_into`.

    Attributes:
        count: How many are meant.

    Example:
        >>> index = RankIndex(np.array([0b11010, 0], np.uint64))
        >>> index.ranks(np.array([1, 4])).tolist(), index.places(np.array([0, 2])).tolist(), index.count
        ([0, 2], [1, 4], 3)
    """

    def __init__(self, words: Array) -> None:
        counts = np.bitwise_count(words)
        self._words, self._after = words, np.cumsum(counts, dtype=np.int64)
        self._before = self._after - counts
        self.count = int(self._after[-1])

    def ranks(self, places: Array) -> Array:
        """How many entries that are meant come before each place.

        Args:
            places: int64[k], in [0, n).

        Returns:
            int64[k].
        """
        words, bits = places >> _LOG_WORD, (places & _WORD - 1).astype(np.uint64)
        below = self._words[words] & ((np.uint64(1) << bits) - np.uint64(1))
        return self._before[words] + np.bitwise_count(below)

    def places(self, ranks: Array) -> Array:
        """Where the entries that are meant lie.

        Args:
            ranks: int64[k], in [0, count), rising.

        Returns:
            int64[k].
        """
        at = np.searchsorted(self._after, ranks, side="right")
        left, rest, place = (ranks - self._before[at]).astype(np.uint8), self._words[at], at * _WORD
        for width in (32, 16, 8):
            low = np.bitwise_count(rest & np.uint64((1 << width) - 1))
            is_above = left >= low
            left -= low * is_above
            passed = is_above * np.uint8(width)
            rest >>= passed
            place += passed
        return place + _PLACES_IN_BYTES[(rest & np.uint64(255)) * np.uint64(8) + left]
