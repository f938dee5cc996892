"""Synthetic writers: how much each writes, what, and in which hand. NumPy only.

A writer is a pure function of seed and number. Random numbers come from PCG64's raw bits, which NumPy promises to
keep, and not from the methods of `numpy.random.Generator`, which it may change.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from sparse_plugins.fed.strokes.render import CLASSES, NUM_BENDS, Pose, glyphs, render

__all__ = [
    "CLASS_WEIGHTS",
    "CONCENTRATION",
    "MAX_DIFFICULTY",
    "MAX_WRITERS",
    "NUM_DIGITS",
    "NUM_WRITERS",
    "Draws",
    "Style",
    "client_id",
    "images",
    "labels",
    "num_images",
    "style",
]

Array = np.ndarray[Any, Any]

NUM_WRITERS = 3400
MAX_WRITERS = 10_000
MAX_DIFFICULTY = 1.5
_PREFIX = b"strokes\0".hex()

# Class weights in thousands of images, near those of EMNIST by class: digits about half, letters by frequency.
_DIGITS = (40.0,) * 10
_UPPER = (7, 4, 11, 5, 5, 10, 3, 3.5, 13, 4, 2.7, 5.5, 10, 9, 28, 9, 2.7, 5.5, 23, 10.5, 14, 5, 5, 3, 5, 3)
_LOWER = (11, 6, 3, 11.5, 28, 3, 4, 10, 3, 2, 3, 17.5, 3, 13, 3, 2.7, 3.5, 16.5, 3, 21, 3.2, 3.2, 3, 3.3, 2.7, 3.2)
CLASS_WEIGHTS = np.array(_DIGITS + _UPPER + _LOWER)
CONCENTRATION = 120  # of the Dirichlet distribution around them
NUM_DIGITS = 10

_FIRST_FONT = (34, 14, 20, 8, 14, 10)
_ODD_FONT = (40, 12, 20, 6, 12, 10)
_HABIT = 0.7  # share of the classes that a writer writes in the first font
_SCHOOL = range(2100, 2600)  # FedJAX's domain 0
_SCHOOL_JITTER = 1.3


class Draws:
    """Random numbers that are the same on every machine and under every NumPy.

    Args:
        key: non-negative integers; each key has its own sequence.

    Example:
        >>> Draws(1, 2).choice([1, 0, 3], 8)
        array([2, 2, 2, 2, 2, 0, 0, 2])
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        """float64 [*shape] in [low, high)."""
        unit = (self._raw(*shape) >> np.uint64(11)) * 2.0**-53
        return low + (high - low) * unit

    def normal(self, *shape: int, mean: float = 0.0, std: float = 1.0) -> Array:
        """float64 [*shape], the sum of four uniform numbers: near to normal, at most 3.5 `std` from the mean."""
        quarters = self._raw(*shape, 1).view(np.uint16)
        return mean + std * math.sqrt(3) * (quarters.sum(-1, dtype=np.int64) - 131070) * 2.0**-16

    def choice(self, weights: Any, *shape: int) -> Array:
        """int64 [*shape] in [0, len(weights)), each index as often as its weight says."""
        ends = np.cumsum(weights, dtype=np.float64)
        return np.searchsorted(ends, self.uniform(*shape) * ends[-1], side="right")

    def _raw(self, *shape: int) -> Array:
        return np.asarray(self._bits.random_raw(math.prod(shape)), np.uint64).reshape(shape)


class Style(NamedTuple):
    """What stays the same in a writer's hand.

    Attributes:
        fonts: int64 [62], the font of each class: one that the writer prefers, and odd letters.
        bends: float64 [62, 2, 7], how each class is bent.
        slant: see `render.Pose`.
        turn: see `render.Pose`.
        aspect: stretch of the width, 0 = none.
        size: longer side, pixels.
        pen: see `render.render`.
        ink: see `render.render`.
        jitter: how much an image differs from the next.
    """

    fonts: Array
    bends: Array
    slant: float
    turn: float
    aspect: float
    size: float
    pen: float
    ink: float
    jitter: float


def client_id(writer: int) -> bytes:
    """The id of a writer: in the form FedJAX reads domains from, with a prefix, `strokes` in hex, of its own.

    Example:
        >>> client_id(7), bytes.fromhex("7374726f6b6573")
        (b'7374726f6b657300:f0007_00', b'strokes')
    """
    return f"{_PREFIX}:f{writer:04d}_00".encode()


def num_images(seed: int, writer: int, only_digits: bool = False) -> int:
    """How much a writer writes, without writing it: 80 to 670 images, skewed, 220 on average.

    Args:
        seed: of the whole set, 0 or more.
        writer: number, 0 or more.
        only_digits: half as many.

    Returns:
        The number of images in both splits.

    Example:
        >>> num_images(seed=0, writer=7), num_images(seed=0, writer=7, only_digits=True)
        (260, 130)
    """
    z = float(Draws(0, writer, seed).normal())
    count = round(206 + 84 * z + 14 * z * z)
    return count // 2 if only_digits else count


def style(seed: int, writer: int, difficulty: float) -> Style:
    """A writer's hand.

    Args:
        seed: of the whole set, 0 or more.
        writer: number, 0 or more.
        difficulty: how far hands lie apart and how unsteady they are, above 0; 1 is hard.

    Returns:
        What all images of this writer have in common.

    Example:
        >>> style(seed=0, writer=7, difficulty=0.7).bends.shape
        (62, 2, 7)
    """
    draws, classes = Draws(1, writer, seed), len(CLASSES)
    odd = draws.choice(_ODD_FONT, classes)
    jitter = float(draws.uniform(low=0.5, high=1.3)) * difficulty
    return Style(
        fonts=np.where(draws.uniform(classes) < _HABIT, draws.choice(_FIRST_FONT), odd),
        bends=draws.normal(classes, 2, NUM_BENDS, std=0.07 * difficulty),
        slant=float(draws.normal(mean=0.08, std=0.22 * difficulty)),
        turn=float(draws.normal(std=0.035 * difficulty)),
        aspect=float(draws.normal(std=0.2 * difficulty)),
        size=float(draws.uniform(low=18.5, high=23)),
        pen=float(draws.uniform(low=1.5, high=2.7)),
        ink=float(draws.uniform(low=1.6, high=3.4)),
        jitter=jitter * (_SCHOOL_JITTER if writer in _SCHOOL else 1),
    )


def labels(draws: Draws, count: int, weights: Array) -> Array:
    """Classes with a preference of their own, drawn from a Dirichlet distribution around the weights.

    An urn does it in integers: an image repeats an earlier one's class, or takes a fresh one.
    Source: Blackwell and MacQueen, Ferguson Distributions via Polya Urn Schemes, 1973.

    Args:
        draws: where the numbers come from.
        count: how many.
        weights: float64 [classes].

    Returns:
        int32 [count].
    """
    classes = draws.choice(weights, count)
    ball = (draws.uniform(count) * (CONCENTRATION + np.arange(count))).astype(np.int64) - CONCENTRATION
    for i in np.flatnonzero(ball >= 0):
        classes[i] = classes[ball[i]]
    return classes.astype(np.int32)


def images(seed: int, writer: int, difficulty: float, only_digits: bool = False) -> tuple[Array, Array]:
    """All that a writer writes.

    Args:
        seed: of the whole set, 0 or more.
        writer: number, 0 or more.
        difficulty: above 0; 1 is hard.
        only_digits: half as many images, all of them digits.

    Returns:
        Ink, uint8 [n, 28, 28], 255 = full; and classes, int32 [n], in the order of `CLASSES`.

    Example:
        >>> ink, classes = images(seed=0, writer=7, difficulty=0.7)
        >>> ink.shape[0] == len(classes) == num_images(seed=0, writer=7)
        True
    """
    hand, draws = style(seed, writer, difficulty), Draws(2, writer, seed)
    count = num_images(seed, writer, only_digits)
    classes = labels(draws, count, CLASS_WEIGHTS[:NUM_DIGITS] if only_digits else CLASS_WEIGHTS)
    points, lengths = (feature[hand.fonts[classes], classes] for feature in glyphs())
    ink = render(points, lengths, _poses(hand, draws, classes), pen=hand.pen, ink=hand.ink)
    return ink, classes


def _poses(hand: Style, draws: Draws, classes: Array) -> Pose:
    """The writer's style for each image, jittered."""
    n, jitter = len(classes), hand.jitter
    pose = Pose(
        bends=hand.bends[classes] + draws.normal(n, 2, NUM_BENDS, std=0.07 * jitter),
        slant=hand.slant + draws.normal(n, std=0.09 * jitter),
        turn=hand.turn + draws.normal(n, std=0.035 * jitter),
        aspect=_stretch(hand.aspect) * _stretch(draws.normal(n, std=0.13 * jitter)),
        size=np.clip(hand.size * _stretch(draws.normal(n, std=0.04 * jitter)), 12, 25),
        shift=draws.uniform(n, 2, low=-0.5, high=0.5),
    )
    return Pose(*(field.astype(np.float32) for field in pose))


def _stretch(amount: Any) -> Any:
    """exp(amount) to third order, and like it the reciprocal of its opposite."""
    return (2 + amount) / (2 - amount)
