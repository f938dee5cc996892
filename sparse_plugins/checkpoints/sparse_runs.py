"""What a checkpoint says about sparsity, held against the run that asks for it."""

from typing import Any

import jax

from sparse_plugins.core.restored import check_targets
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree

__all__ = ["with_targets"]


def with_targets(tree: PyTree, like: PyTree, what: str, keep_targets: bool) -> PyTree:
    """A restored tree whose layers end at the sparsities of the run that goes on from it.

    Args:
        tree: What was restored.
        like: The tree of the run; of shapes alone nothing is known.
        what: Name of the checkpoint, for the message.
        keep_targets: Whether other sparsities in the checkpoint are an error, or replaced.

    Raises:
        CheckpointMismatchError: If they are others, and are to be kept.

    Example:
        >>> import numpy as np
        >>> of = lambda sparsity: SparseState(masks={}, target_sparsities={"w": np.float32(sparsity)})
        >>> float(with_targets(of(0.8), of(0.9), "the checkpoint", keep_targets=False).target_sparsities["w"])
        0.8999999761581421
    """
    wanted = iter([node for node in jax.tree.leaves(like, is_leaf=_is_sparse) if _is_sparse(node)])

    def with_its_targets(node: Any) -> Any:
        if not _is_sparse(node):
            return node
        targets = next(wanted).target_sparsities
        if keep_targets:
            check_targets(targets, node.target_sparsities, what)
            return node
        known = not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(targets))
        return node._replace(target_sparsities=targets) if known else node

    return jax.tree.map(with_its_targets, tree, is_leaf=_is_sparse)


def _is_sparse(node: Any) -> bool:
    return isinstance(node, SparseState)
