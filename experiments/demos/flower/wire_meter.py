"""Counts the bytes of a connection, all that Flower and HTTP put around a payload included."""

import contextlib
import socket
import threading

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
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "WireMeter":
        return self

    def __exit__(self, *told: object) -> None:
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for source, target, way in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pass_on, args=(source, target, way), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(_CHUNK):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(octets))
                target.sendall(octets)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
