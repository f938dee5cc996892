"""The DQN of all studies, and what is about to happen to it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from experiments.harness.cells import Cell
from experiments.harness.study import first_plan
from sparse_plugins import core
from sparse_plugins.rl.clock import Clock
from sparse_plugins.rl.haiku import SparseDQN
from sparse_plugins.rl.learner import SparseLearner


def dqn(
    num_actions: int,
    torso: Any,
    rate: Any,
    epsilon: float,
    updater: core.BaseUpdater,
    target_period: int,
    agent_class: type[SparseDQN] = SparseDQN,
) -> SparseDQN:
    """DQN with Adam and the mean squared error, as in Dopamine's JAX agents.

    Args:
        num_actions: Actions of the game.
        torso: Network before the layer of values.
        rate: Learning rate, or its schedule.
        epsilon: Epsilon of Adam.
        updater: Which weights to keep; its steps are optimizer steps.
        target_period: Optimizer steps between two copies to the target network.
        agent_class: Class of the agent.
    """
    optimizer = optax.adam(rate, eps=epsilon)
    return agent_class(
        num_actions=num_actions,
        torso=torso,
        loss="mse",
        optimizer=optimizer,
        updater=updater,
        target_period=target_period,
    )


def agent_plan(
    cells: Sequence[Cell], agent: Callable[[Cell], SparseLearner], observation: Callable[[Cell], Any], clock: Clock
) -> str:
    """When and how sparse the first sparse cell gets, in lines; nothing if all are dense.

    Args:
        cells: Cells of the study.
        agent: Makes the agent of a cell.
        observation: Shape and dtype of what the agent of a cell sees, without the batch.
        clock: Clock of the training loop.
    """

    def updater_and_shapes(cell: Cell) -> tuple[core.BaseUpdater, Any]:
        learner, seen = agent(cell), observation(cell)
        batch = jax.ShapeDtypeStruct((1, *seen.shape), seen.dtype)
        params = jax.eval_shape(learner.init, jax.random.key(0), batch).params
        return learner.updater.seeded(jax.random.key(0)), params  # as those of its runs are

    text = first_plan(cells, updater_and_shapes)
    if not text:
        return ""
    return f"{text}\n{clock.describe(agent(next(cell for cell in cells if not cell.is_dense)).updater)}"
