"""Agents of toy size, driven by random transitions instead of an environment."""

import functools
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
from dopamine.jax import networks

from sparse_plugins.core import masks
from sparse_plugins.core.storage.array_files import open_values, write_values
from sparse_plugins.rl import dopamine
from sparse_plugins.rl.dopamine.checkpoints.bundles import bundle_like, bundle_values, stored_channels

REPLAY = [
    "ReplayBuffer.max_capacity = 500",
    "ReplayBuffer.batch_size = 8",
    "PrioritizedSamplingDistribution.max_capacity = 500",
]
PIXELS = {"observation_shape": (12, 12), "stack_size": 2, "min_replay_history": 20, "update_period": 2}
COMMON = {**PIXELS, "target_update_period": 30, "seed": 0}
# Agents that take few arguments themselves; the rest is bound where their parent class takes it.
INHERITED = [f"JaxDQNAgent.{name} = {value}" for name, value in COMMON.items() if name != "seed"]
LIMITS = (np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))
VECTORS = {"action_shape": (2,), "action_limits": LIMITS, "observation_shape": (6,), "seed": 0}

SETTINGS: dict[str, dict[str, Any]] = {
    "jax_dqn": {
        "num_actions": 3,
        **COMMON,
        "observation_shape": (4, 1),
        "observation_dtype": np.float32,
        "stack_size": 1,
        "network": functools.partial(networks.ClassicControlDQNNetwork, hidden_units=16),
    },
    "jax_rainbow": {"num_actions": 3, **COMMON},
    "full_rainbow": {"num_actions": 3, "seed": 0},
    "jax_quantile": {"num_actions": 3, **COMMON},
    "jax_implicit_quantile": {"num_actions": 3, **COMMON},
    "sac": {**VECTORS, "min_replay_history": 20, "update_period": 2, "hidden_units": 16},
    "ppo": {**VECTORS, "update_period": 24, "batch_size": 8, "num_epochs": 2, "hidden_units": 16},
    "atari_100k_rainbow": {"num_actions": 3, "seed": 0},
    "redo_dqn": {"num_actions": 3, "network": "nature"},
}
BINDINGS = {
    "ppo": ["ReplayBuffer.max_capacity = 24", "ReplayBuffer.batch_size = 24"],
    "full_rainbow": INHERITED,
    "atari_100k_rainbow": INHERITED,
    "redo_dqn": [*INHERITED, "JaxDQNAgent.seed = 0"],
}


class Dispatcher:
    """Where agents send their statistics."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def write(self, statistics: Any, **_: Any) -> None:
        self.written.extend(statistics)

    def flush(self) -> None:
        """Nothing waits."""


def bind(name: str) -> None:
    gin.parse_config([*REPLAY, *BINDINGS.get(name, [])])


def build(name: str, agent_class: type | None = None, **options: Any) -> Any:
    """An agent of the table, or of another class with its settings."""
    bind(name)
    agent = (agent_class or dopamine.AGENTS[name])(**{**SETTINGS[name], **options})
    agent.set_collector_dispatcher(Dispatcher())
    return agent


def observe(agent: Any, random: np.random.Generator) -> np.ndarray:
    shape = agent.observation_shape
    if shape[0] != PIXELS["observation_shape"][0]:
        return random.normal(size=shape).astype(np.float32)
    return random.integers(0, 255, shape).astype(np.uint8)


def drive(agent: Any, steps: int, random: np.random.Generator, episode: int = 25) -> None:
    """Runs an agent on noise."""
    if hasattr(agent, "log_transition"):
        return drive_in_parallel(agent, steps, random, episode)
    for step in range(steps):
        reward, seen = float(random.normal()), observe(agent, random)
        if step % episode == 0:
            if step:
                agent.end_episode(reward, True)
            agent.begin_episode(seen)
        else:
            agent.step(reward, seen)


def drive_in_parallel(agent: Any, steps: int, random: np.random.Generator, episode: int) -> None:
    """The same for agents of Atari 100k, whose runner hands over the experience of several environments."""
    agent.reset_all(observe(agent, random)[None, ..., None])
    for step in range(steps):
        ends = np.array([step % episode == episode - 1])
        seen = observe(agent, random)[None, ..., None]
        agent.log_transition(seen, agent.step(), random.normal(size=1), ends, ends)


def reload(agent: Any, folder: Path, name: str, **options: Any) -> Any:
    """A new agent that goes on from the checkpoint of another, as a new process would."""
    folder.mkdir(exist_ok=True)
    write_values(folder / "agent", bundle_values(agent.bundle_and_checkpoint(str(folder), 0)))
    other = build(name, **options)
    with open_values(folder / "agent") as stored:
        now = other.bundle_now(str(folder), stored_channels(stored, other))
        assert other.unbundle(str(folder), 0, bundle_like(stored, now, other))
    return other


def assert_same_bits(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def outside_masks(params: Any, state: Any) -> int:
    """How many pruned weights are not exactly 0."""
    kept = masks.unpack_masks(params, state.masks)
    count = lambda param, mask: int((np.asarray(param)[np.asarray(mask) == 0] != 0).sum())  # noqa: E731
    return sum(jax.tree.leaves(masks.map_pruned(count, params, kept, otherwise=lambda param: 0)))
