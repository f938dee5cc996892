"""What goes wrong between a Flower server and its nodes is refused by name, and the round goes on with the rest."""

import dataclasses
import struct
import zlib

import numpy as np
import numpy.testing as npt
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp import strategy as inner

from sparse_plugins import core, fed
from sparse_plugins.fed.flower import SparseStrategy, sparse_mod
from sparse_plugins.fed.flower.records import payload_record
from tests.fed.flower_linear import linear_app, linear_model
from tests.fed.flower_nodes import LocalGrid, as_arrays, linear_grid, sparse_run
from tests.fed.updater_in_rounds import updater_of

VICTIM = 12


def payload_of(reply: Message) -> bytes:
    return reply.content["arrays"]["payload"].data


def with_payload(reply: Message, payload: bytes) -> Message:
    reply.content["arrays"] = payload_record(payload)
    return reply


def damaged(reply: Message, first: Message) -> Message:
    payload = bytearray(payload_of(reply))
    payload[60] ^= 1
    return with_payload(reply, bytes(payload))


def other_version(reply: Message, first: Message) -> Message:
    front = payload_of(reply)[:4] + b"\x09" + payload_of(reply)[5:-4]
    return with_payload(reply, front + struct.pack("<I", zlib.crc32(front)))


def forged(reply: Message, values: dict | None = None, **others) -> Message:
    """Another message in the place of an update; `others` are fields of its binding."""
    base = ours.masks()
    digest = fed.masks_digest(base, ours.layout.sent)
    binding = dataclasses.replace(fed.Binding("update", "7", 1, str(VICTIM), digest), **others)
    zeros = {name: np.zeros(spec.shape, spec.dtype) for name, spec in ours.layout.sent.items()}
    return with_payload(reply, fed.encode(base, values or zeros, base=base, binding=binding))


def not_a_number(reply: Message, first: Message) -> Message:
    return forged(reply, {**as_sent(), "w": np.full((8, 8), np.nan, np.float32)})


def as_sent() -> dict:
    return {name: np.zeros(spec.shape, spec.dtype) for name, spec in ours.layout.sent.items()}


def another_model(reply: Message, first: Message) -> Message:
    values = {"w": np.ones((8, 9), np.float32)}
    binding = fed.Binding("update", "7", 1, str(VICTIM), fed.masks_digest(ours.masks(), ours.layout.sent))
    return with_payload(reply, fed.encode({"w": core.NOT_PRUNED}, values, binding=binding))


def metric(name: str, value: object):
    def changed(reply: Message, first: Message) -> Message:
        reply.content["metrics"] = MetricRecord({"loss": 1.0, name: value})
        return reply

    return changed


def dense(reply: Message, first: Message) -> Message:
    reply.content["arrays"] = linear_model()
    return reply


FAULTS = {
    "it never comes": (lambda reply, first: None, "no reply in time"),
    "it is damaged": (damaged, "refused: the checksum is wrong"),
    "it is another version": (other_version, "refused: this payload has version 9"),
    "it is of another run": (
        lambda reply, first: forged(reply, run="8"),
        "refused: it belongs to another run",
    ),
    "it is of another node": (lambda reply, first: forged(reply, client="11"), "refused: it belongs to another client"),
    "it is of an earlier round": (
        lambda reply, first: with_payload(reply, payload_of(first)),
        "refused: it answers round 0, and round 1 is expected",
    ),
    "it is about other masks": (lambda reply, first: forged_masks(reply), "refused: it answers other masks"),
    "it is a growth signal": (lambda reply, first: forged(reply, message="growth"), "refused: it is a growth signal"),
    "it is no number": (not_a_number, "refused: NaN or infinite values"),
    "it is another model": (another_model, "refused: this payload is about another model"),
    "it is dense": (dense, "refused: it holds no payload; let the client's app have mods"),
    "it has no weight": (metric("examples", 20), "refused: it has no metric 'num-examples'"),
    "its weight is none": (metric("num-examples", float("nan")), "refused: its metric 'num-examples' is nan"),
    "its weight is below 0": (metric("num-examples", -1), "refused: its metric 'num-examples' is -1"),
    "it has no examples": (metric("num-examples", 0), "nothing to send: no examples"),
}


def forged_masks(reply: Message) -> Message:
    base = {**ours.masks(), "w": 1 - ours.masks()["w"]}
    binding = fed.Binding("update", "7", 1, str(VICTIM), fed.masks_digest(base, ours.layout.sent))
    return with_payload(reply, fed.encode(base, as_sent(), base=base, binding=binding))


def run_with(carry, names=(11, 12, 13, 14), strategy=None) -> tuple[SparseStrategy, dict]:
    global ours
    ours = SparseStrategy(strategy or inner.FedAvg(fraction_evaluate=0), updater_of("set"))
    result = ours.start(LocalGrid(dict.fromkeys(names, linear_app()), carry), linear_model(), 2, timeout=0.3)
    return ours, as_arrays(result.arrays)


def in_round_1(fault, node=VICTIM):
    """Tampers with a node's reply of the second round."""
    seen = []

    def carry(replying, reply):
        if replying != node:
            return reply
        seen.append(reply)
        return fault(reply, seen[0]) if len(seen) == 2 else reply

    return carry


@pytest.mark.parametrize("what", FAULTS)
def test_a_round_goes_on_without_a_reply_that_cannot_be_used(what):
    fault, reason = FAULTS[what]
    strategy, arrays = run_with(in_round_1(fault))
    _, expected = run_with(in_round_1(lambda reply, first: None))
    told = {(entry.round, entry.client): entry.status for entry in strategy.ledger}
    assert told.pop((1, str(VICTIM))).startswith(reason)
    assert set(told.values()) == {"ok"}
    npt.assert_equal(arrays, expected)


def test_a_duplicate_and_an_answer_of_nobody_count_for_nothing():
    _, expected = run_with(lambda node, reply: reply)
    strategy = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("set"))
    grid, record, config = linear_grid(), linear_model(), ConfigRecord()
    for number in (1, 2):
        replies = list(grid.send_and_receive(strategy.configure_train(number, record, config, grid)))
        stranger = linear_grid([99])
        stranger.push_messages([Message(grid.orders[-1].content, 99, "train")])
        record, _ = strategy.aggregate_train(number, [*replies, replies[0], *stranger.pull_messages(["0"])])
    npt.assert_equal(as_arrays(record), expected)
    assert len(strategy.ledger) == 8


def four() -> dict[int, ClientApp]:
    return dict.fromkeys((11, 12, 13, 14), linear_app())


def test_a_round_of_which_nothing_can_be_used_changes_nothing_and_warns():
    silent = lambda node, reply: None  # noqa: E731
    strategy = SparseStrategy(inner.FedAdam(fraction_evaluate=0), updater_of("set"))
    with pytest.warns(RuntimeWarning, match=r"round 0: 0 valid updates of 4 clients.*4 no reply in time"):
        result = strategy.start(
            LocalGrid(dict.fromkeys((11, 12, 13, 14), linear_app()), silent), linear_model(), 1, 0.1
        )
    npt.assert_equal(as_arrays(result.arrays), as_arrays(strategy.arrays()))
    assert (strategy.state.round, int(strategy.state.opt_state.count)) == (1, 0)


def test_updates_that_overflow_together_change_nothing_and_poison_no_moments():
    def huge(node, reply):
        return with_payload(reply, rescaled(node, reply)) if reply.has_content() else reply

    def rescaled(node, reply):
        masks = strategy.masks()
        values = {**{n: np.zeros(s.shape, s.dtype) for n, s in strategy.layout.sent.items()}}
        values["b"] = np.full(8, 3e38, np.float32)
        binding = fed.Binding("update", "7", 0, str(node), fed.masks_digest(masks, strategy.layout.sent))
        return fed.encode(masks, values, base=masks, binding=binding)

    strategy = SparseStrategy(inner.FedAdam(fraction_evaluate=0), updater_of("set"))
    with pytest.warns(RuntimeWarning, match="4 refused: together the updates of this round overflow"):
        strategy.start(LocalGrid(four(), huge), linear_model(), 1)
    assert not any(
        moment.any() for arrays in strategy.inner.moments(strategy.layout).values() for moment in arrays.values()
    )


def test_updates_above_the_norm_are_refused():
    with pytest.warns(RuntimeWarning, match=r"1 refused: its norm of 1\.\d+ is above 0.001"):
        sparse_run(updater_of("set"), max_norm=1e-3, rounds=1)


STRATEGIES = {"FedAdam": inner.FedAdam, "FedAvgM": lambda: inner.FedAvgM(server_momentum=0.9), "Krum": inner.Krum}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("algorithm", ["rigl", "set"])
def test_a_server_that_is_killed_goes_on_with_the_same_bits(name, algorithm, tmp_path):
    evaluate = lambda number, arrays: MetricRecord({"sum": float(arrays["w"].numpy().sum())})  # noqa: E731
    through = SparseStrategy(STRATEGIES[name](), updater_of(algorithm))
    expected = through.start(linear_grid(), linear_model(), 4, evaluate_fn=evaluate)

    class KilledError(Exception):
        pass

    def dying(number, arrays):
        if number == 3:
            raise KilledError
        return evaluate(number, arrays)

    checkpoints = fed.Checkpoints(tmp_path)
    first = SparseStrategy(STRATEGIES[name](), updater_of(algorithm), checkpoints=checkpoints)
    with pytest.raises(KilledError):
        first.start(linear_grid(), linear_model(), 4, evaluate_fn=dying)
    assert checkpoints.rounds() == [1, 2]
    second = SparseStrategy(STRATEGIES[name](), updater_of(algorithm), checkpoints=checkpoints)
    result = second.start(linear_grid(), linear_model(), 4, evaluate_fn=evaluate)
    npt.assert_equal(as_arrays(result.arrays), as_arrays(expected.arrays))
    npt.assert_equal(second.inner.moments(second.layout), through.inner.moments(through.layout))
    for which in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
        assert getattr(result, which) == getattr(expected, which)
    # All but the bytes of a broadcast to nodes that have to be sent masks again.
    paid = lambda ledger: [dataclasses.replace(entry, down=0) for entry in ledger]  # noqa: E731
    assert paid(second.ledger) == paid(through.ledger)
    finished = SparseStrategy(STRATEGIES[name](), updater_of(algorithm), checkpoints=checkpoints)
    again = finished.start(linear_grid(), linear_model(), 4)
    npt.assert_equal(as_arrays(again.arrays), as_arrays(expected.arrays))


# Bad input: each is an error on the side that can mend it.


def test_a_client_without_the_mod_is_told_of_it():
    apps = {11: linear_app(), 12: linear_app(mods=()), 13: linear_app()}
    strategy = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("set"))
    strategy.start(LocalGrid(apps), linear_model(), 1)
    told = {entry.client: entry.status for entry in strategy.ledger}
    assert told["11"] == told["13"] == "ok"
    assert told["12"].startswith("failed: ")
    assert "mods=[fed.flower.sparse_mod]" in told["12"]


def test_mods_that_cannot_go_with_it_are_named():
    def reads_arrays(message, context, call_next):
        [array.numpy() for record in message.content.array_records.values() for array in record.values()]
        return call_next(message, context)

    apps = {11: linear_app(), 12: linear_app((sparse_mod, secaggplus_mod)), 13: linear_app((reads_arrays, sparse_mod))}
    strategy = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("set"))
    strategy.start(LocalGrid(apps), linear_model(), 1)
    told = {entry.client: entry.status for entry in strategy.ledger}
    assert told["11"] == "ok"
    assert "secure aggregation is on Flower's older interface and is not supported" in told["12"]
    assert "have mods=[sparse_mod], as the first of its mods" in told["13"]


@pytest.mark.parametrize(
    ("algorithm", "mods", "note"),
    [("rigl", (sparse_mod,), "or use core.SET or growth='delta'"), ("set", (), "have mods=[sparse_mod]")],
)
def test_nodes_of_this_process_say_what_a_client_lacks(algorithm, mods, note):
    app = ClientApp(mods=[*mods])

    @app.train()
    def train(message, context):
        (record,) = message.content.array_records.values()
        arrays = ArrayRecord([array + np.float32(0.5) for array in record.to_numpy_ndarrays()])
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    strategy = SparseStrategy(inner.FedAvg(fraction_evaluate=0), algorithm, sparsity=0.5, rounds=2)
    model = ArrayRecord([np.ones((4, 4), np.float32)])
    with pytest.raises(Exception, match=r"registered|serialization") as caught:
        strategy.start(fed.flower.LocalGrid(app, 2), model, 2)
    assert any(note in text for text in caught.value.__notes__)


def test_a_mod_without_the_strategy_says_what_is_missing():
    seen = []
    watch = lambda node, reply: seen.append(reply) or reply  # noqa: E731
    grid = LocalGrid({11: linear_app(), 12: linear_app()}, watch)
    inner.FedAvg(fraction_evaluate=0).start(grid, linear_model(), 1)
    assert all("the server has no SparseStrategy" in reply.error.reason for reply in seen)


def test_a_client_without_a_gradient_function_is_told_of_it():
    app = ClientApp(mods=[sparse_mod])
    app.train()(linear_app(mods=())._registered_funcs["train.default"])
    strategy = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("rigl"))
    with pytest.warns(RuntimeWarning, match=r"none of 2 growth signals can be used .*@app.query\('grow'\)"):
        strategy.start(LocalGrid({11: app, 12: app}), linear_model(), 2)
    assert {entry.status for entry in strategy.ledger} == {"ok"}


def test_a_node_that_makes_no_mask_of_its_own_is_told_why_and_left_out():
    def lost_its_masks(node, reply):
        is_asked = grid.orders[-1].metadata.message_type == "query.grow"
        if node == 13 and is_asked:
            grid.contexts[13] = grid.context(13, 2)
        return reply

    app = ClientApp(mods=[sparse_mod])
    app.train()(linear_app(mods=())._registered_funcs["train.default"])
    grid = LocalGrid({11: linear_app(), 12: app, 13: linear_app(), 14: linear_app()}, lost_its_masks)
    strategy = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("rigl"), personal_masks=True)
    result = strategy.start(grid, linear_model(), 2, timeout=1)
    told = {entry.client: entry.status for entry in strategy.ledger if entry.round == 1}
    assert told["11"] == told["14"] == "ok"
    assert told["12"].startswith("failed: ")
    assert "@app.query('grow')" in told["12"]
    assert told["13"].startswith("failed: ")
    assert "has lost the masks that it made for this round" in told["13"]
    assert np.count_nonzero(result.arrays["w"].numpy()) == 16


def test_personal_masks_are_for_rules_that_nodes_without_jax_know():
    class GrowsElsewhere(core.RigL):
        def grow_score(self, param, source):
            return -abs(source)

    for updater, told in [
        (updater_of("magnitude"), "personal_masks=True works with core.SET and core.RigL"),
        (GrowsElsewhere(scheduler=updater_of("rigl").scheduler), "and GrowsElsewhere has another"),
    ]:
        with pytest.raises(ValueError, match=told):
            SparseStrategy(inner.FedAvg(), updater, personal_masks=True)


def broken_app(arrays) -> ClientApp:
    app = ClientApp(mods=[sparse_mod])

    @app.train()
    def train(message, context):
        message.content["arrays"] = arrays(message.content["arrays"])
        message.content["metrics"] = MetricRecord({"num-examples": 1, "loss": 1.0})
        return Message(message.content, reply_to=message)

    return app


def other(**arrays):
    return lambda record: ArrayRecord({**record, **{name: Array(array) for name, array in arrays.items()}})


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (other(w=np.zeros((8, 9), np.float32)), "array 'w' of the reply of 'train' has shape (8, 9)"),
        (other(steps=np.zeros((), np.float32)), "array 'steps' of the reply of 'train' has shape () and dtype float32"),
        (other(v=np.zeros(3)), "has other arrays than the server's model: ['v'] are not in it, [] are missing"),
        (other(w=np.full((8, 8), np.inf, np.float32)), "training made NaN or infinite values of array 'w'"),
    ],
)
def test_a_model_that_differs_is_told_by_the_client(arrays, reason):
    strategy = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("set"))
    strategy.start(LocalGrid({11: linear_app(), 12: broken_app(arrays), 13: linear_app()}), linear_model(), 1)
    (status,) = [entry.status for entry in strategy.ledger if entry.client == "12"]
    assert status.startswith("failed: ")
    assert reason in status


def test_another_version_of_the_protocol_is_refused_on_both_sides():
    grid = linear_grid([11, 12])
    strategy = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("set"))
    (order, _) = strategy.configure_train(1, linear_model(), ConfigRecord(), grid)
    order.content["sparse_plugins"]["format"] = 9
    with pytest.raises(ValueError, match="speaks version 9 of this protocol, this side version 1"):
        sparse_mod(order, grid.contexts[11], lambda message, context: message)


class Restarting(inner.FedAvg):
    def start(self, *args, **keywords):
        return super().start(*args, **keywords)


@pytest.mark.parametrize(
    ("strategy", "options", "error", "told"),
    [
        (inner.FedAvg, {}, TypeError, "give an instance of a Flower strategy"),
        (SecAggPlusWorkflow(3, 2), {}, TypeError, "secure aggregation is on Flower's older interface"),
        (inner.FedXgbBagging(), {}, TypeError, "its models are no arrays"),
        (Restarting(), {}, TypeError, "Restarting has a start of its own"),
        (inner.FedAvg(fraction_train=0.0), {}, ValueError, "fraction_train=0: nobody would train"),
        (inner.FedAvg(), {"growth": "loud"}, ValueError, "growth is 'loud'; choose one of random, topk, delta, dense"),
        (inner.FedAvg(), {"personal_masks": True, "growth": "topk"}, ValueError, "asked for none; drop one of the two"),
        (inner.FedAvg(), {"max_norm": 0}, ValueError, "max_norm is 0; give a number above 0"),
        (inner.FedAvg(), {"seed": -1}, ValueError, "seed is -1; give a number of 0 or more"),
        (
            inner.DifferentialPrivacyServerSideFixedClipping(inner.FedAvg(), 1.0, 1.0, 2),
            {},
            ValueError,
            "gradients that clients send to grow weights get none",
        ),
        (
            inner.DifferentialPrivacyServerSideAdaptiveClipping(inner.FedAvg(), 0.1, 100),
            {"growth": "random", "checkpoints": fed.Checkpoints("nowhere")},
            TypeError,
            "may remember more than its moments",
        ),
    ],
)
def test_what_cannot_be_sparse_is_an_error_at_once(strategy, options, error, told):
    with pytest.raises(error, match=told):
        SparseStrategy(strategy, updater_of("rigl"), **options)


def test_floats_of_64_bits_are_an_error_that_says_what_to_do():
    strategy = SparseStrategy(inner.FedAvg(), updater_of("set"))
    with pytest.raises(ValueError, match="array 'w' has dtype float64, which JAX keeps only with jax_enable_x64"):
        strategy.start(linear_grid(), ArrayRecord({"w": Array(np.zeros((8, 8)))}), 1)
    with pytest.raises(ValueError, match="the model has no arrays"):
        SparseStrategy(inner.FedAvg(), updater_of("set")).start(linear_grid(), ArrayRecord(), 1)
