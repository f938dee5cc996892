"""The federated study's training with hostile clients and rules of aggregation."""

import functools

import jax

from experiments.common.supervised.settings import Cell, Study
from experiments.common.supervised.study import Plan, TrainRun
from experiments.fed_emnist import cli, train
from experiments.fed_emnist.config import StudyConfig
from experiments.harness.runs import Recorder
from experiments.hostile.clients import Attack, HostileBackend
from experiments.hostile.settings import HostileSettings
from experiments.structures.federated import record_training
from sparse_plugins import core, fed
from sparse_plugins.fed.fedjax.backends.in_one_call import ScanBackend

fedjax = fed.import_fedjax()


def defence_of(settings: HostileSettings, name: str) -> fed.Aggregation:
    """The rule of aggregation of a cell, ready for two hostile clients of ten."""
    return {
        "mean": fed.Aggregation(),
        "clipped mean": fed.Aggregation(clipping_norm=settings.clipping_norm),
        "median": fed.Aggregation(fed.FedMedian()),
        "trimmed mean": fed.Aggregation(fed.FedTrimmedAvg(beta=0.2)),
        "Krum": fed.Aggregation(fed.Krum(num_malicious=2)),
        "multi-Krum": fed.Aggregation(fed.Krum(num_malicious=2, num_to_keep=6)),
    }[name]


def attack_of(settings: HostileSettings, name: str | None) -> Attack:
    """What the hostile clients of a cell do."""
    if name == "labels":
        return Attack(settings.factor, relabels=10 if settings.dataset == "digits" else 62)
    return Attack(-settings.factor)


def config_of(settings: HostileSettings) -> StudyConfig:
    """The federated study's settings of all cells; FedJAX's current backend is the hostile one."""
    return cli.resolve(
        {
            "dataset": settings.dataset,
            "model": "dense",
            "rounds": settings.rounds,
            "clients_per_round": settings.clients_per_round,
            "evaluate_every": max(settings.rounds // 2, 1),
            "update_every": max(settings.rounds // 40, 1),
            "seeds": settings.seeds,
            "algorithms": (settings.algorithm,),
            "sparsities": (settings.sparsity,),
            "backend": "jit",
            "checkpoint_every": 0,
            "name": settings.name,
        }
    )


def build(settings: HostileSettings, study: Study) -> Plan:
    """The plan of the study.

    Raises:
        ValueError: a setting does not fit the federated study.
    """
    config = config_of(settings)
    shapes = jax.eval_shape(train.prepare(config).model.init, jax.random.PRNGKey(0))
    plan = core.describe_plan(config.updater(next(config.runs())), shapes)
    about = (
        f"Federated averaging with sparse messages on {settings.dataset}, {settings.algorithm} in a network of"
        f" 784-200-200 units, {settings.rounds} rounds of {settings.clients_per_round} clients."
        f" Hostile ones send {settings.factor:g} times what they have, growth signals too."
        f" The clipped norm is {settings.clipping_norm:g}; trimmed means leave out a fifth of the clients at each end;"
        " Krum is ready for two, multi-Krum keeps six."
    )
    return Plan(about, settings.chosen(study.cells(settings, None)), plan, functools.partial(_prepare, settings))


def _prepare(settings: HostileSettings, cell: Cell) -> TrainRun:
    config = config_of(settings)
    defence, count = defence_of(settings, cell.keywords["defence"]), cell.keywords["count"]
    backend = HostileBackend(ScanBackend(), attack_of(settings, cell.keywords["attack"]), count)

    def run(recorder: Recorder) -> None:
        with fedjax.for_each_client_backend(backend):
            record_training(config, cell, recorder, defence)

    return run
