"""Functions for parameters that have lost channels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.layers.channel_groups import ChannelGraph, Network, followed, labels, movable
from sparse_plugins.core.layers.factors import Factor
from sparse_plugins.core.layers.smaller_program import Sizes, run, tells_apart
from sparse_plugins.core.trees import PyTree

__all__ = ["has_numbers_of_channels", "narrowed", "run_narrow", "sizes_left"]


def narrowed(graph: ChannelGraph, kept: Mapping[str, np.ndarray]) -> Callable[..., Any]:
    """The function of the graph for parameters that have lost channels; see `taken`."""
    networks: dict[Any, tuple[Any, Sizes]] = {}

    def apply(params: PyTree, *inputs: Any) -> Any:
        leaves, treedef = jax.tree.flatten(inputs)
        types = [(jnp.shape(leaf), jnp.result_type(leaf), jax.typeof(leaf).weak_type) for leaf in leaves]
        key = treedef, tuple(types)
        if key not in networks:
            network = followed(graph.apply, graph.params, inputs)
            networks[key] = network, sizes_left(graph, kept, network.operands)
        return run_narrow(*networks[key], params, *inputs)

    return apply


def has_numbers_of_channels(graph: ChannelGraph, kept: Mapping[str, np.ndarray]) -> bool:
    """Whether the smaller function differs by which channels are left, and not only by how many.

    So it is where a network draws numbers for its channels from a key that is no input, or has constants for them.

    Args:
        graph: The network's groups.
        kept: For each group that loses channels those that are left, int[channels left].

    Example:
        >>> from sparse_plugins import core
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> def apply(params, x):
        ...     return x @ params["a"] * jax.random.normal(jax.random.key(0), (4,))[None] @ params["b"]
        >>> graph = core.channel_graph(apply, params, jnp.ones((1, 3)))
        >>> has_numbers_of_channels(graph, {"a": np.array([1, 2])})
        True
    """
    network = followed(graph.apply, graph.params, graph.inputs)
    return tells_apart(sizes_left(graph, kept, network.operands), network.program, network.walked)


def run_narrow(network: Network, sizes: Sizes, params: PyTree, *inputs: Any) -> Any:
    """Runs a network on parameters of these sizes."""
    results = run(sizes, network.program, network.walked, [*jax.tree.leaves(params), *jax.tree.leaves(inputs)])
    return jax.tree.unflatten(network.result_tree, results)


def sizes_left(graph: ChannelGraph, kept: Mapping[str, np.ndarray], operands: Sequence[Any]) -> Sizes:
    """What is left of the axes of a network with these values of parameters and inputs."""
    left: dict[Factor, np.ndarray] = {}
    for name, channels in kept.items():
        first = graph.groups[name].members[0]
        axis = operands[first.leaf].axes[first.axis]
        match = [factor for factor in movable(axis) if np.array_equal(labels(axis, factor), first.labels)]
        if not match:
            raise ValueError(
                f"with inputs of these shapes the channels of {name!r} cannot leave: make a graph of these inputs."
            )
        left[match[0]] = channels
    return Sizes(left)
