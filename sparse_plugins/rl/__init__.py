"""Sparsity for reinforcement learning: what acts, learns and is copied, and in which unit steps are counted.

The modules here know no framework; `sparse_plugins.rl.haiku` brings agents with Haiku networks, and
`sparse_plugins.rl.dopamine` Dopamine's agents, loaded, with TensorFlow, only when it is asked for.
"""

from sparse_plugins.checkpoints import CheckpointAccessError, CheckpointMismatchError, Checkpoints, Saved
from sparse_plugins.rl import plasticity as plasticity
from sparse_plugins.rl.clock import Clock
from sparse_plugins.rl.environments import atari as atari
from sparse_plugins.rl.environments import gymnasium_vector, gymnax_games
from sparse_plugins.rl.environments.interfaces import (
    EnvironmentFailure,
    JaxEnvironment,
    JaxStep,
    VectorEnvironment,
    VectorStep,
    check_network,
)
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.loops.config import FusedConfig
from sparse_plugins.rl.loops.fused import FusedMetrics, FusedState, FusedTrainer
from sparse_plugins.rl.loops.fused_runs import FusedRun
from sparse_plugins.rl.loops.fused_runs import train as train_fused
from sparse_plugins.rl.loops.pqn import PQNConfig
from sparse_plugins.rl.loops.vector import Episode, Group, VectorTrainer
from sparse_plugins.rl.loops.vector_evaluation import evaluate as evaluate_vector
from sparse_plugins.rl.loops.vector_runs import VectorRun
from sparse_plugins.rl.loops.vector_runs import train as train_vector
from sparse_plugins.rl.loops.vector_step import VectorConfig
from sparse_plugins.rl.noise_scales import is_noise_scale, without_noise_scales
from sparse_plugins.rl.plasticity import activations as activations
from sparse_plugins.rl.plasticity import links as links
from sparse_plugins.rl.plasticity import redo as redo
from sparse_plugins.rl.replay import Batch, Replay, Row, TargetBatch
from sparse_plugins.rl.target_network import TargetPolicy
from sparse_plugins.rl.weight_sync.channels import SocketChannel
from sparse_plugins.rl.weight_sync.folder import WeightFolder
from sparse_plugins.rl.weight_sync.receiver import StaleWeightsError, WeightReceiver
from sparse_plugins.rl.weight_sync.sender import Traffic, WeightSender

jax_environments, vector_environments = gymnax_games, gymnasium_vector  # by what a loop needs, as in the design

__all__ = [
    "Batch",
    "CheckpointAccessError",
    "CheckpointMismatchError",
    "Checkpoints",
    "Clock",
    "EnvironmentFailure",
    "Episode",
    "FusedConfig",
    "FusedMetrics",
    "FusedRun",
    "FusedState",
    "FusedTrainer",
    "Group",
    "JaxEnvironment",
    "JaxStep",
    "LearnerState",
    "PQNConfig",
    "Replay",
    "Row",
    "Saved",
    "SocketChannel",
    "SparseLearner",
    "StaleWeightsError",
    "TargetBatch",
    "TargetPolicy",
    "Traffic",
    "VectorConfig",
    "VectorEnvironment",
    "VectorRun",
    "VectorStep",
    "VectorTrainer",
    "WeightFolder",
    "WeightReceiver",
    "WeightSender",
    "check_network",
    "evaluate_vector",
    "is_noise_scale",
    "train_fused",
    "train_vector",
    "without_noise_scales",
]
