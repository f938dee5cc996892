"""Pipes of bytes: what sender and receiver ask of one, and a socket as such.

A receiver asks, with the version and the digest it has; the sender replies with how many payloads follow, and these.
Nobody sends what was not asked for, so a receiver that is slow holds up nobody.
"""

import select
import socket
import struct
from typing import NamedTuple, Protocol

from sparse_plugins.wire import CodecError

__all__ = ["REPLY_SIZE", "REQUEST_SIZE", "Channel", "Reply", "Request", "SocketChannel"]

_REQUEST, _REPLY = struct.Struct("<4sB16sQ"), struct.Struct("<4sIQ")
_ASKS, _SAYS = b"SpWq", b"SpWr"
_LENGTH = struct.Struct("<Q")
REQUEST_SIZE, REPLY_SIZE = _REQUEST.size, _REPLY.size


class Channel(Protocol):
    """A pipe that keeps messages apart, such as an end of `multiprocessing.Pipe()`, whose methods these are."""

    def send_bytes(self, buf: bytes, /) -> None:
        """Sends one message."""

    def recv_bytes(self, maxlength: int, /) -> bytes:
        """The next message, for which it waits; EOFError if the other side has hung up."""

    def poll(self, timeout: float | None, /) -> bool:
        """Whether a message, or the end, is there within so many seconds; None waits for ever."""


class Request(NamedTuple):
    """What a receiver asks with.

    Attributes:
        version: Version of the weights that it has; None if it needs a snapshot.
        digest: Their `wire.weights_digest`.
    """

    version: int | None
    digest: bytes = bytes(16)

    def packed(self) -> bytes:
        """As bytes."""
        return _REQUEST.pack(_ASKS, self.version is not None, self.digest, self.version or 0)

    @classmethod
    def read(cls, message: bytes) -> "Request":
        """From bytes.

        Raises:
            CodecError: If this is no request.

        Example:
            >>> Request.read(Request(7).packed()).version
            7
        """
        if len(message) != REQUEST_SIZE or not message.startswith(_ASKS):
            raise CodecError(f"this is no request for weights: {message[:32]!r}. Is a WeightReceiver at the other end?")
        _, has_weights, digest, version = _REQUEST.unpack(message)
        return cls(version if has_weights else None, digest)


class Reply(NamedTuple):
    """What stands in front of the payloads.

    Attributes:
        payloads: How many follow.
        version: The newest that there is.
    """

    payloads: int
    version: int

    def packed(self) -> bytes:
        """As bytes."""
        return _REPLY.pack(_SAYS, *self)

    @classmethod
    def read(cls, message: bytes) -> "Reply":
        """From bytes.

        Raises:
            CodecError: If this is no reply.

        Example:
            >>> Reply.read(Reply(1, 7).packed())
            Reply(payloads=1, version=7)
        """
        if len(message) != REPLY_SIZE or not message.startswith(_SAYS):
            raise CodecError(f"this is no reply of a sender: {message[:32]!r}. Is a WeightSender at the other end?")
        return cls(*_REPLY.unpack(message)[1:])


class SocketChannel:
    """Messages over a socket: eight bytes of length, lowest first, and the message.

    Args:
        connected: A connected stream socket, which this takes over.
        timeout: Seconds that a message that has begun may pause; then TimeoutError, and the channel is closed.

    Example:
        >>> left, right = map(SocketChannel, socket.socketpair())
        >>> left.send_bytes(b"weights")
        >>> right.poll(1.0), right.recv_bytes(100)
        (True, b'weights')
        >>> left.close()
        >>> right.recv_bytes(100)
        Traceback (most recent call last):
        EOFError: the other side has hung up.
        >>> right.close()
    """

    def __init__(self, connected: socket.socket, timeout: float = 60.0) -> None:
        connected.settimeout(timeout)
        self._socket = connected

    def send_bytes(self, buf: bytes, /) -> None:
        """Sends one message.

        Raises:
            OSError: If the other side is gone, or reads nothing for as long as the timeout.
        """
        self._socket.sendall(_LENGTH.pack(len(buf)))
        self._socket.sendall(buf)

    def recv_bytes(self, maxlength: int, /) -> bytes:
        """The next message.

        Args:
            maxlength: Bytes that it may have, which is found out before memory is allocated.

        Raises:
            EOFError: If the other side has hung up.
            CodecError: If the message is longer; the channel is closed then.
            TimeoutError: If the message stops in the middle.
        """
        (length,) = _LENGTH.unpack(self._received(_LENGTH.size))
        if length > maxlength:
            self.close()
            raise CodecError(f"a message has {length} bytes, and {maxlength} are the most that make sense here.")
        return bytes(self._received(length))

    def poll(self, timeout: float | None, /) -> bool:
        """Whether a message has begun, or the end is there, within so many seconds; None waits for ever."""
        return bool(select.select([self._socket], [], [], timeout)[0])

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()

    def _received(self, size: int) -> bytearray:
        message = bytearray(size)
        view, got = memoryview(message), 0
        while got < size:
            try:
                count = self._socket.recv_into(view[got:])
            except TimeoutError:
                self.close()
                raise
            if not count:
                raise EOFError("the other side has hung up.")
            got += count
        return message
