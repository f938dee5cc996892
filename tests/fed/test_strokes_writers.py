"""How the synthetic writers write: in hands of their own, legibly, and to the pixel as everywhere else."""

import importlib.resources
import itertools
import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from sklearn.neighbors import KNeighborsClassifier

from sparse_plugins.fed import strokes
from sparse_plugins.fed.strokes.render import CLASSES, NUM_BENDS, Pose, glyphs, render
from sparse_plugins.fed.strokes.writers import CLASS_WEIGHTS, CONCENTRATION, Draws, images, labels, num_images, style

SEEDS, NUMBERS = st.integers(0, 2**70), st.integers(0, strokes.MAX_WRITERS - 1)


def pool(writers: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels float32 [n, 784], classes and writers."""
    parts = [(*images(0, writer, 0.7), writer) for writer in writers]
    owner = np.concatenate([np.full(len(classes), writer) for _, classes, writer in parts])
    pixels, classes = (np.concatenate([part[i] for part in parts]) for i in range(2))
    return pixels.reshape(-1, 784).astype(np.float32), classes, owner


def test_the_pixels_are_those_of_every_other_machine() -> None:
    """Only exactly rounded operations make an image; where this fails, one of them is not."""
    ink, classes = images(seed=0, writer=0, difficulty=0.7)
    assert (zlib.crc32(ink.tobytes()), zlib.crc32(classes.astype("<i4").tobytes())) == (1861814349, 414462574)


@settings(max_examples=25)
@given(seed=SEEDS, writer=NUMBERS, difficulty=st.floats(1e-3, strokes.MAX_DIFFICULTY))
def test_any_writer_writes_what_was_announced_legibly(seed: int, writer: int, difficulty: float) -> None:
    ink, classes = images(seed, writer, difficulty)
    assert len(ink) == len(classes) == num_images(seed, writer)
    assert 80 <= len(ink) <= 700
    assert (ink.max((1, 2)) > 50).all()
    rows, columns = (ink.max(axis) > 40 for axis in (2, 1))
    for inked in (rows, columns):
        first, last = inked.argmax(1), 27 - inked[:, ::-1].argmax(1)
        assert (abs(first + last - 27) <= 4).all()  # centred
    extent = np.maximum(rows.sum(1), columns.sum(1))
    assert np.median(extent) >= 15


def test_classes_come_as_often_as_wanted_within_sampling_error() -> None:
    counts = [np.bincount(labels(Draws(9, writer), 220, CLASS_WEIGHTS), minlength=62) for writer in range(600)]
    wanted = CLASS_WEIGHTS / CLASS_WEIGHTS.sum()
    # The variance of a Dirichlet-multinomial count over that of a multinomial one.
    spread = (220 + CONCENTRATION) / (1 + CONCENTRATION)
    errors = (np.sum(counts, 0) / (220 * 600) - wanted) / np.sqrt(wanted * (1 - wanted) * spread / (220 * 600))
    assert abs(errors).max() < 4
    assert np.var(errors) == pytest.approx(1, abs=0.5)
    digits = np.array(counts)[:, :10].sum(1)
    assert digits.var() == pytest.approx(220 * 0.25 * spread, rel=0.2)


@given(count=st.integers(0, 60), seed=st.integers(0, 99))
def test_the_urn_follows_its_rule(count: int, seed: int) -> None:
    weights = np.array([1.0, 2.0, 3.0])
    draws = Draws(seed)
    fresh, chance = draws.choice(weights, count), draws.uniform(count)
    expected: list[int] = []
    for i in range(count):
        ball = math.floor(chance[i] * (CONCENTRATION + i))
        expected.append(fresh[i] if ball < CONCENTRATION else expected[ball - CONCENTRATION])
    assert labels(Draws(seed), count, weights).tolist() == expected


def test_random_numbers_follow_their_laws() -> None:
    draws, n = Draws(0), 200_000
    uniform = draws.uniform(n, low=-1, high=3)
    assert -1 <= uniform.min() < uniform.max() < 3
    assert np.histogram(uniform, 4, (-1, 3))[0] == pytest.approx(n / 4, rel=0.02)
    normal = draws.normal(n, mean=2, std=3)
    assert (normal.mean(), normal.std()) == pytest.approx((2, 3), rel=0.01)
    assert abs(normal - 2).max() <= 3 * math.sqrt(12)
    assert np.mean(abs(normal - 2) < 3) == pytest.approx(0.683, abs=0.02)
    assert np.bincount(draws.choice([1, 0, 3], n)) == pytest.approx([n / 4, 0, 3 * n / 4], rel=0.02)


def test_high_school_hands_are_less_steady() -> None:
    jitters = {
        domain: np.mean([style(0, writer, 0.7).jitter for writer in writers])
        for domain, writers in {0: range(2100, 2600), 1: range(500)}.items()
    }
    assert jitters[0] > 1.2 * jitters[1]


def test_hands_differ_more_between_writers_than_within_one() -> None:
    pixels, classes, owner = pool(range(20))
    nearest, chance = [], []
    for digit in range(10):
        rows = classes == digit
        squares = (pixels[rows] ** 2).sum(1)
        distance = squares[:, None] + squares - 2 * pixels[rows] @ pixels[rows].T
        np.fill_diagonal(distance, np.inf)
        same = owner[rows][:, None] == owner[rows]
        nearest += list(same[np.arange(len(same)), distance.argmin(1)])
        chance += list((same.sum(1) - 1) / (len(same) - 1))
    assert np.mean(nearest) > 5 * np.mean(chance)


def test_every_class_of_unseen_writers_can_be_read() -> None:
    """The nearest neighbour among as many images of each class: chance is 1 in 62 for all of them."""
    seen, seen_classes = evenly(*pool(range(150))[:2], each=60)
    new, new_classes = evenly(*pool(range(150, 230))[:2], each=30)
    right = KNeighborsClassifier(1).fit(seen, seen_classes).predict(new) == new_classes
    assert right.mean() > 25 / 62
    assert right.reshape(62, 30).mean(1).min() > 4 / 62


def evenly(pixels: np.ndarray, classes: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
    """So many images of each class, from all writers."""
    of_class = [np.flatnonzero(classes == label) for label in range(62)]
    rows = np.concatenate([rows[np.linspace(0, len(rows) - 1, each).astype(int)] for rows in of_class])
    return pixels[rows], classes[rows]


def test_more_difficulty_is_harder() -> None:
    def accuracy(difficulty: float) -> float:
        parts = [images(0, writer, difficulty) for writer in range(16)]
        x, y = (np.concatenate([part[i] for part in parts]) for i in range(2))
        x, half = x.reshape(-1, 784).astype(np.float32), num_rows(8)
        return float(KNeighborsClassifier(1).fit(x[:half], y[:half]).score(x[half:], y[half:]))

    def num_rows(writers: int) -> int:
        return sum(num_images(0, writer) for writer in range(writers))

    easy, middle, hard = map(accuracy, (0.2, 0.7, 1.5))
    assert easy > middle + 0.05 > hard + 0.1


# The drawing.


def plain(n: int, size: float) -> Pose:
    none, straight = np.zeros(n, np.float32), np.zeros((n, 2, NUM_BENDS), np.float32)
    return Pose(straight, none, none, aspect=none + 1, size=none + size, shift=straight[..., 0])


def printed(character: str) -> np.ndarray:
    """A character as a printer's font has it, 20 pixels large in the middle of 28 x 28."""
    page = Image.new("L", (80, 80))
    ImageDraw.Draw(page).text((20, 15), character, fill=255, font=ImageFont.load_default(size=40))
    glyph = page.crop(page.getbbox())
    width, height = (max(1, round(20 * side / max(glyph.size))) for side in glyph.size)
    image = Image.new("L", (28, 28))
    image.paste(glyph.resize((width, height)), ((28 - width) // 2, (28 - height) // 2))
    return np.asarray(image, np.float64)


def normalized(pictures: np.ndarray) -> np.ndarray:
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_classes_are_in_emnists_order() -> None:
    assert CLASSES == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    points, lengths = (feature[0] for feature in glyphs())
    drawn = render(points, lengths, plain(62, 19), pen=2.2, ink=3.0)
    likeness = normalized(drawn) @ normalized(np.stack([printed(character) for character in CLASSES])).T
    assert (likeness.argmax(1) == np.arange(62)).sum() > 40  # those that are not look alike, as C and c


def drawn_slowly(points: np.ndarray, length: float, pose: Pose, i: int, pen: float, ink: float) -> np.ndarray:
    """One image, point by point and pixel by pixel, with sines and cosines."""
    written = []
    for x, y in points.astype(np.float64):
        u, v = 2 * x, 2 * y
        powers = [u**2, u**3, u**2 * v, v**2, u * v**2, v**3, u * v]
        x, y = (w + sum(a * b for a, b in zip(pose.bends[i, k], powers, strict=True)) for k, w in enumerate((x, y)))
        x = (x - pose.slant[i] * y) * pose.aspect[i]
        angle = 2 * math.atan(pose.turn[i])
        written.append((math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y))
    low, high = np.min(written, 0), np.max(written, 0)
    scale = pose.size[i] / max(high - low)
    canvas = np.zeros((28, 28))
    for x, y in (np.array(written) - (low + high) / 2) * scale + 13.5 + pose.shift[i]:
        for row, column in itertools.product(range(28), range(28)):
            canvas[row, column] += max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row)) * length * scale / len(points)
    bump = [max(0, 1 - (step / pen) ** 2) ** 2 for step in range(-2, 3)]
    blurred = np.zeros((28, 28))
    for row, column, down, right in itertools.product(range(28), range(28), range(5), range(5)):
        if 0 <= row + down - 2 < 28 and 0 <= column + right - 2 < 28:
            blurred[row, column] += bump[down] * bump[right] * canvas[row + down - 2, column + right - 2]
    dose = ink * blurred / sum(bump) ** 2
    return 255 * np.minimum(1.15 * (1 - 1 / (1 + dose + dose**2 / 2)), 1)


def test_the_fast_drawing_is_the_slow_one() -> None:
    rng = np.random.default_rng(0)
    fonts, classes = rng.integers(0, 6, 3), rng.integers(0, 62, 3)
    points, lengths = (feature[fonts, classes] for feature in glyphs())
    pose = Pose(
        bends=rng.normal(0, 0.08, (3, 2, NUM_BENDS)).astype(np.float32),
        slant=rng.normal(0, 0.2, 3).astype(np.float32),
        turn=rng.normal(0, 0.1, 3).astype(np.float32),
        aspect=rng.uniform(0.7, 1.4, 3).astype(np.float32),
        size=rng.uniform(18, 24, 3).astype(np.float32),
        shift=rng.uniform(-0.5, 0.5, (3, 2)).astype(np.float32),
    )
    for i, image in enumerate(render(points, lengths, pose, pen=2.3, ink=2.0)):
        np.testing.assert_allclose(image, drawn_slowly(points[i], lengths[i], pose, i, 2.3, 2.0), atol=0.6)


def test_the_embedded_file_is_small_and_says_whose_it_is() -> None:
    folder = importlib.resources.files("sparse_plugins.fed.strokes")
    assert len((folder / "strokes.npz").read_bytes()) < 20_000
    terms = (folder / "LICENSE.txt").read_text()
    assert "originally created by Dr. A. V. Hershey" in terms
    assert "James Hurt" in terms
    points, lengths = glyphs()
    assert (points.max(2) - points.min(2)).max(-1) == pytest.approx(1)
    assert (lengths > 0.8).all()  # below 1 where the pen jumps from the dot to the stem
