"""What masks of a large model cost: seconds and memory of `init`, of the first mask change and of later ones.

    python -m experiments.benchmarks.large --parameters 300

The first change includes compiling it. Memory is what the process takes beside parameters and gradients at its peak: as
the operating system counts it, with the code that was compiled, and in the program of a mask change alone, as the
compiler says. Linux only.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.benchmarks.models import random_tree
from experiments.harness.tables import markdown_table
from sparse_plugins import core

_LAYER = (3000, 4000)


def _megabytes(field: str) -> float:
    """A memory figure of this process: VmRSS is what it has now, VmHWM its peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1e3


def _measured(run: Callable[[], Any]) -> tuple[Any, str]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _megabytes("VmRSS"), time.perf_counter()
    result = jax.block_until_ready(run())
    return result, f"{time.perf_counter() - start:.1f} s, {_megabytes('VmHWM') - before:.0f} MB"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=300, help="millions of float32, in layers of 12 million")
    parser.add_argument("--algorithms", nargs="+", default=["magnitude", "rigl"], help="names known to the core")
    options = parser.parse_args()
    layers = max(1, options.parameters * 1_000_000 // (_LAYER[0] * _LAYER[1]))
    params = random_tree({f"layer{i:02}": {"kernel": _LAYER} for i in range(layers)}, 0, 0.05)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{size / 1e6:.0f} million parameters, {4 * size / 1e6:.0f} MB; one bit each is {size / 8e6:.0f} MB\n")
    rows = []
    for algorithm in options.algorithms:
        settings = {"update_freq": 10, "update_start_step": 1, "update_end_step": 1001}
        updater = core.create_updater_from_config(algorithm=algorithm, sparsity=0.9, **settings)
        tx = updater.wrap_optax(optax.sgd(0.1), refresh_in_graph=False)
        state, first = _measured(functools.partial(tx.init, params))
        compiled: list[Any] = []

        def change(state: Any = state, updater: Any = updater, compiled: list[Any] = compiled) -> Any:
            if not compiled:
                compiled.append(jax.jit(updater.refresh).lower(state, params, params).compile())
            return compiled[0](state, params, params)

        columns = [first, _measured(change)[1], _measured(change)[1]]
        temporary = getattr(compiled[0].memory_analysis(), "temp_size_in_bytes", 0) / 1e6
        rows.append((algorithm, *columns, f"{temporary:.0f} MB"))
    print(markdown_table(("", "init", "first mask change, compiled", "later ones", "in the program"), rows))


if __name__ == "__main__":
    main()
