"""Flower's strategies, sparse: the run of FedJAX with the same bytes, and the run of Flower where nothing is pruned."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import numpy.testing as npt
import optax
import pytest
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import strategy as inner

from sparse_plugins import core, fed
from sparse_plugins.fed.flower import SparseStrategy
from sparse_plugins.wire.envelope import read_header
from tests.fed import toy
from tests.fed.flower_linear import linear_app, linear_model
from tests.fed.flower_nodes import (
    LocalGrid,
    as_arrays,
    first_model,
    flat,
    linear_grid,
    sparse_run,
    toy_grid,
)
from tests.fed.updater_in_rounds import updater_of

NODES = (11, 12, 13, 14)
ROUNDS = 3

# What both rims are held to: an updater, and how the run is set.
CONTRACT = {
    "pruning": ("magnitude", {}),
    "growth at random, 8 bits": ("set", {"wire": fed.Wire(up="int8", zstd=True)}),
    "growth by the strongest gradients": ("rigl", {"growth": "topk", "wire": fed.Wire(up="bfloat16")}),
    "growth by dense training": ("rigl", {"growth": "delta"}),
    "growth by all gradients": ("rigl", {"growth": "dense"}),
    "personal masks by draws": ("set", {"personal_masks": True}),
    "personal masks by gradients": ("rigl", {"personal_masks": True, "min_votes": 2}),
    "widths that are dealt": ("set", {"client_widths": fed.ClientWidths((0.5, 1.0), "rolling", seed=1)}),
    "widths by node, 8 bits": (
        "magnitude",
        {"client_widths": fed.ClientWidths({12: 0.5, 13: 0.25}, "largest"), "wire": fed.Wire(up="int8")},
    ),
}
HIDDEN, HEAD = "mlp/~/linear_0", "mlp/~/linear_1"
GROUPS = {"hidden": [(f"{HIDDEN}/w", 1), (f"{HIDDEN}/b", 0), (f"{HEAD}/w", 0)]}


@pytest.mark.parametrize("row", CONTRACT)
def test_it_is_the_run_of_fedjax_with_the_same_bytes(row):
    name, options = CONTRACT[row]
    updater, options = toy.updater_of(name), {**options, "run": "both"}
    expected, theirs = fed.Ledger(), optax.sgd(1.0)
    others = {key: value for key, value in options.items() if key != "min_votes"}
    widths = options.get("client_widths")
    aggregation = None if widths else fed.Aggregation(min_votes=options.get("min_votes", 1))
    if widths:  # a Flower server has no function to trace
        options["client_widths"] = dataclasses.replace(widths, groups=GROUPS)
    algorithm = fed.sparse_federated_averaging(
        toy.GRADIENT, toy.CLIENT, theirs, updater, toy.TRAIN, ledger=expected, aggregation=aggregation, **others
    )
    state = algorithm.init(toy.MODEL.init(jax.random.PRNGKey(0)))
    for number in range(ROUNDS):
        clients = [(NODES[place], data, rng) for place, data, rng in toy.clients_of_a_round(number)]
        state, _ = algorithm.apply(state, clients)
    ours = SparseStrategy(inner.FedAvg(), updater, resends_masks=True, **options)
    result = ours.start(toy_grid(NODES), first_model(), ROUNDS)
    for leaf, array in as_arrays(result.arrays).items():
        npt.assert_allclose(array, flat(state.params)[leaf], rtol=0, atol=1e-5)
        npt.assert_array_equal(array != 0, flat(state.params)[leaf] != 0)
    by_node = lambda ledger: sorted(ledger, key=lambda entry: (entry.round, entry.client))  # noqa: E731
    assert by_node(ours.ledger) == by_node(expected)
    assert {entry.status for entry in expected} == {"ok"}
    if options.get("growth") in ("topk", "dense"):
        assert expected.total().growth > 0


STRATEGIES = {
    "FedAvg": inner.FedAvg,
    "FedProx": lambda: inner.FedProx(proximal_mu=0.1),
    "FedAvgM": lambda: inner.FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "FedAdam": inner.FedAdam,
    "FedAdagrad": inner.FedAdagrad,
    "FedYogi": inner.FedYogi,
    "FedMedian": inner.FedMedian,
    "FedTrimmedAvg": lambda: inner.FedTrimmedAvg(beta=0.25),
    "Krum": lambda: inner.Krum(num_malicious_nodes=0),
    "Bulyan": lambda: inner.Bulyan(num_malicious_nodes=0),
    "noise": lambda: inner.DifferentialPrivacyServerSideFixedClipping(inner.FedAvg(), 0.0, 1e3, 4),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_where_nothing_is_pruned_it_is_the_run_of_flower(name):
    dense = STRATEGIES[name]().start(linear_grid(mods=()), linear_model(), ROUNDS)
    ours, result = sparse_run(core.NoPruning(), STRATEGIES[name]())
    for leaf in ("w", "b"):  # Flower makes floats of integers
        expected = as_arrays(dense.arrays)[leaf]
        npt.assert_allclose(as_arrays(result.arrays)[leaf], expected, rtol=1e-5, atol=1e-6)
    assert list(result.arrays) == list(dense.arrays) == list(linear_model())
    for which in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        told, expected = getattr(result, which), getattr(dense, which)
        assert told.keys() == expected.keys()
        for number in expected:
            assert dict(told[number]) == pytest.approx(dict(expected[number]))
    assert {entry.status for entry in ours.ledger} == {"ok"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_model_and_its_moments_are_on_the_masks_after_every_round(name):
    seen = []

    def evaluate(number, arrays):
        masks = ours.masks()["w"]
        seen.append(number)
        npt.assert_array_equal(arrays["w"].numpy() != 0, masks != 0)
        for moments in ours.inner.moments(ours.layout).values():
            assert not moments["w"][masks == 0].any()
        return MetricRecord({"kept": int(masks.sum())})

    ours = SparseStrategy(STRATEGIES[name](), updater_of("rigl" if name != "noise" else "set"))
    result = ours.start(linear_grid(), linear_model(), ROUNDS, evaluate_fn=evaluate)
    assert seen == [0, 1, 2, 3]
    assert {metrics["kept"] for metrics in result.evaluate_metrics_serverapp.values()} == {16}


def test_masks_that_a_node_holds_are_not_sent_again():
    always, often = sparse_run(updater_of("set"), resends_masks=True, rounds=5)
    once, seldom = sparse_run(updater_of("set"), rounds=5)
    npt.assert_equal(as_arrays(seldom.arrays), as_arrays(often.arrays))
    down, least = ([entry.down for entry in strategy.ledger if entry.client == "11"] for strategy in (always, once))
    assert least[0] == down[0]
    assert all(less < more for less, more in zip(least[1:], down[1:], strict=True))
    assert least[3] == least[4]


def test_a_node_that_lost_its_state_gets_whole_masks_in_the_same_round():
    grid = linear_grid()

    def forgetful(node, reply):
        if node == 12:
            grid.contexts[12] = grid.context(12, 1)
        return reply

    grid.carry = forgetful
    _, expected = sparse_run(updater_of("rigl"))
    ours, result = sparse_run(updater_of("rigl"), grid=grid)
    npt.assert_equal(as_arrays(result.arrays), as_arrays(expected.arrays))
    assert {(entry.status, entry.growth_status) for entry in ours.ledger} <= {("ok", ""), ("ok", "ok")}
    of = {name: [e.down for e in ours.ledger if e.client == name] for name in ("11", "12")}
    assert all(more > less for more, less in zip(of["12"][1:], of["11"][1:], strict=True))


def test_nodes_are_chosen_by_seed_and_replies_taken_in_one_order():
    def chosen(seed, nodes):
        strategy = inner.FedAvg(fraction_train=0.5, fraction_evaluate=0)
        ours, result = sparse_run(updater_of("set"), strategy, seed=seed, grid=linear_grid(nodes))
        return [(entry.round, entry.client) for entry in ours.ledger], as_arrays(result.arrays)

    picked, arrays = chosen(1, (11, 12, 13, 14, 15, 16))
    again, same = chosen(1, (16, 11, 14, 12, 15, 13))  # in another order
    other, _ = chosen(2, (11, 12, 13, 14, 15, 16))
    assert picked == again != other
    assert len(picked) == 3 * ROUNDS
    assert len({node for _, node in picked}) > 3
    npt.assert_equal({name: x.shape for name, x in arrays.items()}, {name: x.shape for name, x in same.items()})


class Slow(LocalGrid):
    """Replies come the other way round."""

    def pull_messages(self, message_ids):
        (number,) = message_ids
        self.asked = [*getattr(self, "asked", []), number]
        early = self.asked.count(number) < 5 - int(number) % 4
        return [] if early else super().pull_messages([number])


def test_a_reply_that_comes_first_is_not_summed_first():
    apps = dict.fromkeys(NODES, linear_app())
    strategy = lambda: inner.FedAvg(fraction_evaluate=0)  # noqa: E731
    _, expected = sparse_run(updater_of("set"), strategy(), grid=LocalGrid(apps))
    _, result = sparse_run(updater_of("set"), strategy(), grid=Slow(apps))
    npt.assert_equal(as_arrays(result.arrays), as_arrays(expected.arrays))


def test_the_server_holds_one_reply_at_a_time_where_the_mean_says_all(caplog):
    most = {}
    for nodes in (4, 12):
        alive, grid = [], linear_grid(range(11, 11 + nodes))
        pull = grid.pull_messages

        def watched(numbers, pull=pull, alive=alive):
            replies = pull(numbers)
            alive.extend(replies)
            return replies

        grid.pull_messages = watched
        ours = SparseStrategy(inner.FedAvg(fraction_evaluate=0), updater_of("set"))
        kept = []
        take = ours.inner.strategy.aggregate_train
        ours.inner.strategy.aggregate_train = lambda number, replies, take=take, kept=kept: (
            kept.append(len(replies)) or take(number, replies)
        )
        ours.start(grid, linear_model(), 1)
        most[nodes] = (len(alive), kept)
    assert most == {4: (4, [1]), 12: (12, [1])}
    assert "SET changes no mask in a run of 1 rounds: masks change 3 times, every 1 rounds from round 1" in caplog.text


def test_a_strategy_that_undoes_the_masks_of_what_flower_evaluates_is_told_so_once():
    class Shifted(SparseStrategy):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return ArrayRecord({name: Array(np.asarray(array.numpy() + 1)) for name, array in arrays.items()}), metrics

    strategy = Shifted(inner.FedAvg(fraction_evaluate=0), "static_sparse", sparsity=0.75)
    with pytest.warns(RuntimeWarning, match="after the first mask update, 48 of the 48 pruned weights of 'w'") as told:
        strategy.start(linear_grid(), linear_model(), ROUNDS)
    assert len(told) == 1


def test_integers_of_64_bits_come_and_go_as_they_are():
    ours, result = sparse_run(updater_of("static_sparse"))
    steps = result.arrays["steps"].numpy()
    assert (steps.dtype, int(steps)) == (np.int64, ROUNDS)  # each client counts its rounds
    assert ours.state.params["steps"].dtype == np.int32


def test_what_travels_is_bound_to_the_run_of_flower():
    grid = linear_grid()
    sparse_run(updater_of("set"), grid=grid)
    payload = grid.orders[0].content["arrays"]["payload"].data
    assert read_header(payload).base_version == 0
    fed.decode(payload, sparse_run(updater_of("set"))[0].layout.sent, binding=fed.Binding("broadcast", "7"))


def test_a_model_may_be_a_list_of_arrays_as_flower_numbers_them():
    model = ArrayRecord([array.numpy() for array in linear_model().values()])
    ours = SparseStrategy(inner.FedAvg(), updater_of("set"))
    result = ours.start(linear_grid(names=list(model)), model, 2)
    assert list(result.arrays) == ["0", "1", "2"]
    assert {entry.status for entry in ours.ledger} == {"ok"}


def test_the_two_sides_of_the_quickstart_in_the_docs_make_a_run():
    page = (Path(__file__).parents[2] / "docs" / "flower.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (client,) = (block for block in blocks if "fit(model, data)" in block)
    (server,) = (block for block in blocks if "ServerApp()" in block)
    sides: tuple[dict, dict] = ({}, {})
    for block, names in zip((client, server), sides, strict=True):
        exec(compile(block, "docs/flower.md", "exec"), names)
    grid = LocalGrid(dict.fromkeys(NODES, sides[0]["app"]))
    asked = []
    grid.carry = lambda node, reply: asked.append(reply.metadata.message_type) or reply
    sides[1]["app"](grid, Context(7, 0, {}, RecordDict(), {"num-server-rounds": 2}))
    assert asked.count("train") == 2 * len(NODES)
    payload = grid.orders[-1].content["arrays"]["payload"].data
    assert len(payload) < 0.25 * 4 * 64 * 10  # a tenth of the weights, and a bias
