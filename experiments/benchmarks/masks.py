"""What new masks cost: counting against sorting, for single arrays, structures, stacks and a ResNet-50-sized tree.

    python -m experiments.benchmarks.masks --quick
    python -m experiments.benchmarks.masks --jaxpruner ../jaxpruner

The first row of a table is this library; a ratio of 80 means that a side takes 80 times as long. All sides run in one
process in shuffled order, and must give the same masks first. The sorts are written out below, so that nothing else is
needed; with `--jaxpruner` the same is done against a checkout of that library.
"""

import argparse
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks import jaxpruner
from experiments.benchmarks.models import random_tree, resnet50_shapes
from experiments.benchmarks.timing import compare, interleave, told
from sparse_plugins import core
from sparse_plugins.core.selection.counts import keep_count
from sparse_plugins.core.selection.structured_topk import MaskRule, create_mask
from sparse_plugins.core.selection.topk import exact_topk
from sparse_plugins.core.structures import Block, NByM

TARGET = 0.9
LAYERS = 32  # of a stack


def single_topk(scores: jax.Array, k: jax.Array) -> jax.Array:
    """Our mask of the k largest scores of one array."""
    return exact_topk([scores], k)[0]


def argsort_mask(scores: jax.Array, k: jax.Array) -> jax.Array:
    """The mask of the k largest by a stable sort, ranks scattered back."""
    order = jnp.argsort(-scores.reshape(-1))
    ranks = jnp.zeros(scores.size, jnp.int32).at[order].set(lax.iota(jnp.int32, scores.size), unique_indices=True)
    return (ranks < k).astype(jnp.uint8).reshape(scores.shape)


def argsort_masks(scores: list[jax.Array], k: jax.Array) -> list[jax.Array]:
    """Masks of the k largest of all arrays together, joined for one sort."""
    mask = argsort_mask(jnp.concatenate([score.reshape(-1) for score in scores]), k)
    parts = jnp.split(mask, np.cumsum([score.size for score in scores])[:-1])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def top_k_mask(scores: jax.Array, k: jax.Array, sparsity: float) -> jax.Array:
    """The same by `lax.top_k`, which needs to know k when compiled."""
    _, places = lax.top_k(scores, round((1 - sparsity) * scores.size))
    return jnp.zeros(scores.size, jnp.uint8).at[places].set(1, unique_indices=True)


def argsort_groups(scores: jax.Array, structure: NByM) -> jax.Array:
    """N:M by ranks in groups of m, from two sorts; the axis must divide."""
    last = jnp.moveaxis(scores, structure.place, -1)
    groups = last.reshape(*last.shape[:-1], -1, structure.m)
    ranks = jnp.argsort(jnp.argsort(-groups, axis=-1), axis=-1)
    return jnp.moveaxis((ranks < structure.n).astype(jnp.uint8).reshape(last.shape), -1, structure.place)


def argsort_blocks(scores: jax.Array, structure: Block, k: jax.Array) -> jax.Array:
    """Blocks of a matrix by pooling windows and one sort; both axes must divide."""
    window = structure.block_shape
    pooled = lax.reduce_window(scores, 0.0, lax.add, window, window, "VALID") / math.prod(window)
    best = argsort_mask(pooled, k)
    return jnp.repeat(jnp.repeat(best, window[0], axis=0), window[1], axis=1)


def single_arrays(size: int, rounds: int) -> None:
    """Tables for one array of normal scores."""
    scores = jnp.asarray(np.random.default_rng(0).standard_normal(size, np.float32))
    cases = [(jnp.float32, sparsity) for sparsity in (TARGET, 0.5, 0.8, 0.98)]
    for dtype, sparsity in [*cases, (jnp.bfloat16, TARGET), (jnp.float16, TARGET)]:
        sides = {"counting, k traced": single_topk, "argsort, k traced": argsort_mask}
        if (dtype, sparsity) == (jnp.float32, TARGET):
            sides["lax.top_k, k static"] = functools.partial(top_k_mask, sparsity=sparsity)
        arguments = (scores.astype(dtype), jnp.int32(keep_count(size, sparsity)))
        compare(f"{size:,} {dtype.__name__} scores, sparsity {sparsity}", sides, arguments, rounds)


def trees(width: int, rounds: int) -> None:
    """Tables for the kernels of a ResNet-50."""
    params = random_tree(resnet50_shapes(width), 0, 0.05)
    scores = [jnp.abs(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    counts = [jnp.int32(keep_count(score.size, TARGET)) for score in scores]
    title = f"{len(scores)} kernels, {sum(score.size for score in scores):,} weights"
    apart = {
        "counting": lambda scores, counts: list(map(single_topk, scores, counts)),
        "argsort": lambda scores, counts: list(map(argsort_mask, scores, counts)),
    }
    compare(f"{title}, uniform", apart, (scores, counts), rounds)
    total = jnp.int32(keep_count(sum(score.size for score in scores), TARGET))
    together = {"counting": exact_topk, "argsort of all joined": argsort_masks}
    compare(f"{title}, global", together, (scores, total), rounds)


def stacks(size: int, rounds: int) -> None:
    """A table for a stack of layers, each ranked by itself, against one array of its size."""
    side = math.isqrt(size // LAYERS)
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((LAYERS, side, side), np.float32))
    layers = core.Axes(stack=0, inputs=1, outputs=2).of("kernel", scores.shape)
    sides = {}
    for name, axes in (("one array", None), ("a stack", layers)):
        mask = jax.jit(
            functools.partial(MaskRule(core.Unstructured(), scores.shape, axes).create_mask, sparsity=TARGET)
        )
        sides[name] = functools.partial(mask, scores)
    told(f"{LAYERS} layers, {scores.shape} float32, sparsity {TARGET}", interleave(sides, "one array", rounds))


def structures(size: int, rounds: int) -> None:
    """Tables for 2:4 and 4x4 blocks."""
    draw = np.random.default_rng(0).standard_normal
    matrix = jnp.asarray(draw((size // 4000 // 4 * 4, 4000), np.float32))
    for axis in (-2, -1):
        structure = NByM(2, 4, axis)
        sides = {
            "comparisons": functools.partial(create_mask, structure=structure, sparsity=0.5),
            "argsort": functools.partial(argsort_groups, structure=structure),
        }
        compare(f"2:4, {matrix.shape} float32, axis {axis}", sides, (matrix,), rounds)
    side = math.isqrt(size * 2 // 3) // 4 * 4
    # Few bits, so that sums are exact in any order and both sides see the same ties.
    matrix = jnp.asarray(np.rint(64 * draw((side, side), np.float32)))
    block = Block((4, 4))
    blocks = {
        "sums and counting": lambda scores, k: create_mask(scores, block, TARGET),
        "reduce_window and argsort": lambda scores, k: argsort_blocks(scores, block, k),
    }
    k = jnp.int32(keep_count(block.units(matrix.shape), TARGET))
    compare(f"4x4 blocks, {matrix.shape} float32", blocks, (matrix, k), rounds)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=24_000_000, help="scores of the single arrays, from 16000 up")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, 3 at least; a sort takes seconds")
    parser.add_argument("--quick", action="store_true", help="a million scores, a narrow network, 3 rounds")
    parser.add_argument("--jaxpruner", metavar="PATH", help="a checkout of JaxPruner to compare with instead")
    options = parser.parse_args()
    if options.size < 16_000:
        parser.error(f"--size={options.size} is too small for a matrix of 4000 columns; give 16000 or more.")
    size, rounds, width = (1_000_000, 3, 16) if options.quick else (options.size, options.rounds, 64)
    print(f"{jax.default_backend()}, {jax.device_count()} device, jax {jax.__version__}\n")
    if options.jaxpruner is not None:
        jaxpruner.report(options.jaxpruner, size, width, rounds)
        return
    single_arrays(size, rounds)
    trees(width, rounds)
    structures(size, rounds)
    stacks(size, rounds)


if __name__ == "__main__":
    main()
