"""One round's messages: what the server sends, what arrives of the answers, and how many bytes it took."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparse_plugins.fed.faults import Faults
from sparse_plugins.fed.ledger import DELIVERED, Entry
from sparse_plugins.fed.replies import Check, exactly
from sparse_plugins.wire import Binding, CodecError, SeededMasks, decode, encode, masks_digest
from sparse_plugins.wire.value_codes import DTYPES


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

    values: Any
    masks: Any


class Exchange:
    """The messages of one round.

    Args:
        number: Number of the round, from 0.
        clients: Names of the clients that were drawn, in order; one drawn twice stands there twice.
        params: Parameters to broadcast.
        masks: uint8 masks to broadcast.
        wire: Number formats.
        faults: What goes wrong.
        max_norm: l2 norm above which updates are refused; None refuses none. Growth signals have another scale.
        seed: What the masks were drawn from, if they were.
        run: Name of the run. Messages are bound to it, to the round, to the client and to the masks; replies that are
            bound to something else are refused.

    Attributes:
        params: The parameters as clients decode them.
        masks: The masks as clients decode them.
    """

    def __init__(
        self,
        number: int,
        clients: list[Any],
        params: Any,
        masks: Any,
        wire: Wire,
        faults: Faults,
        max_norm: float | None = None,
        seed: SeededMasks | None = None,
        run: str = "",
    ) -> None:
        self._number, self._clients, self._wire, self._faults, self._max_norm = number, clients, wire, faults, max_norm
        self._like = params
        self._binding = Binding("broadcast", run, number, masks=masks_digest(masks, params))
        broadcast = encode(masks, params, dtype=wire.down, seed=seed, zstd=wire.zstd, binding=self._binding)
        received = decode(broadcast, params, binding=self._binding)
        self.params, self.masks = jax.tree.map(jnp.asarray, received.values), jax.tree.map(jnp.asarray, received.masks)
        self._masks = jax.tree.map(lambda mask: mask != 0, received.masks)
        self._down = len(broadcast)
        self._bytes = [{"up": 0, "growth": 0} for _ in clients]
        self._norms: list[float | None] = [None for _ in clients]
        self._status = ["dropped out" for _ in clients]
        self._growth_status = ["" for _ in clients]

    def present(self) -> list[int]:
        """Places in the list of clients of those that answer."""
        places = range(len(self._clients))
        return [place for place in places if self._faults.takes_part(self._number, self._clients[place])]

    def receive(
        self,
        place: int,
        values: Any,
        masks: Any = None,
        kind: Literal["up", "growth"] = "up",
        asked: Check | None = None,
    ) -> Message | None:
        """Takes a client's message through the channel.

        Args:
            place: The client's place in the list.
            values: An update or a growth signal.
            masks: uint8 masks of what is to be sent of it; None: those of the broadcast.
            kind: 'up' for the update, which decides on the client's status; 'growth' for a growth signal.
            asked: Which masks the server takes (`fed.replies`); None: those of the broadcast and no others.

        Returns:
            The message as the server decodes it; None if it is refused or never arrives.
        """
        asked = exactly(self._masks) if asked is None else asked
        message, status = self._through_channel(place, values, self._masks if masks is None else masks, kind, asked)
        if kind == "up":
            self._status[place] = status
        else:
            self._growth_status[place] = status
        return message

    def excuse(self, place: int, reason: str) -> None:
        """Notes why a client that is there sends nothing."""
        self._status[place] = f"nothing to send: {reason}"

    def lost_growth(self) -> list[str]:
        """What became of the growth signals, if clients were asked for some and none of them can be used."""
        return [] if DELIVERED in self._growth_status else [status for status in self._growth_status if status]

    def _through_channel(
        self, place: int, values: Any, masks: Any, kind: Literal["up", "growth"], asked: Check
    ) -> tuple[Message | None, str]:
        base = self._masks if kind == "up" else None
        binding = dataclasses.replace(
            self._binding, message="update" if kind == "up" else "growth", client=name_of(self._clients[place])
        )
        try:
            payload = encode(masks, values, dtype=self._wire.up, base=base, zstd=self._wire.zstd, binding=binding)
        except ValueError as error:
            return None, f"nothing to send: {error}"
        self._bytes[place][kind] = len(payload)
        arrived = self._faults.deliver(self._number, self._clients[place], payload)
        if arrived is None:
            return None, "too late"
        try:
            decoded = decode(arrived, self._like, base=base, binding=binding)
        except CodecError as error:
            return None, f"refused: {error}"
        layer = asked(self._like, decoded.masks)
        if layer is not None:
            return None, f"refused: the mask of layer {layer!r} is not what was asked for"
        is_finite, norm = map(float, _finite_and_norm(decoded.values))
        if kind == "up":
            self._norms[place] = norm
        if not is_finite:
            return None, "refused: NaN or infinite values"
        if kind == "up" and self._max_norm is not None and norm > self._max_norm:
            return None, f"refused: its norm of {norm:.6g} is above {self._max_norm:.6g}"
        return Message(decoded.values, decoded.masks), DELIVERED

    def entries(self) -> list[Entry]:
        """What each client cost."""
        return [
            Entry(self._number, name_of(client), self._down, **sent, status=status, growth_status=growth_status)
            for client, sent, status, growth_status in zip(
                self._clients, self._bytes, self._status, self._growth_status, strict=True
            )
        ]

    def diagnostics(self) -> dict[Any, Any]:
        """The same by client id, with the norms of updates."""
        told = ("status", "growth_status", "down", "up", "growth")
        columns = zip(self._clients, self._norms, self.entries(), strict=True)
        return {
            client: {"delta_l2_norm": norm, **{field: getattr(entry, field) for field in told}}
            for client, norm, entry in columns
        }


def name_of(client: Any) -> str:
    """A client id as text."""
    return client.decode(errors="backslashreplace") if isinstance(client, bytes) else str(client)


@jax.jit
def _finite_and_norm(tree: Any) -> tuple[jax.Array, jax.Array]:
    leaves = jax.tree.leaves(tree)
    is_finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return is_finite, jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves))
