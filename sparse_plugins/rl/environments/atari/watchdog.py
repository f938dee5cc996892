"""Notices a call into foreign code that never comes back."""

import threading
import types
from collections.abc import Callable

__all__ = ["Watchdog"]

_LOOKS = 4  # per timeout; looks are counted, not seconds, so that a process that was stopped for a while is not blamed


class Watchdog:
    """Calls a function from a thread of its own if a `with` block lasts too long; a block costs below a microsecond.

    Args:
        timeout: Seconds a block may last; it is noticed up to a quarter later.
        rescue: Called once at most, to make the blocked call return.

    Attributes:
        fired: Whether it has been called.

    Example:
        >>> released = threading.Event()
        >>> dog = Watchdog(0.01, released.set)
        >>> with dog:
        ...     returned = released.wait(10)
        >>> dog.close()
        >>> returned, dog.fired
        (True, True)
    """

    def __init__(self, timeout: float, rescue: Callable[[], object]) -> None:
        self.fired = False
        self._rescue = rescue
        self._blocks = 0  # entered so far
        self._inside = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(timeout / _LOOKS,), daemon=True, name="watchdog")
        self._thread.start()

    def __enter__(self) -> None:
        self._blocks += 1
        self._inside = True

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._inside = False

    def close(self) -> None:
        """Ends the thread, and lets go of what it would have called."""
        self._closed.set()
        if threading.current_thread() is not self._thread:  # a garbage collection may call from anywhere
            self._thread.join()
        self._rescue = lambda: None

    def _watch(self, pause: float) -> None:
        seen, looks = 0, 0
        while not self._closed.wait(pause):
            looks = looks + 1 if self._inside and self._blocks == seen else 0
            seen = self._blocks
            if looks >= _LOOKS:
                self.fired = True
                self._rescue()
                return
