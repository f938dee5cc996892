"""From a task to the plan of a study, and the cells that domains share."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.common.supervised.layout import Row, described
from experiments.common.supervised.settings import DENSE, DENSE_CELL, Cell, Study, SupervisedSettings
from experiments.common.supervised.study import Domain, Plan, TrainRun
from experiments.common.supervised.train import Task, make_train
from experiments.harness.layers import masks_of
from experiments.harness.runs import Recorder
from sparse_plugins import core

# Structures of one half: the density of 2:4.
STRUCTURES = {"unstructured": "unstructured", "2:4": "2:4", "4x4 blocks": "4x4", "channels": "channel_-1"}
MASK_STORAGE = {"masks uint8": False, "masks packed": True, "masks zeros": "zeros"}


def algorithm_cells(names: Sequence[str]) -> list[Cell]:
    """Dense training and a cell for each of these algorithms; masks of STE follow the weights at every step."""
    every_step = {name: {"update_freq": 1} for name in names if name.endswith("_ste")}
    return [DENSE_CELL, *(Cell(name, {"algorithm": name, **every_step.get(name, {})}) for name in names)]


def structure_cells(rules: Sequence[tuple[str, Any]]) -> list[Cell]:
    """Dense training and magnitude pruning of every structure.

    Args:
        rules: The same for all of them, which leave the outputs dense: no class may be pruned away with its channel.
    """
    common = {"algorithm": "magnitude", "dist_type": "uniform", "rules": rules}
    return [DENSE_CELL, *(Cell(name, {**common, "sparsity_type": kind}) for name, kind in STRUCTURES.items())]


def with_masked_gradients(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """These cells, and those of these names again, in which the optimizer sees no gradient of a pruned weight."""
    chosen = [cell for cell in cells if cell.name in names]
    return [*cells, *(Cell(f"{name}, masked gradients", {**own, "is_sparse_gradients": True}) for name, own in chosen)]


def storage_cells() -> list[Cell]:
    """Dense training and magnitude pruning with every way to store masks; all three train the same weights."""
    common = {"algorithm": "magnitude"}
    return [DENSE_CELL, *(Cell(name, {**common, "use_packed_masks": how}) for name, how in MASK_STORAGE.items())]


def domain(
    module: str,
    description: str,
    settings: type[SupervisedSettings],
    studies: Mapping[str, Study],
    task: Callable[[Any], Task],
) -> Domain:
    """The studies of one kind of model.

    Args:
        module: What is run: `python -m experiments.<module> <study>`.
        description: What the studies are about.
        settings: Dataclass of their settings.
        studies: By name.
        task: From settings to model and data.
    """
    build_one = lambda given, name: build(task(given), given, studies[name])  # noqa: E731
    return Domain(module, description, settings, studies, build_one)


def build(task: Task, settings: SupervisedSettings, study: Study) -> Plan:
    """The plan of a study.

    Args:
        task: Model and data.
        settings: Of the study.
        study: Which.

    Raises:
        ValueError: an updater does not fit the model.
    """
    shapes = task.shapes()
    cells = settings.chosen(study.cells(settings, shapes))
    updaters = {cell.name: settings.updater(cell, task.prunable) for cell in cells}
    for updater in updaters.values():
        jax.eval_shape(updater.init_state, shapes)
    sparse = [cell for cell in cells if cell.name != DENSE]
    plan = ""
    if sparse:  # with masks of a key, as those of its runs are
        seeded = updaters[sparse[0].name].seeded(jax.random.key(0))
        plan = f"Plan of {sparse[0].name}:\n{core.describe_plan(seeded, shapes)}"
    train = make_train(task, settings)

    def prepare(cell: Cell) -> TrainRun:
        updater = updaters[cell.name]
        return functools.partial(_run, task, settings, study, cell, updater, train(updater))

    return Plan(f"{task.about} {described(dataclasses.asdict(settings))}", cells, plan, prepare)


def _run(
    task: Task,
    settings: SupervisedSettings,
    study: Study,
    cell: Cell,
    updater: core.BaseUpdater,
    train: Any,
    recorder: Recorder,
) -> None:
    for point in train(recorder.run.seed):
        row = Row(
            cell=cell.name,
            seed=recorder.run.seed,
            step=point.step,
            training_loss=None if point.step == 0 else point.training_loss,
            loss=point.loss,
            score=point.score,
            sparsity=point.sparsity,
            is_last=int(point.step == settings.steps),
        )
        recorder.add(row, masks_of(point.state.params, point.state.optimizer))
    for measured in study.probe(task, settings, updater, point.state) if study.probe else ():
        recorder.measure(*measured)
