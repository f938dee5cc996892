"""DQN on CartPole-v1, from its gin file to a solved policy."""
# ruff: noqa: I001 - Dopamine is imported after us, repaired.

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np

from experiments.demos.rl_demo.outcomes import EPISODES, SOLVED, Outcome, Point
from experiments.common.agents.dopamine_play import episodes, make_agent, zeros
from sparse_plugins.core.base_updater import BaseUpdater
from dopamine.discrete_domains import gym_lib

LONGEST = 500  # steps of an episode
EVALUATE_EVERY = 1_000  # agent steps

Array = np.ndarray[Any, Any]
Policy = Callable[[Any, Array], Array]


def solve(pruner: str, seed: int, max_steps: int, bindings: Sequence[str] = ()) -> Outcome:
    """Trains until the greedy policy is good and as sparse as it is meant to be.

    A hundred episodes say that it is good; a hundred others have to confirm it.

    Args:
        pruner: One of `core.all_algorithm_names()`.
        seed: Of agent and environment.
        max_steps: Agent steps after which a run that is not solved ends.
        bindings: Further gin bindings.
    """
    started = time.perf_counter()
    agent, environment = cartpole_agent(pruner, seed, bindings)
    act, poles = greedy_policy(agent), gymnasium.make_vec("CartPole-v1", EPISODES, "vector_entry_point")
    mean_return = lambda number: float(returns(poles, lambda s: act(agent.sparse_params, s), number).mean())  # noqa: E731
    last_change = _last_change(agent.updater)
    curve: list[Point] = []
    confirmed = None
    for step in itertools.accumulate(length for length, _ in episodes(agent, environment, LONGEST)):
        is_last = step >= max_steps
        if step < (len(curve) + 1) * EVALUATE_EVERY and not is_last:
            continue
        curve.append(Point(step, mean_return(2 * len(curve)), zeros(agent.sparse_params)["_total_sparsity"]))
        is_pruned = int(agent.sparse_state.count) > last_change
        confirmed = None
        if is_pruned and curve[-1].mean_return >= SOLVED:
            confirmed = mean_return(2 * len(curve) - 1)
        if is_last or (confirmed is not None and confirmed >= SOLVED):
            break
    online = zeros(agent.sparse_params)
    return Outcome(
        pruner=pruner,
        seed=seed,
        curve=curve,
        is_solved=confirmed is not None and confirmed >= SOLVED,
        final_return=curve[-1].mean_return if confirmed is None else confirmed,
        target_sparsity=zeros(agent.target_sparse_params)["_total_sparsity"],
        kept=int(online["_nparams_nnz"]),
        weights=int(online["_nparams"]),
        seconds=time.perf_counter() - started,
        params=jax.tree.map(np.asarray, agent.sparse_params),
    )


def cartpole_agent(pruner: str, seed: int, bindings: Sequence[str] = ()) -> tuple[Any, Any]:
    """Agent and environment as `cartpole_dqn.gin` describes them, with another algorithm."""
    own = f"create_updater_from_config.pruner_type = {pruner!r}"
    return make_agent("cartpole_dqn", gym_lib.create_gym_environment, seed, (own, *bindings))


def greedy_policy(agent: Any) -> Policy:
    """A function from parameters and states, float[n, 4], to the agent's best actions, int[n]."""

    @jax.jit
    def act(params: Any, states: jax.Array) -> jax.Array:
        value = lambda state: agent.network_def.apply(params, state[:, None]).q_values  # noqa: E731
        return jax.vmap(value)(states).argmax(axis=-1)

    return lambda params, states: np.asarray(act(params, states))


def returns(poles: gymnasium.vector.VectorEnv, act: Callable[[Array], Array], seed: int) -> Array:
    """Returns of one episode for each pole; all are stepped at once.

    Args:
        poles: A vector of CartPoles.
        act: From states, float[n, 4], to actions, int[n].
        seed: Of the first states.

    Returns:
        float64[n].
    """
    states, _ = poles.reset(seed=seed)
    total, is_up = np.zeros(poles.num_envs), np.ones(poles.num_envs, bool)
    for _ in range(LONGEST):
        states, rewards, has_fallen, _, _ = poles.step(act(states))
        total += rewards * is_up
        is_up &= ~has_fallen
        if not is_up.any():
            break
    return total


def _last_change(updater: BaseUpdater) -> int:
    """Optimizer step at which masks change for the last time; -1 if they never do, or for ever."""
    steps = updater.scheduler.refresh_steps()
    return -1 if steps is None or len(steps) == 0 else int(steps[-1])
