"""Random masks that follow from two numbers, drawn with NumPy to the bits that `core.StaticRandomSparse` draws.

The keys come from threefry, as in JAX: one for the step, and of that one for each leaf's name. The scores of a leaf are
the hash of `core.selection.random_scores`, of row-major indices and the words of the leaf's key.
"""

import dataclasses
import math
import sys
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_plugins.wire.trees import PyTree, aligned, named_leaves, with_leaves

if TYPE_CHECKING:  # a client of NumPy alone draws masks, too
    import jax

__all__ = ["Key", "SeededMasks", "drawn_mask", "fold_in", "leaf_scores", "words_of_int"]

Array = np.ndarray[Any, Any]
Key = tuple[int, int]

_WORD = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_HALF = 0xFFFF
_LOWER_HALVES = np.arange(_HALF + 1, dtype=np.uint32)


@dataclasses.dataclass(frozen=True)
class SeededMasks:
    """What unstructured random masks were drawn from, so that a message can name it in place of the masks.

    The masks are those that `core.StaticRandomSparse` starts with at step 0, and `core.RandomPruning` draws at a
    refresh with step `state.count + 1`; `words` are their `state.rng`.

    Attributes:
        words: The two words of the key, each below 2**32.
        step: Step of the draw, below 2**32.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> masks = SeededMasks.of(seed=3).masks({"w": np.zeros((2, 3))}, {"w": 4})
        >>> masks["w"].shape, int(masks["w"].sum())
        ((2, 3), 4)
    """

    words: tuple[int, int]
    step: int = 0

    def __post_init__(self) -> None:
        numbers = (*self.words, self.step)
        if len(numbers) != 3 or not all(0 <= number < 1 << 32 for number in numbers):
            raise ValueError(
                f"words are {self.words} and step is {self.step}; give two numbers and one, all in [0, 2**32)."
            )

    @classmethod
    def of(cls, seed: "int | Array | jax.Array", step: int = 0) -> "SeededMasks":
        """The masks of an updater with `rng_seed=seed`, an int or one JAX key.

        Raises:
            TypeError: For anything else.
            ValueError: For an int of more than 64 bits.
        """
        return cls(_words_of(seed), step)

    def masks(self, like: PyTree, counts: PyTree) -> PyTree:
        """Draws the masks.

        Args:
            like: Tree of the parameters, or of anything with their paths and shapes.
            counts: Entries that each mask keeps; int tree of the same structure.

        Returns:
            uint8 tree of the parameters' shapes, 1 = kept.

        Raises:
            ValueError: If a leaf has fewer entries than it is to keep.
        """
        masks = []
        for (name, leaf), count in zip(named_leaves(like), aligned(like, counts, "counts"), strict=True):
            size, count = math.prod(leaf.shape), int(count)
            if not 0 <= count <= size:
                raise ValueError(f"leaf {name!r} has {size} entries and cannot keep {count}; give 0 to {size}.")
            masks.append(drawn_mask(self.key(name), size, count).view(np.uint8).reshape(leaf.shape))
        return with_leaves(like, masks)

    def key(self, name: str) -> Key:
        """The words of the key of a leaf, as `core.selection.random_scores.leaf_keys` gives them.

        Args:
            name: Path of the leaf.
        """
        return fold_in(fold_in(self.words, self.step), zlib.crc32(name.encode()))


def words_of_int(seed: int) -> Key:
    """The words of a threefry key that stand for an int, as those of `jax.random.key` with 64-bit types.

    Raises:
        ValueError: If it has more than 64 bits.

    Example:
        >>> words_of_int(7), words_of_int((1 << 32) + 2)
        ((0, 7), (1, 2))
    """
    if not -(1 << 31) <= seed < 1 << 64:
        raise ValueError(f"rng_seed is {seed}; give an int from {-(1 << 31)} to {(1 << 64) - 1}, or one JAX key.")
    return max(int(seed), 0) >> 32, int(seed) & _WORD


def fold_in(key: Key, number: int) -> Key:
    """A key for a number: what `jax.random.fold_in` makes of a threefry key.

    Args:
        key: Two words.
        number: Below 2**32.

    Returns:
        Two other words.

    Example:
        >>> fold_in((0, 0), 1)
        (928981903, 3453687069)

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011); threefry2x32 with 20 rounds.
    """
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    first, second = key[0] & _WORD, (number + key[1]) & _WORD
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = (first + second) & _WORD
            second = ((second << rotation | second >> 32 - rotation) & _WORD) ^ first
        first = (first + schedule[(group + 1) % 3]) & _WORD
        second = (second + schedule[(group + 2) % 3] + group + 1) & _WORD
    return first, second


def drawn_mask(key: Key, size: int, count: int) -> Array:
    """The random mask of one leaf.

    Args:
        key: The leaf's words.
        size: Its number of entries, below 2**32.
        count: How many to keep, at most `size`.

    Returns:
        bool[size], True = kept: where the random scores are largest. No two entries have the same score.

    Example:
        >>> drawn_mask((0, 1), 4, 2).tolist()
        [False, True, False, True]

    Source: Wellons, Prospecting for Hash Functions (2018), for the constants of the hash.
    """
    if count in (0, size):
        return np.full(size, count > 0)
    low, high = _around_threshold(size, count)
    mask = np.empty(size, bool)
    above, places, undecided = 0, [], []
    for start, unfinished in _unfinished_scores(key, size):
        at_least = np.greater_equal(unfinished, low, out=mask[start : start + unfinished.size])
        between = np.flatnonzero(at_least & (unfinished <= high))
        above += int(np.count_nonzero(at_least)) - between.size
        places.append(between + start)
        undecided.append(_finished(unfinished[between]))
    left, ranked = count - above, np.concatenate(undecided)
    if not 0 <= left <= ranked.size:
        scores = leaf_scores(key, size)
        return scores >= np.partition(scores, size - count)[size - count]
    if left < ranked.size:
        worst = np.argpartition(ranked, ranked.size - left - 1)[: ranked.size - left]
        mask[np.concatenate(places)[worst]] = False
    return mask


def leaf_scores(key: Key, size: int) -> Array:
    """The random scores of one leaf, as `core.selection.random_scores.random_score` has them.

    Args:
        key: The leaf's words.
        size: Its number of entries, below 2**32.

    Returns:
        uint32[size].

    Example:
        >>> leaf_scores((0, 1), 4).tolist()
        [1753845952, 3529208806, 305810056, 3374898043]
    """
    scores = np.empty(size, np.uint32)
    for start, unfinished in _unfinished_scores(key, size):
        scores[start : start + unfinished.size] = _finished(unfinished)
    return scores


def _around_threshold(size: int, count: int) -> tuple[np.uint32, np.uint32]:
    """The least and the highest score that the least one kept may have, all but surely: hashes are as good as uniform.

    What finishes a score changes its lower half alone, so that with these bounds an unfinished one will do.
    """
    spread = 8 * math.sqrt(count * (1 - count / size)) + 8
    low, high = (int((1 - (count + share) / size) * 2**32) for share in (spread, -spread))
    return np.uint32(max(low, 0) & ~_HALF), np.uint32(min(high, _WORD) | _HALF)


def _unfinished_scores(key: Key, size: int) -> Iterator[tuple[int, Array]]:
    """Where each piece of a leaf starts, and its scores without the last shift; the next piece overwrites them.

    Numbers are shifted by their upper halves, which are the same all through a piece, and what ends the first mixing
    begins the second: by the same shift, which undoes it, but for the key. All stays in one piece of memory, as new
    pages take longer than a hash.
    """
    numbers, scratch = np.empty((2, min(size, _LOWER_HALVES.size)), np.uint32)
    between = np.uint32(key[1] ^ key[1] >> 16)
    start = 0
    while start < size:
        upper, lower = divmod(key[0] + start & _WORD, _LOWER_HALVES.size)
        piece = numbers[: min(size - start, _LOWER_HALVES.size - lower)]
        np.bitwise_xor(_LOWER_HALVES[lower : lower + piece.size], np.uint32(upper << 16 | upper), out=piece)
        _mix(piece, scratch)
        piece ^= between
        _mix(piece, scratch)
        yield start, piece
        start += piece.size


def _mix(numbers: Array, scratch: Array) -> None:
    numbers *= np.uint32(0x7FEB352D)
    numbers ^= np.right_shift(numbers, np.uint32(15), out=scratch[: numbers.size])
    numbers *= np.uint32(0x846CA68B)


def _finished(scores: Array) -> Array:
    return scores ^ scores >> np.uint32(16)


def _words_of(seed: Any) -> Key:
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return words_of_int(int(seed))
    jax = sys.modules.get("jax")
    if jax is not None and hasattr(seed, "dtype") and jax.numpy.issubdtype(seed.dtype, jax.dtypes.prng_key):
        seed = seed if seed.shape else jax.random.bits(seed, (2,), jax.numpy.uint32)
    if getattr(seed, "dtype", None) == np.uint32 and seed.shape == (2,):
        first, second = np.asarray(seed).tolist()
        return first, second
    raise TypeError(f"rng_seed is {seed!r}; give an int or one JAX key.")
