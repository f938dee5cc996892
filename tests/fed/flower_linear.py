"""A client that needs NumPy only, least squares of eight features; also an app for Flower's processes."""

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from sparse_plugins.fed import flower

NAMES = ("w", "b", "steps")


def linear_model() -> ArrayRecord:
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=(8, 8)).astype(np.float32), np.zeros(8, np.float32), np.zeros((), np.int64))
    return ArrayRecord(dict(zip(NAMES, map(Array, arrays), strict=True)))


def examples(place: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and targets of a node."""
    x, y = np.random.default_rng(place).normal(size=(2, 20, 8)).astype(np.float32)
    return x, y


def linear_app(mods: Iterable = (flower.sparse_mod,), names: Iterable[str] = NAMES) -> ClientApp:
    app = ClientApp(mods=list(mods))
    names = list(names)

    def gradients(message: Message, context: Context) -> tuple[list, list]:
        x, y = examples(int(context.node_config["partition-id"]))
        w, b, steps = arrays = [message.content["arrays"][name].numpy() for name in names]
        error = x @ w + b - y
        return arrays, [x.T @ error / 20, error.mean(axis=0), np.zeros_like(steps)]

    def reply(message: Message, arrays: list, context: Context, **metrics: float) -> Message:
        record = ArrayRecord({name: Array(np.asarray(x)) for name, x in zip(names, arrays, strict=True)})
        count = {"num-examples": 20}
        content = {"arrays": record, "metrics": MetricRecord({**count, **metrics})}
        return Message(RecordDict(content), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (w, b, steps), (grad, other, _) = gradients(message, context)
        trained = [w - np.float32(0.1) * grad, b - np.float32(0.1) * other, steps + 1]
        return reply(message, trained, context, loss=float(np.square(other).mean()))

    @app.query("grow")
    def grow(message: Message, context: Context) -> Message:
        return reply(message, gradients(message, context)[1], context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        (w, _, _), _ = gradients(message, context)
        metrics = MetricRecord({"num-examples": 20, "used": int(np.count_nonzero(w))})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


app = linear_app()
