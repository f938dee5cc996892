"""Dopamine's agents without the channels that masks have pruned: they act, train, evaluate and are saved small.

An agent hands its module to compiled functions of Dopamine, which call its `apply`. After the last change of masks
another object stands there, which computes the same with smaller parameters; the agent notices nothing.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.layers.channel_groups import ChannelGraph, channel_graph
from sparse_plugins.core.layers.narrow_calls import NarrowCalls
from sparse_plugins.core.layers.shrink import Shrunk, put_back, shrink, shrunk_to, taken
from sparse_plugins.core.masks import NOT_PRUNED, apply_masks, is_pruned, map_pruned, unpack_masks
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.structures import ChannelGroups, Unstructured
from sparse_plugins.core.transform.state import find_sparse_state, settled
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.dopamine.network_calls import FirstCall
from sparse_plugins.rl.target_network import HostFollower, TargetPolicy, steps_so_far

__all__ = ["Shrinking", "SmallNetwork", "graph_of", "with_groups"]


class SmallNetwork:
    """A Flax module that has lost channels: `apply` and `init` take and give smaller parameters, all else is its own.

    Args:
        network: The module.
        graph: Groups of its channels.
        left: For each group that lost channels those that are left, int[channels left].

    Example:
        >>> import flax.linen as nn
        >>> network, x = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), jnp.ones((1, 3))
        >>> params = network.init(jax.random.key(0), x)
        >>> graph = channel_graph(network.apply, params, x)
        >>> small = SmallNetwork(network, graph, {"params/layers_0/kernel": np.array([1, 2])})
        >>> small.apply(small.init(jax.random.key(0), x), x).shape
        (1, 2)
    """

    def __init__(self, network: Any, graph: ChannelGraph, left: Mapping[str, np.ndarray]) -> None:
        self._network, self._graph, self._left = network, graph, left
        self._calls = NarrowCalls(graph, left)

    def init(self, *args: Any, **kwargs: Any) -> PyTree:
        """Fresh parameters, as the module draws them for the channels that are left."""
        return taken(self._graph, self._left, self._network.init(*args, **kwargs))

    def apply(self, params: PyTree, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """What the module computes with these parameters."""
        function = functools.partial(self._network.apply, method=method)
        return self._calls(getattr(method, "__name__", method), function, (params,), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_network"], name)


class Shrinking:
    """When an agent shrinks, and to what.

    Args:
        agent: A sparse agent whose networks and optimizer are built.
        optimizer: Its dense optimizer.
        graph: Groups of its network's channels.

    Raises:
        ValueError: If masks change without an end, or the target network keeps channels that the online one loses.
    """

    def __init__(self, agent: Any, optimizer: optax.GradientTransformation, graph: ChannelGraph) -> None:
        self._agent, self._optimizer, self._graph = agent, optimizer, graph
        if agent.target_policy is TargetPolicy.DENSE and agent.target_sparse_params is not None:
            raise ValueError(
                "shrink=True and target_policy 'dense' exclude each other: its channels would have to stay."
            )
        self.planned: BaseUpdater = agent.updater
        due = self.planned.scheduler.refresh_steps()
        if due is None and not self.planned.masks_from_seed:
            raise ValueError("shrink=True, and masks change without an end: give a schedule that has one.")
        self._last = -1 if self.planned.masks_from_seed or due is None or not len(due) else int(np.max(due))
        self._whole = {name: vars(agent)[name] for name in ("network_def", "updater", "follower", "wrapped_optimizer")}
        self.left: dict[str, np.ndarray] = {}
        self.wait()

    def wait(self) -> None:
        """Looks at the agent's state anew, as after a checkpoint was put into it."""
        self._steps, self._seen = steps_so_far(self._agent.optimizer_state), self._agent.steps_taken_over
        self._asks_at = self._seen + (self._steps <= self._last)

    @property
    def channels(self) -> dict[str, np.ndarray]:
        """By group bool[channels]: which are left."""
        groups = self._graph.groups.items()
        return {name: np.isin(np.arange(g.size), self.left.get(name, np.arange(g.size))) for name, g in groups}

    def step(self) -> None:
        """Takes pruned channels out of the agent, if its masks have changed for the last time."""
        agent = self._agent
        if self.left or agent.steps_taken_over < self._asks_at:
            return
        steps, seen = steps_so_far(agent.optimizer_state), agent.steps_taken_over
        if steps <= self._last:  # agents make the same number of steps each time, which the first time tells
            each = max((steps - self._steps) // (seen - self._seen), 1)
            self._steps, self._seen, self._asks_at = steps, seen, seen + -(-(self._last + 1 - steps) // each)
            return
        masks = unpack_masks(agent.sparse_params, find_sparse_state(agent.optimizer_state).masks)
        if all(bool(jnp.all(mask != 0)) for mask in jax.tree.leaves(masks) if is_pruned(mask)):
            self._asks_at = sys.maxsize  # a sparsity so low that every channel stays
            return
        target = agent.target_sparse_params
        if target is not None and not _are_equal(target, apply_masks(target, masks)):
            return  # until the agent copies the online network
        also = [] if target is None else [target]
        self._become(shrink(self._graph, agent.sparse_params, masks, opt_state=agent.optimizer_state, also=also))

    def take(self, channels: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Gives the agent the shapes of some channels, for a checkpoint that has them to be put in.

        Args:
            channels: As `channels` of the agent that wrote it.

        Returns:
            What `give_back` takes.
        """
        agent = self._agent
        before = {name: vars(agent).get(name) for name in (*self._names, "first_check")} | {"left": self.left}
        if all(np.array_equal(mine, channels[name]) for name, mine in self.channels.items()):
            return before
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._graph.params)
        state = self._whole["wrapped_optimizer"].init(params)
        if all(np.all(of_group) for of_group in channels.values()):
            self.left = {}
            self._set(state, params, params, **self._whole)
            return before
        left = {name: np.flatnonzero(of_group) for name, of_group in channels.items() if not np.all(of_group)}
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.uint8), self._graph.params)
        held = put_back(self._graph, left, taken(self._graph, left, ones))
        masks = unpack_masks(params, find_sparse_state(state).masks)
        masks = map_pruned(lambda p, mask, held: held, params, masks, held, otherwise=lambda p, held: NOT_PRUNED)
        also = [] if agent.target_sparse_params is None else [params]
        # The agent that wrote the checkpoint has compared outputs; those of parameters that are all 0 say nothing.
        self._become(shrunk_to(self._graph, left, params, masks, opt_state=state, also=also))
        return before

    def give_back(self, before: Mapping[str, Any]) -> None:
        """Puts back what the agent had before `take`."""
        self.left = before["left"]
        vars(self._agent).update({name: part for name, part in before.items() if name != "left"})

    @property
    def _names(self) -> tuple[str, ...]:
        agent = self._agent
        parts = (*self._whole, "optimizer_state", agent.optimizer_attribute, agent.online_attribute)
        return parts if agent.target_attribute is None else (*parts, agent.target_attribute)

    def _become(self, small: Shrunk) -> None:
        self.left = dict(small.kept)
        self._set(
            settled(small.opt_state),
            small.params,
            *small.also,
            network_def=SmallNetwork(self._whole["network_def"], self._graph, self.left),
            updater=small.updater,
            follower=HostFollower(small.updater, self._agent.target_policy),
            wrapped_optimizer=small.updater.wrap_optax(self._optimizer),
        )

    def _set(self, state: PyTree, params: PyTree, target: PyTree = None, **parts: Any) -> None:
        """Beside the agent's `__setattr__`, which takes what is written for a step."""
        agent = self._agent
        parts |= {"optimizer_state": state, agent.online_attribute: params}
        parts |= {agent.optimizer_attribute: parts["wrapped_optimizer"], "first_check": FirstCheck(parts["updater"])}
        if agent.target_attribute is not None:
            parts[agent.target_attribute] = target
        vars(agent).update(parts)


def graph_of(call: FirstCall, params: PyTree, agent: str) -> ChannelGraph:
    """Groups of the channels of an agent's network, by the call with which it was initialized.

    Raises:
        ValueError: If the network cannot be traced, or nothing can leave it.
    """
    try:
        apply, arrays = call.function()
        graph = channel_graph(apply, params, *arrays)
    except TypeError as error:
        raise ValueError(f"shrink=True, and the network of {agent} cannot be traced: {error}") from error
    if not graph.groups:
        raise ValueError(f"shrink=True, and no channel can leave the network of {agent}:\n{graph}")
    return graph


def with_groups(updater: BaseUpdater, graph: ChannelGraph) -> BaseUpdater:
    """An updater that keeps and prunes channels as wholes.

    Raises:
        ValueError: If it has another structure.
    """
    structure = updater.sparsity_type
    if updater.parts or not isinstance(structure, Unstructured | ChannelGroups):
        raise ValueError(
            f"shrink=True prunes channels as wholes, and the updater has the structure {structure}: leave out one of "
            "the two."
        )
    return dataclasses.replace(updater, sparsity_type=ChannelGroups(graph))


def _are_equal(tree: PyTree, other: PyTree) -> bool:
    return all(bool(jnp.array_equal(a, b)) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))
