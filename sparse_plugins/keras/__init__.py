"""Sparse training with `model.compile` and `model.fit`: an optimizer for Keras 3 on its JAX backend."""

from sparse_plugins.keras.optimizer import SparseOptimizer

__all__ = ["SparseOptimizer"]
