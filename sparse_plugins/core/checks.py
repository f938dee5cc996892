"""What an updater refuses, and what it says then."""

from typing import Any

import jax

from sparse_plugins.core.counts import check_fraction
from sparse_plugins.core.masks import check_stored, is_pruned
from sparse_plugins.core.schedules import NoUpdateSchedule
from sparse_plugins.core.seeds import key_words
from sparse_plugins.core.state import SparseState
from sparse_plugins.core.structures import ByPath, Structure, structure_per_leaf
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["check_fields", "check_targets", "check_update"]


def check_fields(updater: Any) -> None:
    """Checks the fields of an updater when it is built.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If the sparsity of a partial distribution is outside [0, 1].
    """
    if not isinstance(updater.sparsity_type, Structure | ByPath):
        raise TypeError(
            f"sparsity_type is {updater.sparsity_type!r}; give Unstructured(), NByM(2, 4), Block((4, 4)), Channel(), "
            "ConstantFanIn() or ByPath([...]), an instance and not the class."
        )
    if not isinstance(updater.scheduler, NoUpdateSchedule):
        raise TypeError(
            f"scheduler is {updater.scheduler!r}; give an instance of a schedule, such as PolynomialSchedule(...). "
            "Own schedules extend NoUpdateSchedule."
        )
    for name in ("skip_gradients", "is_sparse_gradients"):
        if not isinstance(getattr(updater, name), bool):
            raise TypeError(f"{name} is {getattr(updater, name)!r}; give True or False.")
    if updater.use_packed_masks not in (True, False, "zeros"):
        raise TypeError(f"use_packed_masks is {updater.use_packed_masks!r}; give True, False or 'zeros'.")
    for name in ("sparsity_distribution_fn", "topk_fn"):
        value = getattr(updater, name)
        if value is not None and not callable(value):
            raise TypeError(f"{name} is {value!r}; give a function, e.g. partial(erk, sparsity=0.8).")
    if "sparsity" in (keywords := getattr(updater.sparsity_distribution_fn, "keywords", {})):
        check_fraction("sparsity", keywords["sparsity"])
    key_words(updater.rng_seed)


def check_targets(updater: Any, params: PyTree, targets: PyTree) -> None:
    """Checks that an updater has something to prune in fresh parameters and that its structure fits.

    An empty tree passes: optax maps over states by calling init with a placeholder.

    Raises:
        ValueError: If nothing is pruned, or the structure does not fit a parameter that is.
    """
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    nodes = aligned(params, targets, "target sparsities")
    if nodes and not any(map(is_pruned, nodes)):
        raise ValueError(
            f"{type(updater).__name__} would prune nothing: none of {names} is a floating-point array with two or more "
            "axes, or what filter_fn and rules ask for. Change those, or use NoPruning."
        )
    kinds = structure_per_leaf(updater.sparsity_type, names)
    for name, leaf, target, kind in zip(names, leaves, nodes, kinds, strict=True):
        if is_pruned(target) and updater.topk_fn is None:
            kind.check(tuple(leaf.shape), f"parameter {name!r}")


def check_update(updater: Any, updates: PyTree | None, state: Any, params: PyTree | None) -> None:
    """Checks what an update is given, by structure and shape only.

    Raises:
        TypeError: If the state is not a sparse one.
        ValueError: If parameters are missing, or masks, gradients and parameters do not belong together.
    """
    if params is None:
        raise ValueError("params is None; masks are made from the parameters, so call update(grads, state, params).")
    if not isinstance(state, SparseState):
        raise TypeError(
            f"the optimizer state is a {type(state).__name__} and not a SparseState: it has no masks. A dense "
            "checkpoint cannot continue a sparse run; start from tx.init(params), or restore a sparse checkpoint."
        )
    if updates is not None:
        aligned(params, updates, "gradients")
    masks = aligned(params, state.masks, "masks")
    targets = aligned(params, updater.target_sparsities(params), "target sparsities")
    for name, param, mask, target in zip(leaf_names(params), jax.tree.leaves(params), masks, targets, strict=True):
        if is_pruned(target) != is_pruned(mask):
            raise ValueError(
                f"this updater {'prunes' if is_pruned(target) else 'does not prune'} {name!r} but the state "
                f"{'has a' if is_pruned(mask) else 'has no'} mask for it. Use the updater that made the state."
            )
        if is_pruned(mask):
            check_stored(mask, param.shape, name, updater.use_packed_masks)
