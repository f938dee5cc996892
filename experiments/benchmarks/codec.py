"""How many bytes a sparse message takes, against the entropy bound, and how long coding takes.

    python -m experiments.benchmarks.codec

The model is FedJAX's convolutional one for EMNIST without biases (1,206,304 weights), values are normal, masks random
with exact counts. The bound is n H(d) / 8 bytes for positions and the values as they travel (an int8 with 1/256 of a
float32 scale). Times are medians in one process, in shuffled order, against the dense message of the same model.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.timing import Timing, interleave, table
from experiments.harness.tables import markdown_table
from sparse_plugins.core.masks import NOT_PRUNED, is_pruned
from sparse_plugins.wire import SeededMasks, decode, encode
from sparse_plugins.wire.value_codes import DTYPES, PER_SCALE

SHAPES = {"conv1": (3, 3, 1, 32), "conv2": (3, 3, 32, 64), "dense1": (9216, 128), "dense2": (128, 62)}
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8 + 32 / PER_SCALE}
Tree = dict[str, Any]


class Message(NamedTuple):
    """What one message is made of: arguments of `encode`."""

    masks: Tree
    values: Tree
    options: dict[str, Any]

    def encode(self) -> bytes:
        """The payload."""
        return encode(self.masks, self.values, **self.options)

    def value_bytes(self) -> int:
        """Bytes of the values that travel."""
        sizes = [
            mask.sum(dtype=np.int64) if is_pruned(mask) else self.values[name].size for name, mask in self.masks.items()
        ]
        if self.options.get("dtype") == "int8":
            return int(sum(size + 4 * -(-size // PER_SCALE) for size in sizes))
        return int(4 * sum(sizes))

    def decode(self, payload: bytes) -> Any:
        """What a receiver makes of it."""
        return decode(payload, like=self.values, base=self.options.get("base"))


def entropy(density: float) -> float:
    """Bits that one entry of an independent mask carries."""
    return -sum(p * np.log2(p) for p in (density, 1 - density) if p > 0)


def random_values(rng: np.random.Generator) -> Tree:
    """Normal parameters of the model."""
    return {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in SHAPES.items()}


def random_masks(rng: np.random.Generator, sparsity: float) -> Tree:
    """Masks of the model that keep `round((1 - sparsity) * n)` entries of each leaf."""
    masks = {}
    for name, shape in SHAPES.items():
        flat = np.zeros(np.prod(shape), np.uint8)
        flat[rng.choice(flat.size, round((1 - sparsity) * flat.size), replace=False)] = 1
        masks[name] = flat.reshape(shape)
    return masks


def replaced(rng: np.random.Generator, masks: Tree, fraction: float) -> Tree:
    """Masks in which a fraction of the kept entries was dropped and as many others were grown."""
    renewed = {}
    for name, mask in masks.items():
        flat = mask.ravel().copy()
        count = round(fraction * flat.sum())
        dropped = rng.choice(np.flatnonzero(flat), count, replace=False)
        grown = rng.choice(np.flatnonzero(flat == 0), count, replace=False)
        flat[dropped], flat[grown] = 0, 1
        renewed[name] = flat.reshape(mask.shape)
    return renewed


def bound(masks: Tree, dtype: str) -> float:
    """Bytes that no code of independent positions and values as they travel goes below."""
    bits = [m.size * entropy(m.mean(dtype=np.float64)) + BITS[dtype] * m.sum(dtype=np.int64) for m in masks.values()]
    return sum(bits) / 8


def sizes(values: Tree, sparsities: Sequence[float], rng: np.random.Generator) -> str:
    """A table of bytes by sparsity and dtype."""
    dense = 4 * sum(value.size for value in values.values())
    zstds = (False, True) if find_spec("zstandard") else (False,)
    rows = []
    for sparsity in sparsities:
        masks = random_masks(rng, sparsity)
        for dtype in DTYPES:
            for zstd in zstds:
                message = Message(masks, values, {"dtype": dtype, "zstd": zstd})
                payload = message.encode()
                ratios = [f"{len(payload) / other:.4f}" for other in (bound(masks, dtype), dense)]
                forms = ", ".join(message.decode(payload).forms)
                rows.append((f"{sparsity:g}", dtype, str(zstd), f"{len(payload):,}", *ratios, forms))
    return markdown_table(("sparsity", "dtype", "zstd", "bytes", "/ bound", "/ dense float32", "forms"), rows)


def messages(values: Tree, sparsity: float, rng: np.random.Generator) -> dict[str, Message]:
    """One message for each way to state masks, at one sparsity."""
    masks, seed = random_masks(rng, sparsity), SeededMasks.of(seed=0)
    drawn = seed.masks(values, {name: int(mask.sum()) for name, mask in masks.items()})
    return {
        "dense": Message(dict.fromkeys(values, NOT_PRUNED), values, {}),
        "gaps or bitmask": Message(masks, values, {}),
        "base, same masks": Message(masks, values, {"base": masks}),
        "base, 5 % replaced": Message(replaced(rng, masks, 0.05), values, {"base": masks}),
        "base, 20 % replaced": Message(replaced(rng, masks, 0.2), values, {"base": masks}),
        "seed": Message(drawn, values, {"seed": seed}),
        "gaps, int8": Message(masks, values, {"dtype": "int8"}),
    }


def measure(
    values: Tree, sparsity: float, rng: np.random.Generator, rounds: int
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times of encoding and decoding, with the bytes that are not values."""
    contestants: dict[str, Callable[[], Any]] = {}
    notes = {}
    for name, message in messages(values, sparsity, rng).items():
        payload = message.encode()
        notes[f"encode: {name}"] = f"{len(payload):,} B, {len(payload) - message.value_bytes():,} of them not values"
        contestants[f"encode: {name}"] = message.encode
        contestants[f"decode: {name}"] = functools.partial(message.decode, payload)
    return interleave(contestants, "encode: dense", rounds), notes


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sparsities", nargs="+", type=float, default=(0.8, 0.9, 0.95, 0.98), help="sparsities in [0, 1)"
    )
    parser.add_argument("--rounds", type=int, default=21, help="counted rounds, at least 3")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    values = random_values(rng)
    print(sizes(values, options.sparsities, rng))
    for sparsity in options.sparsities:
        print(
            f"\n### Times at sparsity {sparsity:g}\n\n{table(*measure(values, sparsity, rng, options.rounds))}",
            flush=True,
        )


if __name__ == "__main__":
    main()
