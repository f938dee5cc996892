"""Flower's strategies, sparse: masks for the clients, kept weights back, and the strategy inside none the wiser."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from sparse_plugins.core.layers.channel_groups import Channels
from sparse_plugins.core.run_length import concerns_of_length
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.updater_defaults import AnyUpdater
from sparse_plugins.fed.aggregation import Aggregation
from sparse_plugins.fed.checkpoints import Checkpoints
from sparse_plugins.fed.client_widths import ClientWidths, check_goes_with_widths
from sparse_plugins.fed.flower.broadcast import Broadcast, Held
from sparse_plugins.fed.flower.grid import OrderedGrid
from sparse_plugins.fed.flower.inner_strategy import Inner
from sparse_plugins.fed.flower.records import FORMAT, Layout, is_call_for_masks
from sparse_plugins.fed.flower.round import Round
from sparse_plugins.fed.flower.widths import Parts
from sparse_plugins.fed.growth import PROTOCOLS
from sparse_plugins.fed.ledger import DELIVERED, Ledger
from sparse_plugins.fed.mask_change import check_is_plain, replaced_per_layer
from sparse_plugins.fed.messages import Wire
from sparse_plugins.fed.server import SparseServerState, check_personal_masks, sparse_server, warn_of_idle_round
from sparse_plugins.fed.settings import in_words, of_messages, of_widths
from sparse_plugins.fed.updater_in_rounds import updater_in_rounds

__all__ = ["SparseStrategy"]

_LOG = logging.getLogger("flwr")


class SparseStrategy(Strategy):
    """Makes a Flower strategy keep its model sparse, and its messages too.

    It goes wherever Flower asks for a strategy; clients need `sparse_mod` among their mods, and nothing else. After
    every aggregation the model is on its masks, which the updater changes by its schedule, in rounds. Weights travel
    as bytes of `fed.encode`, bound to run, round, node and masks: a reply that answers something else, can't be read,
    has other masks than were asked for, NaN, or no weight is refused, named in the ledger, and the round goes on with
    the others. Masks that a node holds are not sent again. Nodes are chosen by `seed`, replies taken in their order.

    A strategy that makes use of the weighted mean of replies alone (FedAvg, FedProx, FedAvgM, FedAdam, FedAdagrad,
    FedYogi) gets that mean, summed up as replies come: memory for one model, however many nodes. One that compares
    replies (FedMedian, FedTrimmedAvg, Krum, Bulyan, QFedAvg, wrappers for differential privacy) gets them as dense
    arrays, all at once.

    Args:
        strategy: The strategy inside. It chooses how many nodes, and what the aggregate is.
        updater: Which weights to keep; its schedule counts rounds with valid updates. Or the algorithm, by name or
            class.
        rounds: Length of the run. Algorithms that change masks while they train need it, unless the schedule is given.
        growth: As for `fed.sparse_federated_averaging`: 'random', 'topk', 'delta' or 'dense'. Under 'topk', which is
            the default for updaters that grow by gradients, and 'dense', clients answer `query.grow`; under 'delta'
            they train densely in rounds that change masks.
        personal_masks: In rounds that change masks, every node changes its own by the rule of `core.SET` or `core.RigL`
            before it trains, under RigL by what it answers to `query.grow`; the weights that enough nodes hold compete
            by magnitude for the server's next mask, as in `fed.sparse_federated_averaging`.
        min_votes: Nodes that must hold a weight for it to stay or to be grown where masks are personal; with fewer
            valid updates a round changes nothing.
        client_widths: Nodes that get, train, evaluate and send back a part of the channels (`fed.ClientWidths`, with
            its `groups`), by their numbers, or dealt by its seed. Their functions see smaller arrays and build a model
            from the shapes of these; weights are averaged over the nodes that hold them. Not for updaters that grow by
            gradients, nor for strategies that compare replies.
        max_norm: Refuse updates with a larger l2 norm; None takes any.
        wire: Number formats and compression.
        seed: What the choice of nodes derives from, and the round.
        run: Name of the run, to which messages are bound; empty for the number that Flower gives it.
        ledger: Gets an entry for each node and round; what evaluation costs is in `evaluation_ledger`.
        checkpoints: Where the run is saved after each round, and goes on from, bit for bit.
        resends_masks: Send masks in every broadcast, also to nodes that hold them.
        keep_targets: False goes on from checkpoints of another updater, of other sparsities, or of other settings of
            this class or of the strategy inside that change what is computed, on purpose.
        **words: What else `core.sparsify` takes with an algorithm: `sparsity`, `distribution`, `rules`, `layers`, ...

    Raises:
        TypeError: If the strategy or the updater is none, or can't be sparse.
        ValueError: If a value is not allowed, or the updater's schedule does not count rounds; from `start`, if the
            model has dtypes that JAX would narrow.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> strategy = SparseStrategy(FedAvg(fraction_train=0.5), "rigl", sparsity=0.8, rounds=100)
        >>> strategy.server.updater.describe_schedule()
        'masks change 8 times, every 10 rounds from round 0 to 70'
    """

    def __init__(
        self,
        strategy: Strategy,
        updater: AnyUpdater,
        *,
        rounds: int | None = None,
        growth: str | None = None,
        personal_masks: bool = False,
        min_votes: int = 1,
        client_widths: ClientWidths | None = None,
        max_norm: float | None = None,
        wire: Wire = Wire(),
        seed: int = 0,
        run: str = "",
        ledger: Ledger | None = None,
        checkpoints: Checkpoints | None = None,
        resends_masks: bool = False,
        keep_targets: bool = True,
        **words: Any,
    ) -> None:
        updater = updater_in_rounds(updater, rounds, words)
        if growth is not None and growth not in PROTOCOLS:
            raise ValueError(f"growth is {growth!r}; choose one of {', '.join(PROTOCOLS)}.")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm is {max_norm}; give a number above 0, or None to take updates of any size.")
        if seed < 0:
            raise ValueError(f"seed is {seed}; give a number of 0 or more.")
        self.inner = Inner(strategy)
        self.aggregation = Aggregation("mean" if client_widths is None else "voters", min_votes)
        if client_widths is not None:
            check_goes_with_widths(updater, personal_masks)
            self.inner.check_widths()
        if personal_masks:
            check_personal_masks(updater, growth)
            check_is_plain(updater)
        # What the strategy inside makes of a round is the update: taken as it is.
        self.server = sparse_server(updater, optax.sgd(1.0), growth, personal_masks)
        if self.server.updater.parts:
            raise ValueError("SparseStrategy asks nodes for one updater's growth signal and cannot serve a PerModule.")
        self.inner.check_growth(updater, self.server.growth)
        if checkpoints is not None:
            self.inner.check_resumable()
        self.max_norm, self.wire, self.seed, self.run = max_norm, wire, seed, run
        self.client_widths = client_widths
        self.ledger = Ledger() if ledger is None else ledger
        self.evaluation_ledger = Ledger()
        self._checkpoints = None if checkpoints is None else checkpoints.knowing(updater, self.settings)
        self._keep_targets, self._held = keep_targets, Held(not resends_masks)
        self._first_check = FirstCheck(updater)
        self._state: SparseServerState | None = None
        self._layout: Layout | None = None
        self._channels: Channels | None = None
        self._round: Round | None = None
        self._done = 0  # rounds before those that Flower's loop counts
        self._history: dict[str, dict[int, Any]] = {"train": {}, "evaluate": {}, "server": {}}

    @property
    def state(self) -> SparseServerState:
        """The server's state: parameters, masks and rounds so far; there from the first round on.

        Raises:
            ValueError: If no run was started.
        """
        if self._state is None:
            raise ValueError("there is no state yet: call start first.")
        return self._state

    @property
    def layout(self) -> Layout:
        """Names, shapes and dtypes of the model's arrays."""
        if self._layout is None:
            raise ValueError("there is no model yet: call start first.")
        return self._layout

    @property
    def settings(self) -> str:
        """What decides, beside updater and state, what a round computes."""
        return f"{self.inner.settings}; " + in_words(
            seed=self.seed,
            growth=self.server.growth.name if self.server.updater.grows_by_gradient else None,
            personal_masks=self.server.has_personal_masks,
            min_votes=self.aggregation.min_votes,
            client_widths=of_widths(self.client_widths),
            max_norm=self.max_norm,
            wire=of_messages(self.wire),
        )

    def masks(self) -> dict[str, Any]:
        """uint8 masks by the names of the model's arrays, 1 = in use; `core.NOT_PRUNED` where one stays dense."""
        return jax.tree.map(np.asarray, self.server.masks(self.state))

    def arrays(self) -> ArrayRecord:
        """The model, 0 outside the masks."""
        return self.layout.record(self.state.params)

    def begin(self, arrays: ArrayRecord) -> None:
        """Takes a model to start from, unless there is one; `start` does."""
        if self._state is not None:
            return
        if not arrays:
            raise ValueError("the model has no arrays; give initial_arrays=ArrayRecord(...).")
        model = {name: array.numpy() for name, array in arrays.items()}
        self._layout = Layout.of(model, wide=bool(jax.config.read("jax_enable_x64")))
        values = self._layout.read(arrays, "initial_arrays")
        params = {name: jax.numpy.asarray(value) for name, value in values.items()}
        if self.client_widths is not None:
            widths = self.client_widths.widths
            if isinstance(widths, Mapping) and (names := [node for node in widths if not isinstance(node, int)]):
                raise ValueError(
                    f"client_widths has widths of {names}; nodes of Flower are integers, as in {{7: 0.5}}."
                )
            self._channels = self.client_widths.channels_of(params)
        self._state = self.server.init(params)
        self.inner.set_model(self.arrays())
        self._restore()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Runs rounds, as Flower's strategies do; goes on where the checkpoints end.

        Args:
            grid: As Flower gives it to the server's main function.
            initial_arrays: The model to start from; read for its layout alone if there are checkpoints.
            num_rounds: Rounds in all, those before included.
            timeout: Seconds to wait for replies.
            train_config: Sent to nodes for training.
            evaluate_config: Sent to nodes for evaluation.
            evaluate_fn: Evaluates the model on the server.

        Returns:
            The model, and the metrics of all rounds, those before included.
        """
        self._state = None
        self.begin(initial_arrays)
        for concern in concerns_of_length(self.server.updater, num_rounds):
            _LOG.warning("%s", concern)
        done = self.state.round

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            found = self._history["server"].get(number + done)
            metrics = MetricRecord(found) if found is not None else evaluate_fn and evaluate_fn(number + done, arrays)
            if metrics is not None:
                self._history["server"][number + done] = dict(metrics)
            return metrics

        self._done = done
        ordered = OrderedGrid(grid, self._again)
        ordered.timeout = timeout
        super().start(
            ordered,
            self.arrays(),
            max(num_rounds - done, 0),
            timeout,
            train_config,
            evaluate_config,
            None if evaluate_fn is None else evaluate,
        )
        self._done = 0
        self._save()
        train, clients, server = (
            {number: MetricRecord(metrics) for number, metrics in sorted(self._history[which].items())}
            for which in ("train", "evaluate", "server")
        )
        return Result(self.arrays(), train, clients, server)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What each chosen node is sent; see Flower's `Strategy`."""
        self.begin(arrays)
        opt_state = self.state.opt_state
        if self._first_check.is_due(opt_state.count):  # of what Flower evaluates, which a subclass may have changed
            self._first_check(opt_state.count, self.layout.read(arrays, "Flower"), opt_state)
        server_round, ordered = server_round + self._done, self._ordered(grid)
        self._save()
        messages = list(self.inner.strategy.configure_train(server_round, self.arrays(), config, grid))
        messages = self._chosen(messages, grid, server_round)
        broadcast = self._broadcast(grid)
        change = self.server.mask_change(self.state, broadcast.received.values, broadcast.received.masks)
        parts = self._parts(broadcast, broadcast.round)
        self._round = Round(self, broadcast, change, ordered, config, self._personal(broadcast), parts)
        return self._round.after_growth([self._round.order(message) for message in messages])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model after a round, on its masks, and metrics; see Flower's `Strategy`."""
        current = self._round
        if current is None:
            raise ValueError("aggregate_train was called without configure_train: nothing was asked for.")
        current.take(replies)
        signal = current.growth_signal()
        self._round = None
        is_enough = len(current.used) >= self.aggregation.min_clients
        aggregated, metrics = current.aggregate() if is_enough else (None, None)
        for entry in current.entries():
            self.ledger.add(entry)
            if entry.status != DELIVERED:
                _LOG.warning("round %d, node %s: %s", entry.round + 1, entry.client, entry.status)
        self._held.keep_newest()
        if aggregated is None:
            warn_of_idle_round(current.entries(), len(current.used), self.aggregation.min_clients)
            self._state = dataclasses.replace(self.state, round=self.state.round + 1)
            return None, metrics
        after = self.layout.read(aggregated, type(self.inner.strategy).__name__, rounds=True)
        mean = {name: np.subtract(np.asarray(self.state.params[name]), after[name]) for name in after}
        lost = current.lost_growth()
        self._state = self.server.advance(
            self.state, mean, signal, lost, current.sums, self.aggregation, current.held()
        )
        self.inner.confine(self.masks(), self.layout)
        self.inner.set_model(self.arrays())
        if metrics is not None:
            self._history["train"][self.state.round] = dict(metrics)
        return self.arrays(), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What each chosen node is sent; see Flower's `Strategy`."""
        self.begin(arrays)
        server_round, ordered = server_round + self._done, self._ordered(grid)
        messages = list(self.inner.strategy.configure_evaluate(server_round, self.arrays(), config, grid))
        if not messages:
            return []
        broadcast = self._broadcast(grid)
        # Nodes evaluate what they have trained, in the widths of the round that has just ended.
        parts = self._parts(broadcast, max(broadcast.round - 1, 0))
        self._round = Round(self, broadcast, None, ordered, config, parts=parts)
        return [self._round.order(message, "evaluate") for message in self._chosen(messages, grid, server_round)]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Metrics of the nodes that answered; see Flower's `Strategy`."""
        current = self._round
        if current is None:  # nobody was asked
            return None
        answers = [reply for reply in replies if current.note_evaluation(reply)]
        self._round = None
        for entry in current.entries():
            self.evaluation_ledger.add(entry)
        metrics = self.inner.strategy.aggregate_evaluate(server_round, answers) if answers else None
        if metrics is not None:
            self._history["evaluate"][self.state.round] = dict(metrics)
        return metrics

    def summary(self) -> None:
        """Logs what is set."""
        _LOG.info("\t├──> Sparse: %s, growth %s", self.server.updater, self.server.growth)
        self.inner.strategy.summary()

    def orders(self, task: str, broadcast: Broadcast, **others: Any) -> ConfigRecord:
        """What stands beside a payload."""
        return ConfigRecord(
            {
                "format": FORMAT,
                "layout": broadcast.layout.to_text(),
                "run": broadcast.run,
                "round": broadcast.round,
                "task": task,
                "arrays": self.inner.base.arrayrecord_key,
                "up": self.wire.up,
                "zstd": self.wire.zstd,
                "keep": False,
                **others,
            }
        )

    @property
    def held(self) -> Held:
        """Which masks nodes hold."""
        return self._held

    def _broadcast(self, grid: Grid) -> Broadcast:
        state = self.state
        params = {name: np.asarray(value) for name, value in state.params.items()}
        run = self.run or str(grid.run.run_id)
        return Broadcast(run, state.round, params, self.masks(), self.layout, self.wire, self.server.seed(state))

    def _parts(self, broadcast: Broadcast, number: int) -> Parts | None:
        """What nodes have of the model in a round; None if they have all of it."""
        if self.client_widths is None or self._channels is None:
            return None
        return Parts(self.client_widths, self._channels, broadcast, number)

    def _personal(self, broadcast: Broadcast) -> dict[str, Any] | None:
        """What nodes need to know to change masks of their own; None if they do not."""
        if not (self.server.has_personal_masks and self.server.is_due(self.state)):
            return None
        updater, opt_state = self.server.updater, self.state.opt_state
        counts = replaced_per_layer(updater, int(opt_state.count), broadcast.masks)
        told = {"counts": [counts[name] if isinstance(counts[name], int) else -1 for name in self.layout.sent]}
        if updater.grows_by_gradient:
            return told
        return {**told, "words": tuple(opt_state.rng.tolist()), "step": int(opt_state.count) + 1}

    def _ordered(self, grid: Grid) -> OrderedGrid:
        return grid if isinstance(grid, OrderedGrid) else OrderedGrid(grid, self._again)

    def _chosen(self, messages: list[Message], grid: Grid, server_round: int) -> list[Message]:
        """The same messages to nodes that the seed chooses, in the order of the nodes.

        Strategies say how many; one that has something else for each node has chosen itself.
        """
        contents = {id(message.content) for message in messages}
        nodes = sorted(grid.get_node_ids())
        if len(contents) == 1 and len(messages) <= len(nodes):
            draws = np.random.default_rng([self.seed, server_round])
            chosen = draws.choice(len(nodes), len(messages), replace=False)
            for message, place in zip(messages, chosen, strict=True):
                message.metadata.dst_node_id = nodes[place]
        return sorted(messages, key=lambda message: message.metadata.dst_node_id)

    def _again(self, reply: Message) -> Message | None:
        """The message with whole masks, for a node that lost those it had."""
        if self._round is None or not is_call_for_masks(reply):
            return None
        return self._round.order_whole(reply.metadata.src_node_id)

    def _tree(self) -> dict[str, Any]:
        return {"server": self.state, "moments": self.inner.moments(self.layout)}

    def _save(self) -> None:
        """Saves the state, unless it was saved before."""
        if self._checkpoints is None or self.state.round == 0 or self.state.round in self._checkpoints.rounds():
            return
        extra = {
            "ledger": self.ledger.to_csv(),
            "evaluation_ledger": self.evaluation_ledger.to_csv(),
            "history": json.dumps({which: list(metrics.items()) for which, metrics in self._history.items()}),
        }
        self._checkpoints.save(self.state.round, self._tree(), extra)

    def _restore(self) -> None:
        self._history = {"train": {}, "evaluate": {}, "server": {}}
        if self._checkpoints is None:
            return
        if (found := self._checkpoints.restore(like=self._tree(), keep_targets=self._keep_targets)) is None:
            return
        self._state = found.state["server"]
        self.inner.set_moments(found.state["moments"], self.layout)
        self.inner.set_model(self.arrays())
        for ledger, name in ((self.ledger, "ledger"), (self.evaluation_ledger, "evaluation_ledger")):
            ledger.truncate(0)
            for entry in Ledger.from_csv(found.extra[name]):
                ledger.add(entry)
        history = json.loads(found.extra["history"])
        self._history = {which: dict(rows) for which, rows in history.items()}
        _LOG.info("goes on after round %d", found.round)
