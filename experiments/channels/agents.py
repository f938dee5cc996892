"""DQN on CartPole: trained with masks, shrunk after the last change of masks, or narrow from the start."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.timing import carrying
from experiments.channels.measured import shares_of_time, size_of, stored
from experiments.channels.settings import ChannelSettings
from experiments.channels.studies import GROUPS, NARROW
from experiments.common.agents.cartpole import CONFIG, STEPS, pruned, trainer
from experiments.common.supervised.train import measured_sparsity
from experiments.harness.cells import Cell
from experiments.harness.layers import masks_of
from experiments.harness.recorder import Recorder
from experiments.harness.study import Plan, Variants
from sparse_plugins import core, rl
from sparse_plugins.core.structure_names import parse_structure

UNITS, STRETCHES, TIMED_STRETCHES = 64, 24, 9


def plan(settings: ChannelSettings, cells: Variants) -> Plan:
    """The plan of the study of agents; all seeds of a cell are trained at once."""
    keys = jax.vmap(jax.random.key)(np.asarray(settings.seeds, np.uint32))
    stretch = max(CONFIG.iterations(settings.steps) // STRETCHES, 1)

    def advanced(trained: rl.FusedTrainer, state: Any, stretches: int) -> Any:
        for _ in range(stretches):
            state, _ = trained.run(state, stretch)
        return state

    @functools.cache
    def dense() -> tuple[rl.FusedTrainer, Any]:
        trained = trainer(core.NoPruning(), UNITS)
        return trained, trained.init(keys)

    def prepare(cell: Cell) -> Callable[[Recorder], None]:
        trained, turn = _trainer(cell, cells, settings)
        state, done = trained.init(keys), 0
        if turn is not None:
            done = -(-turn // (stretch * CONFIG.updates))  # stretches after which the last masks are in use
            trained, state = trained.shrunk(advanced(trained, state, done), _graph())
        state = advanced(trained, state, STRETCHES - done)
        returns = trained.evaluate(state, settings.episodes, jax.random.key(1)).mean(axis=1)
        learners = state.learner
        stretching = lambda trained: lambda state: trained.run(state, stretch)  # noqa: E731
        this, that = (carrying(stretching(trained), state) for trained, state in ((trained, state), dense()))
        shares, dense_size = shares_of_time(this, that, TIMED_STRETCHES), size_of(_params())

        def run(recorder: Recorder) -> None:
            place = settings.seeds.index(recorder.run.seed)
            learner: Any = jax.tree.map(lambda leaf: leaf[place], learners)
            recorder.add(
                settings.steps,
                masks_of(learner.params, learner.optimizer_state),
                score=float(returns[place]),
                sparsity=measured_sparsity(learner.params, learner.optimizer_state),
                is_last=1,
                **shares,
                **stored(learner.params, learner.optimizer_state, dense_size),
            )

        return run

    about = (
        f"DQN on CartPole, two layers of {UNITS} units, {settings.steps:,} environment steps a seed (the learning rate"
        f" falls within {STEPS:,}), all seeds at once; returns of {settings.episodes} greedy episodes. Times are of"
        f" {stretch} iterations of {CONFIG.num_envs} environments."
    )
    return settings.plan_of(cells, about, prepare)


def _trainer(cell: Cell, cells: Variants, settings: ChannelSettings) -> tuple[rl.FusedTrainer, int | None]:
    """The training of a cell; and where its channels are to leave, the optimizer step from which on masks stay."""
    sparsity, structure = cell.sparsity or 0.0, cells[cell.name].get("sparsity_type")
    if cell.name == NARROW:
        return trainer(core.NoPruning(), round((1 - sparsity) * UNITS)), None
    if cell.is_dense:
        return trainer(core.NoPruning(), UNITS), None
    first, last = round(settings.change_from * settings.steps), round(settings.change_until * settings.steps)
    first = max(first, CONFIG.warm_up)
    made = pruned(max((last - first) // settings.changes, 1), first, max(last, first + 1))
    chosen = core.ChannelGroups(_graph()) if cell.name == GROUPS else parse_structure(structure)
    rules = [] if cell.name == GROUPS else [("values/w", None)]
    budget = functools.partial(core.uniform, sparsity=sparsity, rules=rules)
    whole: dict[str, Any] = {"is_sparse_gradients": True} if cells[cell.name].get("is_sparse_gradients") else {}
    updater = dataclasses.replace(made, sparsity_distribution_fn=budget, sparsity_type=chosen, **whole)
    trained = trainer(updater, UNITS)
    steps = trained.learner_of.updater.scheduler.refresh_steps()  # type: ignore[union-attr]
    return trained, int(np.max(np.asarray(steps))) + 1 if cell.name == GROUPS else None


@functools.cache
def _observed() -> tuple[Any, Any]:
    trained = trainer(core.NoPruning(), UNITS)
    shape = (1, *trained.environment.observation_shape)
    return trained.learner_of, jax.ShapeDtypeStruct(shape, trained.environment.observation_dtype)


def _params() -> Any:
    agent, seen = _observed()
    return jax.eval_shape(agent.init, jax.random.key(0), seen).params


@functools.cache
def _graph() -> core.ChannelGraph:
    agent, seen = _observed()
    return core.channel_graph(agent.network.apply, _params(), seen)
