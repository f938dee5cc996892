"""A cell of the study: all its seeds at once, from their first step to their evaluation."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.agents.cells import Cell
from experiments.common.agents.layout import Row
from experiments.common.agents.watched import WatchedFused, layers_to, zeros
from experiments.harness.cells import DENSE
from experiments.harness.runs import Recorder
from experiments.minatar.config import FAN_IN, StudyConfig
from sparse_plugins import core
from sparse_plugins.rl.environments.gymnax_games import gymnax_environment
from sparse_plugins.rl.environments.interfaces import JaxEnvironment
from sparse_plugins.rl.haiku import SparseDQN, minatar_torso
from sparse_plugins.rl.learner import LearnerState
from sparse_plugins.rl.loops.fused import FusedTrainer
from sparse_plugins.rl.loops.fused_runs import Chunk, train

STICKY_ACTIONS = 0.1  # as in MinAtar; gymnax has none of its own
EPSILON = 0.001  # in the evaluation, as in Dopamine


@functools.cache
def environment(game: str) -> JaxEnvironment:
    """One of `config.GAMES`."""
    return gymnax_environment(f"{game}-MinAtar", sticky_actions=STICKY_ACTIONS)


class FanInDQN(SparseDQN):
    """DQN whose initial weights are as large as if each unit had been drawn for the inputs that it keeps."""

    def init(self, key: jax.Array, *inputs: Any) -> LearnerState:
        """As of `SparseDQN`, but for the weights."""
        state = super().init(key, *inputs)
        params = core.rescale_to_fan_in(state.params, state.sparse_state.masks)
        return state._replace(params=params, target_params=jax.tree.map(jnp.copy, params))


def agent(config: StudyConfig, cell: Cell) -> SparseDQN:
    """DQN with MinAtar's network and the numbers of `sparse_plugins/rl/dopamine/configs/minatar_dqn.gin`."""
    clock = config.loop.clock
    kind = FanInDQN if cell.algorithm.endswith(f":{FAN_IN}") else SparseDQN
    return kind(
        num_actions=environment(cell.game).num_actions,
        torso=minatar_torso(),
        loss="mse",
        optimizer=optax.adam(2.5e-4, eps=3.125e-4),
        updater=clock.in_optimizer_steps(config.updater(cell)),
        target_period=math.ceil(1_000 / clock.period),
    )


def plan(config: StudyConfig) -> str:
    """How many cells there are, and when and how sparse the first sparse one gets."""
    cells = list(config.cells())
    text = f"{len(cells)} cells of {len(config.seeds)} seeds, {config.steps:,} environment steps each."
    sparse = [cell for cell in cells if cell.algorithm != DENSE]
    if sparse:
        learner = agent(config, sparse[0])
        shape, dtype = environment(sparse[0].game).observation_shape, environment(sparse[0].game).observation_dtype
        params = jax.eval_shape(learner.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), dtype)).params
        seeded = learner.updater.seeded(jax.random.key(0))  # as those of its runs are
        text += f" Plan of {sparse[0]}:\n{core.describe_plan(seeded, params)}"
        text += f"\n{config.loop.clock.describe(learner.updater)}"
    return text


def train_cell(
    config: StudyConfig, batch: Sequence[Cell], recorders: Sequence[Recorder], reach: Callable[[int], None]
) -> list[Row] | None:
    """Trains all seeds of a cell, alone in its batch, from their newest checkpoint on, and evaluates them.

    Returns:
        The rows of all seeds; None if SIGTERM came first.
    """
    (cell,) = batch
    trainer = FusedTrainer(environment(cell.game), agent(config, cell), config.loop)
    keys = jax.vmap(jax.random.key)(np.asarray(config.seeds, np.uint32))
    iterations = config.loop.iterations(config.steps)
    watched: Any = WatchedFused(trainer, layers_to(recorders))
    run = train(
        watched,
        keys,
        config.steps,
        recorders[0].scratch,
        chunk_iterations=math.ceil(iterations / config.curve_points),
        checkpoint_chunks=config.checkpoint_every,
        settings=cell._asdict(),
        report=lambda chunk: reach(chunk.environment_steps),
    )
    if not run.is_finished:
        return None
    returns = trainer.evaluate(run.state, config.evaluation_episodes, jax.random.key(0), EPSILON)
    online, target = (zeros(params) for params in run.state.learner[:2])
    ends = [
        {"final_return": float(returns[i].mean()), "online_sparsity": online[i], "target_sparsity": target[i]}
        for i in range(len(config.seeds))
    ]
    return [row for i, seed in enumerate(config.seeds) for row in _rows(cell, seed, run.curve, i, ends[i])]


def _rows(cell: Cell, seed: int, curve: list[Chunk], number: int, end: dict[str, Any]) -> Iterator[Row]:
    """A row per stretch of training, up to the first in which the loss is not finite."""
    for chunk in curve:
        own: dict[str, Any] = {**cell._asdict(), "seed": seed, "step": chunk.environment_steps}
        if not math.isfinite(chunk.loss[number]):
            yield Row(**own, failure=f"the loss is {chunk.loss[number]}")
            return
        if episodes := chunk.episodes[number]:
            own["training_return"] = chunk.mean_return[number]
        yield Row(**own, episodes=episodes, **(end if chunk is curve[-1] else {}))
