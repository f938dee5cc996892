"""The client of the tests with Flower's processes, of which a node is killed while it trains."""

import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from sparse_plugins.fed.flower import sparse_mod
from tests.fed.flower_linear import linear_app

VICTIM = 2  # by its partition


def hang(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Says that a node trains, and never ends."""
    if context.node_config["partition-id"] == VICTIM:
        (Path(str(context.run_config["folder"])) / "trains").touch()
        time.sleep(600)
    return call_next(message, context)


app = linear_app(mods=(sparse_mod, hang))
