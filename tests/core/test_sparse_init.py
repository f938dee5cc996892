"""Weights and masks from elsewhere: initial weights for sparse layers, masks of a checkpoint."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core

HALF = functools.partial(core.uniform, sparsity=0.5)
PARAMS = {"w": jnp.arange(1.0, 25.0).reshape(6, 4), "b": jnp.ones(4)}
MASKS = {"w": (jnp.arange(24).reshape(6, 4) % 3 == 0).astype(jnp.uint8), "b": core.NOT_PRUNED}


@pytest.mark.parametrize(("axis", "shape"), [(-1, (3, 3, 64, 32)), (0, (32, 576))])
def test_sparse_layers_compute_at_the_scale_of_dense_ones(axis: int, shape: tuple) -> None:
    kernel = jax.random.normal(jax.random.key(0), shape) / np.sqrt(576)
    updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.9))
    masks = updater.init_state({"w": kernel}).masks
    sparse = core.rescale_to_fan_in({"w": kernel}, masks, axis)["w"]
    np.testing.assert_array_equal(sparse != 0, core.unpack_masks({"w": kernel}, masks)["w"])
    others = tuple(a for a in range(len(shape)) if a != axis % len(shape))
    power = jnp.sum(sparse**2, axis=others)  # variance of an output for inputs of variance 1
    np.testing.assert_allclose(power.mean(), 1.0, rtol=0.1)


def test_dense_leaves_dtypes_and_outputs_without_inputs_stay_as_they_are() -> None:
    params = {"w": jnp.ones((4, 2), jnp.bfloat16), "b": jnp.ones(2)}
    masks = {"w": jnp.array([[0, 1]] * 4, jnp.uint8), "b": core.NOT_PRUNED}
    scaled = core.rescale_to_fan_in(params, masks)
    assert (scaled["w"].dtype, scaled["w"].tolist()) == (jnp.bfloat16, [[0, 1]] * 4)
    assert scaled["b"] is params["b"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.clip(1.0), tx)], ids=["alone", "nested"])
def test_given_masks_take_over(packed: bool, wrap: Any) -> None:
    updater = core.StaticRandomSparse(sparsity_distribution_fn=HALF, use_packed_masks=packed)
    tx = wrap(updater.wrap_optax(optax.sgd(0.1)))
    for masks in (MASKS, core.pack_masks(PARAMS, MASKS)):
        state = updater.with_masks(tx.init(PARAMS), PARAMS, masks)
        params = updater.pre_forward_update(PARAMS, state)
        updates, state = tx.update(PARAMS, state, params)
        np.testing.assert_array_equal(optax.apply_updates(params, updates)["w"] != 0, MASKS["w"])
        core.check_state(params, state)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w": MASKS["w"][:5], "b": core.NOT_PRUNED}, r"mask of parameter '.*' has shape \(5, 4\)"),
        ({"w": MASKS["w"]}, "masks and the parameters have different tree structures"),
        ({"w": core.NOT_PRUNED, "b": core.NOT_PRUNED}, "prunes 'w' but the state has no mask for it"),
        ({"w": MASKS["w"], "b": jnp.ones(4, jnp.uint8)}, "does not prune 'b' but the state has a mask for it"),
    ],
    ids=["shape", "tree", "missing", "surplus"],
)
def test_masks_of_another_model_are_refused(masks: Any, message: str) -> None:
    updater = core.StaticRandomSparse(sparsity_distribution_fn=HALF)
    with pytest.raises(ValueError, match=message):
        updater.with_masks(updater.wrap_optax(optax.sgd(0.1)).init(PARAMS), PARAMS, masks)
