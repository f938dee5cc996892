"""One round: what each node was sent, what became of its reply, and what the strategy inside is given."""

import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from sparse_plugins.fed.aggregation import Aggregation, Sums
from sparse_plugins.fed.flower.broadcast import Broadcast, Held
from sparse_plugins.fed.flower.grid import OrderedGrid
from sparse_plugins.fed.flower.inner_strategy import Inner
from sparse_plugins.fed.flower.personal import key_of_node
from sparse_plugins.fed.flower.records import (
    GROW,
    ORDERS,
    SETTLED,
    Layout,
    arrays_in,
    packed_masks,
    payload_in,
    payload_record,
)
from sparse_plugins.fed.flower.widths import Part, Parts
from sparse_plugins.fed.ledger import DELIVERED, Entry
from sparse_plugins.fed.mask_change import MaskChange
from sparse_plugins.fed.messages import Message as Update
from sparse_plugins.fed.messages import read_reply
from sparse_plugins.fed.replies import as_many_as, exactly
from sparse_plugins.fed.server import Server
from sparse_plugins.wire.trees import PyTree

__all__ = ["Round", "Settings", "remedy_for"]

_MOST_EXAMPLES = 1 << 53
_NO_MOD = "let the client's app have mods=[fed.flower.sparse_mod]"
# What to do, by what Flower says.
_REMEDIES = {
    "No query function registered with name 'grow'": "let it have a function @app.query('grow') that returns "
    "gradients, or use core.SET or growth='delta'",
    "secaggplus": "secure aggregation is on Flower's older interface and is not supported: take secaggplus_mod out "
    "of its mods",
    "serialization type for numpy conversion: 'sparse_plugins": "something reads the arrays before sparse_mod "
    "has made them dense: let the client's app have mods=[sparse_mod], as the first of its mods",
}


def remedy_for(reason: str) -> str | None:
    """What a client can do about an error, by what Flower says of it; None where nothing is known."""
    return next((text for sign, text in _REMEDIES.items() if sign in reason), None)


class Settings(Protocol):
    """What a round needs to know of the strategy."""

    inner: Inner
    server: Server
    aggregation: Aggregation
    max_norm: float | None

    @property
    def layout(self) -> Layout:
        """Names, shapes and dtypes of the model's arrays."""

    @property
    def held(self) -> Held:
        """Which masks nodes hold."""

    def orders(self, task: str, broadcast: Broadcast, **others: Any) -> ConfigRecord:
        """What stands beside a payload."""


class Round:
    """The messages of one round of training or evaluation.

    Args:
        settings: The strategy.
        broadcast: What is sent.
        change: The mask change about which nodes are asked; None if there is none.
        grid: Sends and receives.
        config: What the user sends beside the model.
        personal: How nodes are to change masks of their own: `counts`, and `words` and `step` of draws; None if they
            are not.
        parts: What nodes have of the model; None if they have all of it.
    """

    def __init__(
        self,
        settings: Settings,
        broadcast: Broadcast,
        change: MaskChange | None,
        grid: OrderedGrid,
        config: ConfigRecord,
        personal: dict[str, Any] | None = None,
        parts: Parts | None = None,
    ) -> None:
        self._settings, self._broadcast, self._change, self._grid = settings, broadcast, change, grid
        self._config, self._signals = config, settings.server.signals(change)
        self._sent: dict[int, Message] = {}
        self._bytes: dict[int, dict[str, int]] = {}
        self._status: dict[int, str] = {}
        self._growth_status: dict[int, str] = {}
        self._personal, self._parts, self._whole = personal, parts, Part(broadcast)
        masks = None if personal is None else broadcast.masks
        self.sums = Sums(broadcast.params, masks if parts is None else parts.held)
        self._replies: list[Message] = []
        self._metrics: list[MetricRecord] = []
        self.used: list[int] = []

    def order(self, message: Message, task: str = "train") -> Message:
        """The message of the strategy inside, with a payload in place of its arrays."""
        node = message.metadata.dst_node_id
        broadcast = self._part(node).broadcast
        payload = broadcast.payload(self._settings.held.masks(node))
        self._bytes[node] = {"down": len(payload), "up": 0, "growth": 0}
        if task == "train" and self._trains_densely:
            task = "train densely"
        personal = {}
        if task == "train" and self._personal is not None:
            if "words" not in self._personal:
                return self._order_after_growth(message, payload)
            words = list(key_of_node(self._personal["words"], node))
            task, personal = "train personally", {**self._personal, "words": words}
        keep = self._signals is not None and self._signals.asked is not None
        arrays_key = self._settings.inner.base.arrayrecord_key
        others = {name: record for name, record in message.content.items() if name != arrays_key}
        orders = self._settings.orders(task, broadcast, keep=keep, **personal)
        message.content = RecordDict({**others, arrays_key: payload_record(payload), ORDERS: orders})
        self._sent[node] = message
        return message

    def _part(self, node: int) -> Part:
        """What a node has of the model."""
        return self._whole if self._parts is None else self._parts.of(node)

    def _order_after_growth(self, message: Message, payload: bytes) -> Message:
        """The order to train, to a node that is asked before for masks of its own and keeps the broadcast."""
        inner, node = self._settings.inner, message.metadata.dst_node_id
        orders = self._settings.orders("grow personally", self._broadcast, **{**(self._personal or {}), "keep": True})
        records: dict[str, Any] = {inner.base.arrayrecord_key: payload_record(payload), ORDERS: orders}
        self._sent[node] = Message(RecordDict({**records, inner.base.configrecord_key: self._config}), node, GROW)
        others = {name: record for name, record in message.content.items() if name != inner.base.arrayrecord_key}
        message.content = RecordDict({**others, ORDERS: self._settings.orders("train personally", self._broadcast)})
        return message

    def after_growth(self, orders: list[Message]) -> list[Message]:
        """The orders to nodes that have made masks of their own, for which they are asked if it takes gradients."""
        if self._personal is None or "words" in self._personal:
            return orders
        ready = set()
        for reply in self._grid.send_and_receive(list(self._sent.values()), timeout=self._grid.timeout):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._status[node] = f"failed: {reply.error.reason}{self._hint(reply)}"
            else:
                ready.add(node)
        self._sent = {order.metadata.dst_node_id: order for order in orders if order.metadata.dst_node_id in ready}
        return list(self._sent.values())

    def order_whole(self, node: int) -> Message | None:
        """The message once more for a node that holds no masks, with all of them; None if it was sent nothing."""
        before = self._sent.pop(node, None)
        if before is None:
            return None
        self._settings.held.forget(node)
        payload = self._part(node).broadcast.payload()
        self._bytes[node]["down"] += len(payload)
        content = RecordDict({**before.content, self._settings.inner.base.arrayrecord_key: payload_record(payload)})
        return Message(content, node, before.metadata.message_type)

    @property
    def _trains_densely(self) -> bool:
        return self._signals is not None and self._masks_of_training is not self._broadcast.received.masks

    @property
    def _masks_of_training(self) -> PyTree:
        masks = self._broadcast.received.masks
        return masks if self._signals is None else self._settings.server.growth.training_masks(masks)

    def take(self, replies: Iterable[Message]) -> None:
        """Takes in the replies to an order to train, one at a time."""
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in self._bytes and node not in self._status:  # else nobody asked, or it said so before
                self._status[node] = self._taken(node, reply)

    def _taken(self, node: int, reply: Message) -> str:
        payload, refusal = self._payload(reply)
        if payload is None:
            return refusal
        self._bytes[node]["up"] = len(payload)
        metrics, refusal = self._checked_metrics(reply.content)
        if metrics is None:
            return refusal
        part = self._part(node)
        held, like = part.broadcast.received.masks, part.broadcast.received.values
        limit = self._settings.max_norm
        asked = exactly(self._masks_of_training if self._parts is None else held)
        asked = asked if self._personal is None else as_many_as(held)
        message, status, _ = read_reply(payload, like, held, part.broadcast.answer("update", node), asked, limit)
        if message is None:
            return status
        weight = float(metrics[self._settings.inner.base.weighted_by_key])  # type: ignore[arg-type]
        if weight == 0:
            return "nothing to send: no examples"
        masks = message.masks if part.held is None else part.held
        self._add(Update(part.in_place(message.values), masks), weight, metrics, reply)
        self.used.append(node)
        self._settings.held.add(node, part.broadcast)
        return DELIVERED

    def _add(self, message: Update, weight: float, metrics: MetricRecord, reply: Message) -> None:
        self._metrics.append(metrics)
        if self._signals is not None:
            self._signals.add_update(message.values)
        if self._settings.inner.takes_the_mean or self._personal is not None:
            self.sums.add(message.values, weight, message.masks)
        if self._settings.inner.takes_the_mean:
            self._replies = [reply]
            return
        (name, _) = arrays_in(reply.content) or ("", None)
        reply.content[name] = self._moved_by(message.values)
        self._replies.append(reply)

    def _moved_by(self, update: PyTree) -> ArrayRecord:
        """The server's model after an update, as an ordinary record."""
        moved = {name: value - np.asarray(update[name]) for name, value in self._broadcast.params.items()}
        return self._settings.layout.record(moved)

    def _payload(self, reply: Message) -> tuple[bytes | None, str]:
        if reply.has_error():
            return None, f"failed: {reply.error.reason}{self._hint(reply)}"
        found = arrays_in(reply.content)
        payload = None if found is None else payload_in(found[1])
        return payload, "" if payload is not None else f"refused: it holds no payload; {_NO_MOD}"

    def _hint(self, reply: Message) -> str:
        if remedy := remedy_for(str(reply.error.reason)):
            return f"; {remedy}"
        node = reply.metadata.src_node_id
        has_answered = self._settings.held.masks(node) is not None
        return self._part(node).hint + ("" if has_answered else f"; if it has no sparse_mod, {_NO_MOD}")

    def _checked_metrics(self, content: RecordDict) -> tuple[MetricRecord | None, str]:
        """The metrics of a reply, with a weight among them that the strategy inside can use."""
        records, key = list(content.metric_records.values()), self._settings.inner.base.weighted_by_key
        weight = records[0].get(key) if len(records) == 1 else None
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            return (
                None,
                f"refused: it has no metric {key!r}, by which replies are weighed; return a number so called",
            )
        if not (math.isfinite(weight) and 0 <= weight < _MOST_EXAMPLES):
            return None, f"refused: its metric {key!r} is {weight}, and a number from 0 to 2**53 is expected"
        if self._metrics and set(self._metrics[0]) != set(records[0]):
            return None, f"refused: its metrics are {sorted(records[0])}, those of others {sorted(self._metrics[0])}"
        return records[0], ""

    def growth_signal(self) -> PyTree | None:
        """What to grow by, if masks change; asks the nodes whose update was used."""
        if self._signals is None or self._change is None or not self.used:
            return None
        asked = self._signals.asked
        if asked is not None:
            self._growth_status = dict.fromkeys(self.used, "no reply in time")
            like = self._broadcast.received.values
            messages = [self._question(node) for node in self.used]
            for reply in self._grid.send_and_receive(messages, timeout=self._grid.timeout):
                node = reply.metadata.src_node_id
                payload, status = self._payload(reply)
                if payload is not None:
                    self._bytes[node]["growth"] = len(payload)
                    message, status, _ = read_reply(payload, like, None, self._broadcast.answer("growth", node), asked)
                    if message is not None:
                        self._signals.add_gradients(message.values)
                self._growth_status[node] = status
        return self._signals.total()

    def _question(self, node: int) -> Message:
        """What a node is asked about growth; it has kept the broadcast."""
        settings, change = self._settings, self._change
        assert change is not None
        others = {}
        if settings.server.growth.name == "topk":
            others["counts"] = [count if isinstance(count, int) else -1 for count in self._in_order(change.counts)]
        records: dict[str, Any] = {
            settings.inner.base.configrecord_key: self._config,
            ORDERS: settings.orders("grow", self._broadcast, **others),
        }
        if change.settled is not change.masks:
            records[SETTLED] = packed_masks(change.settled)
        self._sent[node] = Message(RecordDict(records), node, GROW)
        return self._sent[node]

    def _in_order(self, tree: dict[str, Any]) -> list[Any]:
        return [tree[name] for name in self._settings.layout.sent]

    def lost_growth(self) -> list[str]:
        """What became of the growth signals, if nodes were asked for some and none can be used."""
        return [] if DELIVERED in self._growth_status.values() else list(self._growth_status.values())

    def held(self) -> PyTree | None:
        """uint8 masks of what any node has answered for, where some had a part of the model; None if all had all."""
        return None if self._parts is None else self.sums.held()

    def aggregate(self) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the strategy inside makes of the round."""
        inner, number = self._settings.inner, self._broadcast.round + 1
        if not inner.takes_the_mean:
            return inner.strategy.aggregate_train(number, self._replies)
        mean = self.sums.aggregate(self._settings.aggregation)
        if not all(np.isfinite(leaf).all() for leaf in mean.values()):
            self._status.update(dict.fromkeys(self.used, "refused: together the updates of this round overflow"))
            self.used = []
            return None, None
        base = inner.base
        contents = [RecordDict({"metrics": metrics}) for metrics in self._metrics]
        metrics = base.train_metrics_aggr_fn(contents, base.weighted_by_key)
        (reply,) = self._replies
        reply.content = RecordDict({base.arrayrecord_key: self._moved_by(mean), "metrics": self._metrics[-1]})
        with inner.with_metrics(metrics):
            return inner.strategy.aggregate_train(number, [reply])

    def note_evaluation(self, reply: Message) -> bool:
        """Takes note of a reply to an order to evaluate; whether it can be used."""
        node = reply.metadata.src_node_id
        if node not in self._bytes or node in self._status:
            return False
        metrics, refusal = (
            (None, self._payload(reply)[1]) if reply.has_error() else self._checked_metrics(reply.content)
        )
        self._status[node] = refusal or DELIVERED
        if metrics is None:
            return False
        self._metrics.append(metrics)
        self._settings.held.add(node, self._part(node).broadcast)
        return True

    def entries(self) -> list[Entry]:
        """What each node cost."""
        return [
            Entry(
                self._broadcast.round,
                str(node),
                **sent,
                status=self._status.get(node, "no reply in time"),
                growth_status=self._growth_status.get(node, ""),
            )
            for node, sent in self._bytes.items()
        ]
