"""Sparse vision training: Flax's own train state and optimizers, and Scenic's trainers, with one line changed."""

from sparse_plugins.vision import scenic as scenic
from sparse_plugins.vision.linen import TrainState, get_partition_spec, shrunk
from sparse_plugins.vision.nnx import ModelAndOptimizer, Optimizer
from sparse_plugins.vision.nnx_channels import nnx_channel_graph, nnx_narrow, nnx_shrunk

__all__ = [
    "ModelAndOptimizer",
    "Optimizer",
    "TrainState",
    "get_partition_spec",
    "nnx_channel_graph",
    "nnx_narrow",
    "nnx_shrunk",
    "shrunk",
]
