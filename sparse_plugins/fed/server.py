"""What a server does with the replies of a round: the step, the mask change and when it has to wait.

It belongs to no framework. `sparse_federated_averaging` and `fed.flower.SparseStrategy` are rims around it.
"""

import collections
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_plugins import core
from sparse_plugins.core.base_updater import check_updater
from sparse_plugins.core.checks import check_changes
from sparse_plugins.core.masks import map_pruned, unpack
from sparse_plugins.core.transform.moments import reset_pruned
from sparse_plugins.core.trees import leaf_names
from sparse_plugins.fed.aggregation import Sums, Updates, reprune
from sparse_plugins.fed.growth import GrowthProtocol, Signals, growth_protocol
from sparse_plugins.fed.ledger import DELIVERED, Entry
from sparse_plugins.fed.mask_change import MaskChange, can_change_masks, check_counts_rounds, with_fields
from sparse_plugins.fed.mask_in_params import first_broadcast, mark_in_use
from sparse_plugins.wire import SeededMasks
from sparse_plugins.wire.trees import PyTree

__all__ = ["Server", "SparseServerState", "check_personal_masks", "sparse_server", "warn_of_idle_round"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseServerState:
    """State of `sparse_federated_averaging`.

    Attributes:
        params: The forward view: what is broadcast, evaluated and exported. 0 outside the masks and not 0 inside.
        opt_state: `core.SparseState` of the server's optimizer; its count are rounds that had a valid client, without
            those that put a mask change off.
        round: Rounds so far, int.
    """

    params: PyTree
    opt_state: core.SparseState
    round: int


@dataclasses.dataclass(frozen=True)
class Server:
    """The parts of a server, and how it puts them together; `sparse_server` makes one.

    Attributes:
        updater: Which weights to keep.
        optimizer: Turns a round's mean delta into an update that stays in the masks.
        step: The same, compiled: from mean delta, state and parameters to state and parameters.
        refresh: Changes the masks of a state.
        growth: Where gradients come from that weights are grown by.
        has_personal_masks: Whether clients change masks of their own, which the server elects from.
        draws_masks: Whether masks that follow from the updater's seed are the ones drawn from it.
    """

    updater: core.BaseUpdater
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]
    refresh: Callable[..., core.SparseState]
    growth: GrowthProtocol
    has_personal_masks: bool = False
    draws_masks: bool = True

    def init(self, params: PyTree) -> SparseServerState:
        """The first state; its parameters are on the first masks."""
        check_changes(self.updater, params)
        opt_state = self.optimizer.init(params)
        return SparseServerState(first_broadcast(self.updater, params, opt_state), opt_state, 0)

    def masks(self, state: SparseServerState) -> PyTree:
        """uint8 masks to broadcast; `core.NOT_PRUNED` where a leaf stays dense."""
        return core.unpack_masks(state.params, state.opt_state.masks)

    def seed(self, state: SparseServerState) -> SeededMasks | None:
        """What the masks were drawn from, if they were."""
        if not (self.draws_masks and self.updater.masks_from_seed):
            return None
        # Two words travel in place of a mask, and the client draws it again.
        first, second = state.opt_state.rng.tolist()
        return SeededMasks((first, second))

    def is_due(self, state: SparseServerState) -> bool:
        """Whether masks change in this round."""
        return bool(self.updater.is_refresh_due(state.opt_state.count))

    def mask_change(self, state: SparseServerState, params: PyTree, masks: PyTree) -> MaskChange | None:
        """What clients are to be asked about, if masks change in this round by their gradients.

        Args:
            state: State before the round.
            params: The parameters as clients decode them.
            masks: uint8 masks as clients decode them.
        """
        if self.has_personal_masks or not self.updater.grows_by_gradient or not self.is_due(state):
            return None
        return MaskChange(self.updater, state.opt_state, params, masks)

    def signals(self, change: MaskChange | None) -> Signals | None:
        """What takes in what clients say about a mask change; None if they are not asked."""
        return None if change is None else Signals(self.growth, change)

    def advance(
        self,
        state: SparseServerState,
        mean: PyTree,
        signal: PyTree | None = None,
        lost_growth: Sequence[str] = (),
        updates: Sums | Updates | None = None,
        aggregation: Any = None,
        held: PyTree | None = None,
    ) -> SparseServerState:
        """The state after a round that had enough valid updates.

        Args:
            state: State before the round.
            mean: The round's one update: parameters before minus parameters after.
            signal: What to grow by; None: the mean.
            lost_growth: What became of growth signals, if clients were asked for some and none can be used.
            updates: The updates, from which masks are elected where they are personal.
            aggregation: How they become one; read where masks are personal.
            held: uint8 masks, for every leaf, of what clients of the round had, where some had a part; None if all
                had all. The rest stays as it is, moments included, which would move it without a gradient.

        Returns:
            The next state. If masks were to change and there is nothing to go by, it warns, and the next round is due.
        """
        is_due = self.is_due(state)
        votes = is_due and self.has_personal_masks
        if is_due and not votes and not self._can_change_masks(state, mean, signal, lost_growth):
            # By scores that are all alike the lower index would win. The count stays, so that the next round is due.
            after = self._moved(state, mean, state.opt_state, held)
            opt_state = after.opt_state._replace(count=state.opt_state.count)
            return dataclasses.replace(after, opt_state=opt_state)
        if votes:  # clients have changed masks already, and the server takes what enough of them hold
            return self._finished(state, *self._elect(state, updates, mean, aggregation))
        opt_state = state.opt_state
        if is_due:  # by the parameters that clients were sent, from which they know what is certain to stay
            opt_state = self.refresh(opt_state, state.params, mean if signal is None else signal)
        return self._moved(state, mean, opt_state, held)

    def _can_change_masks(
        self, state: SparseServerState, mean: PyTree, signal: PyTree | None, lost_growth: Sequence[str]
    ) -> bool:
        """Whether the round has what a mask change goes by; warns if not."""
        if lost_growth:
            _warn_of_lost_growth(state.round, lost_growth)
            return False
        ranked_by = mean if signal is None else signal
        if can_change_masks(self.updater, state.opt_state, state.params, ranked_by, delta=mean):
            return True
        _warn_of_nothing_learned(state.round)
        return False

    def _moved(
        self, state: SparseServerState, mean: PyTree, opt_state: core.SparseState, held: PyTree | None
    ) -> SparseServerState:
        after = self.step(mean, opt_state, state.params)
        if held is not None:
            after = _moved_where_held(held, (opt_state, state.params), after)
        return self._finished(state, *after)

    def _finished(self, state: SparseServerState, opt_state: core.SparseState, params: PyTree) -> SparseServerState:
        # Clients read masks from zeros, so a kept weight may not be one.
        params = mark_in_use(params, opt_state.masks)
        _check_density(params, opt_state.masks)
        return SparseServerState(params, opt_state, state.round + 1)

    def _elect(
        self, state: SparseServerState, updates: Any, mean: PyTree, aggregation: Any
    ) -> tuple[core.SparseState, PyTree]:
        """Moves all weights that the server or enough clients hold, then keeps the strongest of those elected."""
        masks = self.masks(state)
        elected = updates.elected(aggregation)
        # What clients grew moves beside the server's weights before all of them compete, so that their training counts.
        union = self.updater.with_masks(state.opt_state, state.params, jax.tree.map(jnp.bitwise_or, masks, elected))
        opt_state, params = self.step(mean, union, state.params)
        opt_state = self.updater.with_masks(opt_state, params, reprune(params, masks, elected))
        return opt_state, self.updater.pre_forward_update(params, opt_state)


def sparse_server(
    updater: core.BaseUpdater,
    optimizer: optax.GradientTransformation,
    growth: str | GrowthProtocol | None = None,
    has_personal_masks: bool = False,
) -> Server:
    """Makes a server.

    Args:
        updater: Which weights to keep; its schedule counts rounds with valid updates.
        optimizer: What turns a round's mean delta into an update; a dense one.
        growth: As for `sparse_federated_averaging`.
        has_personal_masks: As there.

    Returns:
        The server.

    Raises:
        TypeError: If the updater or the protocol is none.
        ValueError: If the protocol is not known.

    Example:
        >>> updater = core.create_updater_from_config(algorithm="static_sparse", sparsity=0.75)
        >>> server = sparse_server(updater, optax.sgd(1.0))
        >>> state = server.init({"w": jnp.ones((16, 16))})
        >>> state = server.advance(state, mean={"w": jnp.full((16, 16), 0.5)})
        >>> state.round, int((state.params["w"] != 0).sum())
        (1, 64)
    """
    check_updater(updater)
    check_counts_rounds(updater)
    protocol = growth_protocol(updater, growth)
    # A round is what clients have trained for: its update is never skipped.
    updater = with_fields(updater, skip_gradients=False)
    # The server knows its round on the host, and what clients say of a mask update comes apart from their updates.
    transformation = updater.wrap_optax(optimizer, refresh_in_graph=False)

    @jax.jit
    def step(mean: PyTree, opt_state: core.SparseState, params: PyTree) -> tuple[core.SparseState, PyTree]:
        updates, opt_state = transformation.update(mean, opt_state, params)
        return opt_state, optax.apply_updates(params, updates)

    return Server(updater, transformation, step, jax.jit(updater.refresh), protocol, has_personal_masks)


def check_personal_masks(updater: core.BaseUpdater, growth: object = None) -> None:
    """Raises if clients can't have masks of their own.

    Args:
        updater: The server's.
        growth: What was asked for as to growth; clients with masks of their own take none.

    Raises:
        ValueError: If the updater does not exchange weights in whole arrays, or growth is given.
    """
    if not (updater.exchanges_weights and not updater.starts_dense and updater.ranks_whole_arrays):
        raise ValueError(
            "personal_masks=True works with core.SET and core.RigL, unstructured masks and no stacks of layers, not "
            f"with {updater}: every client changes its mask by the updater's rule and keeps as many weights. An "
            "updater of your own has to declare exchanges_weights and not to start dense."
        )
    if growth is not None:
        raise ValueError(
            f"growth is {growth!r} and personal_masks=True, but clients with masks of their own grow by their own "
            "gradients and are asked for none; drop one of the two."
        )


def warn_of_idle_round(entries: list[Entry], valid: int, wanted: int, stacklevel: int = 3) -> None:
    """Says that a round had too few valid updates, and why."""
    told = _counted(entry.status for entry in entries if entry.status != DELIVERED)
    warnings.warn(
        f"round {entries[0].round if entries else '?'}: {valid} valid updates of {len(entries)} clients, {wanted} are "
        f"needed; the model stays as it was ({told or 'no clients'}).",
        RuntimeWarning,
        stacklevel=stacklevel,
    )


def _counted(reasons: Iterable[str]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in collections.Counter(reasons).most_common())


def _warn_of_lost_growth(number: int, reasons: Sequence[str]) -> None:
    warnings.warn(
        f"round {number}: masks are to change, but none of {len(reasons)} growth signals can be used "
        f"({_counted(reasons)}); updates are applied, and the mask change is put off to the next round.",
        RuntimeWarning,
        stacklevel=5,
    )


def _warn_of_nothing_learned(number: int) -> None:
    warnings.warn(
        f"round {number}: masks are to change by gradients, but all gradients are 0, as is the mean update; the mask "
        "change is put off to the next round.",
        RuntimeWarning,
        stacklevel=5,
    )


def _check_density(params: PyTree, masks: PyTree) -> None:
    """Raises if the parameters in use are other than the masks say."""
    for name, (kept, used) in zip(leaf_names(params), _kept_and_used(params, masks), strict=True):
        if kept != used:
            raise RuntimeError(
                f"layer {name!r} has {used} parameters in use after aggregation, its mask keeps {kept}: the server's "
                "optimizer or a rule of aggregation left the masks."
            )


@jax.jit
def _moved_where_held(
    held: PyTree, before: tuple[core.SparseState, PyTree], after: tuple[core.SparseState, PyTree]
) -> tuple[core.SparseState, PyTree]:
    """State and parameters after a step, and before it where nobody had a weight; what has left the masks is 0."""
    (old_state, old), (state, params) = before, after
    masks = core.unpack_masks(params, state.masks)
    moves = map_pruned(lambda h, mask: (h != 0) | (mask == 0), held, masks, otherwise=lambda h: h != 0)
    dense = state.dense_params
    if dense != ():
        chosen = lambda _, __, moved, new, last: jnp.where(moved, new, last)  # noqa: E731
        rest = moves, dense, old_state.dense_params
        dense = map_pruned(chosen, params, masks, *rest, otherwise=lambda _, moved, new, last: new)
    inner = reset_pruned(state.inner_state, old_state.inner_state, params, moves)
    return state._replace(inner_state=inner, dense_params=dense), jax.tree.map(jnp.where, moves, params, old)


@jax.jit
def _counts_of(params: PyTree, masks: PyTree) -> tuple[list[Any], list[Any]]:
    in_masks = map_pruned(lambda p, m: jnp.sum(unpack(m, p.shape)), params, masks, otherwise=lambda p: p.size)
    in_use = map_pruned(lambda p, m: jnp.sum(p != 0), params, masks, otherwise=lambda p: p.size)
    return jax.tree.leaves(in_masks), jax.tree.leaves(in_use)


def _kept_and_used(params: PyTree, masks: PyTree) -> list[tuple[int, int]]:
    kept, used = _counts_of(params, masks)
    return [(int(k), int(u)) for k, u in zip(kept, used, strict=True)]
