"""How far a reader has to walk to follow one `update`: calls of this package's functions, and changes of file.

    python -m experiments.benchmarks.trace_walk

One traced update of two layers, under Adam; and before it, once, what their names and shapes decide. A change of file
is a call of a function in another file than its caller's (frameworks between the two are not counted), or the return
from it. Up to Python 3.11 a comprehension is a call, too.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparse_plugins
from experiments.harness.tables import markdown_table
from sparse_plugins import core

ALGORITHMS = ("magnitude", "rigl", "magnitude_ste")
_PACKAGE = str(Path(sparse_plugins.__file__).parent)


def traced_calls(updater: core.BaseUpdater) -> tuple[int, int, int, int]:
    """Calls and changes of file of one traced update of two layers; the same of the plan that is made once."""
    params = {"body": {"w": jnp.ones((8, 6))}, "head": {"w": jnp.ones((6, 4))}}
    planned = followed(lambda: updater.leaf_plans(params))
    tx = updater.wrap_optax(optax.adam(1e-3))
    state = tx.init(params)
    jax.clear_caches()
    return *followed(lambda: jax.make_jaxpr(tx.update)(params, state, params)), *planned


def followed(run: Callable[[], Any]) -> tuple[int, int]:
    """Calls of this package's functions in a run, and changes of file between them."""
    calls = changes = 0
    files: list[str] = []  # of the functions that are running

    def follow(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls, changes
        if event not in ("call", "return") or not (file := frame.f_code.co_filename).startswith(_PACKAGE):
            return
        if event == "return":
            if files:  # else what was called before the trace began
                files.pop()
        else:
            calls += 1
        changes += bool(files) and files[-1] != file
        if event == "call":
            files.append(file)

    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        run()
    finally:
        sys.setprofile(before)
    return calls, changes


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, help="names known to the core")
    options = parser.parse_args(arguments)
    rows = []
    for algorithm in options.algorithms:
        updater = core.create_updater_from_config(
            algorithm=algorithm,
            sparsity=0.75,
            dist_type="erk",
            update_freq=2,
            update_start_step=1,
            update_end_step=5,
        )
        rows.append((algorithm, *map(str, traced_calls(updater))))
    print(markdown_table(("one traced update", "calls", "changes of file", "once, calls", "changes"), rows))


if __name__ == "__main__":
    main()
