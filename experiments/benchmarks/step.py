"""What a step without a mask change costs: sparse Adam against dense Adam on a ResNet-50-sized tree.

    python -m experiments.benchmarks.step --rounds 40

Both sides run in one process, donated and jitted, in shuffled order; the second dense copy is a control. The state is
in the middle of a schedule, between two mask changes.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.models import random_tree, resnet50_shapes
from experiments.benchmarks.timing import interleave, table
from sparse_plugins import core

ALGORITHMS = ("magnitude", "global_magnitude", "static_sparse", "set", "rigl", "magnitude_ste")


def _contestant(tx: optax.GradientTransformation, params: dict, grads: dict) -> tuple[Callable, str]:
    """A function that makes one step, and what the compiler says about the step's memory."""

    def step(params: dict, state: tuple, grads: dict) -> tuple:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    temporary = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
    carried = [jax.tree.map(jnp.copy, params), state]

    def run() -> dict:
        carried[:] = compiled(*carried, grads)
        return carried[0]

    return run, f"state {_megabytes(state)} MB, temporary {temporary / 1e6:.0f} MB"


def _megabytes(tree: tuple) -> str:
    return f"{sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6:.0f}"


def _updater(algorithm: str, sparsity: float, packed: bool) -> core.BaseUpdater:
    # Warm-up steps lie before the schedule's start and the counted ones long before its second mask change.
    return core.create_updater_from_config(
        algorithm=algorithm,
        sparsity=sparsity,
        use_packed_masks=packed,
        update_freq=1_000_000,
        update_start_step=1,
        update_end_step=2_000_001,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="counted rounds; one step of each side a round")
    parser.add_argument("--sparsity", type=float, default=0.8, help="target sparsity in [0, 1]")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage; 64 is ResNet-50")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, help="names known to the core")
    options = parser.parse_args()
    shapes = resnet50_shapes(options.width)
    params, grads = random_tree(shapes, 0, 0.05), random_tree(shapes, 1, 0.001)
    adam = optax.adam(1e-3)
    transformations = {"dense": adam, "dense, again": adam}
    for algorithm in options.algorithms:
        updater = _updater(algorithm, options.sparsity, packed=True)
        transformations[algorithm] = updater.wrap_optax(adam)
        if algorithm in ("magnitude", "rigl"):
            transformations[f"{algorithm}, explicit refresh"] = updater.wrap_optax(adam, refresh_in_graph=False)
    transformations["magnitude, uint8"] = _updater("magnitude", options.sparsity, packed=False).wrap_optax(adam)
    contestants, notes = {}, {}
    for name, tx in transformations.items():
        contestants[name], notes[name] = _contestant(tx, params, grads)
    print(f"step without a mask change / dense Adam step; {jax.default_backend()}, jax {jax.__version__}")
    print(table(interleave(contestants, "dense", options.rounds), notes))


if __name__ == "__main__":
    main()
