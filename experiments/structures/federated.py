"""The federated study's training, with structures and a last layer that stays dense."""

import dataclasses
import functools

import jax

from experiments.common.supervised.layout import Row
from experiments.common.supervised.settings import Cell, Study
from experiments.common.supervised.study import Plan, TrainRun
from experiments.common.supervised.train import measured_sparsity
from experiments.fed_emnist import cli, train
from experiments.fed_emnist.config import Run as FederatedRun
from experiments.fed_emnist.config import StudyConfig
from experiments.harness.layers import masks_of
from experiments.harness.runs import Recorder
from experiments.structures.settings import StructureSettings
from sparse_plugins import core, fed
from sparse_plugins.fed.aggregation import Aggregation


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseOutputConfig(StudyConfig):
    """Settings of the federated study, in which the last layer is never pruned.

    Attributes:
        last_layer: Path of its kernel.
    """

    last_layer: str = "linear_2/w"

    def updater(self, run: FederatedRun) -> core.BaseUpdater:
        """The updater of a run."""
        made = super().updater(run)
        if not made.prunes:
            return made
        rules = [(self.last_layer, None)]
        plan = functools.partial(core.uniform, sparsity=run.sparsity, rules=rules)
        return dataclasses.replace(made, sparsity_distribution_fn=plan)


def config_of(settings: StructureSettings, cell: Cell) -> DenseOutputConfig:
    """The federated study's settings of a cell, which has one run per seed."""
    algorithm = cell.keywords["algorithm"]
    given = {
        "dataset": settings.dataset,
        "rounds": settings.rounds,
        "evaluate_every": max(settings.rounds // 10, 1),
        "update_every": max(settings.rounds // 40, 1),
        "seeds": settings.seeds,
        "algorithms": (algorithm,),
        "sparsities": (settings.sparsity,),
        "structure": cell.keywords.get("sparsity_type", "unstructured"),
        "checkpoint_every": 0,
        "name": settings.name,
    }
    return DenseOutputConfig(**dataclasses.asdict(cli.resolve({"model": "dense", **given})))


def build(settings: StructureSettings, study: Study) -> Plan:
    """The plan of the study.

    Raises:
        ValueError: a structure does not fit a layer.
    """
    cells = settings.chosen(study.cells(settings, None))
    config = config_of(settings, cells[-1])
    task = train.prepare(config)
    shapes = jax.eval_shape(task.model.init, jax.random.PRNGKey(0))
    plan = core.describe_plan(config.updater(next(config.runs())), shapes)
    about = (
        f"Federated averaging with sparse messages on {settings.dataset}, a network of 784-200-200 units,"
        f" {settings.rounds} rounds of {config.clients_per_round} clients; masks change from round"
        f" {config.update_start} to {config.update_end}."
    )
    return Plan(about, cells, plan, functools.partial(_prepare, settings))


def _prepare(settings: StructureSettings, cell: Cell) -> TrainRun:
    return functools.partial(record_training, config_of(settings, cell), cell)


def record_training(
    config: StudyConfig, cell: Cell, recorder: Recorder, aggregation: Aggregation = Aggregation()
) -> None:
    """Trains the run of a seed and records its evaluations and its bytes.

    Args:
        config: Settings of the federated study, with one run per seed.
        cell: Of the study.
        recorder: Of the run; it knows the seed.
        aggregation: How updates become one.
    """
    task, seed = train.prepare(config), recorder.run.seed
    run = next(run for run in config.runs() if run.seed == seed)
    algorithm = train.averaging(config, run, task, ledger := fed.Ledger(), aggregation)
    for step in train.train(config, run, task, algorithm, train.first_state(run, task, algorithm)):
        if (found := step.evaluation) is not None:
            row = Row(
                cell=cell.name,
                seed=seed,
                step=found.round,
                training_loss=found.train_loss,
                loss=found.test_loss,
                score=found.test_accuracy,
                sparsity=measured_sparsity(step.state.params, step.state.opt_state),
                is_last=int(found.round == config.rounds),
            )
            recorder.add(row, masks_of(step.state.params, step.state.opt_state))
    total, messages = ledger.total(), config.rounds * config.clients_per_round
    for item, size in (("down", total.down), ("up", total.up + total.growth)):
        recorder.measure(item, "kB per client and round", size / messages / 1000)
