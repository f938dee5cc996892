"""Images: scikit-learn's digits, the repository's own handwriting of held-out writers, or ImageNet."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.supervised.data import (
    Array,
    Batch,
    padded_batches,
    read_ahead,
    shuffled_batches,
    shuffled_rows,
    tfds_sources,
)

NAMES = ("digits", "strokes", "imagenet2012")
TEST_BATCH = 500
STROKES_WRITERS = 60
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, as all use them


class Images(NamedTuple):
    """A data set of images with classes; batches hold `image` float32 [n, H, W, C] and `label` int32 [n].

    Attributes:
        shape: [H, W, C] of an image.
        num_classes: Number of classes.
        train: From batch size and seed to batches without end.
        test: All test batches, which also hold `weight`.
        about: What it is, in a phrase.
    """

    shape: tuple[int, int, int]
    num_classes: int
    train: Callable[[int, int], Iterator[Batch]]
    test: Callable[[], Iterable[Batch]]
    about: str


def load(name: str, size: int) -> Images:
    """Loads images.

    Args:
        name: One of `NAMES`.
        size: Pixels of each side, to which images are resized.

    Raises:
        DataUnavailableError: ImageNet is not on this machine.
        ValueError: There is no such data set.

    Example:
        >>> digits = load("digits", 16)
        >>> digits.shape, digits.num_classes, next(digits.train(4, 0))["image"].shape
        ((16, 16, 1), 10, (4, 16, 16, 1))
    """
    loaders = {"digits": _digits, "strokes": _strokes, "imagenet2012": _imagenet2012}
    if name not in loaders:
        raise ValueError(f"--data is {name!r}; allowed are {', '.join(NAMES)}.")
    return loaders[name](size)


def _in_memory(train: Batch, test: Batch, size: int, num_classes: int, about: str) -> Images:
    """Resizes images, and shifts and scales them by mean and deviation of those trained on."""
    train, test = ({**split, "image": _resized(split["image"], size)} for split in (train, test))
    mean, deviation = train["image"].mean(), train["image"].std()
    train, test = ({**split, "image": (split["image"] - mean) / deviation} for split in (train, test))
    counts = f"{len(train['label']):,} to train on and {len(test['label']):,} to test with"
    return Images(
        train["image"].shape[1:],
        num_classes,
        lambda batch_size, seed: shuffled_batches(train, batch_size, seed),
        lambda: padded_batches(test, TEST_BATCH),
        f"{about} at {size} x {size} pixels, {counts}",
    )


def _resized(images: Array, size: int) -> Array:
    shape = (len(images), size, size, images.shape[-1])
    return np.asarray(images if images.shape == shape else jax.image.resize(images, shape, "bilinear"))


def _digits(size: int) -> Images:
    """Scikit-learn's 1,797 real digits of 8 x 8 pixels; every fourth is a test image.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository (1998).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images[..., None].astype(np.float32) / 16, bunch.target.astype(np.int32)
    is_test = np.arange(len(labels)) % 4 == 3
    train, test = ({"image": images[rows], "label": labels[rows]} for rows in (~is_test, is_test))
    return _in_memory(train, test, size, 10, "scikit-learn's digits (real handwriting, 10 classes)")


def _strokes(size: int) -> Images:
    """The repository's 62 classes of synthetic pen strokes; test images are of other writers."""
    from sparse_plugins import fed

    fed.import_fedjax()
    from sparse_plugins.fed import strokes

    def of_writers(data: Any) -> dict[str, Array]:
        clients = [dataset.all_examples() for _, dataset in data.clients()]
        return {
            new: np.concatenate([client[old] for client in clients]) for new, old in (("image", "x"), ("label", "y"))
        }

    unseen = STROKES_WRITERS // 6
    data, _ = strokes.load(STROKES_WRITERS + unseen, seed=0, cached_writers=0)
    border = strokes.client_id(STROKES_WRITERS)
    train, test = of_writers(data.slice(stop=border)), of_writers(data.slice(start=border))
    about = f"strokes (synthetic pen strokes, 62 classes, {STROKES_WRITERS} writers and {unseen} unseen ones)"
    return _in_memory(train, test, size, 62, about)


def _imagenet2012(size: int) -> Images:
    train, validation = tfds_sources("imagenet2012", ("train", "validation"))
    return from_sources(train, validation, size, 1000, "ImageNet 2012")


def from_sources(
    train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]], size: int, num_classes: int, about: str
) -> Images:
    """Images that are read and cropped as they are needed, with a thread per processor.

    Args:
        train: Examples by row: `image` uint8 [any height, any width, 3] and `label`.
        test: The same.
        size: Pixels of each side of a crop.
        num_classes: Number of classes.
        about: What it is.
    """
    threads = os.cpu_count() or 1

    def train_batches(batch_size: int, seed: int) -> Iterator[Batch]:
        epochs = shuffled_rows(len(train), batch_size, seed)
        seeds = ([(int(row), (seed, step, i)) for i, row in enumerate(rows)] for step, rows in enumerate(epochs))
        read = lambda place: _example(train[place[0]], random_crop, size, place[1])  # noqa: E731
        return read_ahead(seeds, read, threads)

    def test_batches() -> Iterator[Batch]:
        rows = padded_batches({"row": np.arange(len(test))}, TEST_BATCH)
        places = ([*zip(batch["row"].tolist(), batch["weight"], strict=True)] for batch in rows)
        read = lambda place: {**_example(test[place[0]], centre_crop, size, ()), "weight": place[1]}  # noqa: E731
        return read_ahead(places, read, threads)

    described = f"{about} at {size} x {size} pixels, {len(train):,} to train on and {len(test):,} to test with"
    return Images((size, size, 3), num_classes, train_batches, test_batches, described)


def _example(example: Mapping[str, Any], crop: Callable[..., Array], size: int, seed: Any) -> dict[str, Array]:
    pixels = crop(example["image"], size, np.random.default_rng(seed))
    image = (pixels.astype(np.float32) / 255 - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
    return {"image": image, "label": np.asarray(example["label"], np.int32)}


def random_crop(image: Array, size: int, rng: np.random.Generator) -> Array:
    """A part of 8 to 100 % of the area with sides of 3:4 to 4:3, mirrored half of the time.

    Args:
        image: uint8 [H, W, 3].
        size: Pixels of each side of the result.
        rng: Decides.

    Returns:
        uint8 [size, size, 3].

    Source: Szegedy et al., Going Deeper with Convolutions (2015).
    """
    height, width = image.shape[:2]
    area = height * width * rng.uniform(0.08, 1.0)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    rows = min(max(round(np.sqrt(area / aspect)), 1), height)
    columns = min(max(round(np.sqrt(area * aspect)), 1), width)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    cropped = _scaled(image, size, (left, top, left + columns, top + rows))
    return cropped[:, ::-1] if rng.random() < 0.5 else cropped


def centre_crop(image: Array, size: int, rng: np.random.Generator | None = None) -> Array:
    """The middle square of seven eighths of the shorter side, as of 224 in 256 pixels.

    Args:
        image: uint8 [H, W, 3].
        size: Pixels of each side of the result.
        rng: Without use; for the same call as `random_crop`.

    Returns:
        uint8 [size, size, 3].
    """
    height, width = image.shape[:2]
    side = 7 * min(height, width) / 8
    left, top = (width - side) / 2, (height - side) / 2
    return _scaled(image, size, (left, top, left + side, top + side))


def _scaled(image: Array, size: int, box: tuple[float, float, float, float]) -> Array:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))
