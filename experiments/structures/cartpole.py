"""The fused CartPole trainer, with structures and a last layer that stays dense."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from experiments.common.agents.cartpole import CONFIG, DENSE, STEPS, pruned, trainer
from experiments.common.supervised.layout import Row
from experiments.common.supervised.settings import Cell, Study
from experiments.common.supervised.study import Plan, TrainRun
from experiments.common.supervised.train import measured_sparsity
from experiments.harness.layers import masks_of
from experiments.harness.runs import Recorder
from experiments.structures.settings import StructureSettings
from sparse_plugins import core
from sparse_plugins.core.config import parse_structure

OUTPUT = "values/w"


def updater(settings: StructureSettings, cell: Cell) -> core.BaseUpdater:
    """The updater of a cell; its steps are environment steps, in the proportions of the fused study."""
    if cell.keywords["algorithm"] == "no_prune":
        return DENSE
    start = max(settings.steps // 16, CONFIG.warm_up)
    every = max(settings.steps // 96, 1)
    made = pruned(every, start, max(5 * settings.steps // 12, start + every))
    plan = functools.partial(core.uniform, sparsity=settings.sparsity, rules=[(OUTPUT, None)])
    structure = parse_structure(cell.keywords["sparsity_type"])
    return dataclasses.replace(made, sparsity_distribution_fn=plan, sparsity_type=structure)


def build(settings: StructureSettings, study: Study) -> Plan:
    """The plan of the study.

    Raises:
        ImportError: the game is not installed.
        ValueError: the steps are too few for the warm-up and a mask change.
    """
    if settings.steps < 2 * CONFIG.warm_up:
        raise ValueError(f"--steps must be {2 * CONFIG.warm_up} or more, twice the warm-up, got {settings.steps}.")
    cells = settings.chosen(study.cells(settings, None))
    trainer(last := updater(settings, cells[-1]))  # what is missing or does not fit is known before the study begins
    schedule = last.describe_schedule()
    about = (
        f"DQN on CartPole, two layers of 64 units, {settings.steps:,} environment steps a seed (the learning rate"
        f" falls within {STEPS:,}), all seeds at once; {schedule}; returns of {settings.episodes} greedy episodes."
    )
    return Plan(about, cells, "", functools.partial(_prepare, settings))


def _prepare(settings: StructureSettings, cell: Cell) -> TrainRun:
    """Trains all seeds of a cell at once."""
    trained = trainer(updater(settings, cell))
    keys = jax.vmap(jax.random.key)(np.asarray(settings.seeds, np.uint32))
    state, _ = trained.run(trained.init(keys), CONFIG.iterations(settings.steps))
    returns = trained.evaluate(state, settings.episodes, jax.random.key(1)).mean(axis=1)

    def run(recorder: Recorder) -> None:
        seed = recorder.run.seed
        place = settings.seeds.index(seed)
        own: Any = jax.tree.map(lambda leaf: leaf[place], state.learner)
        sparsity = measured_sparsity(own.params, own.optimizer_state)
        score = float(returns[place])
        row = Row(cell=cell.name, seed=seed, step=settings.steps, score=score, sparsity=sparsity, is_last=1)
        recorder.add(row, masks_of(own.params, own.optimizer_state))

    return run
