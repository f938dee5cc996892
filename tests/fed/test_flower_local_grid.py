"""Nodes of one process: each is sent its order alone, keeps its state, and raises what it raises."""

import re

import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedProx

from sparse_plugins import fed
from sparse_plugins.fed.flower import LocalGrid, SparseStrategy
from tests.fed.flower_linear import linear_app, linear_model


def test_a_node_changes_what_it_was_sent_and_nobody_else_sees_it():
    app, seen = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records.pop("arrays")
        rounds = context.state.metric_records.setdefault("rounds", MetricRecord({"count": 0}))
        rounds["count"] += 1
        seen.append((context.node_id, context.node_config["partition-id"], rounds["count"], len(arrays)))
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    result = FedAvg(fraction_evaluate=0.0).start(LocalGrid(app, 2), linear_model(), num_rounds=2)
    assert sorted(seen) == [(1, 0, 1, 3), (1, 0, 2, 3), (2, 1, 1, 3), (2, 1, 2, 3)]
    assert isinstance(result.arrays, ArrayRecord)


def test_the_checkpoints_of_another_algorithm_are_no_start_unless_that_is_meant(tmp_path):
    def start(algorithm, sparsity, **options):
        words = {"sparsity": sparsity, "rounds": 2} if algorithm != "static_sparse" else {"sparsity": sparsity}
        checkpoints = fed.Checkpoints(tmp_path)
        strategy = SparseStrategy(FedAvg(), algorithm, checkpoints=checkpoints, **words, **options)
        strategy.start(LocalGrid(linear_app(), 2), linear_model(), num_rounds=1)
        return strategy

    start("set", 0.5)
    with pytest.raises(fed.CheckpointMismatchError, match=r"is of a run of SET, .* and this is one of StaticRandom"):
        start("static_sparse", 0.5)
    with pytest.raises(fed.CheckpointMismatchError, match=r"erk\(sparsity=0.75\).*keep_targets=False"):
        start("set", 0.75)
    assert start("static_sparse", 0.75, keep_targets=False).state.round == 1


def test_the_checkpoints_of_other_settings_are_no_start_unless_that_is_meant(tmp_path):
    def start(inside=None, **options):
        options["checkpoints"] = fed.Checkpoints(tmp_path)
        strategy = SparseStrategy(inside or FedAvg(), "static_sparse", sparsity=0.5, **options)
        strategy.start(LocalGrid(linear_app(), 2), linear_model(), num_rounds=1)
        return strategy

    start()
    others = {
        "seed=3": {"seed": 3},
        "max_norm=9": {"max_norm": 9},
        "min_votes=2": {"min_votes": 2},
        "wire=('float32', 'float16')": {"wire": fed.Wire(up="float16")},
        "fraction_train=0.5": {"inside": FedAvg(fraction_train=0.5)},
        "FedProx(": {"inside": FedProx(proximal_mu=0.1)},
    }
    for told, options in others.items():
        with pytest.raises(fed.CheckpointMismatchError, match=f"this is one of .*{re.escape(told)}.*keep_targets"):
            start(**options)
    assert start(FedAvg(fraction_evaluate=0.5), wire=fed.Wire(zstd=True), resends_masks=True).state.round == 1
    assert start(seed=3, keep_targets=False).state.round == 1


def test_what_a_client_raises_is_raised():
    with pytest.raises(ValueError, match="No train function"):
        FedAvg().start(LocalGrid(ClientApp(), 2), linear_model(), num_rounds=1)
    with pytest.raises(ValueError, match="nodes is 0; give 1 or more"):
        LocalGrid(ClientApp(), 0)
