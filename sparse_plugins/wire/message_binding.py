"""What a message belongs to: nine bytes behind the header, checked before anything else of the message is read.

Run and client are digests of their names; round and masks stand in the header, as base version and base digest.
"""

import dataclasses
import hashlib
import struct
from typing import Literal, get_args

from sparse_plugins.wire.reader import CodecError

__all__ = ["BINDING_SIZE", "Binding", "BindingError", "check_binding", "pack_binding"]

_TAG = struct.Struct("<B4s4s")
BINDING_SIZE = _TAG.size

MessageType = Literal["broadcast", "update", "growth"]
_MESSAGES: tuple[MessageType, ...] = get_args(MessageType)
_SPELLED = {"broadcast": "a broadcast", "update": "an update", "growth": "a growth signal"}


class BindingError(CodecError):
    """A payload belongs to something else than is expected: another run, round, client, mask or type of message."""


@dataclasses.dataclass(frozen=True)
class Binding:
    """What a message belongs to.

    The sender gives it to `encode`. The receiver gives `decode` the one it expects: a reply of another run, round or
    client, to other masks, or of another type is refused by name. It tells replies apart, and proves nothing: whoever
    reads messages can write their bindings, so the channel has to say who sent them (TLS, a client's login).

    Attributes:
        message: 'broadcast', 'update' or 'growth'.
        run: Name of the run.
        round: Number of the broadcast that it is or answers, in [0, 2**32). A receiver that expects None takes any;
            `Decoded.base_version` tells which it was.
        client: Who answers; empty for a broadcast, which is for all.
        masks: `masks_digest` of the masks of that broadcast. A receiver that expects None takes any.

    Raises:
        ValueError: If a value is not allowed.

    Example:
        >>> import numpy as np
        >>> from sparse_plugins import fed
        >>> params, masks = {"w": np.ones(3, np.float32)}, {"w": np.array([1, 0, 1], np.uint8)}
        >>> answer = fed.Binding("update", "digits", 7, "anna", fed.masks_digest(masks, params))
        >>> payload = fed.encode(masks, params, base=masks, binding=answer)
        >>> fed.decode(payload, params, base=masks, binding=answer).base_version
        7
        >>> fed.decode(payload, params, base=masks, binding=dataclasses.replace(answer, round=8))
        Traceback (most recent call last):
        sparse_plugins.wire.message_binding.BindingError: it answers round 7, and round 8 is expected.
    """

    message: MessageType
    run: str = ""
    round: int | None = None
    client: str = ""
    masks: int | None = None

    def __post_init__(self) -> None:
        if self.message not in _MESSAGES:
            raise ValueError(f"message is {self.message!r}; choose one of {', '.join(_MESSAGES)}.")
        for name in ("round", "masks"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < 1 << 32:
                raise ValueError(f"{name} is {number}; give a number in [0, 2**32), or None.")


def pack_binding(binding: Binding) -> bytes:
    """The part of a binding that does not stand in the header.

    Example:
        >>> len(pack_binding(Binding("update", "digits", 7, "anna")))
        9
    """
    return _TAG.pack(_MESSAGES.index(binding.message), _digest(binding.run), _digest(binding.client))


def check_binding(expected: Binding, packed: bytes, number: int, masks: int) -> None:
    """Checks what a message belongs to.

    Args:
        expected: What the receiver expects.
        packed: What `pack_binding` made of the sender's binding; empty if it gave none.
        number: The sender's round.
        masks: The sender's digest of masks.

    Raises:
        BindingError: If the message belongs to something else; it says to what.
    """
    if not packed:
        raise BindingError("it is bound to no run, round and client: its sender has to pass `binding` to encode.")
    message, run, client = _TAG.unpack(packed)
    if run != _digest(expected.run):
        raise BindingError(f"it belongs to another run than {expected.run!r}.")
    if message >= len(_MESSAGES):
        raise BindingError(f"there is no message type {message}.")
    if _MESSAGES[message] != expected.message:
        raise BindingError(f"it is {_SPELLED[_MESSAGES[message]]}, and {_SPELLED[expected.message]} is expected.")
    if client != _digest(expected.client):
        raise BindingError(f"it belongs to another client than {expected.client!r}.")
    if expected.round not in (None, number):
        raise BindingError(f"it answers round {number}, and round {expected.round} is expected.")
    if expected.masks not in (None, masks):
        raise BindingError("it answers other masks than those of the broadcast.")


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=4).digest()
