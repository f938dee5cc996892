"""The same comparisons against JaxPruner itself, for those who have a checkout of it.

Nothing of that library is in this repository: its folder is put on the path when asked for. Run it with
`python -m experiments.benchmarks.masks --jaxpruner PATH`.
"""

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.models import random_tree, resnet50_shapes, stepper
from experiments.benchmarks.timing import Timing, compare, interleave, told
from sparse_plugins import core
from sparse_plugins.core.selection.counts import keep_count
from sparse_plugins.core.selection.topk import exact_topk

# Exact in float32, in which JaxPruner computes how many weights it keeps.
SPARSITY = 0.875


def load(path: str) -> ModuleType:
    """JaxPruner from a checkout.

    Args:
        path: Folder that contains the package `jaxpruner`.

    Returns:
        The package.

    Raises:
        SystemExit: If there is none, or something it needs is not installed.
    """
    if not (Path(path) / "jaxpruner" / "__init__.py").is_file():
        raise SystemExit(f"{path} has no package jaxpruner; give the top folder of a checkout of JaxPruner.")
    sys.path.insert(0, str(Path(path).resolve()))
    vars(jax)["tree_map"] = jax.tree.map  # what JaxPruner calls and current JAX lacks
    try:
        return importlib.import_module("jaxpruner")
    except ModuleNotFoundError as error:
        raise SystemExit(f"JaxPruner needs {error.name}, which is not installed.") from error


def report(path: str, size: int, width: int, rounds: int) -> dict[str, dict[str, Timing]]:
    """Prints tables: one array, mask changes of a tree, and steps between them.

    Args:
        path: Folder that contains the package `jaxpruner`.
        size: Scores of the single array.
        width: Channels of the first stage of the ResNet-50.
        rounds: Counted rounds, at least 3.

    Returns:
        The tables, by what they are of.
    """
    theirs = load(path)
    calculator = importlib.import_module("jaxpruner.mask_calculator")
    scores = jnp.asarray(np.random.default_rng(0).standard_normal(size, np.float32))
    sides = {
        "this library": lambda scores, sparsity: exact_topk([scores], keep_count(size, sparsity))[0],
        "JaxPruner": calculator.topk_mask_calculator,
    }
    arguments = (scores, jnp.float32(SPARSITY))
    found = {"one array": compare(f"{size:,} float32 scores, sparsity {SPARSITY}", sides, arguments, rounds)}
    del scores, sides, arguments
    # Kernels only: JaxPruner's RigL fails on a tree with a leaf that stays dense.
    shapes = {name: {"kernel": layer["kernel"]} for name, layer in resnet50_shapes(width).items()}
    params, grads = random_tree(shapes, 0, 0.05), random_tree(shapes, 1, 0.001)
    for algorithm in ("magnitude", "global_magnitude"):
        found[f"masks, {algorithm}"] = pruned_at_once(theirs, algorithm, params, rounds)
    found["masks, rigl"] = regrown(theirs, params, grads, rounds)
    for algorithm in ("magnitude", "rigl"):
        found[f"step, {algorithm}"] = steady_step(theirs, algorithm, params, grads, 8 * rounds)
    return found


def pruned_at_once(theirs: ModuleType, algorithm: str, params: dict, rounds: int) -> dict[str, Timing]:
    """New masks of the whole tree by magnitude, per layer or over all layers."""
    sides = {}
    for name, updater in _updaters(theirs, algorithm).items():
        if algorithm == "global_magnitude":
            updater.use_normalization = False  # norms may be rounded differently, and masks must be equal
        sides[name] = lambda params, updater=updater: updater.instant_sparsify(params)[1]
    return compare(f"masks of the tree, {algorithm}", sides, (params,), rounds)


def regrown(theirs: ModuleType, params: dict, grads: dict, rounds: int) -> dict[str, Timing]:
    """A mask change of RigL, moments included; first masks are random, so only how many are kept can be compared."""
    ours, reference = _updaters(theirs, "rigl").values()
    adam = optax.adam(1e-3)
    changes = {}
    for name, function, state in (
        ("this library", ours.refresh, ours.wrap_optax(adam, refresh_in_graph=False).init(params)),
        ("JaxPruner", reference.update_state, reference.wrap_optax(adam).init(params)),
    ):
        compiled = jax.jit(function).lower(state, params, grads).compile()
        changes[name] = lambda compiled=compiled, state=state: compiled(state, params, grads)
    kept = [sum(int(jnp.sum(mask)) for mask in jax.tree.leaves(run().masks)) for run in changes.values()]
    title = f"a mask change of RigL; {kept[0]:,} and {kept[1]:,} weights kept"
    return told(title, interleave(changes, "this library", rounds, warm=1))


def steady_step(theirs: ModuleType, algorithm: str, params: dict, grads: dict, rounds: int) -> dict[str, Timing]:
    """Steps between two mask changes, against dense Adam; masks as JaxPruner stores them, and packed."""
    adam = optax.adam(1e-3)
    ours, reference = _updaters(theirs, algorithm).values()
    packed = dataclasses.replace(ours, use_packed_masks=True)
    steppers = {
        "dense Adam": stepper(adam, params, grads),
        "dense Adam, again": stepper(adam, params, grads),
        "this library": stepper(ours.wrap_optax(adam), params, grads),
        "this library, packed masks": stepper(packed.wrap_optax(adam), params, grads),
        "JaxPruner": stepper(reference.wrap_optax(adam), params, grads, reference.post_gradient_update),
    }
    timings = interleave({name: each.run for name, each in steppers.items()}, "dense Adam", rounds)
    notes = {name: f"compile {each.compile_seconds:.1f} s of cpu time" for name, each in steppers.items()}
    return told(f"a step without a mask change, {algorithm}", timings, notes)


def _updaters(theirs: ModuleType, algorithm: str) -> dict[str, Any]:
    """The same algorithm of both libraries; its masks do not change during a benchmark."""
    settings = {"algorithm": algorithm, "sparsity": SPARSITY, "dist_type": "uniform"}
    times = {"update_freq": 1_000_000, "update_start_step": 1, "update_end_step": 2_000_001}
    config = importlib.import_module("ml_collections").ConfigDict({**settings, **times})
    return {
        "this library": core.create_updater_from_config({**settings, **times}, use_packed_masks=False),
        "JaxPruner": theirs.create_updater_from_config(config),
    }
