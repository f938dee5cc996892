"""Vector glyphs to ink: bend, slant, crop, centre, splat, blur.

Only integers and + - * / and square roots are used, which IEEE 754 rounds the same everywhere, so an image has
the same pixels on every machine. That is why functions such as exp and sin are missing here.
"""

import functools
import importlib.resources
import string
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CLASSES", "NUM_BENDS", "SIDE", "Glyphs", "Pose", "glyphs", "render"]

Array = np.ndarray[Any, Any]

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIDE = 28
NUM_BENDS = 7
_SAMPLES = 144  # points per glyph: less than a pixel apart on all but the most ornate letters
_BLUR_REACH = 2
_FULL_INK = 1.15  # strokes with a dark core, as a pen leaves, rather than a peak


class Glyphs(NamedTuple):
    """The embedded shapes, each in a box whose longer side is 1 and whose centre is 0.

    Attributes:
        points: float32 [fonts, 62, samples, 2], evenly spaced along the pen's way; x to the right, y down.
        lengths: float32 [fonts, 62], how far the pen goes.
    """

    points: Array
    lengths: Array


class Pose(NamedTuple):
    """How each image of a batch is written; every field is float32 [n] but for `bends`.

    Attributes:
        bends: [n, 2, 7], weights of the polynomials that bend x and y.
        slant: how far a point goes left per unit it lies lower.
        turn: tangent of half the angle of rotation, clockwise.
        aspect: width by height, 1 as in the font.
        size: longer side of the bounding box, pixels, at most 25.
        shift: [n, 2], x and y of the box's centre relative to the image's, pixels, at most 0.5 away.
    """

    bends: Array
    slant: Array
    turn: Array
    aspect: Array
    size: Array
    shift: Array


@functools.cache
def glyphs() -> Glyphs:
    """Reads the embedded shapes.

    Source: Hershey, Calligraphy for Computers, US Naval Weapons Laboratory, 1967.

    Example:
        >>> glyphs().points.shape, CLASSES[10:13]
        ((6, 62, 144, 2), 'ABC')
    """
    with (importlib.resources.files("sparse_plugins.fed.strokes") / "strokes.npz").open("rb") as file:
        stored = dict(np.load(file))
    lines = iter(np.split(stored["points"].astype(np.float64), np.cumsum(stored["vertices"], dtype=np.int64)[:-1]))
    traced = [_trace([next(lines) for _ in range(count)]) for count in stored["strokes"].flat]
    points, lengths = zip(*traced, strict=True)
    shape = stored["strokes"].shape
    return Glyphs(np.reshape(points, (*shape, _SAMPLES, 2)), np.reshape(lengths, shape))


def _trace(lines: list[Array]) -> tuple[Array, np.float32]:
    """Evenly spaced points on a glyph's lines, float32 [samples, 2], and their length in boxes."""
    start, end = (np.concatenate([line[cut] for line in lines]) for cut in (slice(None, -1), slice(1, None)))
    lengths = np.sqrt((end[:, 0] - start[:, 0]) ** 2 + (end[:, 1] - start[:, 1]) ** 2)
    ends = np.cumsum(lengths)
    at = (np.arange(_SAMPLES) + 0.5) / _SAMPLES * ends[-1]
    segment = np.searchsorted(ends, at)
    along = (1 - (ends[segment] - at) / lengths[segment])[:, None]
    points = start[segment] + along * (end[segment] - start[segment])
    low, high = points.min(0), points.max(0)
    box = (high - low).max()
    return ((points - (low + high) / 2) / box).astype(np.float32), np.float32(ends[-1] / box)


def render(points: Array, lengths: Array, pose: Pose, *, pen: float, ink: float) -> Array:
    """Draws one writer's images the way EMNIST's were cut out: bounding box, scaled, centred, blurred.

    Args:
        points: float32 [n, samples, 2] of `Glyphs`.
        lengths: float32 [n] of `Glyphs`.
        pose: of each image.
        pen: radius of the pen's mark in pixels, above 0 and below 3.
        ink: how dark it writes, above 0.

    Returns:
        uint8 [n, 28, 28], 0 = background, 255 = full ink.

    Example:
        >>> none, straight = np.zeros(1, np.float32), np.zeros((1, 2, NUM_BENDS), np.float32)
        >>> upright = Pose(straight, none, none, aspect=none + 1, size=none + 22, shift=straight[..., 0])
        >>> points, lengths = (feature[:1, CLASSES.index("7")] for feature in glyphs())
        >>> for row in render(points, lengths, upright, pen=2.0, ink=2.5)[0, 2:27:3, 5:23:2]:
        ...     print("".join("-+x#"[level // 64] for level in row))
        -xxxxxxxx
        -------x+
        ------+x-
        ------x--
        -----x+--
        ----xx---
        ---+x----
        ---x-----
        ---------
    """
    x, y = _write(points, pose)
    left, right, top, bottom = x.min(1), x.max(1), y.min(1), y.max(1)
    scale = pose.size / np.maximum(np.maximum(right - left, bottom - top), np.float32(1e-3))
    middle = pose.shift + np.float32((SIDE - 1) / 2)
    x = (x - ((left + right) / 2)[:, None]) * scale[:, None] + middle[:, :1]
    y = (y - ((top + bottom) / 2)[:, None]) * scale[:, None] + middle[:, 1:]
    mass = lengths * scale / np.float32(points.shape[1])
    dose = np.float32(ink) * _blur(_splat(x, y, mass), pen)
    darkness = 1 - 1 / (1 + dose + dose * dose / 2)
    return np.minimum(np.float32(255 * _FULL_INK) * darkness + np.float32(0.5), 255).astype(np.uint8)


def _write(points: Array, pose: Pose) -> tuple[Array, Array]:
    """The glyph in a writer's hand, in boxes: x and y, float32 [n, samples]."""
    x, y = points[..., 0], points[..., 1]
    u, v = 2 * x, 2 * y
    terms = u * u, u * v, v * v
    bends = pose.bends[..., None]
    x, y = x + _bend(u, v, terms, bends[:, 0]), y + _bend(u, v, terms, bends[:, 1])
    x = (x - pose.slant[:, None] * y) * pose.aspect[:, None]
    square = pose.turn * pose.turn
    cos, sin = ((1 - square) / (1 + square))[:, None], (2 * pose.turn / (1 + square))[:, None]
    return cos * x - sin * y, sin * x + cos * y


def _bend(u: Array, v: Array, terms: tuple[Array, Array, Array], weights: Array) -> Array:
    """A polynomial of degree 2 and 3: the slow wave of a hand. Lower degrees are slant, aspect, turn and size."""
    uu, uv, vv = terms
    w = weights.swapaxes(0, 1)
    return uu * (w[0] + w[1] * u + w[2] * v) + vv * (w[3] + w[4] * u + w[5] * v) + w[6] * uv


def _splat(x: Array, y: Array, mass: Array) -> Array:
    """Shares the mass of each point among its four pixels: float32 [n, 28, 28]."""
    n = len(x)
    limit = np.float32(SIDE - 1.001)
    x, y = np.clip(x, 0, limit), np.clip(y, 0, limit)
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, down = x - column.astype(np.float32), (y - row.astype(np.float32)) * mass[:, None]
    up = mass[:, None] - down
    corner = (np.arange(n) * SIDE**2)[:, None] + row * SIDE + column
    pixels = np.concatenate([corner, corner + 1, corner + SIDE, corner + SIDE + 1])
    parts = np.concatenate([up - up * right, up * right, down - down * right, down * right])
    return np.bincount(pixels.ravel(), parts.ravel(), n * SIDE**2).astype(np.float32).reshape(n, SIDE, SIDE)


def _blur(images: Array, radius: float) -> Array:
    """Convolves with a biweight bump, the pen's mark, along both axes."""
    slopes = [max(0.0, 1 - step / radius * (step / radius)) for step in range(_BLUR_REACH + 1)]
    bump = [slope * slope for slope in slopes]
    weights = [np.float32(weight / (bump[0] + 2 * sum(bump[1:]))) for weight in bump]
    for _ in range(2):
        padded = np.pad(images, ((0, 0), (_BLUR_REACH, _BLUR_REACH), (0, 0)))
        images = weights[0] * images
        for step in range(1, _BLUR_REACH + 1):
            before, after = _BLUR_REACH - step, _BLUR_REACH + step
            images += weights[step] * (padded[:, before : before + SIDE] + padded[:, after : after + SIDE])
        images = images.swapaxes(1, 2)
    return images
