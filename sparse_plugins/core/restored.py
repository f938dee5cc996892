"""A state from a checkpoint, held against the optimizer that is to go on from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.identity import identity as identity_of_updater
from sparse_plugins.core.masks import NOT_PRUNED, map_pruned
from sparse_plugins.core.sparse_optimizer import updater_of
from sparse_plugins.core.transform.state import find_sparse_state, map_sparse_states
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["CheckpointMismatchError", "check_identity", "check_restored", "check_targets", "identity_of"]

_ON_PURPOSE = "or restore with keep_targets=False to change it on purpose."


class CheckpointMismatchError(ValueError):
    """A checkpoint is whole, but belongs to another run than the one that asks for it."""


def identity_of(optimizer: Any) -> str:
    """What the updater of a run is and wants, as a line of text to keep beside a checkpoint.

    Args:
        optimizer: A sparse optimizer, or its updater.

    Returns:
        Algorithm, structure, sparsity and how it is divided: all that masks depend on, apart from seeds and schedules.
        `check_restored` compares it. Functions are in it by their names, so that two lambdas count as the same; the
        target sparsities that they give are compared as numbers.

    Raises:
        ValueError: If there is no updater in the optimizer.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> identity_of(core.sparsify(optax.adam(1e-3), "rigl", sparsity=0.9, total_steps=1_000))
        'RigL, Unstructured(), erk(sparsity=0.9)'
    """
    return identity_of_updater(optimizer if isinstance(optimizer, BaseUpdater) else updater_of(optimizer))


def check_restored(
    optimizer: Any, params: PyTree, opt_state: PyTree, identity: str | None = None, *, keep_targets: bool = True
) -> PyTree:
    """Refuses the state of a run that was to be sparse in another way.

    For libraries that save and restore trees by themselves, such as Orbax: arrays alone do not tell what a run is, so
    that RigL at 80% would go on as a static mask that its plan calls 90% sparse. `fed.Checkpoints`, `rl.Checkpoints`
    and the front ends that restore do this by themselves.

    Args:
        optimizer: The sparse optimizer of the run that goes on, or its updater.
        params: Its parameters; shapes will do.
        opt_state: The restored optimizer state.
        identity: What `identity_of` said when the state was saved; None compares the target sparsities alone.
        keep_targets: False goes on from it on purpose, with the target sparsities of `optimizer`: masks that only move
            weights about, or never change, keep the number of weights that they have.

    Returns:
        The state to go on with.

    Raises:
        CheckpointMismatchError: If the state is of another algorithm, structure or sparsity.
        ValueError: If there is no updater in the optimizer, or there are no masks in the state.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> params = {"w": jnp.ones((8, 8))}
        >>> saved = core.sparsify(optax.sgd(0.1), "rigl", sparsity=0.5, total_steps=100).init(params)
        >>> tx = core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=0.75)
        >>> core.check_restored(tx, params, saved)
        Traceback (most recent call last):
        sparse_plugins.core.restored.CheckpointMismatchError: the restored state is of a run in which 'w' ends at
        sparsity 0.5, and here it is 0.75: ...
        >>> float(core.check_restored(tx, params, saved, keep_targets=False).target_sparsities["w"])
        0.75
    """
    updater, what = optimizer if isinstance(optimizer, BaseUpdater) else updater_of(optimizer), "the restored state"
    stored = find_sparse_state(opt_state).target_sparsities
    params = _as_the_state_sees_them(params, stored)
    target = lambda _, target: jnp.asarray(target, jnp.float32)  # noqa: E731
    wanted = map_pruned(target, params, updater.leaf_plans(params).targets, otherwise=lambda _: NOT_PRUNED)
    here, there = leaf_names(wanted), leaf_names(stored)
    if here != there:
        raise CheckpointMismatchError(
            f"{what} prunes other layers than this run, for example {min({*here} ^ {*there}, default='one')!r}: give "
            "the run its old updater."
        )
    if not keep_targets:
        wanted = jax.tree.unflatten(jax.tree.structure(stored), jax.tree.leaves(wanted))
        return map_sparse_states(lambda state: state._replace(target_sparsities=wanted), opt_state)
    check_identity(identity_of_updater(updater), identity, what)
    check_targets(wanted, stored, what)
    return opt_state


def _as_the_state_sees_them(params: PyTree, stored: PyTree) -> PyTree:
    """Parameters with optax's markers where `optax.masked` and `optax.multi_transform` hide them from the updater."""
    try:
        nodes = aligned(params, stored, "target sparsities")
    except ValueError:  # of another model, which the names of its layers tell
        return params
    leaves, treedef = jax.tree.flatten(params)
    is_hidden = [isinstance(node, optax.MaskedNode) for node in nodes]
    seen = [node if hidden else leaf for node, hidden, leaf in zip(nodes, is_hidden, leaves, strict=True)]
    return jax.tree.unflatten(treedef, seen) if any(is_hidden) else params


def check_identity(wanted: str | None, stored: str | None, what: str) -> None:
    """Refuses a checkpoint of another updater; where either side does not say which it is, nothing is known.

    Args:
        wanted: `identity_of` the run's updater.
        stored: Identity of the checkpoint's updater.
        what: Name of the checkpoint, for the message.

    Raises:
        CheckpointMismatchError: If they differ.

    Example:
        >>> check_identity("RigL", "SET", "the checkpoint of round 3")
        Traceback (most recent call last):
        sparse_plugins.core.restored.CheckpointMismatchError: the checkpoint of round 3 is ...
    """
    if wanted is not None and stored is not None and wanted != stored:
        raise CheckpointMismatchError(
            f"{what} is of a run of {stored}, and this is one of {wanted}: give the run what it had, another folder to "
            f"the new one, {_ON_PURPOSE}"
        )


def check_targets(wanted: PyTree, stored: PyTree, what: str) -> None:
    """Refuses target sparsities of another run.

    Args:
        wanted: Target sparsities of this run; those of which only the shape is known are not compared.
        stored: A tree of the same structure, that of the checkpoint.
        what: Name of the checkpoint, for the message.

    Raises:
        CheckpointMismatchError: If they differ.

    Example:
        >>> check_targets({"w": np.float32(0.9)}, {"w": np.float32(0.9)}, "the checkpoint")
    """
    for name, here, there in zip(leaf_names(wanted), jax.tree.leaves(wanted), jax.tree.leaves(stored), strict=True):
        if isinstance(here, jax.ShapeDtypeStruct):
            continue
        if np.shape(here) != np.shape(there) or not np.array_equal(np.float32(here), np.float32(there)):
            ends = [str(np.asarray(target, np.float32).reshape(-1)[0]) for target in (there, here)]
            raise CheckpointMismatchError(
                f"{what} is of a run in which {name!r} ends at sparsity {ends[0]}, and here it is {ends[1]}: give the "
                f"updater its old sparsity, another folder to the new one, {_ON_PURPOSE}"
            )
