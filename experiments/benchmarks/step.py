"""What a step without a mask change costs, in time and memory: sparse Adam against dense Adam, ResNet-50's size.

    python -m experiments.benchmarks.step --rounds 40

Both sides run in one process, donated and jitted, in shuffled order; the second dense copy is a control. The state is
in the middle of a schedule, between two mask changes. Memory is what the compiler reports for the step: its arguments
(parameters, gradients, state) and the temporary it needs beside them. The ratio of what kernels read and write to what
those of the dense step do is the ratio of times where memory alone takes time.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from experiments.benchmarks.bytes_moved import bytes_moved
from experiments.benchmarks.models import random_tree, resnet50_shapes, stepper
from experiments.benchmarks.timing import Timing, interleave, table
from sparse_plugins import core

ALGORITHMS = ("magnitude", "global_magnitude", "static_sparse", "set", "rigl", "granet", "acdc", "magnitude_ste")
# What is varied for these algorithms: options of the updater, and whether masks are refreshed inside the step.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "explicit refresh": ({}, False),
    "uint8 masks": ({"use_packed_masks": False}, True),
    "masks in zeros": ({"use_packed_masks": "zeros"}, True),
}
VARIED = ("magnitude", "rigl")


def _contestant(tx: optax.GradientTransformation, params: dict, grads: dict) -> tuple[Callable, str]:
    """A function that makes one step, and what the compiler says about the step's memory and traffic."""
    run, compiled, _ = stepper(tx, params, grads)
    moved = bytes_moved(compiled.as_text()) / 1e6
    memory = compiled.memory_analysis()
    arguments, temporary = (getattr(memory, f"{use}_size_in_bytes", 0) / 1e6 for use in ("argument", "temp"))
    return run, f"{arguments:.0f} + {temporary:.0f} MB, {moved:.0f} MB"


def _wrapped(algorithm: str, sparsity: float, in_graph: bool = True, **options: Any) -> optax.GradientTransformation:
    # Warm-up steps lie before the schedule's start and the counted ones long before its second mask change.
    updater = core.create_updater_from_config(
        algorithm=algorithm,
        sparsity=sparsity,
        update_freq=1_000_000,
        update_start_step=1,
        update_end_step=2_000_001,
        **options,
    )
    return updater.wrap_optax(optax.adam(1e-3), refresh_in_graph=in_graph)


def measure(
    algorithms: Sequence[str], sparsity: float, rounds: int, width: int
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times of a step, with what the compiler says of its memory.

    Args:
        algorithms: Names known to the core.
        sparsity: Target fraction of zeros.
        rounds: Counted rounds, at least 3.
        width: Channels of the first stage; 64 is ResNet-50.
    """
    shapes = resnet50_shapes(width)
    params, grads = random_tree(shapes, 0, 0.05), random_tree(shapes, 1, 0.001)
    sides = {"dense": optax.adam(1e-3), "dense, again": optax.adam(1e-3)}
    for algorithm in algorithms:
        sides[algorithm] = _wrapped(algorithm, sparsity)
        for variant, (settings, in_graph) in VARIANTS.items():
            if algorithm in VARIED:
                sides[f"{algorithm}, {variant}"] = _wrapped(algorithm, sparsity, in_graph, **settings)
    contestants, notes = {}, {}
    for name, tx in sides.items():
        contestants[name], notes[name] = _contestant(tx, params, grads)
    return interleave(contestants, "dense", rounds), notes


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="counted rounds; one step of each side a round")
    parser.add_argument("--sparsity", type=float, default=0.8, help="target sparsity in [0, 1]")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage; 64 is ResNet-50")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, help="names known to the core")
    options = parser.parse_args()
    print(f"step without a mask change / dense Adam step; {jax.default_backend()}, jax {jax.__version__}")
    print("last column: arguments + temporary, and what its kernels read and write\n")
    print(table(*measure(options.algorithms, options.sparsity, options.rounds, options.width)))


if __name__ == "__main__":
    main()
