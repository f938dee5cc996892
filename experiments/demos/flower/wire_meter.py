"""Counts the bytes of a connection, all that Flower and HTTP put around a payload included."""

import contextlib
import socket
import threading
from collections.abc import Callable

__all__ = ["WireMeter"]

_CHUNK = 1 << 16


class WireMeter:
    """A port of this machine that passes everything on to another, and counts it.

    Args:
        port: Where to pass it on to.

    Example:
        >>> with socket.create_server(("127.0.0.1", 0)) as server, WireMeter(server.getsockname()[1]) as meter:
        ...     with socket.create_connection(("127.0.0.1", meter.port)) as client:
        ...         there, _ = server.accept()
        ...         client.sendall(b"up")
        ...         first = there.recv(2)
        ...         there.sendall(b"down")
        ...         second = client.recv(4)
        ...         there.close()
        >>> first, second, meter.up, meter.down
        (b'up', b'down', 2, 4)
    """

    def __init__(self, port: int) -> None:
        self._target, self._lock = port, threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.up = self.down = 0
        self._ends: list[socket.socket] = [self._server]
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._start(self._accept)

    def __enter__(self) -> "WireMeter":
        return self

    def __exit__(self, *told: object) -> None:
        """End all connections, and come back when nothing of them is left."""
        self._ended = True
        while self._threads:  # a thread may have started one more before its end
            for end in self._ends:
                with contextlib.suppress(OSError):  # closed by its thread
                    end.shutdown(socket.SHUT_RDWR)
            self._threads.pop(0).join()
        self._server.close()

    def _start(self, work: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the meter is closed
            while True:
                self._start(self._carry, self._server.accept()[0])

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            self._ends += [client, server]
            if self._ended:
                return
            back = self._start(self._pass_on, server, client, "down")
            self._pass_on(client, server, "up")
            back.join()

    def _pass_on(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(_CHUNK):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(octets))
                target.sendall(octets)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
