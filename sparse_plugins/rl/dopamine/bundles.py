"""Whether a checkpoint belongs to the agent that is to go on from it."""

from typing import Any

import jax
import numpy as np

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.masks import is_pruned
from sparse_plugins.core.state import find_sparse_state, holds_sparse_state
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["check_bundle"]

_REMEDY = (
    "Give the run the settings it was started with, or start a new one in another --base_dir; nothing has been changed."
)


def check_bundle(bundle: dict[str, Any], updater: BaseUpdater, own_state: PyTree, agent: str) -> None:
    """Refuses a checkpoint whose masks are not the kind of masks this agent has.

    Args:
        bundle: What `bundle_and_checkpoint` gave.
        updater: The agent's updater.
        own_state: The agent's fresh optimizer state.
        agent: Name of the agent, for the message.

    Raises:
        ValueError: If the checkpoint is dense, or has other masks, other target sparsities or another optimizer.
    """
    if not holds_sparse_state(bundle.get("optimizer_state")):
        raise ValueError(
            f"the checkpoint holds no masks, it was written by a dense agent, and {agent} uses "
            f"{type(updater).__name__}: its masks would be drawn anew. {_REMEDY}"
        )
    theirs, ours = find_sparse_state(bundle["optimizer_state"]), find_sparse_state(own_state)
    if _targets(theirs.target_sparsities) != _targets(ours.target_sparsities):
        raise ValueError(
            f"the checkpoint has target sparsities {_described(theirs.target_sparsities)}, and {agent} with "
            f"{type(updater).__name__} asks for {_described(ours.target_sparsities)}. {_REMEDY}"
        )
    if _layout(bundle["optimizer_state"]) != _layout(own_state):
        raise ValueError(
            f"the optimizer state in the checkpoint is laid out differently from that of {agent} with "
            f"{type(updater).__name__}: another optimizer, network, updater or way to store masks. {_REMEDY}"
        )


def _targets(tree: PyTree) -> dict[str, float]:
    leaves = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return {name: float(target) for name, target in leaves if is_pruned(target)}


def _described(tree: PyTree) -> str:
    targets = _targets(tree)
    if not targets:
        return "of no layer (a dense run)"
    return ", ".join(f"{name}: {target:.4g}" for name, target in targets.items())


def _layout(tree: PyTree) -> list[tuple[str, tuple[int, ...]]]:
    return [(jax.tree_util.keystr(path), np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
