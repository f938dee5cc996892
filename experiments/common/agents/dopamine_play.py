"""An agent and an environment, from a gin file of the package, episode by episode."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin

from sparse_plugins import core
from sparse_plugins.rl.dopamine.agents import create_sparse_agent
from sparse_plugins.rl.dopamine.checkpoints.snapshots import seed_environment

CONFIGS = "sparse_plugins/rl/dopamine/configs"


def make_agent(
    config: str, create_environment: Callable[[], Any], seed: int, bindings: Sequence[str] = ()
) -> tuple[Any, Any]:
    """Builds what a gin file describes.

    Args:
        config: Name of one of the package's files, of a DQN.
        create_environment: One of Dopamine's factories.
        seed: Seed of the agent and the environment.
        bindings: Further gin bindings, which win over the file's.

    Returns:
        The sparse agent and the environment.
    """
    gin.clear_config()
    gin.parse_config_files_and_bindings([f"{CONFIGS}/{config}.gin"], [f"JaxDQNAgent.seed = {seed}", *bindings])
    environment = create_environment()
    seed_environment(environment, seed)
    return create_sparse_agent(None, environment), environment


def episodes(agent: Any, environment: Any, longest: int) -> Iterator[tuple[int, float]]:
    """Lets the agent learn from one episode after the other, for ever.

    Args:
        agent: A Dopamine agent, in training mode.
        environment: A Dopamine environment.
        longest: Steps after which an episode is cut off, which the agent does not take for its end.

    Yields:
        Length and return of each episode.
    """
    while True:
        action, total = agent.begin_episode(environment.reset()), 0.0
        for length in range(1, longest + 1):
            observation, reward, has_ended, _ = environment.step(action)
            total += reward
            if has_ended or length == longest:
                break
            action = agent.step(reward, observation)
        agent.end_episode(reward, has_ended)
        yield length, total


def zeros(params: Any) -> dict[str, float]:
    """How sparse parameters are: '_total_sparsity', '_nparams' and '_nparams_nnz' of `core.summarize_sparsity`."""
    return {name: float(value) for name, value in core.summarize_sparsity(params, only_total_sparsity=True).items()}
