"""The federated study's training with hostile clients and rules of aggregation."""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.fed_emnist.config import FederatedSettings
from experiments.fed_emnist.variants import described, federated, record_training
from experiments.harness.recorder import Recorder
from experiments.harness.settings import flag
from experiments.harness.study import Plan, Question
from experiments.harness.variants import VariantSettings, plan_of
from experiments.hostile.clients import Attack, HostileBackend
from sparse_plugins import fed
from sparse_plugins.fed import datasets
from sparse_plugins.fed.fedjax.backends.batched import ScanBackend

fedjax = fed.import_fedjax()


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostileSettings(VariantSettings):
    """What is trained under every attack and defence; checked when built.

    Raises:
        ValueError: as `VariantSettings`.
    """

    dataset: str = flag("handwriting to train on", choices=datasets.NAMES, default="strokes")
    algorithm: str = flag("of sparsity", default="rigl")
    rounds: int = flag("federated rounds of each run", int, default=50)
    clients_per_round: int = flag("of whom the first one or two are hostile, 10 or more", int, default=10)
    factor: float = flag("by which hostile clients scale what they send, above 0", float, default=10.0)
    clipping_norm: float = flag("of the defence that clips norms, above 0", float, default=0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "rounds")
        self.at_least(10, "clients_per_round")
        self.positive("factor", "clipping_norm")


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


def config_of(settings: HostileSettings) -> FederatedSettings:
    """The federated study's settings of all cells; FedJAX's current backend is the hostile one."""
    given: dict[str, Any] = {
        "dataset": settings.dataset,
        "rounds": settings.rounds,
        "clients_per_round": settings.clients_per_round,
        "evaluate_every": max(settings.rounds // 2, 1),
        "update_every": max(settings.rounds // 40, 1),
        "drop_fraction": 0.3,
        "backend": "jit",
    }
    return federated(settings, settings.algorithm, given)


def task(settings: HostileSettings, question: Question) -> Plan:
    """The plan of the study.

    Raises:
        ValueError: a setting does not fit the federated study.
    """
    config, cells = config_of(settings), settings.chosen(question.variants(settings))

    def prepare(name: str) -> Callable[[Recorder], None]:
        defence, count = defence_of(settings, cells[name]["defence"]), cells[name]["count"]
        backend = HostileBackend(ScanBackend(), attack_of(settings, cells[name]["attack"]), count)

        def run(recorder: Recorder) -> None:
            with fedjax.for_each_client_backend(backend):
                record_training(config, recorder, defence)

        return run

    about = (
        f"Federated averaging with sparse messages on {settings.dataset}, {settings.algorithm} in a network of"
        f" 784-200-200 units, {settings.rounds} rounds of {settings.clients_per_round} clients."
        f" Hostile ones send {settings.factor:g} times what they have, growth signals too."
        f" The clipped norm is {settings.clipping_norm:g}; trimmed means leave out a fifth of the clients at each end;"
        " Krum is ready for two, multi-Krum keeps six."
    )
    return plan_of(settings, cells, about, prepare, described(config))
