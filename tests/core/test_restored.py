"""A restored optimizer state is held against the optimizer that goes on from it."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core

PARAMS = {"body": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}, "head": {"kernel": jnp.ones((8, 4))}}


def optimizer(algorithm: str, sparsity: float, **words) -> optax.GradientTransformation:
    return core.sparsify(optax.sgd(0.1), algorithm, sparsity=sparsity, total_steps=100, **words)


def restored(tx: optax.GradientTransformation, like: optax.GradientTransformation) -> optax.OptState:
    """The state of `tx` as a library gives it back that knows trees and bytes alone."""
    return flax.serialization.from_bytes(like.init(PARAMS), flax.serialization.to_bytes(tx.init(PARAMS)))


def test_rigl_at_80_is_not_taken_for_a_static_mask_at_90() -> None:
    saved, wanted = optimizer("rigl", 0.8), optimizer("static_sparse", 0.9)
    state = restored(saved, wanted)
    with pytest.raises(core.CheckpointMismatchError, match=r"'body/kernel' ends at sparsity .*keep_targets=False"):
        core.check_restored(wanted, PARAMS, state)
    with pytest.raises(core.CheckpointMismatchError, match=r"of a run of RigL.*, and this is one of StaticRandom"):
        core.check_restored(wanted, PARAMS, state, core.identity_of(saved))
    meant = core.check_restored(wanted, PARAMS, state, core.identity_of(saved), keep_targets=False)
    jax.tree.map(np.testing.assert_array_equal, meant.target_sparsities, wanted.init(PARAMS).target_sparsities)
    jax.tree.map(np.testing.assert_array_equal, meant.masks, state.masks)


def test_the_algorithm_is_told_where_it_was_written_down() -> None:
    saved, wanted = optimizer("rigl", 0.8), optimizer("static_sparse", 0.8)
    state = restored(saved, wanted)
    assert core.check_restored(wanted, PARAMS, state) is state  # arrays alone do not tell
    with pytest.raises(core.CheckpointMismatchError, match="RigL"):
        core.check_restored(wanted, PARAMS, state, core.identity_of(saved))


@pytest.mark.parametrize("words", [{}, {"rules": [("head/.*", 0.5)]}, {"rules": [("head/.*", "set")]}], ids=str)
def test_a_run_of_the_same_updater_goes_on(words: dict) -> None:
    tx = optax.chain(optax.clip(1.0), optimizer("rigl", 0.8, **words))
    state = restored(tx, tx)
    shapes = jax.eval_shape(lambda: PARAMS)
    assert core.check_restored(tx, shapes, state, core.identity_of(core.updater_of(tx))) is state


def test_other_layers_are_named() -> None:
    dense_head = optimizer("rigl", 0.8, rules=[("head/.*", None)])
    with pytest.raises(core.CheckpointMismatchError, match="other layers than this run, for example 'head/kernel'"):
        core.check_restored(dense_head, PARAMS, optimizer("rigl", 0.8).init(PARAMS))
