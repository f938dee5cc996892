"""How far outputs and gradients of shrunk networks are from those of masked ones, in float32 and in float64.

    python -m experiments.benchmarks.shrink_exact

Half of each group's channels are kept, by norm; differences are shares of the largest entry. Nothing is timed.
"""

import argparse
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.shrink import NETWORKS
from experiments.harness.tables import markdown_table
from sparse_plugins import core


def differences(name: str, dtype: Any, sparsity: float) -> tuple[float, float]:
    """The largest difference of outputs, and of gradients of the sum of squares of outputs, as shares.

    Args:
        name: One of `NETWORKS`.
        dtype: Of parameters and inputs.
        sparsity: Fraction of each group's channels that leave.
    """
    model, shape = NETWORKS[name]
    x = jax.random.normal(jax.random.key(0), (2, *shape[1:]), dtype)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), x))
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    graph = core.channel_graph(model.apply, variables, x)
    masks = core.channel_masks(graph, variables, sparsity)
    if "batch_stats" in masks:
        masks["batch_stats"] = jax.tree.map(lambda _: core.NOT_PRUNED, variables["batch_stats"])
    small = core.shrink(graph, variables, masks)

    def evaluated(apply: Any, variables: Any) -> tuple[Any, Any]:
        outputs = jax.jit(apply)(variables, x)
        return outputs, jax.jit(jax.grad(lambda variables: jnp.sum(apply(variables, x) ** 2)))(variables)

    outputs, grads = evaluated(model.apply, core.apply_masks(variables, masks))
    small_outputs, small_grads = evaluated(small.apply, small.params)
    kept = core.expand(small, jax.tree.map(jnp.ones_like, small.params))
    of_kept = jax.tree.map(jnp.multiply, grads, kept)
    return _share(outputs, small_outputs), _share(of_kept, core.expand(small, small_grads))


def _share(tree: Any, other: Any) -> float:
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))
    return max(float(np.abs(a - b).max()) for a, b in pairs) / max(float(np.abs(a).max()) for a, _ in pairs)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of each group's channels that leave")
    parser.add_argument("--only", choices=NETWORKS, nargs="+", default=list(NETWORKS), help="these networks alone")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        for dtype in ("float32", "float64"):
            measured = functools.partial(differences, name, jnp.dtype(dtype), options.sparsity)
            with jax.enable_x64(dtype == "float64"):
                rows.append((name, dtype, *(f"{share:.1e}" for share in measured())))
    print(markdown_table(("network", "", "outputs", "gradients"), rows))


if __name__ == "__main__":
    main()
