"""Sparse training that starts from a dense checkpoint of T5X."""

from collections.abc import Mapping
from typing import Any

__all__ = ["from_dense"]


def from_dense(checkpoint: Mapping, wanted: Mapping, *, is_resuming: bool = False) -> Mapping:
    """Lays a dense checkpoint out as a sparse train state; a T5X state transformation.

    The state of the optimizer moves inside, and straight-through updaters take their dense weights from the
    parameters. Masks, schedule count and key are left out: T5X makes them new (`fallback_to_scratch`), so that the
    schedule counts from here. The first batch still sees the dense parameters, all later ones sparse parameters.
    T5X can do this to checkpoints of its own format, the public ones among them, and not to those it wrote through
    Orbax, of which it renames no part.

    Args:
        checkpoint: State dict of the checkpoint.
        wanted: State dict of the train state to fill.
        is_resuming: Whether T5X goes on with a run of its own.

    Returns:
        The state dict to restore; `checkpoint` as it is if it is sparse already, or nothing sparse is wanted.

    Example:
        >>> dense = {"target": {"w": 1.0}, "state": {"step": 9, "param_states": {"mu": {"w": 2.0}}}}
        >>> states = {"inner_state": {"mu": {"w": 0.0}}, "target_sparsities": {"w": 0.5}, "dense_params": {"w": 0.0}}
        >>> from_dense(dense, {"target": {"w": 0.0}, "state": {"step": 0, "param_states": states}})["state"]
        {'step': 9, 'param_states': {'inner_state': {'mu': {'w': 2.0}}, 'dense_params': {'w': 1.0}}}
    """
    given, sparse = (tree.get("state", {}).get("param_states", {}) for tree in (checkpoint, wanted))
    if is_resuming or "target_sparsities" not in sparse or "target_sparsities" in given:
        return checkpoint
    states = {
        "inner_state": given,
        "dense_params": _part(checkpoint["target"], sparse.get("dense_params", {})),
    }
    kept = {name: part for name, part in states.items() if name in sparse}
    return {**checkpoint, "state": {**checkpoint["state"], "param_states": kept}}


def _part(tree: Mapping, layout: Mapping) -> dict[str, Any]:
    """Of a nested dict, what a second one has, too."""
    return {
        name: _part(tree[name], below) if isinstance(below, Mapping) else tree[name] for name, below in layout.items()
    }
