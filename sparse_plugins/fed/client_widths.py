"""Clients with a narrower network than the server's: who gets which channels, and how their updates find back.

It belongs to no framework. `sparse_federated_averaging` traces the groups of channels, a Flower server is told them.
"""

import dataclasses
import math
import random
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins import core
from sparse_plugins.core.layers.channel_groups import Channels, squares_of_channels
from sparse_plugins.core.layers.shrink import put_back, shrink, taken, taken_masks
from sparse_plugins.core.masks import is_pruned, map_pruned
from sparse_plugins.core.trees import aligned, leaf_names
from sparse_plugins.fed.channel_axes import ChannelAxes
from sparse_plugins.fed.messages import name_of
from sparse_plugins.wire.trees import PyTree

__all__ = ["ClientWidths", "Kept", "NarrowNetwork", "check_goes_with_widths", "tree_of", "with_whole_leaves"]

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
        seed: Decides, with round and client, which client gets which width.
        groups: Which axes the same channels run along, for a Flower server, which has no function to trace:
            `core.channel_graph` of one, or by names of groups, as in
            `{"hidden": [("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)]}`; a third item has the channel of every
            entry where an axis holds more than channels. FedJAX traces `grad_fn` and takes none.

    Raises:
        TypeError: If widths or groups are neither.
        ValueError: If a value is not allowed.

    Example:
        >>> ClientWidths({b"phone": 0.5}).of(b"phone", 0), ClientWidths({b"phone": 0.5}).of(b"server", 0)
        (0.5, 1.0)

    Source: Diao et al., HeteroFL (2021), for nested channels; Alam et al., FedRolex (2022), for rolling ones.
    """

    widths: Mapping[Any, float] | Sequence[float]
    channels: Literal["nested", "rolling", "largest"] = "nested"
    seed: int = 0
    groups: core.ChannelGraph | Mapping[str, Sequence[tuple[Any, ...]]] | None = None

    def __post_init__(self) -> None:
        given: Any = self.widths
        if not isinstance(given, Mapping | Sequence) or isinstance(given, str) or not given:
            raise TypeError(
                f"widths are {given!r}; give fractions by client id, or a sequence such as (0.25, 0.5, 1.0)."
            )
        for width in self._all:
            if isinstance(width, bool) or not isinstance(width, int | float | np.floating) or not 0 < width <= 1:
                raise ValueError(f"a width is {width!r}; give fractions of the channels in (0, 1].")
        if self.channels not in ("nested", "rolling", "largest"):
            raise ValueError(f"channels is {self.channels!r}; choose 'nested', 'rolling' or 'largest'.")
        if not (self.groups is None or isinstance(self.groups, core.ChannelGraph | Mapping)):
            raise TypeError(
                f"groups is a {type(self.groups).__name__}; give core.channel_graph(apply, params, x), or a dict such "
                "as {'hidden': [('w1', 1), ('b1', 0), ('w2', 0)]}."
            )

    @property
    def _all(self) -> list[Any]:
        return list(self.widths.values() if isinstance(self.widths, Mapping) else self.widths)

    def of(self, client: Hashable, number: int) -> float:
        """The width of a client in a round."""
        if isinstance(self.widths, Mapping):
            return float(self.widths.get(client, 1.0))
        return float(random.Random(f"{self.seed} {number} {name_of(client)}").choice(self.widths))

    def kept(self, channels: Channels, params: PyTree, width: float, number: int) -> Kept:
        """For each group the channels that a width has in a round, int[channels], in order."""
        found = {}
        for name, group in channels.groups.items():
            count = max(1, math.floor(width * group.size + 0.5))
            if self.channels == "largest":
                order = np.argsort(-_squares(channels, params, name), kind="stable")
            else:
                order = np.arange(group.size) + (number if self.channels == "rolling" else 0)
            found[name] = np.sort(order[:count] % group.size)
        return found

    def network(self, channels: Channels, params: PyTree, width: float, number: int) -> "NarrowNetwork | None":
        """The network of a width in a round; None if that is the whole one."""
        kept = self.kept(channels, params, width, number)
        # What nothing makes, such as the axes of a parameter without use, is no channel of the network.
        makes = lambda name: any(member.makes for member in channels.groups[name].members)  # noqa: E731
        left = {name: its for name, its in kept.items() if len(its) < channels.groups[name].size and makes(name)}
        return NarrowNetwork(channels, left, width) if left else None

    def channels_of(self, params: PyTree) -> Channels:
        """The groups that were given, for these parameters.

        Args:
            params: Arrays by name.

        Returns:
            The groups. The parameters of a graph are a tree of its own; `leaf_names` of them are the names.

        Raises:
            ValueError: If none were given, they are about other parameters, or a narrower network does not compute what
                the whole one does without the channels that it lacks.
        """
        if self.groups is None:
            raise ValueError(
                "client_widths has no groups, and a Flower server has no function from which to find them: give "
                "fed.ClientWidths(..., groups=core.channel_graph(apply, params, x)), or the axes by name, as in "
                "groups={'hidden': [('w1', 1), ('b1', 0), ('w2', 0)]}."
            )
        if not isinstance(self.groups, core.ChannelGraph):
            return ChannelAxes.written(self.groups, params)
        graph = self.groups
        specs = zip(leaf_names(graph.params), jax.tree.leaves(graph.params), strict=True)
        shapes = {name: spec.shape for name, spec in specs}
        expected = {name: np.shape(leaf) for name, leaf in params.items()}
        if shapes != expected:
            differing = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
            raise ValueError(
                f"the groups of client_widths are about another model: they and the server's differ in {differing}. "
                "Trace core.channel_graph with the parameters that the run starts from, under the same names."
            )
        if not graph.groups:
            raise ValueError(f"no channel can leave this network, so that there are no narrower clients:\n{graph}")
        tree = tree_of(graph, params)
        for width in sorted({*self._all}):
            network = self.network(graph, tree, width, 0)
            if network is not None:
                network.check(tree)
        return graph


@dataclasses.dataclass(frozen=True)
class NarrowNetwork:
    """A network with a part of the channels of another: what of its trees it has, and the way back.

    Attributes:
        channels: Groups of channels of the whole one.
        kept: For each group that loses channels those that are left, int[channels left].
        width: What part of the channels was wanted.

    Example:
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
        >>> graph = core.channel_graph(apply, params, jnp.ones((1, 3)))
        >>> network = ClientWidths((0.5,)).network(graph, params, 0.5, number=0)
        >>> small = network.take(params)
        >>> small["a"].shape, network.put_back(small)["b"].tolist()
        ((3, 2), [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    """

    channels: Channels
    kept: Kept
    width: float

    def take(self, tree: PyTree) -> PyTree:
        """What it has of a tree laid out like the parameters."""
        return taken(self.channels, self.kept, tree)

    def take_masks(self, masks: PyTree) -> PyTree:
        """The same of masks; `core.NOT_PRUNED` stays. It warns of layers that masks leave nothing of."""
        left = taken_masks(self.channels, self.kept, self.channels.params, masks)
        whole, small = (aligned(self.channels.params, tree, "masks") for tree in (masks, left))
        for name, before, after in zip(leaf_names(self.channels.params), whole, small, strict=True):
            if is_pruned(before) and np.any(before) and not np.any(after):
                warnings.warn(
                    f"a client of width {self.width:g} has no weight of {name!r} that is not pruned, so that nothing "
                    "passes there. Let it be wider, let channels='largest', or keep more of this layer by a rule.",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return left

    def put_back(self, tree: PyTree) -> PyTree:
        """A tree of its shapes in the full ones, 0 where it has nothing."""
        return put_back(self.channels, self.kept, tree)

    def held(self, masks: PyTree) -> PyTree:
        """uint8 masks of the full shapes, for every leaf: of what it holds, inside masks of its shapes."""
        return self.put_back(with_whole_leaves(self.take(jax.tree.map(_ones, self.channels.params)), masks))

    def check(self, params: PyTree) -> None:
        """Raises if it computes something else than the whole network without the channels that it lacks.

        Args:
            params: Those of the whole network.

        Raises:
            ValueError: If so.
        """
        assert isinstance(self.channels, core.ChannelGraph)
        shrink(self.channels, params, self.held(jax.tree.map(lambda _: core.NOT_PRUNED, params)))


def tree_of(channels: Channels, arrays: Mapping[str, Any]) -> PyTree:
    """Arrays by name as a tree laid out like the parameters of groups."""
    names = leaf_names(channels.params)
    return jax.tree.unflatten(jax.tree.structure(channels.params), [arrays[name] for name in names])


def with_whole_leaves(like: PyTree, masks: PyTree) -> PyTree:
    """Masks with 1 for every entry of a leaf that stays dense, as narrower clients hold a part of these, too."""
    return map_pruned(lambda p, mask: jnp.asarray(mask), like, masks, otherwise=lambda p: jnp.ones(p.shape, jnp.uint8))


def check_goes_with_widths(updater: core.BaseUpdater, personal_masks: bool) -> None:
    """Raises if clients can't have widths.

    Args:
        updater: The server's.
        personal_masks: Whether clients have masks of their own.

    Raises:
        ValueError: If they have, or the updater grows weights by gradients.
    """
    if personal_masks or (updater.grows_by_gradient and updater.prunes):
        raise ValueError(
            "client_widths are not supported with personal masks and with updaters that grow by gradients, such as "
            f"{type(updater).__name__}; use core.SET, core.StaticRandomSparse, a pruning updater, or core.NoPruning."
        )


def _ones(leaf: Any) -> jax.Array:
    return jnp.ones(jnp.shape(leaf), jnp.uint8)


def _squares(channels: Channels, params: PyTree, name: str) -> np.ndarray:
    """float64[channels]: the sum of squares of each channel over all members of a group."""
    group, leaves = channels.groups[name], jax.tree.leaves(params)
    return np.sum([squares_of_channels(group, its, np.asarray(leaves[its.leaf])) for its in group.members], axis=0)
