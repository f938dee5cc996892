"""A cell of the study: all its seeds at once, from their first step to their evaluation."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.agents import task
from experiments.common.agents.dqn import agent_plan, dqn
from experiments.common.agents.pqn import pqn, pqn_torso
from experiments.common.agents.watched import Watched, ends
from experiments.harness.cells import Cell
from experiments.harness.layout import Row
from experiments.harness.recorder import Recorder
from experiments.harness.study import Plan
from experiments.minatar.config import FAN_IN, MinAtarSettings
from experiments.minatar.layout import about
from sparse_plugins import core
from sparse_plugins.rl.environments.gymnax_games import gymnax_environment
from sparse_plugins.rl.environments.interfaces import JaxEnvironment
from sparse_plugins.rl.haiku import SparseDQN, SparsePQN, minatar_torso
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.loops.fused import FusedTrainer
from sparse_plugins.rl.loops.fused_runs import Chunk, train

STICKY_ACTIONS = 0.1  # as in MinAtar; gymnax has none of its own
EPSILON = 0.001  # in the evaluation, as in Dopamine


@functools.cache
def environment(game: str) -> JaxEnvironment:
    """One of `config.GAMES`."""
    return gymnax_environment(f"{game}-MinAtar", sticky_actions=STICKY_ACTIONS)


class FanIn(SparseLearner):
    """A learner whose initial weights are as large as if each unit had been drawn for the inputs that it keeps."""

    def init(self, key: jax.Array, *inputs: Any) -> LearnerState:
        """As of the learner, but for the weights."""
        state = super().init(key, *inputs)
        params = core.rescale_to_fan_in(state.params, state.sparse_state.masks)
        target_params = None if state.target_params is None else jax.tree.map(jnp.copy, params)
        return state._replace(params=params, target_params=target_params)


class FanInDQN(FanIn, SparseDQN):
    """DQN that begins so."""


class FanInPQN(FanIn, SparsePQN):
    """PQN that begins so."""


def agent(config: MinAtarSettings, cell: Cell) -> SparseLearner:
    """The agent of a cell with MinAtar's network.

    DQN has the numbers of `sparse_plugins/rl/dopamine/configs/minatar_dqn.gin`, PQN those of purejaxql.
    """
    clock, game = config.loop.clock, environment(cell.group)
    is_fan_in = cell.name.endswith(f":{FAN_IN}")
    updater = clock.in_optimizer_steps(config.updater(cell))
    if config.agent == "pqn":
        agent_class = FanInPQN if is_fan_in else SparsePQN
        return pqn(game.num_actions, pqn_torso(cell.width), config.loop, config.steps, updater, agent_class)
    return dqn(
        game.num_actions,
        minatar_torso(width=cell.width),
        2.5e-4,
        3.125e-4,
        updater,
        math.ceil(1_000 / clock.period),
        FanInDQN if is_fan_in else SparseDQN,
    )


def plan(config: MinAtarSettings) -> Plan:
    """The plan of a study."""
    record = {"about": about(dataclasses.asdict(config))}
    return task.plan_of(config, functools.partial(train_cell, config), described(config), record)


def described(config: MinAtarSettings) -> str:
    """How many cells there are, and when and how sparse the first sparse one gets."""
    cells = list(config.cells())
    games = {game: environment(game) for game in config.games}
    seen = {name: jax.ShapeDtypeStruct(game.observation_shape, game.observation_dtype) for name, game in games.items()}
    plan = agent_plan(cells, functools.partial(agent, config), lambda cell: seen[cell.group], config.loop.clock)
    return f"{len(cells)} cells of {len(config.seeds)} seeds, {config.steps:,} environment steps each. {plan}"


def train_cell(
    config: MinAtarSettings, batch: Sequence[Cell], recorders: Sequence[Recorder], reach: Callable[[int], None]
) -> bool:
    """Trains all seeds of a cell, alone in its batch, from their newest checkpoint on, and evaluates them.

    Returns:
        False if SIGTERM came first.
    """
    (cell,) = batch
    trainer = FusedTrainer(environment(cell.group), agent(config, cell), config.loop)
    keys = jax.vmap(jax.random.key)(np.asarray(config.seeds, np.uint32))
    iterations = config.loop.iterations(config.steps)
    watched: Any = Watched(trainer, recorders)
    run = train(
        watched,
        keys,
        config.steps,
        recorders[0].scratch,
        chunk_iterations=math.ceil(iterations / config.curve_points),
        checkpoint_chunks=config.checkpoint_every,
        settings=dict(zip(("game", "algorithm", "sparsity", "width"), cell, strict=True)),
        report=lambda chunk: reach(chunk.environment_steps),
    )
    if not run.is_finished:
        return False
    returns = trainer.evaluate(run.state, config.evaluation_episodes, jax.random.key(0), EPSILON)
    for i, (recorder, end) in enumerate(zip(recorders, ends(run.state.learner, returns), strict=True)):
        recorder.rewrite(rows_of(recorder, run.curve, i, end))
    return True


def rows_of(recorder: Recorder, curve: list[Chunk], number: int, end: dict[str, Any]) -> Iterator[Row]:
    """A row per stretch of training, up to the first in which the loss is not finite."""
    for chunk in curve:
        if not math.isfinite(chunk.loss[number]):
            yield recorder.row(chunk.environment_steps, failure=f"the loss is {chunk.loss[number]}")
            return
        yield recorder.row(
            chunk.environment_steps,
            episodes=chunk.episodes[number],
            training_return=chunk.mean_return[number] if chunk.episodes[number] else None,
            **(end if chunk is curve[-1] else {}),
        )
