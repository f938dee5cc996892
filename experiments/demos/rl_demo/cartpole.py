"""DQN on CartPole-v1, from its gin file to a solved policy."""
# ruff: noqa: I001 - Dopamine is imported after us, repaired.

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np

from experiments.common.agents.dopamine_play import episodes, make_agent, zeros
from experiments.demos.rl_demo.layout import EPISODES, SOLVED
from sparse_plugins.core.base_updater import BaseUpdater
from dopamine.discrete_domains import gym_lib

LONGEST = 500  # steps of an episode
EVALUATE_EVERY = 1_000  # agent steps

Array = np.ndarray[Any, Any]
Policy = Callable[[Any, Array], Array]


class NotSolvedError(RuntimeError):
    """The policy is not good enough after all its steps."""


def solve(agent: Any, environment: Any, max_steps: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains until the greedy policy is good and as sparse as it is meant to be.

    A hundred episodes say that it is good; a hundred others have to confirm it.

    Args:
        agent: As of `cartpole_agent`.
        environment: Its environment.
        max_steps: Agent steps after which a run that is not solved ends.

    Yields:
        Agent steps, and the numbers of a row.

    Raises:
        NotSolvedError: It gives up.
    """
    act, poles = greedy_policy(agent), gymnasium.make_vec("CartPole-v1", EPISODES, "vector_entry_point")
    mean_return = lambda number: float(returns(poles, lambda s: act(agent.sparse_params, s), number).mean())  # noqa: E731
    last_change = _last_change(agent.updater)
    evaluations = 0
    for step in itertools.accumulate(length for length, _ in episodes(agent, environment, LONGEST)):
        is_over = step >= max_steps
        if step < (evaluations + 1) * EVALUATE_EVERY and not is_over:
            continue
        online = zeros(agent.sparse_params)
        found = {"mean_return": mean_return(2 * evaluations), "online_sparsity": online["_total_sparsity"]}
        evaluations += 1
        if int(agent.sparse_state.count) > last_change and found["mean_return"] >= SOLVED:
            confirmed = mean_return(2 * evaluations - 1)
            if confirmed >= SOLVED:
                target = zeros(agent.target_sparse_params)["_total_sparsity"]
                end = {"final_return": confirmed, "target_sparsity": target, "kept": int(online["_nparams_nnz"])}
                yield step, found | end
                return
        yield step, found
        if is_over:
            raise NotSolvedError(f"not solved in {step:,} agent steps: the mean return is {found['mean_return']:.1f}")


def cartpole_agent(pruner: str, seed: int, bindings: Sequence[str] = ()) -> tuple[Any, Any]:
    """Agent and environment as `cartpole_dqn.gin` describes them, with another algorithm."""
    chosen = f"create_updater_from_config.algorithm = {pruner!r}"
    return make_agent("cartpole_dqn", gym_lib.create_gym_environment, seed, (chosen, *bindings))


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
        seed: Seed of the first states.

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
