"""From a model and its data to the plan of a study, and the cells that studies share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.common.supervised.settings import SupervisedSettings
from experiments.common.supervised.train import Task, make_train
from experiments.harness.layers import masks_of
from experiments.harness.recorder import Recorder
from experiments.harness.study import Plan, Question, Variants, first_plan
from experiments.harness.variants import DENSE, cell_of, described, plan_of

# Structures of one half: the density of 2:4.
STRUCTURES = {"unstructured": "unstructured", "2:4": "2:4", "4x4 blocks": "4x4", "channels": "channel_-1"}
MASK_STORAGE = {"masks uint8": False, "masks packed": True, "masks zeros": "zeros"}


DENSE_CELL: Variants = {DENSE: {"algorithm": "no_prune"}}


def presets(
    short: Mapping[str, Any], long: Mapping[str, Any], paper: Mapping[str, Any], **common: Any
) -> dict[str, dict[str, Any]]:
    """Settings by the name of a preset; `long` goes over `short`, and what is common over all."""
    return {"short": {**short, **common}, "long": {**short, **long, **common}, "paper": {**paper, **common}}


def algorithm_cells(names: Sequence[str]) -> Variants:
    """Dense training and a cell for each of these algorithms; masks of STE follow the weights at every step."""
    every_step = {name: {"update_freq": 1} for name in names if name.endswith("_ste")}
    return {**DENSE_CELL, **{name: {"algorithm": name, **every_step.get(name, {})} for name in names}}


def structure_cells(rules: Sequence[tuple[str, Any]]) -> Variants:
    """Dense training and magnitude pruning of every structure.

    Args:
        rules: The same for all of them, which leave the outputs dense: no class may be pruned away with its channel.
    """
    common = {"algorithm": "magnitude", "dist_type": "uniform", "rules": rules}
    return {**DENSE_CELL, **{name: {**common, "sparsity_type": structure} for name, structure in STRUCTURES.items()}}


def with_masked_gradients(cells: Variants, names: Sequence[str]) -> Variants:
    """These cells, and those of these names again, in which the optimizer sees no gradient of a pruned weight."""
    again = {f"{name}, masked gradients": {**cells[name], "is_sparse_gradients": True} for name in names}
    return {**cells, **again}


def storage_cells() -> Variants:
    """Dense training and magnitude pruning with every way to store masks; all three train the same weights."""
    common = {"algorithm": "magnitude"}
    return {**DENSE_CELL, **{name: {**common, "use_packed_masks": how} for name, how in MASK_STORAGE.items()}}


def study_of(task: Callable[[Any], Task]) -> Callable[[Any, Question], Plan]:
    """What makes the plan of a study, from settings and the question.

    Args:
        task: From settings to model and data.
    """
    return lambda settings, question: build(task(settings), settings, question)


def build(task: Task, settings: SupervisedSettings, question: Question) -> Plan:
    """The plan of a study.

    Args:
        task: Model and data.
        settings: Settings of the study.
        question: Which cells, and what is measured of them.

    Raises:
        ValueError: an updater does not fit the model.
    """
    shapes = task.shapes()
    cells = settings.chosen(question.variants(settings, shapes))
    updaters = {name: settings.updater(cell, task.prunable) for name, cell in cells.items()}
    for updater in updaters.values():  # before the first trains
        jax.eval_shape(updater.wrap_optax(settings.transformation()).init, shapes)
    # With masks of a key, as those of its runs are.
    seeded = lambda cell: (updaters[cell.name].seeded(jax.random.key(0)), shapes)  # noqa: E731
    text = first_plan([cell_of(name, settings.sparsity) for name in cells], seeded)
    train = make_train(task, settings)

    def prepare(name: str) -> Callable[[Recorder], None]:
        points = train(updaters[name])

        def run(recorder: Recorder) -> None:
            for point in points(recorder.run.seed):
                recorder.add(
                    point.step,
                    masks_of(point.state.params, point.state.optimizer, updaters[name].layers),
                    training_loss=None if point.step == 0 else point.training_loss,
                    loss=point.loss,
                    score=point.score,
                    sparsity=point.sparsity,
                    is_last=int(point.step == settings.steps),
                )
            for measured in question.probe(task, settings, updaters[name], point.state) if question.probe else ():
                recorder.measure(*measured)

        return run

    about = f"{task.about} {described(dataclasses.asdict(settings))}"
    return plan_of(settings, cells, about, prepare, text)
