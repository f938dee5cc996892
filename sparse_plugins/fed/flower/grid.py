"""The grid of a sparse server: replies come in the order of the nodes and one at a time, late ones never."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["OrderedGrid"]

_SHORTEST, _LONGEST = 0.02, 1.0  # seconds between two questions for a reply


class OrderedGrid(Grid):
    """A grid around another.

    Flower's waits for all replies and hands them out in the order of their arrival. This one asks for one after another
    and hands out each before it asks for the next, while others wait at the SuperLink: the server holds one reply at a
    time, and sums are taken in one order, whoever is faster.

    Args:
        grid: The grid around which it stands.
        again: From a reply to a message that is to be sent in its place; None if the reply is the answer.
    """

    def __init__(self, grid: Grid, again: Callable[[Message], Message | None]) -> None:
        self._grid, self._again = grid, again
        self.timeout: float | None = None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Sends messages at once, and yields the replies that come in time, in the order of the messages."""
        self.timeout = timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        numbers = [self._pushed(message) for message in messages]
        return self._replies(numbers, deadline)

    def _replies(self, numbers: list[str | None], deadline: float | None) -> Iterator[Message]:
        for number in numbers:
            reply = self._reply(number, deadline)
            if reply is not None and (message := self._again(reply)) is not None:
                reply = self._reply(self._pushed(message), deadline)
            if reply is not None:
                yield reply

    def _pushed(self, message: Message) -> str | None:
        """The number by which the reply is found; None if the message could not be sent."""
        return next(iter(self._grid.push_messages([message])), None)

    def _reply(self, number: str | None, deadline: float | None) -> Message | None:
        pause = _SHORTEST
        while number is not None:
            reply = next(iter(self._grid.pull_messages([number])), None)
            if reply is not None:
                return reply
            left = _LONGEST if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST)
        return None

    def set_run(self, run: Any) -> None:
        """Passed on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Passed on."""
        return self._grid.run

    def create_message(self, *args: Any, **keywords: Any) -> Message:
        """Passed on."""
        return self._grid.create_message(*args, **keywords)

    def get_node_ids(self) -> Iterable[int]:
        """Passed on."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Passed on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Passed on."""
        return self._grid.pull_messages(message_ids)
