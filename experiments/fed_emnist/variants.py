"""The federated study's training in studies whose cells have names: structures, hostile clients."""

from collections.abc import Mapping
from typing import Any

from experiments.common.supervised.train import measured_sparsity
from experiments.fed_emnist.config import FederatedSettings
from experiments.fed_emnist.runs import train_run
from experiments.fed_emnist.train import Evaluation, prepare
from experiments.harness.cells import Run
from experiments.harness.recorder import Recorder
from experiments.harness.study import first_plan
from experiments.harness.variants import VariantSettings
from sparse_plugins import fed
from sparse_plugins.fed.aggregation import Aggregation


def federated(settings: VariantSettings, algorithm: str, given: Mapping[str, Any]) -> FederatedSettings:
    """The federated study's settings of a cell, which is its only one.

    Args:
        settings: Settings of the study.
        algorithm: Algorithm of the cell.
        given: Other settings of the federated study.

    Raises:
        ValueError: as `FederatedSettings`.
    """
    common: dict[str, Any] = {"model": "dense", "checkpoint_every": 0, "seeds": settings.seeds, "name": settings.name}
    return FederatedSettings(**{**common, "algorithms": (algorithm,), "sparsities": (settings.sparsity,), **given})


def described(config: FederatedSettings) -> str:
    """The plan of its only cell.

    Raises:
        ValueError: a structure does not fit a layer.
    """
    return first_plan(
        config.cells(), lambda cell: (config.updater(Run(cell, config.seeds[0])), prepare(config).shapes())
    )


def record_training(config: FederatedSettings, recorder: Recorder, aggregation: Aggregation = Aggregation()) -> None:
    """Trains the run of a seed and records its evaluations and its bytes.

    Args:
        config: As of `federated`.
        recorder: Recorder of the run; it knows the seed.
        aggregation: How updates become one.
    """

    def numbers(found: Evaluation, state: fed.SparseServerState, total: Any) -> dict[str, Any]:
        return {
            "training_loss": found.train_loss,
            "loss": found.test_loss,
            "score": found.test_accuracy,
            "sparsity": measured_sparsity(state.params, state.opt_state),
            "is_last": int(found.round == config.rounds),
        }

    run = Run(next(config.cells()), recorder.run.seed)
    total = train_run(config, run, recorder, numbers, aggregation).total()
    messages = config.rounds * config.clients_per_round
    for item, size in (("down", total.down), ("up", total.up + total.growth)):
        recorder.measure(item, "kB per client and round", size / messages / 1000)
