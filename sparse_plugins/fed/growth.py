"""Where a server that grows weights by their gradients gets them from.

Clients that upload kept weights only say nothing about pruned weights. In rounds that update masks they can be
asked, by one of these protocols:

- `random`: nothing is asked, weights are grown by seed;
- `topk`: the strongest gradients of pruned weights, as many as weights are going to be grown;
- `delta`: clients train densely in that round, and what they changed outside the mask is taken for a gradient;
- `dense`: all gradients of pruned weights.

Gradients are those of a client's data at the parameters of the broadcast. Only clients whose update was used are heard,
and what each says is put into ranks before it is summed (`ranked`): by gradients themselves, one client with large ones
would decide alone.
"""

import abc
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins import core
from sparse_plugins.core.masks import is_pruned, map_pruned
from sparse_plugins.core.selection.random_scores import random_scores
from sparse_plugins.core.selection.topk import exact_topk
from sparse_plugins.core.trees import aligned
from sparse_plugins.fed.aggregation import Aggregation, Sums
from sparse_plugins.fed.mask_change import MaskChange, pruned_places
from sparse_plugins.fed.replies import Check, growth_of
from sparse_plugins.wire.envelope import BOUND_OVERHEAD
from sparse_plugins.wire.trees import PyTree
from sparse_plugins.wire.value_codes import values_size

__all__ = ["PROTOCOLS", "GrowthProtocol", "Signals", "growth_protocol", "ranked", "strongest_pruned"]


class GrowthProtocol(abc.ABC):
    """What clients are asked in a round that updates masks, what is made of their answers, and what these cost.

    A protocol of your own inherits from this one, or from one of `PROTOCOLS`, and is given to
    `sparse_federated_averaging(growth=...)` as an object. Without overriding anything but `sent_values`, clients train
    inside the masks of the broadcast, send nothing beside their updates, and nothing is grown by what they say.

    Attributes:
        name: What it is called in settings and messages.
    """

    name: ClassVar[str]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abc.abstractmethod
    def sent_values(self, change: MaskChange) -> list[int]:
        """How many values of each leaf one client sends, at most, beside those of its kept weights."""

    def most_bytes(self, change: MaskChange, dtype: str = "float32") -> int:
        """What one client sends, at most, beside its update of kept weights, if it is not compressed.

        Args:
            change: The mask update.
            dtype: Widest dtype of what clients send, as in `fed.Wire`.

        Returns:
            Bytes: values, and where they are, if they travel in a message of their own.
        """
        leaves = jax.tree.leaves(change.params)
        counted = zip(leaves, self.sent_values(change), strict=True)
        values = sum(values_size(count, np.dtype(leaf.dtype), dtype) for leaf, count in counted)
        if self.asked(change) is None:
            return values
        return values + BOUND_OVERHEAD + sum(1 + math.ceil(leaf.size / 8) for leaf in leaves)

    def training_masks(self, masks: PyTree) -> PyTree:
        """The masks inside which clients train and send their updates in such a round: those of the broadcast."""
        return masks

    def asked(self, change: MaskChange) -> Check | None:
        """Which gradients clients are to send in a message of their own (`fed.replies`); None: they send none."""
        return None

    def places(self, change: MaskChange, grads: PyTree) -> PyTree:
        """uint8 masks of the gradients that a client sends, if it is asked for some."""
        return pruned_places(grads, change.settled)

    def say_of_gradients(self, change: MaskChange, grads: PyTree) -> PyTree:
        """What counts of the gradients that arrived of one client; those it did not send are 0."""
        return ranked(grads, change.settled)

    def say_of_update(self, change: MaskChange, update: PyTree) -> PyTree | None:
        """What counts of the update that arrived of one client; None: nothing."""
        return None

    def signal(self, change: MaskChange, mean: PyTree) -> PyTree:
        """What weights are grown by, made of the mean of what counts."""
        return mean


class _Random(GrowthProtocol):
    """Nothing is asked, weights are grown by the updater's seed and the round."""

    name = "random"

    def sent_values(self, change: MaskChange) -> list[int]:
        return [0 for _ in jax.tree.leaves(change.params)]

    def signal(self, change: MaskChange, mean: PyTree) -> PyTree:
        words = random_scores(change.params, change.state.rng, change.state.count + 1)
        return jax.tree.map(lambda word: 1.0 + (word >> 8).astype(jnp.float32), words)


class _AllGradients(GrowthProtocol):
    """Clients send all gradients of pruned weights."""

    name = "dense"

    def sent_values(self, change: MaskChange) -> list[int]:
        return [int(jnp.sum(places)) for places in jax.tree.leaves(pruned_places(change.params, change.settled))]

    def asked(self, change: MaskChange) -> Check | None:
        return growth_of(change.settled)


class _StrongestGradients(GrowthProtocol):
    """Clients send as many of the strongest gradients of pruned weights as weights are going to be grown."""

    name = "topk"

    def sent_values(self, change: MaskChange) -> list[int]:
        return [count if is_pruned(count) else 0 for count in aligned(change.params, change.counts, "counts")]

    def asked(self, change: MaskChange) -> Check | None:
        return growth_of(change.settled, change.counts)

    def places(self, change: MaskChange, grads: PyTree) -> PyTree:
        return strongest_pruned(grads, change.settled, change.counts)

    def say_of_gradients(self, change: MaskChange, grads: PyTree) -> PyTree:
        return ranked(grads, change.settled, change.counts)


class _DenseTraining(GrowthProtocol):
    """Clients train densely in that round; what they changed outside the mask is taken for a gradient."""

    name = "delta"

    def sent_values(self, change: MaskChange) -> list[int]:
        return [int(jnp.sum(places)) for places in jax.tree.leaves(pruned_places(change.params, change.masks))]

    def training_masks(self, masks: PyTree) -> PyTree:
        return jax.tree.map(jnp.ones_like, masks)

    def say_of_update(self, change: MaskChange, update: PyTree) -> PyTree | None:
        return ranked(update, change.settled, change.counts if change.is_unstructured else None)


PROTOCOLS: dict[str, GrowthProtocol] = {
    protocol.name: protocol for protocol in (_Random(), _StrongestGradients(), _DenseTraining(), _AllGradients())
}


def growth_protocol(updater: core.BaseUpdater, growth: str | GrowthProtocol | None) -> GrowthProtocol:
    """The protocol to use: the one asked for, or the cheapest that serves the updater well.

    The strongest gradients of a layer may all lie in few blocks or groups, and say nothing about the others: structures
    are grown by all gradients.

    Args:
        updater: The server's updater.
        growth: A name, a protocol of your own, or None.

    Returns:
        The protocol.

    Raises:
        TypeError: If it is neither a name nor a protocol.
        ValueError: If the name is not known.

    Example:
        >>> [growth_protocol(updater, None).name for updater in (core.RigL(), core.SRigL(), core.SET())]
        ['topk', 'dense', 'random']
    """
    if growth is None:
        if not updater.grows_by_gradient:
            return PROTOCOLS["random"]
        return PROTOCOLS["topk" if updater.ranks_whole_arrays else "dense"]
    if isinstance(growth, GrowthProtocol):
        return growth
    if not isinstance(growth, str):
        raise TypeError(f"growth is {growth!r}; give one of {', '.join(PROTOCOLS)}, or an instance of GrowthProtocol.")
    if growth not in PROTOCOLS:
        raise ValueError(f"growth is {growth!r}; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[growth]


class Signals:
    """What clients say about growth in a round that updates masks, summed up.

    Args:
        protocol: How they say it.
        change: The mask update.
    """

    def __init__(self, protocol: GrowthProtocol, change: MaskChange) -> None:
        self._protocol, self._change, self._sums = protocol, change, Sums(change.params)

    @property
    def asked(self) -> Check | None:
        """Which masks messages with gradients may have; None if there are to be no such messages."""
        return self._protocol.asked(self._change) if self._change.is_wanted else None

    def places(self, grads: PyTree) -> PyTree:
        """uint8 masks of the gradients that a client sends."""
        return self._protocol.places(self._change, grads)

    def add_gradients(self, grads: PyTree) -> None:
        """Takes in the gradients that arrived of one client."""
        self._sums.add(self._protocol.say_of_gradients(self._change, grads), 1.0)

    def add_update(self, update: PyTree) -> None:
        """Takes in the update that arrived of one client."""
        say = self._protocol.say_of_update(self._change, update)
        if say is not None:
            self._sums.add(say, 1.0)

    def total(self) -> PyTree:
        """What to grow by; 0 where none says anything."""
        return self._protocol.signal(self._change, self._sums.aggregate(Aggregation()))


@jax.jit
def strongest_pruned(grads: PyTree, masks: PyTree, counts: PyTree) -> PyTree:
    """Masks of the pruned weights with the largest gradients.

    Args:
        grads: Gradients of one client at the parameters of the broadcast. One that is NaN or infinite says nothing.
        masks: uint8 masks of weights that are not to be chosen.
        counts: How many to choose in each layer, at most.

    Returns:
        uint8 masks; fewer chosen where fewer are finite, none in layers that stay dense.

    Example:
        >>> grads, masks = {"w": jnp.array([9.0, -3.0, 1.0])}, {"w": jnp.array([1, 0, 0], jnp.uint8)}
        >>> strongest_pruned(grads, masks, {"w": 1})["w"].tolist()
        [0, 1, 0]
    """

    def chosen(grad: jax.Array, mask: jax.Array, count: Any) -> jax.Array:
        may_grow = (mask == 0) & jnp.isfinite(grad)
        count = jnp.minimum(count, jnp.sum(may_grow, dtype=jnp.int32))
        return exact_topk([jnp.where(may_grow, jnp.abs(grad).astype(jnp.float32), -1.0)], count)[0]

    return map_pruned(chosen, grads, masks, counts, otherwise=lambda g, count: jnp.zeros(g.shape, jnp.uint8))


def ranked(grads: PyTree, masks: PyTree, counts: PyTree | None = None) -> PyTree:
    """A client's say in what to grow: the ranks of its gradients instead of their sizes.

    In each layer the strongest counts 1, and each further one a fixed step less; gradients of one magnitude share the
    mean of their ranks. So no client says more at a weight than 1, nor more in all than any other, whatever it sends.

    Args:
        grads: What a client sent, as arrays; entries that are 0, NaN or infinite say nothing.
        masks: uint8 masks of weights on which it was not asked.
        counts: How many weights of each layer it may name. The last of them counts more than one half, so that of
            weights named once and weights named twice alike the latter are ahead; those behind it count 0. None: it may
            name all on which it was asked, down to next to 0.

    Returns:
        float32 arrays in [-1, 1] with the gradients' signs; 0 in layers that stay dense.

    Example:
        >>> grads, masks = {"w": np.array([9.0, -0.3, 0.1, 0.0, 700.0])}, {"w": np.array([0, 0, 0, 0, 1], np.uint8)}
        >>> ranked(grads, masks)["w"].tolist(), ranked(grads, masks, {"w": 2})["w"].tolist()
        ([1.0, -0.75, 0.5, 0.0, 0.0], [1.0, -0.75, 0.0, 0.0, 0.0])
    """
    fall = 1.0 if counts is None else 0.5
    counts = jax.tree.map(lambda mask: mask.size, masks) if counts is None else counts

    def ranks(grad: Any, mask: Any, count: int) -> np.ndarray[Any, Any]:
        grad, asked = np.asarray(grad), np.asarray(mask) == 0
        count = min(count, int(asked.sum()))
        named = asked & (grad != 0) & np.isfinite(grad)
        magnitudes = np.abs(grad[named]).astype(np.promote_types(grad.dtype, np.float32))
        _, group, sizes = np.unique(magnitudes, return_inverse=True, return_counts=True)
        stronger = magnitudes.size - np.cumsum(sizes)
        say = 1 - fall * (stronger + (sizes - 1) / 2) / max(count, 1)
        say = np.where(stronger + sizes <= count, say, 0)[group]
        out = np.zeros(grad.shape, np.float32)
        out[named] = np.where(grad[named] < 0, -say, say)
        return out

    return map_pruned(ranks, grads, masks, counts, otherwise=lambda g, count: np.zeros(np.shape(g), np.float32))
