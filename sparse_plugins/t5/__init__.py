"""Sparse T5X: an optimizer definition that keeps masks, and its names in gin.

T5X itself is never imported here: it is not on the package index, and only a bare optax transformation or a metric
needs it, when used.
"""

from sparse_plugins.t5.axes import state_axes
from sparse_plugins.t5.bindings import SparseOptaxWrapper, chain, create_updater_from_config
from sparse_plugins.t5.checkpoints import from_dense
from sparse_plugins.t5.metrics import SparsityMetrics
from sparse_plugins.t5.optimizer import SparseOptimizer

__all__ = [
    "SparseOptaxWrapper",
    "SparseOptimizer",
    "SparsityMetrics",
    "chain",
    "create_updater_from_config",
    "from_dense",
    "state_axes",
]
