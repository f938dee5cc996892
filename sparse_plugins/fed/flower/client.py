"""A Flower client: dense arrays for the user's functions, kept weights on the wire. Needs Flower and NumPy, no JAX."""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from sparse_plugins.fed.flower.personal import largest, personal_masks
from sparse_plugins.fed.flower.records import (
    FORMAT,
    ORDERS,
    SETTLED,
    Layout,
    arrays_in,
    check_format,
    packed_masks,
    payload_in,
    payload_record,
    unpacked_masks,
)
from sparse_plugins.wire import Binding, SeededMasks, decode, encode, masks_digest
from sparse_plugins.wire.envelope import Flags, read_header
from sparse_plugins.wire.markers import is_pruned
from sparse_plugins.wire.payload import encode_sent
from sparse_plugins.wire.value_codes import is_floating

__all__ = ["sparse_mod", "training_masks"]

_DENSELY, _PERSONALLY, _GROW_PERSONALLY = "train densely", "train personally", "grow personally"
_MASKS, _PERSONAL, _BROADCAST = f"{ORDERS}.masks", f"{ORDERS}.personal", f"{ORDERS}.broadcast"

NDArray = np.ndarray[Any, Any]


def sparse_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Lets a Flower client take part in a sparse run: `ClientApp(mods=[sparse_mod])`, outermost.

    The user's functions see ordinary dense arrays, 0 outside the mask, whatever they are written in; what the training
    function returns is checked, confined to the mask, and sent as kept weights. Masks stay in `Context.state` and are
    not sent again while the node holds them. Mods for differential privacy go behind it, and see dense arrays, too.

    Weights outside the mask that a training function moves in between are dropped at its end. To train inside the mask
    at every step, multiply gradients by `training_masks(context)`.

    A server that grows weights by gradients asks for them with `query.grow`: register a function with
    `@app.query("grow")` that returns the mean gradient of the node's data, an array for each of the model's.

    Args:
        message: What came from the server.
        context: The node's state.
        call_next: The user's function, or the next mod.

    Returns:
        The reply.

    Raises:
        ValueError: If the server has no `SparseStrategy`, or another version of it; if the function returns other
            arrays than those of the server's model, or NaN. Flower tells the server.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> app = ClientApp(mods=[sparse_mod])
    """
    orders = message.content.config_records.get(ORDERS)
    if orders is None:
        _check_is_not_dense(message)
        return call_next(message, context)
    check_format(orders)
    return _Node(message, context, orders, Layout.from_text(str(orders["layout"]))).answer(call_next)


def training_masks(context: Context) -> dict[str, NDArray]:
    """The masks inside which a node is to train.

    Args:
        context: What the user's function is given.

    Returns:
        uint8 arrays by the names of the model's arrays, 1 = in use; arrays that stay dense have none. In rounds in
        which all weights are to be trained, so that the server sees which to grow, all entries are 1.

    Example:
        >>> training_masks(Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={}))
        {}
    """
    orders = context.state.config_records.get(ORDERS)
    if orders is None:
        return {}
    like = Layout.from_text(str(orders["layout"])).sent
    masks = unpacked_masks(_state(context, _PERSONAL if _PERSONAL in context.state else _MASKS), like)
    densely = np.uint8(bool(orders["densely"]))
    return {name: mask | densely for name, mask in masks.items() if is_pruned(mask)}


class _Received(NamedTuple):
    """A broadcast, decoded."""

    masks: dict[str, Any]
    values: dict[str, NDArray]
    inside: dict[str, NDArray | None]  # positions of the masks
    round: int
    digest: int

    def confined(self, masks: dict[str, Any]) -> "_Received":
        """The same with weights 0 outside other masks."""
        if masks is self.masks:
            return self
        values = {name: x * masks[name] if is_pruned(masks[name]) else x for name, x in self.values.items()}
        return self._replace(values=values)

    def positions(self, masks: dict[str, Any]) -> dict[str, NDArray | None]:
        """Positions of these masks, which take long to find."""
        if masks is self.masks:
            return self.inside
        return {name: np.flatnonzero(mask) if is_pruned(mask) else None for name, mask in masks.items()}


@dataclasses.dataclass(frozen=True)
class _Node:
    """A node that answers a message."""

    message: Message
    context: Context
    orders: ConfigRecord
    layout: Layout

    def answer(self, call_next: ClientAppCallable) -> Message:
        """What the server gets."""
        received, settled = self._received(), self.message.content.array_records.get(SETTLED)
        if received is None:
            needs = ConfigRecord({"format": FORMAT, "needs": "masks"})
            return Message(RecordDict({ORDERS: needs}), reply_to=self.message)
        task = self.orders["task"]
        trains_in = self._masks_of_training(received)
        reply = call_next(self._opened(received.confined(trains_in)), self.context)
        if task == "evaluate" or reply.has_error():
            return reply
        name, record = self._returned(reply)
        values = self.layout.read(record, f"the reply of {self.message.metadata.message_type!r}")
        if task == _GROW_PERSONALLY:
            return self._keep_personal_masks(received, values)
        payload = (
            self._gradients(values, received, settled) if task == "grow" else self._update(values, received, trains_in)
        )
        reply.content[name] = payload_record(payload)
        return reply

    def _received(self) -> _Received | None:
        """The broadcast; None if it builds on masks that are not held."""
        payload = self._payload()
        if payload is None:
            return None
        header, base = read_header(payload), None
        if Flags.BASE in header.flags:
            held = self.context.state.config_records.get(ORDERS)
            if held is None or held["digest"] != header.base_digest or held["layout"] != self.orders["layout"]:
                return None
            base = _as_bits(unpacked_masks(_state(self.context, _MASKS), self.layout.sent))
        decoded = decode(payload, self.layout.sent, base=base, binding=Binding("broadcast", str(self.orders["run"])))
        stated = {"rice", "bitmask", "seed", "difference"}
        is_held = Flags.BASE in header.flags and not stated & {*decoded.forms}
        digest = header.base_digest if is_held else masks_digest(decoded.masks, self.layout.sent)
        inside = dict(zip(sorted(self.layout.sent), decoded.positions, strict=True))  # in the order of the payload
        received = _Received(decoded.masks, decoded.values, inside, decoded.base_version, digest)
        self._remember(received, payload)
        return received

    def _payload(self) -> bytes | None:
        """The broadcast as bytes: in the message, or kept from the round's training."""
        name = str(self.orders["arrays"])
        records = self.message.content.array_records
        if name in records:
            payload = payload_in(records[name])
            if payload is None:
                raise ValueError(f"record {name!r} has ordinary arrays where a payload was announced.")
            return payload
        kept = self.context.state.array_records.get(_BROADCAST)
        payload = None if kept is None else payload_in(kept)
        # What was kept of another round, or of a run before, is not what is asked about.
        if payload is None or read_header(payload).base_version != self.orders["round"]:
            return None
        return payload

    def _remember(self, received: _Received, payload: bytes) -> None:
        state = self.context.state
        held = state.config_records.get(ORDERS)
        known = {"digest": received.digest, "layout": self.orders["layout"]}
        if held is None or {name: held[name] for name in known} != known:
            state[_MASKS] = packed_masks(received.masks)
        state[ORDERS] = ConfigRecord({**known, "densely": self.orders["task"] == _DENSELY})
        if self.orders["keep"]:
            if Flags.BASE in read_header(payload).flags:  # on masks that are not held from now on
                binding = Binding("broadcast", str(self.orders["run"]), received.round, masks=received.digest)
                payload = encode(received.masks, received.values, binding=binding)
            state[_BROADCAST] = payload_record(payload)
        elif _BROADCAST in state:
            del state[_BROADCAST]
        if _PERSONAL in state and self.orders["task"] != _PERSONALLY:
            del state[_PERSONAL]

    def _opened(self, received: _Received) -> Message:
        """The message as the user's function knows it."""
        records = {name: record for name, record in self.message.content.items() if name not in (ORDERS, SETTLED)}
        self.message.content = RecordDict({**records, str(self.orders["arrays"]): self.layout.record(received.values)})
        return self.message

    def _returned(self, reply: Message) -> tuple[str, ArrayRecord]:
        found = arrays_in(reply.content)
        if found is None:
            raise ValueError(
                f"the function for {self.message.metadata.message_type!r} returned {len(reply.content.array_records)} "
                "ArrayRecords; return one, with an array for each of the model's."
            )
        return found

    def _of_reply(self, what: Literal["update", "growth"], received: _Received) -> dict[str, Any]:
        run, dtype = str(self.orders["run"]), str(self.orders["up"])
        binding = Binding(what, run, received.round, str(self.context.node_id), received.digest)
        return {"dtype": dtype, "zstd": bool(self.orders["zstd"]), "binding": binding}

    def _keep_personal_masks(self, received: _Received, source: Any) -> Message:
        """Changes the masks for this node, by its gradients or its draws; the answer to who asked for that."""
        told: Any = self.orders["counts"]
        counts = dict(zip(self.layout.sent, told, strict=True))
        self.context.state[_PERSONAL] = packed_masks(personal_masks(received.values, received.masks, counts, source))
        holds = ConfigRecord({"format": FORMAT, "holds": "masks"})
        return Message(RecordDict({ORDERS: holds}), reply_to=self.message)

    def _masks_of_training(self, received: _Received) -> dict[str, Any]:
        if self.orders["task"] != _PERSONALLY:
            return received.masks
        if "words" in self.orders:
            words, step = self.orders["words"], self.orders["step"]
            self._keep_personal_masks(received, SeededMasks(tuple(words), step))  # type: ignore[arg-type]
        if _PERSONAL not in self.context.state:
            raise ValueError("this node has lost the masks that it made for this round; it takes part in the next one.")
        return unpacked_masks(_state(self.context, _PERSONAL), self.layout.sent)

    def _update(self, trained: dict[str, NDArray], received: _Received, trains_in: dict[str, Any]) -> bytes:
        if self.orders["task"] == _DENSELY:
            trains_in = {name: np.ones_like(mask) if is_pruned(mask) else mask for name, mask in trains_in.items()}
        inside = received.positions(trains_in)
        sent = [_moved(before, trained[name], inside[name], name) for name, before in sorted(received.values.items())]
        # As bits of the host they need no further copies.
        held, masks = _as_bits(received.masks), _as_bits(trains_in)
        return encode_sent(masks, sent, self.layout.sent, base=held, **self._of_reply("update", received))

    def _gradients(self, grads: dict[str, NDArray], received: _Received, settled: ArrayRecord | None) -> bytes:
        masks = received.masks if settled is None else unpacked_masks(settled, self.layout.sent)
        counts: Any = self.orders.get("counts")
        most = dict(zip(self.layout.sent, counts, strict=True)) if counts else {}
        places = {name: _places(grads[name], masks[name], most.get(name)) for name in self.layout.sent}
        return encode(places, grads, **self._of_reply("growth", received))


def _check_is_not_dense(message: Message) -> None:
    category = message.metadata.message_type.partition(".")[0]
    if category in ("train", "evaluate") and message.content.array_records:
        raise ValueError(
            "sparse_mod got dense arrays: the server has no SparseStrategy. Wrap its strategy, as in fed.flower."
            "SparseStrategy(FedAvg(), 'rigl', sparsity=0.8, rounds=100), or take sparse_mod out of the client's mods."
        )


def _moved(before: NDArray, after: NDArray, inside: NDArray | None, name: str) -> NDArray:
    """How far the entries at some positions, by default all, have moved downhill.

    Raises:
        ValueError: If they have moved beyond all numbers.
    """
    old, new = before.ravel(), after.ravel()
    if inside is not None:
        old, new = old[inside], new[inside]
    moved = old - new
    if is_floating(moved.dtype) and not np.isfinite(moved).all():
        raise ValueError(
            f"training made NaN or infinite values of array {name!r}; nothing is sent. Lower the learning rate, or "
            "look for bad examples."
        )
    return moved


def _as_bits(masks: dict[str, Any]) -> dict[str, Any]:
    return {name: mask.view(np.bool_) if is_pruned(mask) else mask for name, mask in masks.items()}


def _places(grad: NDArray, settled: Any, count: int | None) -> NDArray:
    """uint8 mask of the gradients to send: all that are not settled, or the `count` largest of them.

    Of equal ones those of lower index, as `fed.growth.strongest_pruned` has it.

    Example:
        >>> _places(np.array([9.0, -3.0, 3.0, 1.0]), np.array([1, 0, 0, 0], np.uint8), 1).tolist()
        [0, 1, 0, 0]
    """
    if not is_pruned(settled):
        return np.zeros(grad.shape, np.uint8)
    if count is None:
        return (settled == 0).astype(np.uint8)
    may_grow = (settled == 0) & np.isfinite(grad)
    return (
        largest(np.abs(grad).astype(np.float32).ravel(), may_grow.ravel(), count).astype(np.uint8).reshape(grad.shape)
    )


def _state(context: Context, name: str) -> ArrayRecord:
    return context.state.array_records.get(name, ArrayRecord())
