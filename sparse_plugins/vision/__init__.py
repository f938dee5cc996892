"""Sparse vision training: Flax's own train state and optimizers, and Scenic's trainers, with one line changed."""

from sparse_plugins.vision import scenic as scenic
from sparse_plugins.vision.linen import TrainState, get_partition_spec, shrunk
from sparse_plugins.vision.nnx import ModelAndOptimizer, Optimizer

__all__ = ["ModelAndOptimizer", "Optimizer", "TrainState", "get_partition_spec", "shrunk"]
