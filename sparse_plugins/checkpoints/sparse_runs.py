"""What a checkpoint says about sparsity, held against the run that asks for it."""

from typing import Any

import jax
import numpy as np

from sparse_plugins.checkpoints.errors import CheckpointMismatchError
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["check_identity", "with_targets"]

_ON_PURPOSE = "or restore with keep_targets=False to change it on purpose."


def check_identity(wanted: str | None, stored: str | None, what: str) -> None:
    """Refuses a checkpoint of another updater; where either side does not say which it is, nothing is known.

    Args:
        wanted: `core.identity.identity` of the run's updater.
        stored: That of the checkpoint's.
        what: Name of the checkpoint, for the message.

    Raises:
        CheckpointMismatchError: If they differ.

    Example:
        >>> check_identity("RigL", "SET", "the checkpoint of round 3")
        Traceback (most recent call last):
        sparse_plugins.checkpoints.errors.CheckpointMismatchError: the checkpoint of round 3 is ...
    """
    if wanted is not None and stored is not None and wanted != stored:
        raise CheckpointMismatchError(
            f"{what} is of a run of {stored}, and this is one of {wanted}: give the run its old updater, another "
            f"folder to the new one, {_ON_PURPOSE}"
        )


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
            _check_targets(targets, node.target_sparsities, what)
            return node
        known = not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(targets))
        return node._replace(target_sparsities=targets) if known else node

    return jax.tree.map(with_its_targets, tree, is_leaf=_is_sparse)


def _is_sparse(node: Any) -> bool:
    return isinstance(node, SparseState)


def _check_targets(wanted: PyTree, stored: PyTree, what: str) -> None:
    for name, here, there in zip(leaf_names(wanted), jax.tree.leaves(wanted), jax.tree.leaves(stored), strict=True):
        if not isinstance(here, jax.ShapeDtypeStruct) and not np.array_equal(here, there):
            ends = [f"{np.asarray(target).reshape(-1).tolist()[0]:.4g}" for target in (there, here)]
            raise CheckpointMismatchError(
                f"{what} is of a run in which {name!r} ends at sparsity {ends[0]}, and here it is {ends[1]}: give the "
                f"updater its old sparsity, another folder to the new one, {_ON_PURPOSE}"
            )
