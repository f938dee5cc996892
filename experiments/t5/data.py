"""Texts as bytes: the manual that ships with Python, or C4; random stretches of them, with spans hidden."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common.supervised.data import Array, Batch, read_ahead, stacked, tfds_sources
from experiments.t5.spans import corrupt, encode

NAMES = ("manual", "c4")
TEST_TEXTS = 512
TEST_BATCH = 128


class Texts(NamedTuple):
    """A data set of texts; batches hold what `spans.corrupt` makes, [n, ...].

    Attributes:
        train: From batch size and seed to batches without end.
        test: All test batches, the same each time.
        about: What it is, in a phrase.
    """

    train: Callable[[int, int], Iterator[Batch]]
    test: Callable[[], Iterable[Batch]]
    about: str


def load(name: str, length: int, vocabulary: int) -> Texts:
    """Loads texts.

    Args:
        name: One of `NAMES`.
        length: Tokens of a text, before spans are hidden.
        vocabulary: Number of tokens.

    Raises:
        DataUnavailableError: C4 is not on this machine.
        ValueError: There is no such data set.

    Example:
        >>> texts = load("manual", 64, 384)
        >>> {name: tokens.shape for name, tokens in next(texts.train(2, 0)).items()}
        {'inputs': (2, 58), 'targets': (2, 14), 'decoder_inputs': (2, 14)}
    """
    if name == "manual":
        return _manual(length, vocabulary)
    if name == "c4":
        train, validation = tfds_sources("c4/en", ("train", "validation"))
        return from_sources(train, validation, length, vocabulary, "C4")
    raise ValueError(f"--data is {name!r}; allowed are {', '.join(NAMES)}.")


def manual() -> tuple[list[str], list[str], str]:
    """What Python's `help` knows of keywords and topics: English prose with some code.

    Returns:
        Topics to train on, topics to test with (every eighth by name), and the SHA-256 of all: the text is that of the
        running Python, so numbers of two versions can't be compared.
    """
    from pydoc_data import topics

    ordered = [topics.topics[name] for name in sorted(topics.topics)]
    digest = hashlib.sha256("\0".join(ordered).encode()).hexdigest()
    test = ordered[::8]
    return [text for i, text in enumerate(ordered) if i % 8], test, digest


def _manual(length: int, vocabulary: int) -> Texts:
    train_texts, test_texts, digest = manual()
    train, test = (np.concatenate([*map(encode, texts)]) for texts in (train_texts, test_texts))

    def batch(tokens: Array, count: int, rng: np.random.Generator) -> Batch:
        starts = rng.integers(len(tokens) - length + 1, size=count)
        return stacked([corrupt(tokens[start : start + length], vocabulary, rng) for start in starts])

    def train_batches(batch_size: int, seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng([seed, 1])
        while True:
            yield batch(train, batch_size, rng)

    def test_batches() -> Iterator[Batch]:
        rng = np.random.default_rng(0)
        return (batch(test, TEST_BATCH, rng) for _ in range(TEST_TEXTS // TEST_BATCH))

    about = (
        f"topics of Python's manual as bytes, {len(train):,} to train on and {len(test):,} of other topics to test"
        f" with (SHA-256 {digest[:12]})"
    )
    return Texts(train_batches, test_batches, about)


def from_sources(
    train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]], length: int, vocabulary: int, about: str
) -> Texts:
    """Texts that are read as they are needed, as bytes, with a thread per processor.

    Args:
        train: Examples by row, with a `text`.
        test: The same.
        length: Tokens of a text, before spans are hidden.
        vocabulary: Number of tokens.
        about: What it is.
    """
    threads = os.cpu_count() or 1

    def batches(source: Sequence[Mapping[str, Any]], seeds: Iterable[Sequence[Any]]) -> Iterator[Batch]:
        def read(seed: Any) -> Batch:
            rng = np.random.default_rng(seed)
            return corrupt(window(source, length, rng), vocabulary, rng)

        return read_ahead(seeds, read, threads)

    def train_batches(batch_size: int, seed: int) -> Iterator[Batch]:
        step = iter(range(2**62))
        return batches(train, ([(seed, 1, at, i) for i in range(batch_size)] for at in step))

    def test_batches() -> Iterator[Batch]:
        return batches(test, ([(0, at, i) for i in range(TEST_BATCH)] for at in range(TEST_TEXTS // TEST_BATCH)))

    return Texts(train_batches, test_batches, f"{about} as bytes, {len(train):,} texts to train on")


def window(source: Sequence[Mapping[str, Any]], length: int, rng: np.random.Generator) -> Array:
    """A stretch of tokens from a random place of a random text on, through as many texts behind it as it takes.

    Args:
        source: Examples with a `text`.
        length: Tokens.
        rng: Decides.

    Returns:
        int32 [length].
    """
    row = int(rng.integers(len(source)))
    first = encode(source[row]["text"])
    tokens = first[rng.integers(len(first)) :]
    while len(tokens) < length:
        row = (row + 1) % len(source)
        tokens = np.concatenate([tokens, encode(source[row]["text"])])
    return tokens[:length]
