"""The actions that lead from a seed to the present: all that is needed to be there again."""

import numpy as np

__all__ = ["ActionLog", "slot_seeds"]

_SLOTS = 1 << 14
_SEEDS = 1 << 31


def slot_seeds(seed: int, slots: np.ndarray, renewals: np.ndarray) -> np.ndarray:
    """Seeds of which no two are equal, whichever slots and renewals they are for.

    Args:
        seed: The seed of the run.
        slots: int[N], below 16,384; numbered through over all objects of the run.
        renewals: int[N], below 131,072: how often each slot has got a new seed.

    Returns:
        int64[N], at least 0 and below 2**31.

    Example:
        >>> seeds = slot_seeds(0, np.arange(1000), np.zeros(1000, int))
        >>> len(set(seeds.tolist()))
        1000
    """
    # An odd factor permutes the numbers modulo a power of two, so that distinct indices stay distinct.
    factor, offset = np.random.SeedSequence(seed).generate_state(2).astype(np.int64)
    index = np.asarray(slots, np.int64) + _SLOTS * np.asarray(renewals, np.int64)
    return (index % _SEEDS * ((factor | 1) % _SEEDS) + offset) % _SEEDS


class ActionLog:
    """For each of E slots, the actions since it was last seeded.

    Args:
        num_slots: E.

    Example:
        >>> log = ActionLog(2)
        >>> log.append(np.array([1, 2]))
        >>> log.restart(np.array([0]))
        >>> log.append(np.array([3, 4]))
        >>> log.lengths().tolist(), log.actions().tolist()
        ([1, 2], [[0, 2], [3, 4]])
    """

    def __init__(self, num_slots: int) -> None:
        self._rows = np.zeros((1024, num_slots), np.uint8)
        self._begins = np.zeros(num_slots, np.int64)
        self._end = 0

    def append(self, actions: np.ndarray) -> None:
        """Notes one action per slot, uint8 or int[E] below 256."""
        if self._end == len(self._rows):
            self._make_room()
        self._rows[self._end] = actions
        self._end += 1

    def restart(self, slots: np.ndarray) -> None:
        """Forgets the actions of some slots, which have just been seeded."""
        self._begins[slots] = self._end

    def lengths(self) -> np.ndarray:
        """int64[E], actions since each slot was seeded."""
        return self._end - self._begins

    def actions(self) -> np.ndarray:
        """uint8[longest, E]: the columns end together; above where a slot begins they are 0."""
        rows = self._rows[self._begins.min() : self._end].copy()
        rows[np.arange(len(rows))[:, None] < len(rows) - self.lengths()[None, :]] = 0
        return rows

    def _make_room(self) -> None:
        kept = self._rows[self._begins.min() : self._end]
        self._begins -= self._end - len(kept)
        self._end = len(kept)
        grown = np.zeros((max(2 * len(kept), 1024), kept.shape[1]), np.uint8)
        grown[: len(kept)] = kept
        self._rows = grown
