"""Clients that train a narrower network than the server's: a part of each group of channels."""

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import fedjax
import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins import core
from sparse_plugins.core.layers.channel_groups import ChannelGraph, squares_of_channels
from sparse_plugins.core.layers.shrink import narrowed, put_back, taken
from sparse_plugins.core.masks import apply_masks, is_pruned
from sparse_plugins.core.trees import aligned
from sparse_plugins.fed.fedjax.client_training import GradFn, masked_training
from sparse_plugins.fed.messages import name_of
from sparse_plugins.wire.trees import PyTree

__all__ = ["ClientWidths", "Cohort", "NarrowTraining"]

Kept = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ClientWidths:
    """What part of the channels of each group a client gets, trains and sends back.

    Attributes:
        widths: Fractions in (0, 1]: by client id, where the others train the whole network, or a sequence from which
            every client of every round is dealt one. At least one channel of a group is kept.
        channels: 'nested' gives every client the first ones, so that narrow networks lie inside wider ones; 'rolling'
            starts one channel later in each round, so that all are trained in turn; 'largest' gives those that have
            the largest l2 norm on the server, of all that makes and reads them.
        seed: Of the dealing.

    Raises:
        TypeError: If widths are neither.
        ValueError: If a value is not allowed.

    Example:
        >>> ClientWidths({b"phone": 0.5}).of(b"phone", 0), ClientWidths({b"phone": 0.5}).of(b"server", 0)
        (0.5, 1.0)

    Source: Diao et al., HeteroFL (2021), for nested channels; Alam et al., FedRolex (2022), for rolling ones.
    """

    widths: Mapping[Any, float] | Sequence[float]
    channels: Literal["nested", "rolling", "largest"] = "nested"
    seed: int = 0

    def __post_init__(self) -> None:
        given: Any = self.widths
        if not isinstance(given, Mapping | Sequence) or isinstance(given, str) or not given:
            raise TypeError(
                f"widths are {given!r}; give fractions by client id, or a sequence such as (0.25, 0.5, 1.0)."
            )
        for width in given.values() if isinstance(given, Mapping) else given:
            if not isinstance(width, int | float) or not 0 < width <= 1:
                raise ValueError(f"a width is {width!r}; give fractions of the channels in (0, 1].")
        if self.channels not in ("nested", "rolling", "largest"):
            raise ValueError(f"channels is {self.channels!r}; choose 'nested', 'rolling' or 'largest'.")

    def of(self, client: Hashable, number: int) -> float:
        """The width of a client in a round."""
        if isinstance(self.widths, Mapping):
            return float(self.widths.get(client, 1.0))
        return float(random.Random(f"{self.seed} {number} {name_of(client)}").choice(self.widths))

    def kept(self, graph: ChannelGraph, params: PyTree, width: float, number: int) -> Kept:
        """For each group the channels that a width has in a round, int[channels], in order."""
        found = {}
        for name, group in graph.groups.items():
            count = max(1, math.floor(width * group.size + 0.5))
            if self.channels == "largest":
                order = np.argsort(-_squares(graph, params, name), kind="stable")
            else:
                order = np.arange(group.size) + (number if self.channels == "rolling" else 0)
            found[name] = np.sort(order[:count] % group.size)
        return found


class Cohort(NamedTuple):
    """The clients of a round that train one network.

    Attributes:
        clients: They.
        params: What they are sent, in the full shapes.
        masks: uint8 masks of what travels.
        train: A `for_each_client` function, see `masked_training`.
        inside: From a tree of the full shapes to that of the network they train.
        outside: The way back, with 0 where they have nothing.
    """

    clients: list[Any]
    params: PyTree
    masks: PyTree
    train: Callable[..., Any]
    inside: Callable[[PyTree], PyTree]
    outside: Callable[[PyTree], PyTree]


class NarrowTraining:
    """Makes the smaller networks of a run and trains them; one program for each width.

    Args:
        widths: Who gets how much.
        grad_fn: From parameters, batch and key to gradients, of the whole network.
        optimizer: What trains the clients.
    """

    def __init__(self, widths: ClientWidths, grad_fn: GradFn, optimizer: fedjax.Optimizer) -> None:
        self._widths, self._grad_fn, self._optimizer = widths, grad_fn, optimizer
        self._graph: ChannelGraph | None = None
        self._trained: dict[float, Callable[..., Any]] = {}

    def cohorts(
        self, number: int, params: PyTree, masks: PyTree, clients: Sequence[Any], batches: Callable[[Any], Any]
    ) -> list[Cohort]:
        """The clients of a round by width, widest first.

        Args:
            number: Number of the round.
            params: Parameters of the server.
            masks: Its uint8 masks; `core.NOT_PRUNED` where a leaf stays dense.
            clients: Triples of id, data and key.
            batches: From a client's data to its batches.

        Raises:
            ValueError: If no channel can leave the network, or a narrower one does not compute what the whole one does
                without these channels.
        """
        by_width: dict[float, list[Any]] = {}
        for client in clients:
            by_width.setdefault(self._widths.of(client[0], number), []).append(client)
        found = []
        for width, its in sorted(by_width.items(), reverse=True):
            kept = self._kept(number, params, width, clients, batches) if width < 1 else {}
            graph = self._graph
            if graph is None or not kept:
                same = lambda tree: tree  # noqa: E731
                found.append(Cohort(its, params, masks, self._training(1.0, self._grad_fn), same, same))
                continue
            inside, outside = functools.partial(taken, graph, kept), functools.partial(put_back, graph, kept)
            held = _masks_of(graph, kept, masks)
            first = {name: np.arange(len(channels)) for name, channels in kept.items()}
            train = self._training(width, narrowed(graph, first))
            found.append(Cohort(its, apply_masks(params, held), held, train, inside, outside))
        return found

    def _training(self, width: float, grad_fn: GradFn) -> Callable[..., Any]:
        if width not in self._trained:
            self._trained[width] = masked_training(grad_fn, self._optimizer)
        return self._trained[width]

    def _kept(
        self, number: int, params: PyTree, width: float, clients: Sequence[Any], batches: Callable[[Any], Any]
    ) -> Kept:
        if self._graph is None:
            self._graph = _graph_of(self._grad_fn, params, clients, batches)
        kept = self._widths.kept(self._graph, params, width, number)
        if width not in self._trained:
            core.shrink(self._graph, params, _masks_of(self._graph, kept, jax.tree.map(_ones, params)))
        return kept


def _graph_of(grad_fn: GradFn, params: PyTree, clients: Sequence[Any], batches: Callable[[Any], Any]) -> ChannelGraph:
    _, data, key = next(client for client in clients if len(client[1]))
    graph = core.channel_graph(grad_fn, params, next(iter(batches(data))), key)
    if not graph.groups:
        raise ValueError(f"no channel can leave this network, so that there are no narrower clients:\n{graph}")
    return graph


def _ones(leaf: Any) -> jax.Array:
    return jnp.ones(jnp.shape(leaf), jnp.uint8)


def _masks_of(graph: ChannelGraph, kept: Kept, masks: PyTree) -> PyTree:
    """Masks of what a narrower network holds: of every leaf, as those that are dense lose channels, too."""
    inside = put_back(graph, kept, taken(graph, kept, jax.tree.map(_ones, graph.params)))
    both = [
        mask * held if is_pruned(mask) else held
        for mask, held in zip(aligned(graph.params, masks, "masks"), jax.tree.leaves(inside), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(graph.params), both)


def _squares(graph: ChannelGraph, params: PyTree, name: str) -> np.ndarray:
    """float64[channels]: the sum of squares of each channel over all members of a group."""
    group, leaves = graph.groups[name], jax.tree.leaves(params)
    return np.sum([squares_of_channels(group, its, np.asarray(leaves[its.leaf])) for its in group.members], axis=0)
