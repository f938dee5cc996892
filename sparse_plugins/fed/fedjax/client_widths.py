"""Training of clients that have a narrower network than the server's."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import fedjax
import numpy as np

from sparse_plugins import core
from sparse_plugins.core.layers.channel_groups import ChannelGraph
from sparse_plugins.core.layers.narrowed import has_numbers_of_channels, narrowed
from sparse_plugins.fed.client_widths import ClientWidths, NarrowNetwork, with_whole_leaves
from sparse_plugins.fed.fedjax.client_training import GradFn, masked_training
from sparse_plugins.wire.trees import PyTree

__all__ = ["Cohort", "NarrowTraining"]


class Cohort(NamedTuple):
    """The clients of a round that train one network.

    Attributes:
        clients: The clients, as triples of id, data and key.
        params: What they are sent, in the shapes of this network.
        masks: uint8 masks of it; `core.NOT_PRUNED` where a leaf stays dense.
        held: uint8 masks of the server's shapes, for every leaf: of all that these clients hold.
        train: A `for_each_client` function, see `masked_training`.
        network: What the network is of the server's; None if it is the server's.
    """

    clients: list[Any]
    params: PyTree
    masks: PyTree
    held: PyTree
    train: Callable[..., Any]
    network: NarrowNetwork | None

    def in_place(self, update: PyTree) -> PyTree:
        """An update in the server's shapes."""
        return update if self.network is None else self.network.put_back(update)


class NarrowTraining:
    """Makes the smaller networks of a run and trains them; one program for each width.

    Where the network has numbers for its channels, constants or drawn from a key that is no input, one for each set of
    channels.

    Args:
        widths: Who gets how much.
        grad_fn: From parameters, batch and key to gradients, of the whole network.
        optimizer: What trains the clients.
        backend: What runs them.
    """

    def __init__(
        self,
        widths: ClientWidths,
        grad_fn: GradFn,
        optimizer: fedjax.Optimizer,
        backend: fedjax.ForEachClientBackend,
    ) -> None:
        if widths.groups is not None:
            raise ValueError(
                "client_widths has groups, which are for fed.flower; here they are traced from grad_fn: drop them."
            )
        self._widths, self._grad_fn, self._optimizer, self._backend = widths, grad_fn, optimizer, backend
        self._graph: ChannelGraph | None = None
        self._trained: dict[Any, Callable[..., Any]] = {}
        self._has_numbers: dict[float, bool] = {}

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
            network = self._network(number, params, width, clients, batches) if width < 1 else None
            if network is None:
                held, train = with_whole_leaves(params, masks), self._training((1.0,), self._grad_fn)
                found.append(Cohort(its, params, masks, held, train, None))
                continue
            graph, kept = self._graph_of(params, clients, batches), network.kept
            if not self._has_numbers[width]:  # the program is that of the first channels, whichever a round keeps
                kept = {name: np.arange(len(channels)) for name, channels in kept.items()}
            key = width, *(its.tobytes() for its in kept.values())
            train = self._training(key, narrowed(graph, kept))
            left = network.take_masks(masks)
            found.append(Cohort(its, network.take(params), left, network.held(left), train, network))
        return found

    def _training(self, key: Any, grad_fn: GradFn) -> Callable[..., Any]:
        if key not in self._trained:
            self._trained[key] = masked_training(grad_fn, self._optimizer, self._backend)
        return self._trained[key]

    def _network(
        self, number: int, params: PyTree, width: float, clients: Sequence[Any], batches: Callable[[Any], Any]
    ) -> NarrowNetwork | None:
        graph = self._graph_of(params, clients, batches)
        network = self._widths.network(graph, params, width, number)
        if network is not None and width not in self._has_numbers:
            network.check(params)  # it compares what the two networks compute
            self._has_numbers[width] = has_numbers_of_channels(graph, network.kept)
        return network

    def _graph_of(self, params: PyTree, clients: Sequence[Any], batches: Callable[[Any], Any]) -> ChannelGraph:
        if self._graph is None:
            _, data, key = next(client for client in clients if len(client[1]))
            self._graph = core.channel_graph(self._grad_fn, params, next(iter(batches(data))), key)
            if not any(member.makes for group in self._graph.groups.values() for member in group.members):
                raise ValueError(
                    f"no channel can leave this network, so that there are no narrower clients:\n{self._graph}"
                )
        return self._graph
