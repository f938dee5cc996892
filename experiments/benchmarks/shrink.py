"""What pruned channels save once they have left: a masked network against the smaller one it becomes.

    python -m experiments.benchmarks.shrink --sparsity 0.5

Half of each group's channels are kept, by norm. Both networks compute the same, which is checked; they run in one
process in shuffled order, and a second masked copy is the control. A training step is the gradient of a sum of squares.
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks.timing import interleave, table
from experiments.vision.resnet import cifar_resnet
from experiments.vision.vit import ViT
from sparse_plugins import core


class NatureDQN(nn.Module):
    """Mnih et al. (2015), with 18 actions."""

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """Float [N, 84, 84, 4] to values [N, 18]."""
        x = frames
        for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.relu(nn.Conv(features, (size, size), (stride, stride))(x))
        return nn.Dense(18)(nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1))))


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Nature DQN, batch 32": (NatureDQN(), (32, 84, 84, 4)),
    "Nature DQN, batch 1": (NatureDQN(), (1, 84, 84, 4)),
    "ResNet-20, batch 64": (cifar_resnet(20, 16, 10), (64, 32, 32, 3)),
    "ViT, 4 blocks of 128, batch 16": (
        ViT(patch=4, width=128, layers=4, heads=4, mlp_dim=512, num_classes=10),
        (16, 32, 32, 3),
    ),
}


def main() -> None:
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="counted rounds")
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of each group's channels that leave")
    parser.add_argument("--only", choices=NETWORKS, help="this network alone")
    options = parser.parse_args()
    for name in [options.only] if options.only else NETWORKS:
        measure(name, options.sparsity, options.rounds)


def measure(name: str, sparsity: float, rounds: int) -> None:
    """Shrinks one network and times both."""
    model, shape = NETWORKS[name]
    key = jax.random.key(0)
    x = jax.random.normal(key, shape)
    variables = nn.meta.unbox(jax.jit(model.init)(key, x))
    graph = core.channel_graph(model.apply, variables, x)
    masks = core.channel_masks(graph, variables, sparsity)
    if "batch_stats" in masks:  # running statistics shrink along, but are no weights
        masks["batch_stats"] = jax.tree.map(lambda _: core.NOT_PRUNED, variables["batch_stats"])
    small = core.shrink(graph, variables, masks)
    masked = core.apply_masks(variables, masks)

    def step(apply: Any) -> Any:
        return jax.jit(jax.grad(lambda variables, x: jnp.sum(apply(variables, x) ** 2)))

    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    print(f"### {name}: {count(variables):,} -> {count(small.params):,} parameters, {len(graph.groups)} groups\n")
    for what, make in (("forward", jax.jit), ("training step", step)):
        dense, smaller = make(model.apply), make(small.apply)
        sides = {
            f"{what}, smaller": lambda smaller=smaller: smaller(small.params, x),
            f"{what}, masked": lambda dense=dense: dense(masked, x),
            f"{what}, masked again": lambda dense=dense: dense(masked, x),
        }
        print(table(interleave(sides, f"{what}, smaller", rounds), {}) + "\n", flush=True)


if __name__ == "__main__":
    main()
