"""What an updater refuses, and what it says then."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.masks import MARKERS, check_stored, is_pruned
from sparse_plugins.core.schedules import LAST_STEP, NoUpdateSchedule
from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.core.selection.random_scores import key_words
from sparse_plugins.core.structures import ByPath, ChannelGroups, Structure, all_structures
from sparse_plugins.core.transform.hooks import LeafPlans, UpdaterHooks
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = [
    "check_changes",
    "check_fields",
    "check_leaves",
    "check_params",
    "check_schedule",
    "check_settled",
    "check_targets",
    "check_update",
    "counts_steps",
    "missing_changes",
    "without_changes",
]


def check_fields(updater: UpdaterHooks) -> None:
    """Checks the fields of an updater when it is built.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If the sparsity of a partial distribution is outside [0, 1].
    """
    if not isinstance(updater.sparsity_type, Structure | ByPath):
        raise TypeError(
            f"sparsity_type is {updater.sparsity_type!r}; give Unstructured(), NByM(2, 4), Block((4, 4)), Channel(), "
            "ConstantFanIn(), ChannelGroups(graph) or ByPath([...]), an instance and not the class."
        )
    couples = any(isinstance(structure, ChannelGroups) for structure in all_structures(updater.sparsity_type))
    if updater.has_custom_topk and couples:
        raise ValueError("topk_fn ranks one array by itself, and channel groups couple several: give one of the two.")
    if not isinstance(updater.scheduler, NoUpdateSchedule):
        raise TypeError(
            f"scheduler is {updater.scheduler!r}; give an instance of a schedule, such as PolynomialSchedule(...). "
            "Own schedules extend NoUpdateSchedule."
        )
    for name in ("skip_gradients", "is_sparse_gradients", "rescale"):
        if not isinstance(getattr(updater, name), bool):
            raise TypeError(f"{name} is {getattr(updater, name)!r}; give True or False.")
    if updater.rescale and (updater.keeps_dense_weights or (updater.starts_dense and not updater.exchanges_weights)):
        raise ValueError(
            f"rescale=True, but {type(updater).__name__} begins with all weights, as they were drawn: leave it out."
        )
    if updater.use_packed_masks not in (True, False, "zeros"):
        raise TypeError(f"use_packed_masks is {updater.use_packed_masks!r}; give True, False or 'zeros'.")
    for name in ("sparsity_distribution_fn", "topk_fn"):
        value = getattr(updater, name)
        if value is not None and not callable(value):
            raise TypeError(f"{name} is {value!r}; give a function, e.g. partial(erk, sparsity=0.8).")
    if updater.layers is not None and not isinstance(updater.layers, Layers):
        raise TypeError(
            f"layers is a {type(updater.layers).__name__}; give what core.trace_layers(apply, params, *inputs) or "
            "core.describe_layers(...) returns."
        )
    if "sparsity" in (keywords := getattr(updater.sparsity_distribution_fn, "keywords", {})):
        check_fraction("sparsity", keywords["sparsity"])
    key_words(updater.rng_seed)


def check_schedule(updater: UpdaterHooks) -> None:
    """Checks that the steps of a schedule, and of a drop fraction, are reached by the count of an optimizer.

    Raises:
        ValueError: At the first that is not, or if they are steps of an agent's environment, which it does not count.
    """
    if (unit := updater.scheduler.step_unit) in ("environment step", "frame") and counts_steps(updater.scheduler):
        raise ValueError(
            f"the schedule of {type(updater).__name__} counts {unit}s, and an optimizer its own steps: convert it with "
            "rl.Clock(...).in_optimizer_steps(updater), as the agents of sparse_plugins.rl.dopamine do."
        )
    for part in (updater.scheduler, getattr(updater, "drop_fraction_fn", None)):
        for name, value in vars(part).items() if dataclasses.is_dataclass(part) else ():
            if isinstance(value, (int, np.integer)) and value > LAST_STEP:
                raise ValueError(
                    f"{name} of {type(part).__name__} is {value}, and an optimizer counts its steps to {LAST_STEP}; "
                    "give no more than that, or None for a periodic schedule without an end."
                )


def check_changes(updater: UpdaterHooks, params: PyTree) -> None:
    """Refuses an updater whose masks, or those of a part of it, are to change and never would.

    Args:
        updater: The updater.
        params: Parameters that it looks after; where it prunes none of them nothing is asked.

    Raises:
        ValueError: If it is one.
    """
    for lack in updater.missing_changes(params):
        raise ValueError(lack)


def missing_changes(updater: UpdaterHooks, params: PyTree, where: str = "") -> list[str]:
    """What is said of an updater whose masks are to change and never would; nothing of another one.

    Args:
        updater: The updater, of one part.
        params: Parameters that it looks after.
        where: Which part of the parameters they belong to, for the message.
    """
    idle = updater.is_idle and any(leaf.target for leaf in updater.leaf_plans(params).leaves)
    return [without_changes(updater, where)] if idle else []


def without_changes(updater: UpdaterHooks, where: str = "") -> str:
    """What is said of an updater whose masks are to change and never would."""
    result = "is a static random mask" if updater.exchanges_weights else "keeps every weight"
    return (
        f"{type(updater).__name__}{where} with {updater.scheduler} {result}: give a schedule that changes masks, such "
        "as the one that core.sparsify(..., total_steps=...) makes, or the keys update_start_step, update_end_step and "
        "update_freq. For static masks there is core.StaticRandomSparse, for none core.NoPruning; a loop that changes "
        "masks by calls of refresh says so with refresh_in_graph=False."
    )


def counts_steps(schedule: NoUpdateSchedule) -> bool:
    """Whether it matters what a step of a schedule is: not if masks change at step 0 alone, or never.

    Example:
        >>> from sparse_plugins import core
        >>> [counts_steps(schedule) for schedule in (core.NoUpdateSchedule(), core.OneShotSchedule(0))]
        [False, False]
    """
    steps = schedule.refresh_steps()
    return steps is None or bool(steps.any())


def check_settled(updater: UpdaterHooks, steps: int) -> None:
    """Raises ValueError if masks are still going to change after so many steps of their schedule.

    Example:
        >>> from sparse_plugins import core
        >>> check_settled(core.StaticRandomSparse(), 0)
    """
    due = updater.scheduler.refresh_steps()
    if not updater.masks_from_seed and (due is None or np.any(np.asarray(due) >= steps)):
        last = "without an end" if due is None else f"the last time at step {int(np.max(due))}"
        raise ValueError(
            f"masks still change ({last}), and training is at step {steps}: take pruned channels out afterwards, for "
            "the masks of a smaller network stay as they are."
        )


def check_params(updater: UpdaterHooks, params: PyTree) -> None:
    """Checks the parameters that init is given.

    Raises:
        TypeError: If a leaf is no array of numbers.
        ValueError: If an updater that prunes gets none. What `optax.masked` hides and the placeholder by which optax
            maps over states are no empty trees.
    """
    check_leaves(params, "parameter")
    is_hidden = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    is_container = params is None or isinstance(params, (Mapping, list, tuple))
    if updater.prunes and is_container and not jax.tree.leaves(params, is_leaf=is_hidden):
        raise ValueError(
            f"{type(updater).__name__} would prune nothing: the parameters are {params!r}, a tree without leaves."
        )


def check_leaves(tree: PyTree, what: str, shapes_suffice: bool = False) -> None:
    """Checks that a tree holds numbers alone.

    Args:
        tree: Parameters or gradients.
        what: What a leaf is, for the message.
        shapes_suffice: Whether a `jax.ShapeDtypeStruct` will do.

    Raises:
        TypeError: At the first leaf that is something else: a function, a random key, a variable of Keras.
    """
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        if _is_numeric(leaf) or (shapes_suffice and isinstance(leaf, jax.ShapeDtypeStruct)):
            continue
        name = leaf_names(tree)[i]
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{what} {name!r} is {leaf}, which has no values. Give arrays; the shapes of a state come from "
                "jax.eval_shape(tx.init, params)."
            )
        found = f"an array of {leaf.dtype}" if isinstance(leaf, (jax.Array, np.ndarray)) else type(leaf).__name__
        raise TypeError(
            f"{what} {name!r} is no array of numbers but {found}. Give the trainable arrays alone, such as "
            "equinox.filter(model, equinox.is_inexact_array), nnx.state(model, nnx.Param) or, of a Keras model, "
            "{v.path: v.value for v in model.trainable_variables}."
        )


def _is_numeric(leaf: Any) -> bool:
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return isinstance(leaf, numbers.Number)
    return jnp.issubdtype(leaf.dtype, jnp.number) or jnp.issubdtype(leaf.dtype, jnp.bool_)


def check_targets(updater: UpdaterHooks, params: PyTree) -> None:
    """Checks that an updater has something to prune in fresh parameters and that its structure fits.

    An empty tree passes: optax maps over states by calling init with a placeholder.

    Raises:
        ValueError: If nothing is pruned, or the structure does not fit a parameter that is.
    """
    leaves, plans = jax.tree.leaves(params), updater.leaf_plans(params).leaves
    if plans and not any(plan.is_pruned for plan in plans):
        names = [plan.name for plan in plans]
        raise ValueError(
            f"{type(updater).__name__} would prune nothing: none of {names} is a floating-point array with two or more "
            "axes that filter_fn or a rule chooses. core.kernels_only goes by names: other layers need a rule, such as "
            f"rules=[({names[0]!r}, 'default')], and a list of arrays a dict. To prune nothing, use NoPruning."
        )
    for leaf, plan in zip(leaves, plans, strict=True):
        if plan.is_pruned:
            _check_placement(plan.name, leaf)
            if not updater.has_custom_topk:
                plan.rule.check()


def check_update(updater: UpdaterHooks, updates: PyTree | None, state: Any, params: PyTree | None) -> LeafPlans:
    """Checks what an update is given, by structure and shape only.

    Returns:
        The plans of all parameters.

    Raises:
        TypeError: If the state is not a sparse one, or a parameter or gradient no array of numbers.
        ValueError: If parameters are missing, or masks, gradients and parameters do not belong together.
    """
    if params is None:
        raise ValueError("params is None; masks are made from the parameters, so call update(grads, state, params).")
    if not isinstance(state, SparseState):
        raise TypeError(
            f"the optimizer state is a {type(state).__name__} and not a SparseState: it has no masks. A dense "
            "checkpoint cannot continue a sparse run; start from tx.init(params), or restore a sparse checkpoint."
        )
    check_leaves(params, "parameter")
    if updates is not None:
        aligned(params, updates, "gradients")
        check_leaves(updates, "gradient of parameter")
    masks = aligned(params, state.masks, "masks")
    plans = updater.leaf_plans(params)
    for plan, param, mask in zip(plans.leaves, jax.tree.leaves(params), masks, strict=True):
        if plan.is_pruned == isinstance(mask, MARKERS):
            raise ValueError(
                f"this updater {'prunes' if plan.is_pruned else 'does not prune'} {plan.name!r} but the state "
                f"{'has a' if is_pruned(mask) else 'has no'} mask for it. Use the updater that made the state."
            )
        if plan.is_pruned:
            check_stored(mask, param.shape, plan.name, updater.use_packed_masks)
            _check_placement(plan.name, param)
    updater.check_state(state)
    return plans


def _check_placement(name: str, param: Any) -> None:
    """Refuses what explicit sharding would, in every operation that makes a mask, with a message of its own."""
    spec = jax.typeof(param).sharding.spec if isinstance(param, jax.Array) else ()
    if set(spec) - {None}:
        raise ValueError(
            f"parameter {name!r} is sharded as {spec} over explicit axes of its mesh, which leaves the sharding of "
            "masks to nobody. Make the mesh with axis_types=(jax.sharding.AxisType.Auto,) * n, or wrap the training "
            "step in jax.sharding.auto_axes. Parameters that are whole on every device work as they are."
        )
