"""Nodes of this process: a federation for a first try, a notebook or a test, without Ray and without ports."""

import copy
import types
from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from sparse_plugins.fed.flower.round import remedy_for

__all__ = ["LocalGrid"]


class LocalGrid(Grid):
    """A grid whose nodes are played by this process, one after another, each when its reply is asked for.

    It takes the place of the grid that Flower's processes, or its simulation engine, hand to a server's main function.
    What a client raises is raised here; on a real federation the server would get an error as its reply.

    Args:
        app: The client app of all nodes.
        nodes: How many there are. The node config of each has its place as `partition-id`, and `num-partitions`.

    Raises:
        ValueError: If there are no nodes.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> LocalGrid(ClientApp(), nodes=3).get_node_ids()
        [1, 2, 3]
    """

    def __init__(self, app: ClientApp, nodes: int) -> None:
        if nodes < 1:
            raise ValueError(f"nodes is {nodes}; give 1 or more.")
        self._app, self._run_id = app, _run_id()
        self._contexts = {
            place + 1: Context(
                self._run_id, place + 1, {"partition-id": place, "num-partitions": nodes}, RecordDict(), {}
            )
            for place in range(nodes)
        }
        self._orders: dict[str, Message] = {}
        self._sent = 0

    @property
    def run(self) -> Any:
        """What a strategy asks of a run: its number."""
        return types.SimpleNamespace(run_id=self._run_id)

    def set_run(self, run: Any) -> None:
        """There is one run."""

    def create_message(self, *args: Any, **keywords: Any) -> Message:
        """A message, as its constructor makes it."""
        return Message(*args, **keywords)

    def get_node_ids(self) -> list[int]:
        """All nodes: 1, 2, 3 and so on."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keeps what is sent until its reply is asked for."""
        numbers = []
        for message in messages:
            self._sent += 1
            numbers.append(str(self._sent))
            message.metadata.__dict__["_message_id"] = numbers[-1]  # as the SuperLink does it
            self._orders[numbers[-1]] = copy.deepcopy(message)  # clients may change what they are sent
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Lets nodes answer."""
        return [self._answer(self._orders.pop(number)) for number in message_ids if number in self._orders]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Sends messages and lets nodes answer them, however long it takes."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, order: Message) -> Message:
        node = order.metadata.dst_node_id
        try:
            reply = self._app(order, self._contexts[node])
        except Exception as error:
            if remedy := remedy_for(str(error)):
                error.add_note(f"On the client's side: {remedy}.")
            raise
        reply.metadata.__dict__["_src_node_id"] = node
        return reply


def _run_id() -> int:
    """The run of this process, which its messages carry; Flower's processes are told when they start."""
    try:
        return TaskIdentity.run_id
    except RuntimeError:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        return 1
