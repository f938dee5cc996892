"""A Flower client without JAX: what it imports, how long that takes, and how much memory a round needs."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from sparse_plugins import core, fed
from sparse_plugins.core.selection.structured_topk import regrow_mask
from sparse_plugins.core.structures import Unstructured
from sparse_plugins.fed.flower.client import _places
from sparse_plugins.fed.flower.personal import changed_mask
from sparse_plugins.fed.flower.records import Layout, packed_masks, unpacked_masks
from sparse_plugins.fed.growth import strongest_pruned
from sparse_plugins.wire import NOT_PRUNED
from tests.fed.flower_linear import NAMES, examples, linear_app
from tests.fed.flower_nodes import LocalGrid, as_arrays, linear_grid, sparse_run
from tests.fed.updater_in_rounds import updater_of

ROOT = Path(__file__).parents[2]

# A node's round: it reads an order from a file, trains, and answers.
NODE = """
import json, resource, sys, time
sys.modules["jax"] = sys.modules["optax"] = None  # as where they are not installed
import numpy, flwr.app, flwr.clientapp
before, started = set(sys.modules), time.perf_counter()
from sparse_plugins.fed.flower import sparse_mod, training_masks
seconds = time.perf_counter() - started
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from sparse_plugins.fed.flower.records import ORDERS, payload_record
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 7
folder = sys.argv[1]
orders = json.load(open(f"{folder}/orders.json"))
def order():
    payload = payload_record(open(f"{folder}/payload", "rb").read())
    return Message(RecordDict({"arrays": payload, ORDERS: ConfigRecord(orders)}), 11, "train")
def train(message, context):
    model = {name: array.numpy() - numpy.float32(0.5) for name, array in message.content["arrays"].items()}
    record = ArrayRecord({name: Array(value) for name, value in model.items()})
    return Message(RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
context = Context(run_id=7, node_id=11, node_config={}, state=RecordDict(), run_config={})
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reply = sparse_mod(order(), context, train)
open(f"{folder}/reply", "wb").write(reply.content["arrays"]["payload"].data)
known = {*sys.stdlib_module_names, "numpy", "flwr"}
print(json.dumps({
    "foreign": sorted({name.partition(".")[0] for name in {*sys.modules} - before} - known),
    "import_seconds": seconds,
    "peak_mebibytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024,
}))
"""


def test_a_node_needs_no_jax(tmp_path: Path, record_property: Callable) -> None:
    rng = np.random.default_rng(0)
    model = {"w": rng.normal(size=(1100, 1100)).astype(np.float32), "b": np.ones(100, np.float32)}
    masks = {"w": (rng.random((1100, 1100)) < 0.05).astype(np.uint8), "b": NOT_PRUNED}
    digest = fed.masks_digest(masks, model)
    payload = fed.encode(masks, model, binding=fed.Binding("broadcast", "7", 3, masks=digest))
    (tmp_path / "payload").write_bytes(payload)
    told = {"format": 1, "layout": Layout.of(model).to_text(), "run": "7", "round": 3, "task": "train"}
    told |= {"arrays": "arrays", "up": "float32", "zstd": False, "keep": False}
    (tmp_path / "orders.json").write_text(json.dumps(told))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NODE, str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(run.stdout)
    for name, value in found.items():
        record_property(name, value)
    assert found["foreign"] == ["ml_dtypes", "sparse_plugins"]
    assert found["import_seconds"] < 2  # docs/flower.md has what it is
    assert found["peak_mebibytes"] < 64  # the model has 4.6
    binding = fed.Binding("update", "7", 3, "11", digest)
    update = fed.decode((tmp_path / "reply").read_bytes(), model, base=masks, binding=binding)
    npt.assert_allclose(update.values["w"], 0.5 * masks["w"], atol=1e-6)


def test_the_strongest_gradients_are_those_of_the_server():
    rng = np.random.default_rng(0)
    for _ in range(30):
        grad = rng.integers(-3, 4, size=(5, 7)).astype(np.float32)
        grad[rng.random((5, 7)) < 0.1] = np.nan
        settled = (rng.random((5, 7)) < 0.4).astype(np.uint8)
        count = int(rng.integers(0, 40))
        expected = strongest_pruned({"w": grad}, {"w": settled}, {"w": count})["w"]
        npt.assert_array_equal(_places(grad, settled, count), expected)


def test_a_nodes_own_mask_is_that_of_the_core():
    """Equal scores, scores that are not finite, and masks with fewer pruned weights than are replaced among them."""
    rng = np.random.default_rng(1)
    regrown = jax.jit(lambda *arrays: regrow_mask(*arrays[:3], Unstructured(), *arrays[3:]))
    for _ in range(60):
        mask = (rng.random((5, 7)) < rng.random()).astype(np.uint8)
        value = rng.integers(-3, 4, size=(5, 7)).astype(np.float32) * mask
        scores = rng.integers(0, 4, size=(5, 7)).astype(np.float32)
        scores[rng.random((5, 7)) < rng.random()] = rng.choice([np.nan, np.inf])
        kept = int(mask.sum())
        count = int(rng.integers(0, kept + 1))
        expected = regrown(mask != 0, np.abs(value), scores, kept, kept - count)
        npt.assert_array_equal(changed_mask(value, mask, scores, count), expected)


def test_weights_about_which_nobody_is_asked_are_told_where_they_are_others_than_the_masks():
    """Where fewer weights are pruned than are replaced, some that were just dropped come back."""
    dense = dataclasses.replace(updater_of("rigl", sparsity=0.1), drop_fraction_fn=core.ConstantDrop(0.5))
    grid = linear_grid()
    ours, _ = sparse_run(dense, grid=grid)
    questions = [order for order in grid.orders if order.metadata.message_type == "query.grow"]
    assert len(questions) == 8
    assert all("sparse_plugins.settled" in order.content for order in questions)
    assert {entry.growth_status for entry in ours.ledger if entry.round} == {"ok"}


def test_masks_are_kept_as_bits_and_are_those_inside_which_to_train():
    grid = linear_grid()
    ours, _ = sparse_run(updater_of("rigl"), grid=grid, rounds=1)
    held = fed.flower.training_masks(grid.contexts[11])
    assert set(held) == {"w"}
    npt.assert_array_equal(held["w"], ours.masks()["w"])
    delta = linear_grid()
    sparse_run(updater_of("rigl"), grid=delta, growth="delta", rounds=2)
    assert fed.flower.training_masks(Context(7, 1, {}, RecordDict(), {})) == {}


def test_arrays_travel_as_flower_writes_them_without_further_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = np.arange(6, dtype=np.dtype(np.float32).newbyteorder("=")).reshape(2, 3)  # as the codec makes them
    layout = Layout.of({"w": decoded})
    expected = Array(decoded)
    by_columns = ArrayRecord({"w": Array(np.asfortranarray(decoded))})
    npt.assert_array_equal(layout.read(by_columns, "it")["w"], decoded)
    with monkeypatch.context() as patched:
        for name in ("from_numpy_ndarray", "numpy"):
            patched.setattr(Array, name, lambda *args, name=name: pytest.fail(f"{name} copies"))
        record = layout.record({"w": decoded})
        npt.assert_array_equal(layout.read(record, "it")["w"], decoded)
    assert (record["w"].data, record["w"].dtype) == (expected.data, expected.dtype)
    odd = ArrayRecord({"w": Array("float32", (2, 3), "numpy.ndarray", record["w"].data[:-1])})
    with pytest.raises(ValueError, match=r"reshape|read"):
        layout.read(odd, "it")


def test_a_mask_of_another_array_is_an_error():
    record = packed_masks({"w": np.ones((3, 3), np.uint8)})
    like = Layout.of({"w": np.zeros((9, 9), np.float32)}).sent
    with pytest.raises(ValueError, match=r"the mask of 'w' does not belong to an array of shape \(9, 9\)"):
        unpacked_masks(record, like)


def test_nodes_of_other_frameworks_train_together():
    """One computes its gradients with JAX, the others with NumPy."""
    app = ClientApp(mods=[fed.flower.sparse_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        x, y = map(jnp.asarray, examples(int(context.node_config["partition-id"])))
        w, b, steps = (jnp.asarray(message.content["arrays"][name].numpy()) for name in NAMES)
        error = x @ w + b[None] - y
        trained = (w - 0.1 * x.T @ error / 20, b - 0.1 * error.mean(axis=0), steps + 1)
        record = ArrayRecord({name: Array(np.asarray(value)) for name, value in zip(NAMES, trained, strict=True)})
        metrics = MetricRecord({"num-examples": 20, "loss": float((error.mean(axis=0) ** 2).mean())})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    app.evaluate()(linear_app(mods=())._registered_funcs["evaluate.default"])
    apps = {11: linear_app(), 12: app, 13: linear_app(), 14: linear_app()}
    mixed, result = sparse_run(updater_of("set"), grid=LocalGrid(apps))
    _, expected = sparse_run(updater_of("set"))
    assert {entry.status for entry in mixed.ledger} == {"ok"}
    for name, array in as_arrays(expected.arrays).items():
        npt.assert_allclose(as_arrays(result.arrays)[name], array, rtol=0, atol=1e-6)
