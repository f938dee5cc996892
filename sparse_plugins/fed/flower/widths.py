"""What nodes of some width are sent: broadcasts of narrower networks, in the shapes of these."""

import dataclasses
from typing import Any

import jax
import numpy as np

from sparse_plugins.core.layers.channel_groups import Channels
from sparse_plugins.core.trees import aligned, leaf_names
from sparse_plugins.fed.client_widths import ClientWidths, NarrowNetwork, tree_of, with_whole_leaves
from sparse_plugins.fed.flower.broadcast import Broadcast

__all__ = ["Part", "Parts"]


@dataclasses.dataclass(frozen=True)
class Part:
    """What a node has of the model.

    Attributes:
        broadcast: What it is sent, in the shapes of its network.
        held: uint8 masks of the model's shapes, for every array: of what it holds. None if nobody is to know.
        network: What its network is of the model; None if it is the model.
    """

    broadcast: Broadcast
    held: dict[str, Any] | None = None
    network: NarrowNetwork | None = None

    def in_place(self, update: dict[str, Any]) -> dict[str, Any]:
        """An update in the shapes of the model, 0 where the node has nothing."""
        if self.network is None:
            return update
        channels = self.network.channels
        return by_name(channels, self.network.put_back(tree_of(channels, update)))

    @property
    def hint(self) -> str:
        """What to look for if a node fails at its network."""
        if self.network is None:
            return ""
        return (
            f"; it was sent a network of width {self.network.width:g}: let its function build a model from the shapes "
            "of the arrays that it is given"
        )


class Parts:
    """What the nodes of a round have of the model: a broadcast for each width.

    Args:
        widths: Who gets how much.
        channels: Groups of channels of the model.
        whole: The broadcast of the whole model.
        number: Number of the round whose widths they are.
    """

    def __init__(self, widths: ClientWidths, channels: Channels, whole: Broadcast, number: int) -> None:
        self._widths, self._channels, self._whole, self._number = widths, channels, whole, number
        self._params, self._masks = (tree_of(channels, tree) for tree in (whole.params, whole.masks))
        self.held = by_name(channels, with_whole_leaves(self._params, self._masks))
        self._by_width: dict[float, Part] = {}

    def of(self, node: int) -> Part:
        """What a node has."""
        width = self._widths.of(node, self._number)
        if width not in self._by_width:
            self._by_width[width] = self._made(width)
        return self._by_width[width]

    def _made(self, width: float) -> Part:
        network = self._widths.network(self._channels, self._params, width, self._number)
        if network is None:
            return Part(self._whole, self.held)
        masks, params = network.take_masks(self._masks), by_name(self._channels, network.take(self._params))
        layout = self._whole.layout.with_shapes({name: array.shape for name, array in params.items()})
        its = dict(zip(leaf_names(self._channels.params), aligned(self._channels.params, masks, "masks"), strict=True))
        broadcast = dataclasses.replace(self._whole, params=params, masks=its, layout=layout, seed=None)
        return Part(broadcast, by_name(self._channels, network.held(masks)), network)


def by_name(channels: Channels, tree: Any) -> dict[str, Any]:
    """A tree laid out like the parameters of groups as NumPy arrays by name."""
    return dict(zip(leaf_names(channels.params), map(np.asarray, jax.tree.leaves(tree)), strict=True))
