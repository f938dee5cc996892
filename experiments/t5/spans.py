"""T5's span corruption: spans of a text give way to sentinels, and the targets say what stood there."""

from typing import Any, NamedTuple

import numpy as np

from experiments.common.supervised.data import Array

NOISE_DENSITY = 0.15
MEAN_SPAN = 3.0

# Tokens: 0 pads and starts the decoder, 1 ends a text, 2 is not used, bytes follow, sentinels are counted from the
# top of the vocabulary down; as in ByT5 (Xue et al., 2021).
PAD, END, FIRST_BYTE = 0, 1, 3


class Lengths(NamedTuple):
    """How long everything is, which follows from the length of the text alone.

    Attributes:
        text: Tokens of a text.
        noise: How many of these are hidden.
        spans: In how many pieces.
        inputs: Tokens that the encoder gets: what is not hidden, a sentinel per span, and the end.
        targets: Tokens to predict: per span its sentinel and what is hidden, and the end.
    """

    text: int
    noise: int
    spans: int
    inputs: int
    targets: int


def lengths(text: int) -> Lengths:
    """Lengths for texts of so many tokens, 4 or more.

    Raises:
        ValueError: If the text is too short to hide and to show anything.

    Example:
        >>> lengths(100)
        Lengths(text=100, noise=15, spans=5, inputs=91, targets=21)
    """
    if text < 4:
        raise ValueError(f"a text has {text} tokens; span corruption needs 4 or more.")
    noise = min(max(round(text * NOISE_DENSITY), 1), text - 1)
    spans = min(max(round(noise / MEAN_SPAN), 1), text - noise)
    return Lengths(text, noise, spans, text - noise + spans + 1, noise + spans + 1)


def encode(text: str | bytes) -> Array:
    """The tokens of a text: its UTF-8 bytes, and the end; int32 [n + 1].

    Example:
        >>> encode("hi").tolist()
        [107, 108, 1]
    """
    octets = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)
    return np.append(octets.astype(np.int32) + FIRST_BYTE, np.int32(END))


def random_parts(total: int, parts: int, rng: np.random.Generator) -> Array:
    """Lengths of 1 or more that add up to a total, each way to cut it as likely as any other; int [parts]."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt(text: Array, vocabulary: int, rng: np.random.Generator) -> dict[str, Array]:
    """Hides spans of a text, which begins with a shown one and ends with a hidden one.

    Args:
        text: int32 [n], tokens below the sentinels.
        vocabulary: Number of tokens; the first sentinel is the last of them.
        rng: Decides where spans lie.

    Returns:
        `inputs` int32 [inputs], `targets` int32 [targets] and `decoder_inputs`, the targets shifted right by one
        behind a `PAD`; lengths as of `lengths`.

    Raises:
        ValueError: If sentinels and bytes would share tokens.

    Example:
        >>> batch = corrupt(np.arange(10, 30), 384, np.random.default_rng(0))
        >>> batch["inputs"].tolist()
        [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 383, 1]
        >>> batch["targets"].tolist()
        [383, 27, 28, 29, 1]

    Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (2020).
    """
    size = lengths(len(text))
    sentinels = vocabulary - 1 - np.arange(size.spans)
    if sentinels[-1] < FIRST_BYTE + 256:
        raise ValueError(f"{size.spans} spans need a vocabulary of {FIRST_BYTE + 256 + size.spans}, got {vocabulary}.")
    shown, hidden = random_parts(len(text) - size.noise, size.spans, rng), random_parts(size.noise, size.spans, rng)
    pieces = np.split(text, np.cumsum(np.stack([shown, hidden], axis=1).ravel())[:-1])
    marks: list[Any] = [[sentinel] for sentinel in sentinels]
    seen = [part for pair in zip(pieces[::2], marks, strict=True) for part in pair]
    wanted = [part for pair in zip(marks, pieces[1::2], strict=True) for part in pair]
    inputs, targets = (np.concatenate([*parts, [END]]).astype(np.int32) for parts in (seen, wanted))
    return {"inputs": inputs, "targets": targets, "decoder_inputs": np.append(np.int32(PAD), targets[:-1])}
