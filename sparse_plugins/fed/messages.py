"""One round's messages: what the server sends, what arrives of the answers, and how many bytes it took."""

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparse_plugins.fed.faults import Faults
from sparse_plugins.fed.ledger import DELIVERED, Entry
from sparse_plugins.fed.replies import Check, exactly
from sparse_plugins.wire import Binding, CodecError, Decoded, SeededMasks, decode, encode, masks_digest
from sparse_plugins.wire.reader import Buffer
from sparse_plugins.wire.trees import PyTree
from sparse_plugins.wire.value_codes import DTYPES

__all__ = ["Channel", "Exchange", "Message", "Reply", "Wire", "name_of", "read_reply"]


@dataclasses.dataclass(frozen=True)
class Wire:
    """Number formats of messages, as in `encode`.

    Attributes:
        down: Widest dtype of broadcast parameters.
        up: Widest dtype of updates and growth signals.
        zstd: Whether payloads are compressed.

    Raises:
        ValueError: If a dtype is not known.
    """

    down: str = "float32"
    up: str = "float32"
    zstd: bool = False

    def __post_init__(self) -> None:
        for name in ("down", "up"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(DTYPES)}.")


class Message(NamedTuple):
    """What the server made of a client's bytes.

    Attributes:
        values: Tree of the parameters' shapes, 0 where nothing was sent.
        masks: uint8 masks of what was sent; `core.NOT_PRUNED` where a leaf was sent whole.
    """

    values: PyTree
    masks: PyTree


class Reply(NamedTuple):
    """What became of a client's bytes.

    Attributes:
        message: What they say; None if they are refused.
        status: 'ok', or why they are refused.
        norm: l2 norm of the values; None if they were not decoded.
    """

    message: Message | None
    status: str
    norm: float | None = None


def read_reply(
    payload: Buffer, like: PyTree, base: PyTree | None, binding: Binding, asked: Check, max_norm: float | None = None
) -> Reply:
    """Reads what a client sent, and refuses by name what was not asked for; it never raises.

    Args:
        payload: Bytes of anyone.
        like: The model: arrays or `jax.ShapeDtypeStruct` leaves.
        base: Masks that both sides hold, on which it may be coded.
        binding: What it has to belong to, found out before anything is decoded.
        asked: Which masks it may have (`fed.replies`).
        max_norm: l2 norm above which it is refused; None refuses none.

    Returns:
        The message, or the reason.

    Example:
        >>> import numpy as np
        >>> params, masks = {"w": np.array([3.0, 0.0])}, {"w": np.array([1, 0], np.uint8)}
        >>> payload = encode(masks, params, base=masks, binding=Binding("update", "", 4, "anna"))
        >>> read_reply(payload, params, masks, Binding("update", "", 5, "anna"), exactly(masks)).status
        'refused: it answers round 4, and round 5 is expected.'
    """
    try:
        decoded = decode(payload, like, base=base, binding=binding)
    except CodecError as error:
        return Reply(None, f"refused: {error}")
    layer = asked(like, decoded.masks)
    if layer is not None:
        return Reply(None, f"refused: the mask of layer {layer!r} is not what was asked for")
    is_finite, norm = map(float, _finite_and_norm(decoded.values))
    if not is_finite:
        return Reply(None, "refused: NaN or infinite values", norm)
    if max_norm is not None and norm > max_norm:
        return Reply(None, f"refused: its norm of {norm:.6g} is above {max_norm:.6g}", norm)
    return Reply(Message(decoded.values, decoded.masks), DELIVERED, norm)


@dataclasses.dataclass(frozen=True)
class Channel:
    """How messages of a run travel, and what of them the server takes.

    Attributes:
        wire: Number formats.
        faults: What goes wrong.
        max_norm: l2 norm above which updates are refused; None refuses none. Growth signals have another scale.
        run: Name of the run. Messages are bound to it, to the round, to the client and to the masks; replies that are
            bound to something else are refused.

    Raises:
        ValueError: If the norm is not above 0.
    """

    wire: Wire = Wire()
    faults: Faults = Faults()
    max_norm: float | None = None
    run: str = ""

    def __post_init__(self) -> None:
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(
                f"max_norm is {self.max_norm}; give a number above 0, or None to take updates of any size."
            )

    def broadcast(
        self,
        number: int,
        clients: Sequence[Hashable],
        params: PyTree,
        masks: PyTree,
        seed: SeededMasks | None = None,
    ) -> "Exchange":
        """Sends parameters and masks to the clients of a round.

        Args:
            number: Number of the round, from 0.
            clients: Names of the clients that were drawn, in order; one drawn twice stands there twice.
            params: Parameters to broadcast.
            masks: uint8 masks to broadcast.
            seed: What the masks were drawn from, if they were.

        Returns:
            The round's exchange of messages, with the answers still to come.
        """
        binding = Binding("broadcast", self.run, number, masks=masks_digest(masks, params))
        payload = encode(masks, params, dtype=self.wire.down, seed=seed, zstd=self.wire.zstd, binding=binding)
        received = decode(payload, params, binding=binding)
        return Exchange(self, binding, clients, len(payload), received)


class Exchange:
    """The messages of one round.

    Args:
        channel: How they travel.
        binding: What the broadcast belongs to.
        clients: Names of the clients that were drawn, in order.
        down: Bytes of the broadcast.
        received: The broadcast as clients decode it.

    Example:
        >>> params, masks = {"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([1, 0], jnp.uint8)}
        >>> exchange = Channel().broadcast(0, ["anna"], params, masks)
        >>> exchange.receive(0, {"w": jnp.array([0.5, 0.0])}).values["w"].tolist()
        [0.5, 0.0]
        >>> [(entry.client, entry.status) for entry in exchange.entries()]
        [('anna', 'ok')]
    """

    def __init__(
        self, channel: Channel, binding: Binding, clients: Sequence[Hashable], down: int, received: Decoded
    ) -> None:
        self._channel, self._binding, self._clients, self._down = channel, binding, clients, down
        self._received = received
        self._bytes = [{"up": 0, "growth": 0} for _ in clients]
        self._norms: list[float | None] = [None for _ in clients]
        self._status = ["dropped out" for _ in clients]
        self._growth_status = ["" for _ in clients]

    @functools.cached_property
    def params(self) -> PyTree:
        """The parameters as clients decode them."""
        return jax.tree.map(jnp.asarray, self._received.values)

    @functools.cached_property
    def masks(self) -> PyTree:
        """The uint8 masks as clients decode them."""
        return jax.tree.map(jnp.asarray, self._received.masks)

    @functools.cached_property
    def _held(self) -> PyTree:
        """The same as bool arrays of the host, on which all updates are coded."""
        return jax.tree.map(lambda mask: mask != 0, self._received.masks)

    def present(self) -> list[int]:
        """Places in the list of clients of those that answer."""
        places = range(len(self._clients))
        return [place for place in places if self._takes_part(self._clients[place])]

    def receive(
        self,
        place: int,
        values: PyTree,
        masks: PyTree | None = None,
        purpose: Literal["up", "growth"] = "up",
        asked: Check | None = None,
    ) -> Message | None:
        """Takes a client's message through the channel.

        Args:
            place: The client's place in the list.
            values: An update or a growth signal.
            masks: uint8 masks of what is to be sent of it; None: those of the broadcast.
            purpose: 'up' for the update, which decides on the client's status; 'growth' for a growth signal.
            asked: Which masks the server takes (`fed.replies`); None: those of the broadcast and no others.

        Returns:
            The message as the server decodes it; None if it is refused or never arrives.
        """
        asked = exactly(self._held) if asked is None else asked
        message, status = self._through_channel(place, values, self._held if masks is None else masks, purpose, asked)
        if purpose == "up":
            self._status[place] = status
        else:
            self._growth_status[place] = status
        return message

    @property
    def _round(self) -> int:
        return self._binding.round or 0

    def _takes_part(self, client: Hashable) -> bool:
        return self._channel.faults.takes_part(self._round, client)

    def excuse(self, place: int, reason: str) -> None:
        """Notes why a client that is there sends nothing."""
        self._status[place] = f"nothing to send: {reason}"

    def lost_growth(self) -> list[str]:
        """What became of the growth signals, if clients were asked for some and none of them can be used."""
        return [] if DELIVERED in self._growth_status else [status for status in self._growth_status if status]

    def _through_channel(
        self, place: int, values: PyTree, masks: PyTree, purpose: Literal["up", "growth"], asked: Check
    ) -> tuple[Message | None, str]:
        wire, max_norm, like = self._channel.wire, self._channel.max_norm, self._received.values
        base = self._held if purpose == "up" else None
        binding = dataclasses.replace(
            self._binding, message="update" if purpose == "up" else "growth", client=name_of(self._clients[place])
        )
        try:
            payload = encode(masks, values, dtype=wire.up, base=base, zstd=wire.zstd, binding=binding)
        except ValueError as error:
            return None, f"nothing to send: {error}"
        self._bytes[place][purpose] = len(payload)
        arrived = self._channel.faults.deliver(self._round, self._clients[place], payload)
        if arrived is None:
            return None, "too late"
        reply = read_reply(arrived, like, base, binding, asked, max_norm if purpose == "up" else None)
        if purpose == "up":
            self._norms[place] = reply.norm
        return reply.message, reply.status

    def entries(self) -> list[Entry]:
        """What each client cost."""
        return [
            Entry(self._round, name_of(client), self._down, **sent, status=status, growth_status=growth_status)
            for client, sent, status, growth_status in zip(
                self._clients, self._bytes, self._status, self._growth_status, strict=True
            )
        ]

    def diagnostics(self) -> dict[Hashable, dict[str, Any]]:
        """The same by client id, with the norms of updates."""
        told = ("status", "growth_status", "down", "up", "growth")
        columns = zip(self._clients, self._norms, self.entries(), strict=True)
        return {
            client: {"delta_l2_norm": norm, **{field: getattr(entry, field) for field in told}}
            for client, norm, entry in columns
        }


def name_of(client: Hashable) -> str:
    """A client id as text."""
    return client.decode(errors="backslashreplace") if isinstance(client, bytes) else str(client)


@jax.jit
def _finite_and_norm(tree: PyTree) -> tuple[jax.Array, jax.Array]:
    leaves = jax.tree.leaves(tree)
    is_finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return is_finite, jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves))
