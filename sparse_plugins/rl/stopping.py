"""Signals that ask a training to stop: the first lets it save what it has, Ctrl-C again ends it at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["StopRequest", "handled", "left_to_the_parent", "stop_requests"]


class StopRequest:
    """Whether a training was asked to stop, and by what.

    Attributes:
        signal: The signal that asked; None as long as none did.

    Example:
        >>> request = StopRequest()
        >>> bool(request), request.exit_status
        (False, 0)
        >>> request.signal = signal.SIGTERM
        >>> bool(request), request.exit_status
        (True, 143)
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """What a shell reports of a process that the signal ended; 0 if none came."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def stop_requests(answer: str) -> Iterator[StopRequest]:
    """Catches Ctrl-C and SIGTERM; only the main thread can listen, in others none is ever noticed.

    Args:
        answer: Written to standard error at the first signal: what is still done, and what Ctrl-C again does.

    Yields:
        The request, which the first signal sets.

    Raises:
        KeyboardInterrupt: In what runs inside, at a Ctrl-C after the first signal.
    """
    request = StopRequest()

    def note(number: int, _: object) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not request:
            request.signal = signal.Signals(number)
            os.write(2, f"\n{answer}\n".encode())  # `print` may be under way, and can't be entered twice

    with handled(signal.SIGINT, note), handled(signal.SIGTERM, note):
        yield request


@contextlib.contextmanager
def handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Has a signal handled otherwise for a while; only the main thread can, in others nothing is changed.

    Args:
        number: The signal.
        handler: What `signal.signal` takes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def left_to_the_parent() -> contextlib.AbstractContextManager[None]:
    """Lets processes that begin inside ignore a terminal's Ctrl-C, which they get, too, so that the parent can save."""
    return handled(signal.SIGINT, signal.SIG_IGN)
