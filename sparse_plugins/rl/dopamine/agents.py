"""Dopamine's agents, sparse and known to gin, and the factory that a runner takes."""

import inspect
from collections.abc import Mapping
from typing import Any

import gin
from dopamine.jax.agents.dqn import dqn_agent
from dopamine.jax.agents.full_rainbow import full_rainbow_agent
from dopamine.jax.agents.implicit_quantile import implicit_quantile_agent
from dopamine.jax.agents.ppo import ppo_agent
from dopamine.jax.agents.quantile import quantile_agent
from dopamine.jax.agents.rainbow import rainbow_agent
from dopamine.jax.agents.sac import sac_agent
from dopamine.labs.atari_100k import atari_100k_rainbow_agent

from sparse_plugins import core
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.updater_defaults import AnyUpdater
from sparse_plugins.rl.dopamine.bindings import bound
from sparse_plugins.rl.dopamine.environments import frames_per_step
from sparse_plugins.rl.dopamine.episode_ends import keep_last_transitions as with_last_transitions
from sparse_plugins.rl.dopamine.recycling import SparseRecycledDQNAgent
from sparse_plugins.rl.dopamine.sparse_agent import SparseAgent, sparsify
from sparse_plugins.rl.target_network import TargetPolicy

__all__ = ["AGENTS", "chosen_agent", "create_sparse_agent"]


def _registered(agent_class: type) -> type:
    return gin.configurable(module="sparse_plugins.rl")(sparsify(agent_class))


# By the name that gin's `create_agent.agent_name` knows it under, or would.
AGENTS: Mapping[str, type] = {
    "jax_dqn": _registered(dqn_agent.JaxDQNAgent),
    "jax_rainbow": _registered(rainbow_agent.JaxRainbowAgent),
    "full_rainbow": _registered(full_rainbow_agent.JaxFullRainbowAgent),
    "jax_quantile": _registered(quantile_agent.JaxQuantileAgent),
    "jax_implicit_quantile": _registered(implicit_quantile_agent.JaxImplicitQuantileAgent),
    "sac": _registered(sac_agent.SACAgent),
    "ppo": _registered(ppo_agent.PPOAgent),
    "atari_100k_rainbow": _registered(atari_100k_rainbow_agent.Atari100kRainbowAgent),
    "redo_dqn": SparseRecycledDQNAgent,
}
_CONTINUOUS = (AGENTS["sac"], AGENTS["ppo"])
_FACTORIES = ("create_agent", "create_continuous_agent")  # Dopamine's
gin.external_configurable(core.PerModule, module="sparse_plugins.rl")


@gin.configurable(module="sparse_plugins.rl")
def create_sparse_agent(
    sess: Any,
    environment: Any,
    summary_writer: str | None = None,
    agent_name: str | None = None,
    target_policy: str | TargetPolicy = TargetPolicy.AT_MASK_UPDATE,
    updater: AnyUpdater | None = None,
    debug_mode: bool | None = None,
    keep_last_transitions: bool = False,
    shrink: bool = False,
    **words: Any,
) -> SparseAgent:
    """A sparse agent for an environment, in place of Dopamine's `create_agent`.

    `Runner(base_dir, create_sparse_agent)` is the one line to change in a script; everything else is read from the
    gin bindings of the dense run.

    Args:
        sess: Not used; Dopamine's runners pass one.
        environment: The environment, with a discrete or, for 'sac' and 'ppo', a continuous action space.
        summary_writer: Folder for the agent's own summaries; 'sac' and 'ppo' write none.
        agent_name: One of `AGENTS`; None for the one that gin binds to `create_agent.agent_name`.
        target_policy: When the target network gets the masks; see `TargetPolicy`.
        updater: The updater, or an algorithm, by name or class; None for the one that `create_updater_from_config` is
            bound to describe.
        debug_mode: Whether the agent writes its losses; None for what gin binds to `create_agent.debug_mode`.
        keep_last_transitions: Whether the replay gets the last transition of each episode, which Dopamine leaves out;
            see `WholeEpisodeAccumulator`.
        shrink: Whether channels are pruned as wholes and leave the agent after the last change of masks.
        **words: For an algorithm: what `core.sparsify` takes beside it, such as `sparsity` and `total_steps`, which
            counts optimizer steps, or what `step_unit` says.

    Returns:
        The agent.

    Raises:
        ValueError: If the name is missing or unknown, the words do not make an updater, or something that the agent
            has no use for is asked of it.

    Example:
        >>> from dopamine.discrete_domains import gym_lib
        >>> pendulum = gym_lib.create_gym_environment("Pendulum", "v1")
        >>> with gin.unlock_config():
        ...     _ = gin.parse_config(["ReplayBuffer.max_capacity = 10", "ReplayBuffer.batch_size = 2"])
        >>> agent = create_sparse_agent(None, pendulum, agent_name="sac", updater="static_sparse", sparsity=0.9)
        >>> round(float(core.summarize_sparsity(agent.sparse_params)["_total_sparsity"]), 3)
        0.9
        >>> gin.clear_config()
    """
    if words and (updater is None or isinstance(updater, BaseUpdater)):
        raise ValueError(
            f"create_sparse_agent got {', '.join(words)}, which it takes beside an algorithm only: give "
            "updater='rigl' or another one of core.all_algorithm_names(), or check how it is written."
        )
    agent_class = chosen_agent(agent_name)
    options: dict[str, Any] = {
        "updater": updater,
        "target_policy": target_policy,
        "frames_per_step": frames_per_step(environment),
        "shrink": shrink,
        **words,
    }
    if agent_class in _CONTINUOUS:
        if debug_mode:
            raise ValueError("debug_mode is True, and 'sac' and 'ppo' write no summaries: leave it out.")
        options |= _continuous_spaces(environment, agent_class)
    else:
        writes = bound("create_agent.debug_mode") if debug_mode is None else debug_mode
        options |= {"num_actions": environment.action_space.n, "summary_writer": summary_writer if writes else None}
    agent = agent_class(**options)
    return with_last_transitions(agent) if keep_last_transitions else agent


def chosen_agent(name: str | None = None) -> type:
    """The class of an agent.

    Args:
        name: One of `AGENTS`; None for the one that gin binds, to our factory or to one of Dopamine's.

    Raises:
        ValueError: If none is chosen, or one that is unknown.

    Example:
        >>> chosen_agent("sac").__name__
        'SparseSACAgent'
    """
    name = name or bound(*(f"{factory}.agent_name" for factory in ("create_sparse_agent", *_FACTORIES)))
    if name not in AGENTS:
        raise ValueError(f"create_sparse_agent.agent_name is {name!r}; allowed are {', '.join(AGENTS)}.")
    return AGENTS[name]


def _continuous_spaces(environment: Any, agent_class: type) -> dict[str, Any]:
    actions, observations = environment.action_space, environment.observation_space
    spaces = {
        "action_shape": actions.shape,
        "action_limits": (actions.low, actions.high),
        "action_dtype": actions.dtype,
        "observation_shape": observations.shape,
        "observation_dtype": observations.dtype,
    }
    dense = next(base for base in agent_class.__mro__ if base.__module__.startswith("dopamine."))
    accepted = inspect.signature(dense).parameters
    return {name: value for name, value in spaces.items() if name in accepted}
