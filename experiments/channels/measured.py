"""What a trained network takes: time of a step beside dense training's, bytes of its file, and parameters left."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.timing import interleave
from sparse_plugins import core
from sparse_plugins.core.masks import map_pruned


def shares_of_time(step: Callable[[], Any], dense_step: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Time of a step as a share of dense training's: of processors and on the wall, medians of interleaved calls."""
    timed = interleave({"dense": dense_step, "this": step}, "dense", rounds, warm=1)["this"]
    return {"cpu_share": timed.cpu_ratio, "wall_share": timed.ratio}


def stored(params: Any, optimizer: Any, dense_size: int) -> dict[str, float]:
    """What is stored of a network, and what it has beside 0.

    Args:
        params: Parameters in use.
        optimizer: Optimizer state that holds their masks.
        dense_size: Parameters of the dense network.
    """
    masks = core.unpack_masks(params, core.find_sparse_state(optimizer).masks)
    needed = lambda p, mask: mask if (mask == 0).any() else core.NOT_PRUNED  # noqa: E731
    masks = map_pruned(needed, params, masks, otherwise=lambda p: core.NOT_PRUNED)
    with tempfile.TemporaryDirectory() as folder:
        size = core.export.save_sparse(Path(folder, "model.npz"), params, masks)
    kept = sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(params))
    return {"kilobytes": size / 1000, "kept": kept / dense_size}


def size_of(params: Any) -> int:
    """Parameters of a tree, or of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
