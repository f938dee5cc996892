"""Checkpoints of a federated run, counted in rounds."""

from typing import Any

import jax
import numpy as np

from sparse_plugins import checkpoints
from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["Checkpoint", "Checkpoints"]


class Checkpoint(checkpoints.Saved):
    """What `Checkpoints.restore` found.

    Attributes:
        extra: What was saved beside the state, as JSON has it: tuples come back as lists.
    """

    __slots__ = ()

    @property
    def round(self) -> int:
        """Number of finished rounds, as given to `save`."""
        return self.step

    @property
    def state(self) -> Any:
        """Tree of the structure and types that were asked for."""
        return self.tree


class Checkpoints(checkpoints.Checkpoints):
    """A folder of the newest checkpoints of one run, from which it resumes bit-exactly.

    Each is written whole or not at all, carries checksums, and is never overwritten; see `rl.Checkpoints`.

    Args:
        folder: Where they are; made when it is needed.
        keep: How many finished ones to keep, 1 or more. With 2, a damaged one costs the rounds since the one before.

    Raises:
        ValueError: If `keep` is less than 1.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> state = {"w": jnp.arange(3.0), "round": 7}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     checkpoints.save(7, state, extra={"bytes": 120})
        ...     found = checkpoints.restore(like=state)
        >>> found.round, found.state["w"].tolist(), found.state["round"], found.extra
        (7, [0.0, 1.0, 2.0], 7, {'bytes': 120})
    """

    unit = "round"

    def rounds(self) -> list[int]:
        """Numbers of the checkpoints there are, ascending; some may turn out to be damaged.

        Raises:
            NotADirectoryError: If the folder is a file.
        """
        return self.steps()

    def restore(self, like: PyTree, *, keep_targets: bool = True) -> Checkpoint | None:
        """Reads the newest checkpoint that can be read; see `rl.Checkpoints.restore`.

        Args:
            like: A state of the structure, shapes and types to restore, such as that of the algorithm's `init`.
            keep_targets: True refuses a checkpoint whose layers end at other sparsities than those of `like`. False
                goes on from it with the sparsities of `like`, on purpose: masks that only move weights about, or
                never change, keep the number of weights that they have.

        Returns:
            The checkpoint, its arrays where those of `like` are; None if there is none.

        Raises:
            CheckpointAccessError: If it can't be read for a reason outside it, such as too many open files or too
                little memory; nothing is set aside.
            CheckpointMismatchError: If it is the checkpoint of another model or optimizer, of a dense run, or of one
                that is to be sparse in another way.
        """
        found = super().restore(like)
        if found is None:
            return None
        wanted, own = _sparse_states(like), _sparse_states(found.tree)
        for here, there in zip(wanted, own, strict=True) if keep_targets else ():
            _check_targets(here.target_sparsities, there.target_sparsities, f"round {found.step}")
        if not keep_targets:
            targets = iter([state.target_sparsities for state in wanted])
            retargeted = lambda node: (  # noqa: E731
                node._replace(target_sparsities=next(targets)) if _is_sparse(node) else node
            )
            found = found._replace(tree=jax.tree.map(retargeted, found.tree, is_leaf=_is_sparse))
        return Checkpoint(*found)


def _is_sparse(node: Any) -> bool:
    return isinstance(node, SparseState)


def _sparse_states(tree: PyTree) -> list[SparseState]:
    return [node for node in jax.tree.leaves(tree, is_leaf=_is_sparse) if _is_sparse(node)]


def _check_targets(wanted: PyTree, stored: PyTree, what: str) -> None:
    """Of shapes alone nothing is known."""
    for name, here, there in zip(leaf_names(wanted), jax.tree.leaves(wanted), jax.tree.leaves(stored), strict=True):
        if not isinstance(here, jax.ShapeDtypeStruct) and not np.array_equal(here, there):
            raise CheckpointMismatchError(
                f"the checkpoint of {what} is of a run in which {name!r} ends at sparsity {float(there):.4g}, and here "
                f"it is {float(here):.4g}: give the updater its old sparsity, another folder to the new one, or "
                "keep_targets=False to change it on purpose."
            )
