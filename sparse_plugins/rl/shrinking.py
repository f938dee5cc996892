"""Agents without the channels that masks have pruned: states of several seeds, and the learner they go on with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.checks import check_settled
from sparse_plugins.core.layers.channel_groups import ChannelGraph
from sparse_plugins.core.layers.shrink import Shrunk, shrink, taken
from sparse_plugins.core.transform.state import settled
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.learner import LearnerState

__all__ = ["network_of", "shrunk_learners", "shrunk_seeds", "shrunk_state"]


def shrunk_state(graph: ChannelGraph, state: LearnerState) -> tuple[Shrunk, LearnerState]:
    """A learner's state without the channels that its masks have pruned.

    Args:
        graph: Groups of the network's channels.
        state: The state of one learner.

    Returns:
        What left, and the state.

    Raises:
        ValueError: As `core.shrink`.
    """
    masks, target = state.sparse_state.masks, state.target_params
    small = shrink(graph, state.params, masks, opt_state=state.optimizer_state, also=[target])
    return small, LearnerState(small.params, small.also[0], settled(small.opt_state), state.key)


def shrunk_seeds(graph: ChannelGraph, states: LearnerState) -> tuple[Shrunk, LearnerState]:
    """`shrunk_state` of several seeds, each with the channels that its own masks keep.

    Args:
        graph: Groups of the network's channels.
        states: States with a leading axis of seeds.

    Returns:
        What left the first of them, whose function serves all, and the states.

    Raises:
        ValueError: If seeds keep different numbers of channels, or the network tells its channels apart.
    """
    of_seed = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(states.key.shape[0])]
    small = [shrunk_state(graph, state) for state in of_seed]
    first = small[0][0]
    shapes = [jax.tree.map(jnp.shape, state.params) for _, state in small]
    if any(other != shapes[0] for other in shapes):
        counts = [{name: len(left) for name, left in shrunk.kept.items()} for shrunk, _ in small]
        raise ValueError(f"seeds keep different numbers of channels, {counts}: shrink each by itself.")
    inputs = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), graph.inputs)
    for shrunk, _ in small[1:]:
        outputs = [jax.tree.leaves(apply(shrunk.params, *inputs)) for apply in (first.apply, shrunk.apply)]
        if not all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*outputs, strict=True)):
            raise ValueError("the network tells its channels apart, so seeds need programs of their own: shrink each.")
    return first, jax.tree.map(lambda *leaves: jnp.stack(leaves), *[state for _, state in small])


def shrunk_learners(learner: Any, graph: ChannelGraph, states: LearnerState) -> tuple[Shrunk, LearnerState]:
    """`shrunk_seeds`, for a learner that can be given another network and whose masks have changed for the last time.

    Raises:
        TypeError: If its network cannot be replaced.
        ValueError: If its masks are still going to change; and as `shrunk_seeds`.
    """
    if not hasattr(learner, "with_channels"):
        raise TypeError(
            f"a {type(learner).__name__} has no with_channels(shrunk), which gives it another network: use "
            "rl.haiku.SparseDQN, or shrink its state with core.shrink and make a learner of the smaller network."
        )
    check_settled(learner.updater, int(states.steps[0]))
    return shrunk_seeds(graph, states)


def network_of(init: Callable[..., PyTree], small: Shrunk) -> tuple[Callable[..., PyTree], Callable[..., Any]]:
    """The smaller network: fresh parameters of its shapes, and its function."""
    return lambda *inputs: taken(small.graph, small.kept, init(*inputs)), small.apply
