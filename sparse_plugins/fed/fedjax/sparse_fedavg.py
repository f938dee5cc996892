"""Federated averaging with masks as first-class citizens: broadcast, kept by clients, and paid for byte by byte."""

import dataclasses
import functools
import zlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import fedjax
import jax
import optax

from sparse_plugins import core
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.updater_defaults import AnyUpdater
from sparse_plugins.fed.aggregation import Aggregation, Sums, Updates
from sparse_plugins.fed.client_widths import ClientWidths, check_goes_with_widths, with_whole_leaves
from sparse_plugins.fed.faults import Faults
from sparse_plugins.fed.fedjax.client_training import GradFn, masked_training, mean_gradient
from sparse_plugins.fed.fedjax.client_widths import NarrowTraining
from sparse_plugins.fed.fedjax.optimizers import optax_transformation, updater_of_server
from sparse_plugins.fed.growth import GrowthProtocol, Signals
from sparse_plugins.fed.ledger import Ledger
from sparse_plugins.fed.mask_change import can_change_masks
from sparse_plugins.fed.messages import Channel, Exchange, Wire
from sparse_plugins.fed.replies import as_many_as, exactly
from sparse_plugins.fed.robust_aggregation import Krum
from sparse_plugins.fed.server import (
    Server,
    SparseServerState,
    check_personal_masks,
    sparse_server,
    warn_of_idle_round,
)
from sparse_plugins.fed.settings import in_words, of_messages, of_widths
from sparse_plugins.wire.trees import PyTree

__all__ = ["Averaging", "Client", "sparse_federated_averaging"]

Client = tuple[Hashable, fedjax.ClientDataset, jax.Array]


def sparse_federated_averaging(
    grad_fn: GradFn,
    client_optimizer: fedjax.Optimizer,
    server_optimizer: optax.GradientTransformation | fedjax.Optimizer,
    updater: AnyUpdater,
    client_batch_hparams: fedjax.ShuffleRepeatBatchHParams,
    *,
    growth: str | GrowthProtocol | None = None,
    aggregation: Aggregation | None = None,
    personal_masks: bool = False,
    client_widths: ClientWidths | None = None,
    max_norm: float | None = None,
    wire: Wire = Wire(),
    faults: Faults = Faults(),
    ledger: Ledger | None = None,
    run: str = "",
    rounds: int | None = None,
    **words: Any,
) -> fedjax.FederatedAlgorithm:
    """Federated averaging that sends masks to the clients and kept weights back.

    In a round the server broadcasts masks and the weights inside them, clients train inside the masks and upload what
    became of these weights. All of it travels as bytes of `fed.encode`, and what is decoded from them is what is used.
    An update that answers something else, can't be decoded, has other masks than were asked for, NaN or infinities, or
    is too large is refused, named in the diagnostics and in the ledger, and the round goes on with the others. A client
    without examples sends nothing and is no vote. A round without a valid update warns and leaves the model and its
    schedule as they were.

    Rounds that update masks let clients say what to grow, if the updater grows by gradients (`fed.growth`): those whose
    update is used, each with the same say, as gradients are put into ranks before they are summed. If none of these
    growth signals can be used, or nothing was learned (all are 0, and the aggregated delta is, too), the round warns
    and puts the mask update off: the next round is due instead, and the schedule reaches its target later by as many
    rounds. The round's aggregated delta is applied in every round.

    Args:
        grad_fn: From parameters, batch and key to gradients, such as `fedjax.model_grad(model)`.
        client_optimizer: Trains the clients; an ordinary one.
        server_optimizer: What turns a round's mean delta into an update; a dense one.
        updater: Which weights to keep; its schedule counts rounds with valid updates. Straight-through ones
            (`core.SteMagnitudePruning` and related algorithms) keep dense weights on the server, but clients train
            inside the mask, so inactive ones learn nothing; for all to learn, use `sparse_server_optimizer` with an
            ordinary client optimizer. Servers have no key of their own: for random masks of their own they
            need updaters of another `rng_seed`.
        client_batch_hparams: How clients batch their data.
        growth: 'random', 'topk', 'delta' or 'dense', or a `fed.GrowthProtocol` of your own; None is 'topk' for updaters
            that grow by gradients, 'dense' if their masks have a structure. Other updaters make no use of it, and
            personal masks take none.
        aggregation: How updates become one. The default is a mean, which one hostile client can turn anywhere; with
            `client_widths` a mean over those that hold a weight.
        personal_masks: In rounds that change masks, every client changes its own by the updater's rule before it
            trains; the weights that enough clients hold compete by magnitude for the server's next mask. For updaters
            that exchange weights and keep their number, as SET and RigL do, with unstructured masks.
        client_widths: Clients that get, train and send back a narrower network (`fed.ClientWidths`): the same
            `grad_fn` with fewer channels. Not for updaters that grow by gradients, of which narrow clients have some
            only.
        max_norm: Refuse updates with a larger l2 norm; None takes any. It is not applied to growth signals, which are
            gradients and have another scale.
        wire: Number formats and compression.
        faults: Drop-out, lateness and damage to simulate.
        ledger: Gets an entry for each client and round.
        run: Name of the run. Every message is bound to run, round, client and the masks of the broadcast
            (`fed.Binding`); a reply that belongs to something else, or has other masks than it was asked for, is
            refused. Runs that share clients need names of their own.
        rounds: Length of the run; see `sparse_server_optimizer`.
        **words: For an `updater` that is an algorithm, by name or class; see `sparse_server_optimizer`.

    Returns:
        The algorithm. Its state is a `SparseServerState`, its diagnostics are, by client id, `status` ('ok' or what
        became of the update), `growth_status` (the same of its growth signal; empty if it was asked for none),
        `delta_l2_norm` (None if it was not decoded), and bytes `down`, `up` and `growth`.

    Raises:
        TypeError: If an optimizer or the updater is of another kind.
        ValueError: If a value is not allowed; from `apply`, if weights are to be grown, and clients learned but sent
            growth signals of nothing but 0, or if a round draws fewer clients than `fed.Krum` needs.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core, fed
        >>> fedjax = fed.import_fedjax()
        >>> ledger = fed.Ledger()
        >>> algorithm = fed.sparse_federated_averaging(
        ...     lambda params, batch, rng: jax.grad(lambda p: jnp.mean((batch["x"] @ p["w"] - 1) ** 2))(params),
        ...     client_optimizer=fedjax.optimizers.sgd(0.1),
        ...     server_optimizer=optax.sgd(1.0),
        ...     updater=core.create_updater_from_config(algorithm="static_sparse", sparsity=0.75),
        ...     client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=2, num_epochs=1, seed=0),
        ...     ledger=ledger,
        ... )
        >>> state = algorithm.init({"w": jnp.ones((16, 16))})
        >>> data = fedjax.ClientDataset({"x": jax.random.normal(jax.random.key(0), (4, 16))})
        >>> state, diagnostics = algorithm.apply(state, [(b"anna", data, jax.random.key(0))])
        >>> int((state.params["w"] != 0).sum()), diagnostics[b"anna"]["status"]
        (64, 'ok')
        >>> ledger.total().up < 0.3 * 4 * 16 * 16
        True

    Source: McMahan et al. (2017) for federated averaging; Bibikar et al. (2022) for masks that move; Huang et al.,
    FedTiny (2023), for growth by the largest gradients of clients.
    """
    updater = updater_of_server(updater, rounds, words)
    if not callable(grad_fn):
        raise TypeError(f"grad_fn is a {type(grad_fn).__name__}; give a function, such as fedjax.model_grad(model).")
    if not isinstance(client_optimizer, fedjax.Optimizer):
        raise TypeError(
            f"client_optimizer is a {type(client_optimizer).__name__}; give a fedjax.Optimizer, such as "
            "fedjax.optimizers.sgd(0.1), or fedjax.optimizers.create_optimizer_from_optax(optax.sgd(0.1))."
        )
    if updater.parts:
        raise ValueError(
            "sparse_federated_averaging asks clients for one updater's growth signal and cannot serve a PerModule; "
            "use fed.sparse_server_optimizer, or one updater with rules for its layers."
        )
    if personal_masks:
        check_personal_masks(updater, growth)
    if aggregation is None:
        aggregation = Aggregation() if client_widths is None else Aggregation("voters")
    if personal_masks and isinstance(aggregation.rule, Krum) and aggregation.rule.num_to_keep < aggregation.min_votes:
        raise ValueError(
            f"min_votes is {aggregation.min_votes}, but {aggregation.rule} keeps fewer updates of a round, so no "
            "weight of personal masks would be elected. Let min_votes be num_to_keep at most."
        )
    if client_widths is not None:
        check_goes_with_widths(updater, personal_masks)
    transformation = optax_transformation(server_optimizer)
    averaging = Averaging(
        server=sparse_server(updater, transformation, growth, personal_masks),
        server_optimizer=transformation,
        clients=Clients(grad_fn, client_optimizer, client_widths, fedjax.get_for_each_client_backend()),
        batch_hparams=client_batch_hparams,
        aggregation=aggregation,
        channel=Channel(wire, faults, max_norm, run),
        ledger=Ledger() if ledger is None else ledger,
    )
    return averaging.algorithm


class Clients:
    """What clients compute, for the backend that was chosen when the algorithm was built.

    Args:
        grad_fn: From parameters, batch and key to gradients.
        optimizer: What trains.
        widths: Who gets a narrower network; None if nobody does.
        backend: What runs them.
    """

    def __init__(
        self,
        grad_fn: GradFn,
        optimizer: fedjax.Optimizer,
        widths: ClientWidths | None,
        backend: fedjax.ForEachClientBackend,
    ) -> None:
        self._parts = grad_fn, optimizer, widths, backend
        self.widths = widths
        self.train = masked_training(grad_fn, optimizer, backend)
        self.probe = mean_gradient(grad_fn, backend)
        self.narrow = None if widths is None else NarrowTraining(widths, grad_fn, optimizer, backend)

    def without_channels(self, small: core.Shrunk) -> "Clients":
        """The same clients with the smaller network."""
        grad_fn, *others = self._parts
        return Clients(small.narrow(grad_fn), *others)


@dataclasses.dataclass(frozen=True)
class Averaging:
    """The parts of the algorithm, and how a round puts them together."""

    server: Server
    server_optimizer: optax.GradientTransformation
    clients: Clients
    batch_hparams: fedjax.ShuffleRepeatBatchHParams
    aggregation: Aggregation
    channel: Channel
    ledger: Ledger

    @property
    def algorithm(self) -> fedjax.FederatedAlgorithm:
        """As FedJAX has it."""
        return fedjax.FederatedAlgorithm(self.server.init, self.apply)

    @property
    def settings(self) -> str:
        """What is not the default and decides, beside updater and state, what a round computes."""
        server, channel = self.server, self.channel
        return in_words(
            growth=server.growth.name if server.updater.grows_by_gradient and not server.has_personal_masks else None,
            personal_masks=server.has_personal_masks,
            client_widths=of_widths(self.clients.widths),
            aggregation=None if self.aggregation in (Aggregation(), Aggregation("voters")) else repr(self.aggregation),
            max_norm=channel.max_norm,
            wire=of_messages(channel.wire),
        )

    def without_channels(self, small: core.Shrunk) -> "Averaging":
        """The same for the smaller network, whose masks stay as they are."""
        server = dataclasses.replace(sparse_server(small.updater, self.server_optimizer), draws_masks=False)
        return dataclasses.replace(self, server=server, clients=self.clients.without_channels(small))

    @functools.cached_property
    def _first_check(self) -> FirstCheck:
        return FirstCheck(self.server.updater)

    def apply(
        self, state: SparseServerState, clients: Sequence[Client]
    ) -> tuple[SparseServerState, dict[Hashable, dict[str, Any]]]:
        """One round."""
        self.aggregation.check_drawn(len(clients))
        self._first_check(state.opt_state.count, state.params, state.opt_state)
        masks = self.server.masks(state)
        if self.clients.narrow is None:
            exchange, updates, signal = self._gathered(state, masks, clients)
            exchanges = [exchange]
        else:
            exchanges, updates = self._gathered_by_width(self.clients.narrow, state, masks, clients)
            signal = None
        entries = [entry for exchange in exchanges for entry in exchange.entries()]
        diagnostics = {client: told for exchange in exchanges for client, told in exchange.diagnostics().items()}
        for entry in entries:
            self.ledger.add(entry)
        if updates.clients < self.aggregation.min_clients:
            # The schedule does not count it: without an update there is nothing by which masks could change.
            warn_of_idle_round(entries, updates.clients, self.aggregation.min_clients)
            return dataclasses.replace(state, round=state.round + 1), diagnostics
        mean = updates.aggregate(self.aggregation)
        lost = [reason for exchange in exchanges for reason in exchange.lost_growth()]
        held = None if self.clients.narrow is None else updates.held()
        return self.server.advance(state, mean, signal, lost, updates, self.aggregation, held), diagnostics

    def _gathered(
        self, state: SparseServerState, masks: PyTree, clients: Sequence[Client]
    ) -> tuple[Exchange, Sums | Updates, PyTree]:
        """The messages of a round, what they say, and what weights are grown by."""
        server, names = self.server, [client for client, _, _ in clients]
        exchange = self.channel.broadcast(state.round, names, state.params, masks, seed=server.seed(state))
        present = self._present(exchange, clients)
        votes = server.has_personal_masks and server.is_due(state)
        signals = server.signals(server.mask_change(state, exchange.params, exchange.masks))
        updates = self.aggregation.gather(state.params, masks, votes)
        used: dict[int, Client] = {}
        inputs = self._inputs_with_masks(state, exchange, present) if votes else self._inputs(present)
        masks_of_training = server.growth.training_masks(exchange.masks) if signals is not None else exchange.masks
        are_others = masks_of_training is not exchange.masks
        asked = as_many_as(exchange.masks) if votes else exactly(masks_of_training)
        # Clients train what they can decode, not what the server has: what a number format loses shows in the run.
        for place, output in self.clients.train({"params": exchange.params, "masks": masks_of_training}, inputs):
            sent = output["masks"] if votes or are_others else None
            message = exchange.receive(place, output["delta"], sent, asked=asked)
            if message is not None:
                used[place] = present[place]
                updates.add(self.aggregation.clipped(message.values), len(present[place][1]), message.masks)
                if signals is not None:
                    signals.add_update(message.values)
        # Nobody is asked for gradients in a round that changes nothing, or after an update that was refused.
        is_idle = updates.clients < self.aggregation.min_clients
        return exchange, updates, None if signals is None or is_idle else self._growth_signal(signals, exchange, used)

    def _gathered_by_width(
        self, narrow: NarrowTraining, state: SparseServerState, masks: PyTree, clients: Sequence[Client]
    ) -> tuple[list[Exchange], Sums | Updates]:
        """The same where clients train networks of several widths: a broadcast for each."""
        # Dense leaves are narrower, too: which clients have an entry is counted for every entry.
        held = with_whole_leaves(state.params, masks)
        updates, exchanges = self.aggregation.gather(state.params, held, is_personal=True), []
        for cohort in narrow.cohorts(state.round, state.params, masks, clients, self._batches):
            names = [client for client, _, _ in cohort.clients]
            # The masks of a narrower network do not follow from the seed, so they travel.
            seed = self.server.seed(state) if cohort.masks is masks else None
            exchange = self.channel.broadcast(state.round, names, cohort.params, cohort.masks, seed=seed)
            present = self._present(exchange, cohort.clients)
            shared = {"params": exchange.params, "masks": exchange.masks}
            for place, output in cohort.train(shared, self._inputs(present)):
                message = exchange.receive(place, output["delta"])
                if message is not None:
                    update = cohort.in_place(message.values)
                    updates.add(self.aggregation.clipped(update), len(present[place][1]), cohort.held)
            exchanges.append(exchange)
        return exchanges, updates

    def _present(self, exchange: Exchange, clients: Sequence[Client]) -> dict[int, Client]:
        """The clients that take part, by their place; those without examples have nothing to say."""
        present = {place: clients[place] for place in exchange.present()}
        for place in [place for place, (_, data, _) in present.items() if not len(data)]:
            exchange.excuse(place, "no examples")
            del present[place]
        return present

    def _batches(self, data: Any) -> Any:
        return data.shuffle_repeat_batch(self.batch_hparams)

    def _inputs(self, present: dict[int, Client]) -> Iterator[tuple[int, Any, Any]]:
        return ((place, self._batches(data), {"rng": rng}) for place, (_, data, rng) in present.items())

    def _growth_signal(self, signals: Signals, exchange: Exchange, used: dict[int, Client]) -> PyTree:
        """What weights are grown by; clients whose update was not used are not asked."""
        asked = signals.asked
        if asked is not None:
            for place, grads in self.clients.probe(exchange.params, self._inputs(used)):
                message = exchange.receive(place, grads, signals.places(grads), "growth", asked)
                if message is not None:
                    signals.add_gradients(message.values)
        return signals.total()

    def _inputs_with_masks(
        self, state: SparseServerState, exchange: Exchange, present: dict[int, Client]
    ) -> Iterator[tuple[int, Any, Any]]:
        """Clients whose masks follow their own gradients, or their own draws."""
        updater = self.server.updater
        gradients: Iterable[tuple[int, Any]] = ((place, None) for place in present)
        if updater.grows_by_gradient:
            gradients = self.clients.probe(exchange.params, self._inputs(present))
        for place, grads in gradients:
            client, data, rng = present[place]
            key = jax.random.wrap_key_data(state.opt_state.rng, impl="threefry2x32")
            # Of the name, so that the other clients of a round do not matter; `hash` differs between processes.
            words = jax.random.key_data(jax.random.fold_in(key, zlib.crc32(repr(client).encode())))
            opt_state = state.opt_state._replace(rng=words)
            if grads is None or can_change_masks(updater, opt_state, exchange.params, grads, delta=grads):
                opt_state = self.server.refresh(opt_state, exchange.params, grads)
            yield place, self._batches(data), {"rng": rng, "masks": core.unpack_masks(exchange.params, opt_state.masks)}
