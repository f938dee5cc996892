"""What a model's sparsity is, how two masks compare, and what a run is going to do."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.checks import check_leaves
from sparse_plugins.core.layers.axes import Layers, LayerView
from sparse_plugins.core.masks import NOT_PRUNED, is_pruned
from sparse_plugins.core.selection.counts import keep_count
from sparse_plugins.core.structures import NByM
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["describe_plan", "summarize_intersection", "summarize_sparsity"]

_MOST = (1 << 31) - 1  # that an int32 can count


def summarize_sparsity(
    params: PyTree,
    only_total_sparsity: bool = False,
    *,
    masks: PyTree | None = None,
    layers: Layers | None = None,
) -> dict[str, jax.Array]:
    """Fraction of zeros, per leaf and in total.

    Totals count the leaves that can be pruned: those with a mask if masks are given, else those whose layers have two
    or more axes. Biases that happen to be zero do not make a dense model look sparse. Of parameters with an axis of
    seeds or ensemble members, `jax.vmap` this function: to it alone a stack of biases is a matrix.

    Args:
        params: Parameters in use (`updater.pre_forward_update(params, state)`), or a tree of unpacked masks.
        only_total_sparsity: Leave out the single leaves.
        masks: Mask tree, packed or not, that says which leaves count.
        layers: What axes are; the layers of a stack are then listed one by one, as 'blocks/kernel/0'.

    Returns:
        float32[] by path, and '_total_sparsity', '_nparams' (entries that can be pruned), '_nparams_nnz' (of these
        not zero).

    Raises:
        ValueError: If `params` is a tree of packed masks.

    Example:
        >>> summary = summarize_sparsity({"w": jnp.array([[0.0, 2.0]]), "b": jnp.zeros(2)})
        >>> float(summary["_total_sparsity"]), float(summary["b"])
        (0.5, 1.0)
    """
    check_leaves(params, "parameter")
    leaves = jax.tree.leaves(params)
    _refuse_packed(params)
    names = leaf_names(params)
    views = [LayerView.of_shape(leaf.shape) for leaf in leaves]
    if layers is not None:
        views = [axes.as_matrices for axes in layers.of(params)]
    counted = (
        [len(view.shape) > 1 for view in views]
        if masks is None
        else [is_pruned(mask) for mask in aligned(params, masks, "masks")]
    )
    nonzero = [_in_parts(jnp.count_nonzero, leaf, _MOST) for leaf in leaves]
    summary = {}
    if not only_total_sparsity:
        for name, leaf, count, view in zip(names, leaves, nonzero, views, strict=True):
            for of_layer, layer in view.named(name, leaf):
                layer_nonzero = count if view.layers is None else _in_parts(jnp.count_nonzero, layer, _MOST)
                summary[of_layer] = _share(_zeros(layer_nonzero, layer.size), layer_nonzero.astype(jnp.float32))
    total = sum(leaf.size for leaf, is_counted in zip(leaves, counted, strict=True) if is_counted)
    sized = [(count, leaf.size) for count, leaf, is_in in zip(nonzero, leaves, counted, strict=True) if is_in]
    kept = sum((count.astype(jnp.float32) for count, _ in sized), jnp.float32(0.0))
    summary["_total_sparsity"] = _share(sum((_zeros(count, size) for count, size in sized), jnp.float32(0.0)), kept)
    summary["_nparams"] = jnp.float32(total)
    summary["_nparams_nnz"] = jnp.float32(kept)
    return summary


def _zeros(nonzero: jax.Array, size: int) -> jax.Array:
    """float32, of an entry count that is an int32, or a float32 where that could not hold the size."""
    return ((size if size <= _MOST else float(size)) - nonzero).astype(jnp.float32)


def _share(zeros: jax.Array, others: jax.Array) -> jax.Array:
    """Exactly 0 without zeros and 1 without others, compiled or not; XLA divides by a constant less exactly."""
    return zeros / jnp.maximum(zeros + others, 1.0)


def _in_parts(count: Callable[[jax.Array], jax.Array], leaf: jax.Array, most: int) -> jax.Array:
    """An int32 count; of a leaf with more than `most` entries, the float32 sum of exact counts of its parts."""
    if leaf.size <= most:
        return count(leaf)
    first, second = jnp.array_split(leaf, 2, axis=leaf.shape.index(max(leaf.shape)))
    counted = [_in_parts(count, part, most).astype(jnp.float32) for part in (first, second)]
    return counted[0] + counted[1]


def _refuse_packed(masks: PyTree) -> None:
    """A packed mask has zeros of its own; only its values tell it from a plain one, so traced ones pass."""
    for name, leaf in zip(leaf_names(masks), jax.tree.leaves(masks), strict=True):
        if leaf.dtype == jnp.uint8 and not isinstance(leaf, jax.core.Tracer) and leaf.size and leaf.max() > 1:
            raise ValueError(f"{name!r} is a packed mask, whose zeros mean nothing; pass unpack_masks(params, masks).")


def summarize_intersection(
    masks: PyTree, other_masks: PyTree, only_total_intersection: bool = False
) -> dict[str, jax.Array]:
    """How much of one mask another shares: kept by both / kept by the first.

    Args:
        masks: Mask tree, packed or not.
        other_masks: Mask tree of the same structure and format.
        only_total_intersection: Leave out the single leaves.

    Returns:
        float32[] by path, and '_total_intersection'.

    Raises:
        ValueError: If the trees have different structures or formats.

    Example:
        >>> a, b = {"w": jnp.array([1, 1, 0], jnp.uint8)}, {"w": jnp.array([0, 1, 1], jnp.uint8)}
        >>> float(summarize_intersection(a, b)["_total_intersection"])
        0.5
    """
    pairs = list(
        zip(leaf_names(masks), jax.tree.leaves(masks), aligned(masks, other_masks, "other masks"), strict=True)
    )
    summary, shared, kept = {}, [], []
    for name, mask, other_mask in pairs:
        if not is_pruned(other_mask) or mask.shape != other_mask.shape:
            raise ValueError(f"masks of {name!r} differ in format or shape: {mask.shape} and {jnp.shape(other_mask)}.")
        shared.append(_bits(mask & other_mask))
        kept.append(_bits(mask))
        if not only_total_intersection:
            summary[name] = shared[-1] / jnp.maximum(kept[-1], 1.0)
    summary["_total_intersection"] = jnp.float32(sum(shared) / jnp.maximum(sum(kept), 1.0))
    return summary


def _bits(mask: jax.Array) -> jax.Array:
    """float32[], number of ones; packed and plain masks alike, since padding bits are zero."""
    words = mask.astype(jnp.uint8) if mask.dtype == jnp.bool_ else mask
    count = lambda part: jnp.sum(jax.lax.population_count(part), dtype=jnp.int32)  # noqa: E731
    return _in_parts(count, words, _MOST // 8).astype(jnp.float32)


def describe_plan(updater: BaseUpdater, params: PyTree) -> str:
    """What a run is going to do, to print before it starts.

    Args:
        updater: The updater.
        params: Parameter tree; shapes will do. Values are read where weights alone decide in a ranking across layers.

    Returns:
        Text: the steps at which masks are updated, in the schedule's unit, and per layer, each of a stack by itself,
        its shape, how its axes are read, its target sparsity and number of entries kept, which one ranking across
        layers leaves open for each of them. Layers that such a ranking would empty, of the weights as they are, are
        named; or it says that this is not known before the scores are. Then what random masks are drawn from, if any
        are, and a warning if masks are to change and never would.

    Example:
        >>> import functools
        >>> from sparse_plugins import core
        >>> updater = core.MagnitudePruning(
        ...     sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75),
        ...     scheduler=core.OneShotSchedule(target_step=10, step_unit="round"))
        >>> print(describe_plan(updater, {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}))
        MagnitudePruning: masks change once, at round 10
        layer  shape   read as    target sparsity  kept
        b      (4,)               dense            4 of 4
        w      (4, 4)  one layer  0.75             4 of 16
        prunable: 4 of 16 kept (sparsity 0.75)
    """
    check_leaves(params, "parameter", shapes_suffice=True)
    rows = [("layer", "shape", "read as", "target sparsity", "kept")]
    kept_in_all = size_in_all = 0
    common: dict[int, tuple[int, float]] = {}  # of rankings across layers: entries so far, and target
    for plan in updater.leaf_plans(params).leaves:
        layers = plan.rule.layers
        targets = plan.target if plan.differs else [plan.target] * (layers.layers or 1)
        for name, target in zip(layers.names(plan.name), targets, strict=False):
            size = math.prod(layers.shape)
            first = (name, str(layers.shape), plan.rule.reading if plan.is_pruned or plan.rule.axes else "")
            if not plan.is_pruned:
                rows.append((*first, "dense", f"{size} of {size}"))
            elif plan.ranking:
                common[plan.ranking] = (common.get(plan.ranking, (0, target))[0] + size, target)
                rows.append((*first, f"{target:.4g} in all", f"some of {size}"))
            else:
                structure = plan.rule.of_layer
                structure.check(plan.rule.layer_shape, f"parameter {name!r}")
                kept, about = plan.rule.planned_entries(target)
                kept_in_all, size_in_all = kept_in_all + kept, size_in_all + size
                # Groups keep n of m, whatever more is asked for.
                reached = min(target, 1.0 - structure.n / structure.m) if isinstance(structure, NByM) else target
                rows.append((*first, f"{reached:.4g}", f"{about}{kept} of {size}"))
    for size, target in common.values():
        kept_in_all, size_in_all = kept_in_all + int(keep_count(size, target)), size_in_all + size
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sparsity = 1 - kept_in_all / size_in_all if size_in_all else 0.0
    total = f"prunable: {kept_in_all} of {size_in_all} kept (sparsity {sparsity:.4g})"
    seed = [line] if (line := updater.describe_seed()) else []
    emptied = _emptied_lines(updater, params)
    idle = [f"WARNING: training does not do this. {lack}" for lack in updater.missing_changes(params)]
    return "\n".join(
        [f"{type(updater).__name__}: {updater.describe_schedule()}", *lines, total, *emptied, *seed, *idle]
    )


def _emptied_lines(updater: BaseUpdater, params: PyTree) -> list[str]:
    """Which of the layers that share a ranking, and are not asked to be empty, it is going to empty."""
    plans = updater.leaf_plans(params).leaves
    shared = [bool(plan.ranking) and plan.is_pruned and plan.target < 1 for plan in plans]
    if not any(shared):
        return []
    has_values = lambda leaf: not isinstance(leaf, (jax.ShapeDtypeStruct, jax.core.Tracer))  # noqa: E731
    masks: list[Any] = [NOT_PRUNED] * len(shared)
    if all(map(has_values, jax.tree.leaves(params))):
        masks = aligned(params, updater.foreseen_masks(params), "masks")
    candidates = [(plan, mask) for plan, mask, is_shared in zip(plans, masks, shared, strict=True) if is_shared]
    unknown = [name for plan, mask in candidates if not is_pruned(mask) for name in plan.rule.layers.names(plan.name)]
    emptied = [
        name
        for plan, mask in candidates
        if is_pruned(mask)
        for name, layer in plan.rule.layers.named(plan.name, mask)
        if layer.size and not layer.any()
    ]
    lines = []
    if emptied:
        lines.append(f"emptied, if ranked together as the weights are now: {', '.join(emptied)}")
    if unknown:
        lines.append(f"ranked together by scores not known yet, which may empty some: {', '.join(unknown)}")
    return lines
