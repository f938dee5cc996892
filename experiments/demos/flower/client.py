"""The client of the demonstration: an ordinary Flower app of NumPy, and what makes it sparse."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from experiments.demos.flower import digits
from sparse_plugins.fed.flower import sparse_mod, training_masks

__all__ = ["app", "dense_app"]


def _app(*mods: Mod) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        model = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
        x, y = digits.training_digits(int(context.node_config["partition-id"]), int(str(config["nodes"])))
        model, loss = digits.train(model, x, y, training_masks(context), seed=int(str(config["server-round"])))
        arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()})
        metrics = MetricRecord({"num-examples": len(x), "loss": loss})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


app = _app(sparse_mod)
dense_app = _app()
