"""Flower's nodes with a part of the channels: what they see, what versions they hold, and what goes wrong."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as inner

from sparse_plugins import core, fed
from sparse_plugins.fed.flower import SparseStrategy, sparse_mod, training_masks
from sparse_plugins.fed.flower.records import payload_record
from tests.fed.flower_nodes import LocalGrid, as_arrays
from tests.fed.updater_in_rounds import updater_of

NODES = (11, 12, 13, 14)
GROUPS = {"hidden": [("a", 1), ("bias", 0), ("b", 0)]}
DEALT = fed.ClientWidths((0.5, 1.0), "rolling", seed=3, groups=GROUPS)
BY_NODE = fed.ClientWidths({12: 0.5}, groups=GROUPS)


def model() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"b": (8, 3), "a": (5, 8), "bias": (8,)}  # not in the order of their names
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def as_record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def same(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return arrays


def network_app(before: Callable = same, after: Callable = same) -> ClientApp:
    """Least squares of a network of two layers in NumPy, as wide as the arrays that come; it notes their width."""
    app = ClientApp(mods=[sparse_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = as_arrays(message.content["arrays"])
        masks = training_masks(context)
        shapes = {name: array.shape for name, array in arrays.items()}
        assert all(masks[name].shape == shapes[name] for name in masks)
        context.state.config_records.setdefault("seen", type(message.content["config"])())["width"] = len(
            arrays["bias"]
        )
        arrays = before(arrays)
        x, y = np.random.default_rng(context.node_id).normal(size=(2, 20, 5)).astype(np.float32)
        hidden = x @ arrays["a"] + arrays["bias"]
        error = (hidden @ arrays["b"] - y[:, :3]) / 20
        back = error @ arrays["b"].T
        grads = {"b": hidden.T @ error, "a": x.T @ back, "bias": back.sum(axis=0)}
        trained = {name: arrays[name] - np.float32(0.1) * grads[name] * masks.get(name, 1) for name in arrays}
        metrics = MetricRecord({"num-examples": 20, "loss": float(np.square(error).sum())})
        return Message(RecordDict({"arrays": as_record(after(trained)), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        width = message.content["arrays"]["bias"].shape[0]
        trained = context.state.config_records.get("seen")
        assert trained is None or trained["width"] == width, "nodes evaluate what they have trained"
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "width": width})}), reply_to=message)

    return app


def grid(apps: dict[int, ClientApp] | None = None, carry: Callable = lambda node, reply: reply) -> LocalGrid:
    return LocalGrid({**dict.fromkeys(NODES, network_app()), **(apps or {})}, carry)


def run(widths: fed.ClientWidths, updater: Any = None, rounds: int = 4, over: LocalGrid | None = None, **options: Any):
    ours = SparseStrategy(inner.FedAvg(), updater or updater_of("set"), client_widths=widths, **options)
    return ours, ours.start(over or grid(), as_record(model()), rounds, timeout=0.3)


def told(strategy: SparseStrategy, node: int) -> list[str]:
    return [entry.status for entry in strategy.ledger if entry.client == str(node)]


def test_a_narrow_node_gets_small_arrays_and_moves_only_these() -> None:
    over = grid()
    ours, result = run(BY_NODE, core.NoPruning(), rounds=1, over=over)
    assert {node: over.contexts[node].state.config_records["seen"]["width"] for node in (11, 12)} == {11: 8, 12: 4}
    assert dict(result.evaluate_metrics_clientapp[1]) == {"width": (8 + 4 + 8 + 8) / 4}
    small, whole = (next(e for e in ours.ledger if e.client == node) for node in ("12", "11"))
    bytes_of = lambda width: 4 * (5 * width + width + 3 * width)  # noqa: E731
    assert (whole.up - small.up, whole.down - small.down) == (bytes_of(4), bytes_of(4))
    # The channels that node 12 lacks are the mean of the others, as in a run without it.
    _, expected = run(BY_NODE, core.NoPruning(), rounds=1, over=LocalGrid({n: network_app() for n in (11, 13, 14)}))
    for name, axis in (("a", 1), ("bias", 0), ("b", 0)):
        parts = [np.split(as_arrays(found.arrays)[name], 2, axis=axis) for found in (result, expected)]
        npt.assert_allclose(parts[0][1], parts[1][1], atol=1e-6)
        assert np.abs(parts[0][0] - parts[1][0]).max() > 1e-4


def test_momenta_of_the_strategy_do_not_move_what_no_node_had() -> None:
    widths = fed.ClientWidths((0.5,), "rolling", groups=GROUPS)
    ours, models = SparseStrategy(inner.FedAdam(eta=0.1), core.NoPruning(), client_widths=widths), []
    note = lambda number, arrays: models.append(as_arrays(arrays))  # noqa: E731
    ours.start(grid(), as_record(model()), 4, timeout=0.3, evaluate_fn=note)
    assert len(models) == 5
    for number, (before, after) in enumerate(itertools.pairwise(models)):
        for name, axis in (("a", 1), ("bias", 0), ("b", 0)):
            moved = np.any(np.moveaxis(before[name] != after[name], axis, 0).reshape(8, -1), axis=1)
            assert np.flatnonzero(moved).tolist() == sorted((number + channel) % 8 for channel in range(4))


@pytest.mark.parametrize("channels", ["rolling", "largest"])
def test_versions_of_masks_stay_right_where_widths_and_channels_change(channels: Any) -> None:
    widths = dataclasses.replace(DEALT, channels=channels)
    always, expected = run(widths, resends_masks=True, rounds=6)
    once, result = run(widths, rounds=6)
    over = grid()

    def forgetful(node: int, reply: Message) -> Message:
        if node == 13:
            over.contexts[13] = over.context(13, 2)
        return reply

    over.carry = forgetful
    lost, again = run(widths, rounds=6, over=over)
    for found in (result, again):
        npt.assert_equal(as_arrays(found.arrays), as_arrays(expected.arrays))
    for strategy in (always, once, lost):
        assert {entry.status for entry in [*strategy.ledger, *strategy.evaluation_ledger]} == {"ok"}
    down = [ours.ledger.total().down + ours.evaluation_ledger.total().down for ours in (once, always)]
    assert down[0] < down[1]
    assert len({entry.up for entry in once.ledger}) > 2  # whole and narrow, with masks that move


def test_a_server_that_is_killed_deals_the_same_widths(tmp_path: Any) -> None:
    through, expected = run(DEALT)
    checkpoints = fed.Checkpoints(tmp_path)
    first = SparseStrategy(inner.FedAvg(), updater_of("set"), client_widths=DEALT, checkpoints=checkpoints)

    def dying(number: int, arrays: ArrayRecord) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.start(grid(), as_record(model()), 4, evaluate_fn=dying)
    second, result = run(DEALT, checkpoints=checkpoints)
    npt.assert_equal(as_arrays(result.arrays), as_arrays(expected.arrays))
    # All but the bytes of a broadcast to nodes that have to be sent masks again.
    paid = lambda ours: [dataclasses.replace(entry, down=0) for entry in ours.ledger]  # noqa: E731
    assert paid(second) == paid(through)
    with pytest.raises(fed.CheckpointMismatchError, match=r"client_widths=\(\(0.5, 1.0\), 'rolling', 4"):
        run(dataclasses.replace(DEALT, seed=4), checkpoints=checkpoints)


def test_nodes_with_networks_of_another_width_are_told_and_the_round_goes_on() -> None:
    def grown(arrays: dict) -> dict:  # answers for the whole network, whatever it was sent
        return model()

    def built_in(arrays: dict) -> dict:
        return {**arrays, "a": model()["a"]}

    widths = fed.ClientWidths({12: 0.5, 13: 0.5, 14: 0.25}, groups=GROUPS)
    apps = {12: network_app(after=grown), 13: network_app(before=built_in)}

    def whole(node: int, reply: Message) -> Message:
        """An honest mod cannot say it: an update of the whole network from a node that was sent a quarter."""
        if node == 14 and reply.metadata.message_type == "train":
            masks = ours.masks()
            digest = fed.masks_digest(masks, ours.layout.sent)
            binding = fed.Binding("update", "7", 0, "14", digest)
            zeros = {name: np.zeros_like(array) for name, array in model().items()}
            reply.content["arrays"] = payload_record(fed.encode(masks, zeros, base=masks, binding=binding))
        return reply

    ours = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("static_sparse"), client_widths=widths)
    ours.start(grid(apps, whole), as_record(model()), 1, timeout=0.3)
    assert told(ours, 11) == ["ok"]
    (grown_status,), (built_in_status,), (whole_status,) = (told(ours, node) for node in (12, 13, 14))
    for status in (grown_status, built_in_status):
        assert status.startswith("failed: ")
        assert "it was sent a network of width 0.5: let its function build a model from the shapes" in status
    assert "of the reply of 'train' has shape (8, 3)" in grown_status
    assert whole_status.startswith("refused: it answers other masks than those of the broadcast")


class OfItsNodes(inner.FedAvg):
    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize(
    ("strategy", "options", "reason"),
    [
        (inner.Krum(), {}, "client_widths need a strategy that makes use of the mean .* and Krum compares them"),
        (OfItsNodes(), {}, "and OfItsNodes compares them"),
        (inner.FedAvg(), {"personal_masks": True}, "client_widths are not supported with personal masks"),
        (inner.FedAvg(), {"updater": "rigl"}, "updaters that grow by gradients, such as RigL"),
    ],
)
def test_what_widths_do_not_go_with_is_an_error_at_once(strategy: Any, options: dict, reason: str) -> None:
    options = {"updater": "set", **options}
    updater = updater_of(options.pop("updater"))
    with pytest.raises(ValueError, match=reason):
        SparseStrategy(strategy, updater, client_widths=BY_NODE, **options)


def network(params: dict, x: Any) -> Any:
    return jnp.tanh(x @ params["a"] + params["bias"][None]) @ params["b"]


def test_groups_are_those_of_the_model_that_the_run_starts_from() -> None:
    graph = core.channel_graph(network, model(), np.ones((2, 5), np.float32))
    traced, written = (
        fed.ClientWidths({12: 0.5}, "largest", groups=groups).channels_of(model()) for groups in (graph, GROUPS)
    )
    for name, group in written.groups.items():
        (found,) = traced.groups.values()
        assert {(m.path, m.axis) for m in found.members} == {(m.path, m.axis) for m in group.members}, name
    larger = {**model(), "a": np.ones((6, 8), np.float32)}
    mixed = core.channel_graph(
        lambda params, x: jax.nn.softmax(x @ params["a"]) @ params["b"] + params["bias"][None, :3],
        model(),
        np.ones((2, 5), np.float32),
    )
    reasons = {
        "client_widths has no groups, and a Flower server has no function": (None, model()),
        r"are about another model: they and the server's differ in \['a'\]": (graph, larger),
        r"no channel can leave this network|outputs differ": (mixed, model()),
    }
    for reason, (groups, arrays) in reasons.items():
        strategy = SparseStrategy(
            inner.FedAvg(), core.NoPruning(), client_widths=fed.ClientWidths((0.5,), groups=groups)
        )
        with pytest.raises(ValueError, match=reason):
            strategy.start(grid(), as_record(arrays), 1)


def test_nodes_that_are_no_integers_and_dtypes_that_numpy_cannot_save_are_errors() -> None:
    groups = {"hidden": [("w", 0)]}
    model = ArrayRecord({"w": Array(np.ones((4, 4), np.float32))})
    named = SparseStrategy(
        inner.FedAvg(), "set", sparsity=0.5, rounds=4, client_widths=fed.ClientWidths({"12": 0.5}, groups=groups)
    )
    with pytest.raises(ValueError, match=r"widths of \['12'\]; nodes of Flower are integers"):
        named.begin(model)
    half = ArrayRecord({"w": Array(np.ones((4, 4), jnp.bfloat16))})
    with pytest.raises(ValueError, match="cast the model to float32 or float16"):
        SparseStrategy(inner.FedAvg(), "set", sparsity=0.5, rounds=4).begin(half)
