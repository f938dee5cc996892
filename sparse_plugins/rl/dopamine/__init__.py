"""Sparse agents for Dopamine; importing this loads Dopamine, repaired, and with it TensorFlow."""

# ruff: noqa: E402 - what stands below imports Dopamine
from sparse_plugins.checkpoints import SettingsMismatchError
from sparse_plugins.rl import compat

compat.import_dopamine()

from sparse_plugins.rl.dopamine.agents import AGENTS, create_sparse_agent
from sparse_plugins.rl.dopamine.bindings import create_updater_from_config
from sparse_plugins.rl.dopamine.checkpoints.run_folder import CheckpointError
from sparse_plugins.rl.dopamine.environments import (
    create_minatar_environment,
    frames_per_step,
    minatar_observation_shape,
)
from sparse_plugins.rl.dopamine.episode_ends import WholeEpisodeAccumulator, keep_last_transitions
from sparse_plugins.rl.dopamine.metrics import IterationMetrics
from sparse_plugins.rl.dopamine.networks import GridDQNNetwork, ImpalaRainbowNetwork
from sparse_plugins.rl.dopamine.recycling import MaskedRecycler, SparseRecycledDQNAgent
from sparse_plugins.rl.dopamine.runners import (
    SparseDataEfficientRunner,
    SparseRunner,
    SparseTrainRunner,
    create_sparse_runner,
)
from sparse_plugins.rl.dopamine.sparse_agent import SparseAgent, sparsify

__all__ = [
    "AGENTS",
    "CheckpointError",
    "GridDQNNetwork",
    "ImpalaRainbowNetwork",
    "IterationMetrics",
    "MaskedRecycler",
    "SettingsMismatchError",
    "SparseAgent",
    "SparseDataEfficientRunner",
    "SparseRecycledDQNAgent",
    "SparseRunner",
    "SparseTrainRunner",
    "WholeEpisodeAccumulator",
    "create_minatar_environment",
    "create_sparse_agent",
    "create_sparse_runner",
    "create_updater_from_config",
    "frames_per_step",
    "keep_last_transitions",
    "minatar_observation_shape",
    "sparsify",
]
