"""Seconds and memory of the graph of a large model, and of shrinking it by half of its channels.

    python -m experiments.benchmarks.shrink_large "ViT-B/16"

One model a process, as the memory is the peak of the process beyond what it had with the model's parameters in it. A
graph is read from shapes; shrinking checks itself by computing outputs of both networks for one example.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.t5.model import BASE, T5
from experiments.vision.resnet import resnet50
from experiments.vision.vit import vit_b16
from sparse_plugins import core

MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "ResNet-50": lambda: (resnet50(1000), (jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),)),
    "ViT-B/16": lambda: (vit_b16(1000), (jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),)),
    "T5 1.1 base": lambda: _t5(),
}


def _t5() -> tuple[nn.Module, tuple[Any, ...]]:
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    return T5(BASE), (tokens, tokens)


def peak() -> int:
    """Bytes, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Prints what it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of each group's channels that leave")
    options = parser.parse_args()
    model, inputs = MODELS[options.model]()
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(0.02 * draw.standard_normal(leaf.shape, np.float32)), shapes)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    began = time.process_time(), time.perf_counter()
    graph = core.channel_graph(model.apply, variables, *inputs)
    _tell("graph", began)
    masks = core.channel_masks(graph, variables, options.sparsity)
    if "batch_stats" in masks:
        masks["batch_stats"] = jax.tree.map(lambda _: core.NOT_PRUNED, variables["batch_stats"])
    before, began = peak(), (time.process_time(), time.perf_counter())
    small = core.shrink(graph, variables, masks)
    _tell("shrink", began)
    left = sum(leaf.nbytes for leaf in jax.tree.leaves(small.params))
    print(f"{options.model}: {len(graph.groups)} groups, {size / 1e6:.0f} MB of parameters, {left / 1e6:.0f} MB left")
    print(f"memory: {(peak() - before) / size:.2f} copies of the parameters beside the one given")


def _tell(what: str, began: tuple[float, float]) -> None:
    busy, passed = time.process_time() - began[0], time.perf_counter() - began[1]
    print(f"{what}: {busy:.1f} s of processor time, {passed:.1f} s", flush=True)


if __name__ == "__main__":
    main()
