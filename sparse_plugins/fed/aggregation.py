"""Updates of many clients as one: taken in one at a time where the rule allows it, else kept until all are there."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.masks import NOT_PRUNED, is_pruned, map_pruned
from sparse_plugins.core.selection.topk import exact_topk
from sparse_plugins.core.trees import common_dtype
from sparse_plugins.fed.robust_aggregation import Array, Krum, RobustRule, trimmed_mean
from sparse_plugins.wire.trees import PyTree

__all__ = ["Aggregation", "Sums", "Updates", "in_dtypes_of", "reprune", "wide_zeros"]


@dataclasses.dataclass(frozen=True)
class Aggregation:
    """How the updates of clients become one.

    With one mask for all clients 'mean' and 'voters' are the same. With personal masks, a weight that few clients hold
    moves little under 'mean', whose bias is towards no change, and as far as its holders say under 'voters', whose
    variance is that of few clients. Both take in one update at a time, and neither bounds what one client does to the
    model: a robust rule does, which needs the kept weights of all updates of the round.

    Clients without examples have no say under any rule.

    Attributes:
        rule: 'mean' takes what a client does not hold as no change; 'voters' averages over those that hold a weight.
            In both, clients count by their number of examples. `fed.FedMedian()`, `fed.FedTrimmedAvg(beta)` and
            `fed.Krum(num_malicious, num_to_keep)` are robust; the first two are over those that hold a weight.
        min_votes: Clients that must hold a weight, counted by head, for it to stay or to be grown where masks are
            personal, and to be moved by a median or a trimmed mean; with fewer valid clients a round changes nothing.
        clipping_norm: Scale an update with a larger l2 norm, of kept weights and dense leaves, down to this one before
            the rule takes it in; None takes updates as they are.

    Raises:
        TypeError: If `rule` is none of these.
        ValueError: If a value is not allowed.

    Example:
        >>> from sparse_plugins import fed
        >>> Aggregation(fed.FedTrimmedAvg(beta=0.1), min_votes=3, clipping_norm=1.0).min_clients
        3

    Source: Bibikar et al., Federated Dynamic Sparse Training (2022), for sparse averages over voters; Sun et al., Can
    You Really Backdoor Federated Learning? (2019), for the clipping of norms.
    """

    rule: Literal["mean", "voters"] | RobustRule = "mean"
    min_votes: int = 1
    clipping_norm: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rule, str) and self.rule not in ("mean", "voters"):
            raise ValueError(
                f"rule is {self.rule!r}; choose 'mean', 'voters', fed.FedMedian(), fed.FedTrimmedAvg(beta) or "
                "fed.Krum(num_malicious)."
            )
        if not isinstance(self.rule, str | RobustRule):
            raise TypeError(
                f"rule is {self.rule!r}; give 'mean', 'voters', or an instance of fed.FedMedian, fed.FedTrimmedAvg or "
                "fed.Krum."
            )
        if self.min_votes < 1:
            raise ValueError(f"min_votes is {self.min_votes}; give 1 or more.")
        if self.clipping_norm is not None and not 0 < self.clipping_norm < math.inf:
            raise ValueError(
                f"clipping_norm is {self.clipping_norm}; give a finite number above 0, or None to clip nothing."
            )

    @property
    def min_clients(self) -> int:
        """Valid clients without which a round changes nothing."""
        return self.min_votes if isinstance(self.rule, str) else max(self.min_votes, self.rule.min_clients)

    def check_drawn(self, clients: int) -> None:
        """Raises if a round draws fewer clients than the rule can do with."""
        if not isinstance(self.rule, str) and clients < self.rule.min_clients:
            raise ValueError(
                f"{self.rule} needs {self.rule.min_clients} clients a round, and some more if clients drop out; this "
                f"round has {clients}. Draw more, or be ready for fewer hostile ones."
            )

    def gather(self, like: PyTree, masks: PyTree, is_personal: bool) -> "Sums | Updates":
        """What takes in the updates of a round.

        Args:
            like: Parameter tree.
            masks: uint8 masks of the server; `core.NOT_PRUNED` where a leaf stays dense.
            is_personal: Whether clients have masks of their own.

        Returns:
            Running sums, or all updates if the rule needs them.
        """
        return Sums(like, masks if is_personal else None) if isinstance(self.rule, str) else Updates(like, masks)

    def clipped(self, update: PyTree) -> PyTree:
        """An update of at most `clipping_norm`, in its own direction."""
        return update if self.clipping_norm is None else _scaled_to(update, self.clipping_norm)


class Sums:
    """Running sums of updates: memory for one model, however many clients there are.

    Args:
        like: Parameter tree.
        masks: uint8 masks of the server if those of clients may differ from them; None if all hold the same.

    Example:
        >>> sums = Sums({"w": jnp.zeros(2)}, {"w": jnp.ones(2, jnp.uint8)})
        >>> for kept, change in ([1, 1], 2.0), ([1, 0], 4.0):
        ...     mask = jnp.array(kept, jnp.uint8)
        ...     sums.add({"w": change * mask}, weight=1.0, masks={"w": mask})
        >>> sums.aggregate(Aggregation("mean"))["w"].tolist(), sums.aggregate(Aggregation("voters"))["w"].tolist()
        ([3.0, 1.0], [3.0, 2.0])
    """

    def __init__(self, like: PyTree, masks: PyTree | None = None) -> None:
        zeros = lambda x, m: jnp.zeros(x.shape, jnp.float32)  # noqa: E731
        counts = lambda x, m: jnp.zeros(x.shape, jnp.int32)  # noqa: E731
        self._like, self._masks = like, masks
        self._sum = wide_zeros(like)
        self._weight = 0.0
        self._held = masks and map_pruned(zeros, like, masks, otherwise=lambda x: NOT_PRUNED)
        self._votes = masks and map_pruned(counts, like, masks, otherwise=lambda x: NOT_PRUNED)
        self.clients = 0

    def add(self, update: PyTree, weight: float, masks: PyTree | None = None) -> None:
        """Takes in one client; without weight it has no say.

        Args:
            update: Tree of the parameters' shapes, 0 outside the client's mask.
            weight: How much the client counts, 0 or more.
            masks: Its uint8 masks, read if they may differ from client to client.
        """
        if weight <= 0:
            return
        self._sum = _add_scaled(self._sum, update, weight)
        self._weight += weight
        self.clients += 1
        if self._masks is not None:
            held = _in_place_of(self._like, self._masks, masks)
            self._held = _add_scaled(self._held, held, weight)
            self._votes = _add_scaled(self._votes, held, 1)

    def aggregate(self, aggregation: Aggregation) -> PyTree:
        """The one update; 0 where no client of any weight has a say."""
        total = max(self._weight, jnp.finfo(jnp.float32).tiny)
        over_all = lambda x: x / jnp.asarray(total, x.dtype)  # noqa: E731
        over_voters = lambda x, held: jnp.where(held > 0, x / jnp.maximum(held, 1e-30), 0).astype(x.dtype)  # noqa: E731
        if aggregation.rule != "voters" or self._held is None:
            return in_dtypes_of(self._like, jax.tree.map(over_all, self._sum))
        return in_dtypes_of(self._like, map_pruned(over_voters, self._sum, self._held, otherwise=over_all))

    def elected(self, aggregation: Aggregation) -> PyTree:
        """uint8 masks of the weights that enough clients hold."""
        return self._held_by(aggregation.min_votes)

    def held(self) -> PyTree:
        """uint8 masks of the weights that any client with a say holds."""
        return self._held_by(1)

    def _held_by(self, clients: int) -> PyTree:
        enough = lambda x, votes: (votes >= clients).astype(jnp.uint8)  # noqa: E731
        return map_pruned(enough, self._sum, self._votes, otherwise=lambda x: NOT_PRUNED)


class Updates:
    """All updates of a round, of their kept weights: memory grows with the clients and with what they hold.

    Args:
        like: Parameter tree.
        masks: uint8 masks of the server.

    Example:
        >>> from sparse_plugins import fed
        >>> updates = Updates({"w": jnp.zeros(2)}, {"w": jnp.ones(2, jnp.uint8)})
        >>> for kept, change in ([1, 1], 2.0), ([1, 0], 4.0), ([1, 1], 90.0):
        ...     mask = jnp.array(kept, jnp.uint8)
        ...     updates.add({"w": change * mask}, weight=1.0, masks={"w": mask})
        >>> updates.aggregate(Aggregation(fed.FedMedian()))["w"].tolist()
        [4.0, 46.0]
    """

    def __init__(self, like: PyTree, masks: PyTree) -> None:
        self._like, self._masks = like, masks
        self._kept: list[list[Array]] = []
        self._held: list[list[Array]] = []  # as bits: a sparse model's masks would be larger than its kept weights
        self._weights: list[float] = []

    @property
    def clients(self) -> int:
        """How many have a say."""
        return len(self._weights)

    def add(self, update: PyTree, weight: float, masks: PyTree) -> None:
        """Takes in one client, as `Sums.add` does."""
        if weight <= 0:
            return
        held = _in_place_of(self._like, self._masks, masks)
        held = map_pruned(lambda x, m: np.asarray(m) != 0, self._like, held, otherwise=lambda x: np.ones(x.shape, bool))
        pairs = list(zip(map(np.asarray, jax.tree.leaves(update)), jax.tree.leaves(held), strict=True))
        self._kept.append([leaf[inside] for leaf, inside in pairs])
        self._held.append([np.packbits(inside) for _, inside in pairs])
        self._weights.append(weight)

    def aggregate(self, aggregation: Aggregation) -> PyTree:
        """The one update; under a median or a trimmed mean 0 where fewer than `min_votes` clients have a say."""
        rule = aggregation.rule
        if isinstance(rule, str | Krum):
            return self._summed(rule).aggregate(aggregation)
        cut, leaves = rule.cut(self.clients), []
        for place, like in enumerate(jax.tree.leaves(self._like)):
            entries, values, held = self._rows(place)
            leaf = np.zeros(like.size, values.dtype)
            has_enough = held.sum(axis=0) >= aggregation.min_votes
            leaf[entries] = np.where(has_enough, trimmed_mean(values, held, cut), 0)
            leaves.append(jnp.asarray(leaf.reshape(like.shape)))
        return in_dtypes_of(self._like, jax.tree.unflatten(jax.tree.structure(self._like), leaves))

    def elected(self, aggregation: Aggregation) -> PyTree:
        """uint8 masks of the weights that enough clients hold; under `Krum`, enough of those it chooses."""
        return self._summed(aggregation.rule).elected(aggregation)

    def held(self) -> PyTree:
        """As `Sums.held`."""
        return self._summed("voters").held()

    def _summed(self, rule: str | RobustRule) -> Sums:
        """The updates that a rule chooses, as sums."""
        places = range(jax.tree.structure(self._like).num_leaves)
        values = (self._rows(place)[1] for place in places)
        chosen = rule.choose(values) if isinstance(rule, Krum) else range(self.clients)
        sums = Sums(self._like, self._masks)
        for client in chosen:
            update, held = zip(*(self._leaf(client, place) for place in places), strict=True)
            sums.add(self._tree(update), self._weights[client], self._tree(held))
        return sums

    def _tree(self, flat: Iterable[Array]) -> PyTree:
        leaves, treedef = jax.tree.flatten(self._like)
        return jax.tree.unflatten(treedef, [x.reshape(like.shape) for x, like in zip(flat, leaves, strict=True)])

    def _leaf(self, client: int, place: int) -> tuple[Array, Array]:
        """A client's leaf, and where it holds it; flat."""
        size = jax.tree.leaves(self._like)[place].size
        held = np.unpackbits(self._held[client][place], count=size).astype(bool)
        values = self._kept[client][place]
        leaf = np.zeros(size, np.promote_types(values.dtype, np.float32))
        leaf[held] = values
        return leaf, held

    def _rows(self, place: int) -> tuple[Array, Array, Array]:
        """A leaf's entries that anyone holds, all clients' values there, 0 where one holds none, and who holds them."""
        size = jax.tree.leaves(self._like)[place].size
        held_by_any = np.bitwise_or.reduce([held[place] for held in self._held])
        entries = np.flatnonzero(np.unpackbits(held_by_any, count=size))
        rows = [[flat[entries] for flat in self._leaf(client, place)] for client in range(self.clients)]
        values, held = map(np.stack, zip(*rows, strict=True))
        return entries, values, held


def _in_place_of(like: PyTree, masks: PyTree, held: PyTree) -> PyTree:
    """A client's masks where the server has some; a leaf that was sent whole is held whole."""
    whole = lambda x: jnp.ones(x.shape, jnp.uint8)  # noqa: E731
    chosen = lambda x, _, mask: mask if is_pruned(mask) else whole(x)  # noqa: E731
    return map_pruned(chosen, like, masks, held, otherwise=lambda *_: NOT_PRUNED)


def wide_zeros(like: PyTree) -> PyTree:
    """Zeros to sum up many trees in: half precision would stop growing, or overflow.

    Example:
        >>> [zeros.dtype.name for zeros in wide_zeros([jnp.ones(2, jnp.bfloat16), jnp.ones(2)])]
        ['float32', 'float32']
    """
    return jax.tree.map(lambda x: jnp.zeros_like(x, common_dtype(jnp.result_type(x), jnp.float32)), like)


def in_dtypes_of(like: PyTree, mean: PyTree) -> PyTree:
    """A mean of wide sums, in the floating dtypes of what was summed up.

    Example:
        >>> in_dtypes_of(jnp.ones(2, jnp.bfloat16), jnp.ones(2)).dtype.name
        'bfloat16'
    """
    cast = lambda x, m: m.astype(jnp.result_type(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else m  # noqa: E731
    return jax.tree.map(cast, like, mean)


@jax.jit
def _add_scaled(total: PyTree, new: PyTree, weight: Any) -> PyTree:
    return jax.tree.map(lambda t, x: t + x.astype(t.dtype) * jnp.asarray(weight, t.dtype), total, new)


@jax.jit
def _scaled_to(update: PyTree, largest: float) -> PyTree:
    """An update of at most this l2 norm; relative to its largest entry, as squares overflow and small scales vanish."""
    peak = jnp.max(jnp.array([jnp.max(jnp.abs(leaf), initial=1e-30) for leaf in jax.tree.leaves(update)], jnp.float32))
    units = jax.tree.map(lambda leaf: leaf.astype(common_dtype(leaf.dtype, jnp.float32)) / peak, update)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(unit)) for unit in jax.tree.leaves(units)))

    def clipped(leaf: jax.Array, unit: jax.Array) -> jax.Array:
        return jnp.where(peak * norm > largest, unit * (largest / norm), leaf.astype(unit.dtype)).astype(leaf.dtype)

    return jax.tree.map(clipped, update, units)


@jax.jit
def reprune(params: PyTree, masks: PyTree, elected: PyTree) -> PyTree:
    """Masks as large as before, of the strongest weights among those elected.

    Args:
        params: Parameters after the update.
        masks: uint8 masks before.
        elected: uint8 masks of the weights that may stay or be grown.

    Returns:
        uint8 masks that keep exactly as many entries as `masks`: elected ones by magnitude; if they are too few,
        those that were kept before, then others, by index.

    Example:
        >>> params = {"w": jnp.array([1.0, 5.0, 2.0, 9.0])}
        >>> kept, elected = {"w": jnp.array([1, 1, 0, 0], jnp.uint8)}, {"w": jnp.array([1, 0, 1, 0], jnp.uint8)}
        >>> reprune(params, kept, elected)["w"].tolist()
        [1, 0, 1, 0]
    """

    def best(param: jax.Array, mask: jax.Array, chosen: jax.Array) -> jax.Array:
        others = jnp.where(mask != 0, -1.0, -2.0)
        scores = jnp.where(chosen != 0, jnp.abs(param).astype(jnp.float32), others)
        return exact_topk([scores], jnp.sum(mask != 0, dtype=jnp.int32))[0]

    return map_pruned(best, params, masks, elected, otherwise=lambda param, chosen: NOT_PRUNED)
