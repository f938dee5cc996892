"""Flower clients in this process: a grid that runs their apps, and the toy task of FedJAX's tests as such an app."""

import copy
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from sparse_plugins import core
from sparse_plugins.fed import flower
from tests.fed import toy
from tests.fed.flower_linear import NAMES, linear_app, linear_model


class LocalGrid(Grid):
    """Nodes of this process. What is sent and answered goes through `carry`, for tests to tamper with.

    Args:
        apps: A client app for each node.
        carry: From a node and its reply to the reply that arrives; None: it never does.
    """

    def __init__(self, apps: dict[int, ClientApp], carry: Callable = lambda node, reply: reply) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = (
            7  # what Flower's processes are told when they start
        )
        self.apps, self.carry = apps, carry
        self.contexts = {node: self.context(node, place) for place, node in enumerate(apps)}
        self.orders, self._waiting = [], {}

    @staticmethod
    def context(node: int, place: int) -> Context:
        return Context(run_id=7, node_id=node, node_config={"partition-id": place}, state=RecordDict(), run_config={})

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            number, node = str(len(self.orders)), message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = number
            self.orders.append(message)
            reply = self.carry(node, self._answer(node, copy.deepcopy(message)))
            self._waiting[number] = reply
            numbers.append(number)
        return numbers

    def _answer(self, node: int, message: Message) -> Message:
        try:
            reply = self.apps[node](message, self.contexts[node])
        except Exception as error:
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = [self._waiting.pop(number, None) for number in message_ids]
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def get_node_ids(self) -> list[int]:
        return list(self.apps)

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> object:
        return type("Run", (), {"run_id": 7})

    def create_message(self, *args: object, **keywords: object) -> Message:
        raise NotImplementedError


def flat(params: dict) -> dict[str, np.ndarray]:
    """A model of Haiku's by names of its arrays, which are those of the codec."""
    return {f"{layer}/{name}": np.asarray(x) for layer, arrays in params.items() for name, x in arrays.items()}


def nested(record: ArrayRecord) -> dict:
    params: dict = {}
    for name, array in record.items():
        layer, _, leaf = name.rpartition("/")
        params.setdefault(layer, {})[leaf] = jnp.asarray(array.numpy())
    return params


def as_record(params: dict) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in flat(params).items()})


def first_model() -> ArrayRecord:
    return as_record(toy.MODEL.init(jax.random.PRNGKey(0)))


def gradient_of(params: dict) -> Callable:
    """The gradient of a network that is as wide as these parameters."""
    return toy.gradient_of(params["mlp/~/linear_0"]["b"].size)


def toy_app(mods: Iterable = (flower.sparse_mod,)) -> ClientApp:
    """An ordinary client: it takes dense arrays and returns dense arrays."""
    app = ClientApp(mods=list(mods))

    def examples(message: Message, context: Context) -> tuple:
        number = message.content["config"]["server-round"] - 1
        _, data, rng = toy.clients_of_a_round(number)[context.node_config["partition-id"]]
        return nested(message.content["arrays"]), data, rng

    @app.train()
    def train(message: Message, context: Context) -> Message:
        params, data, rng = examples(message, context)
        masks = flower.training_masks(context)
        inside = lambda tree: {  # noqa: E731
            layer: {leaf: x * masks.get(f"{layer}/{leaf}", 1) for leaf, x in arrays.items()}
            for layer, arrays in tree.items()
        }
        state = toy.CLIENT.init(params)
        for batch in data.shuffle_repeat_batch(toy.TRAIN):
            rng, use = jax.random.split(rng)
            grads = inside(gradient_of(params)(params, batch, use))
            state, params = toy.CLIENT.apply(grads, state, params)
            params = inside(params)
        metrics = MetricRecord({"num-examples": len(data)})
        return Message(RecordDict({"arrays": as_record(params), "metrics": metrics}), reply_to=message)

    @app.query("grow")
    def grow(message: Message, context: Context) -> Message:
        params, data, rng = examples(message, context)
        total, count = jax.tree.map(jnp.zeros_like, params), 0
        for batch in data.shuffle_repeat_batch(toy.TRAIN):
            rng, use = jax.random.split(rng)
            size = len(batch["y"])
            grads = gradient_of(params)(params, batch, use)
            total, count = jax.tree.map(lambda t, g: t + g * size, total, grads), count + size  # noqa: B023
        mean = jax.tree.map(lambda t: t / count, total)
        return Message(RecordDict({"arrays": as_record(mean)}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        used = sum(int(np.count_nonzero(array.numpy())) for array in message.content["arrays"].values())
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "used": used})}), reply_to=message)

    return app


def toy_grid(nodes: Iterable[int] = (11, 12, 13, 14), **options: object) -> LocalGrid:
    app = toy_app()
    return LocalGrid(dict.fromkeys(nodes, app), **options)


def linear_grid(
    nodes: Iterable[int] = (11, 12, 13, 14), mods: Iterable = (flower.sparse_mod,), names: Iterable[str] = NAMES
) -> LocalGrid:
    return LocalGrid(dict.fromkeys(nodes, linear_app(mods, names)))


def sparse_run(updater: core.BaseUpdater, strategy: object = None, rounds: int = 3, grid: Grid = None, **options):
    """A strategy after a run on the linear task, and the result."""
    ours = flower.SparseStrategy(strategy or FedAvg(), updater, **options)
    return ours, ours.start(grid or linear_grid(), linear_model(), rounds, timeout=5)


def as_arrays(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}
