"""Masks that nothing stores: weights in use never are 0, and what is read from the parameters is what was meant."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.core.transform.implicit_masks import beside_zero

HALF = functools.partial(core.uniform, sparsity=0.5)
land = jax.jit(lambda p, u: optax.apply_updates(p, beside_zero(p, u)))


def updater(cls: Any, **more: Any) -> core.BaseUpdater:
    return cls(sparsity_distribution_fn=HALF, use_packed_masks="zeros", **more)


numbers = st.floats(width=16, allow_nan=False, allow_infinity=False)


@pytest.mark.thorough
@pytest.mark.parametrize("param", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("grad", ["float32", "bfloat16", "float16"])
@given(st.lists(numbers, min_size=1, max_size=8), st.integers(-140, 0))
def test_no_update_lands_on_zero(param: str, grad: str, values: list[float], exponent: int) -> None:
    params = jnp.asarray(np.resize(np.float32(values) * np.float32(2.0) ** exponent, 8), param)
    for updates in (-params.astype(grad), jnp.zeros(8, grad), -jnp.roll(params, 1).astype(grad)):
        landed = land(params, updates)
        assert landed.dtype == params.dtype
        assert bool(jnp.all(landed != 0))
        plain = optax.apply_updates(params, updates)
        far = jnp.abs(plain.astype(jnp.float32)) > 1e-6
        np.testing.assert_array_equal(landed[far], plain[far])
        size = lambda values: np.abs(np.asarray(values, np.float32))  # noqa: E731
        assert (size(landed) <= size(plain) + 0.012 * size(params) + 1e-7).all()  # 1.5 epsilons of bfloat16


def test_nothing_is_stored_and_a_grown_weight_of_zero_is_in_use() -> None:
    rigl = updater(core.RigL, drop_fraction_fn=core.ConstantDrop(0.5), scheduler=core.OneShotSchedule(1))
    params = {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}
    tx = rigl.wrap_optax(optax.sgd(0.1))
    state = tx.init(params)
    assert jax.tree.leaves(state.masks) == []
    assert int(jnp.count_nonzero(rigl.pre_forward_update(params, state)["w"])) == 32
    for _ in range(3):  # gradients of 0: what is grown stays where it is
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        assert int(jnp.count_nonzero(params["w"])) == 32
        np.testing.assert_array_equal(core.unpack_masks(params, state.masks)["w"], params["w"] != 0)
    assert 16 <= int(jnp.sum(jnp.abs(params["w"]) > 0.5)) < 32
    core.check_state(params, state)


def test_a_kernel_that_starts_at_zero_is_not_pruned() -> None:
    pruner = updater(core.MagnitudePruning, scheduler=core.OneShotSchedule(2))
    params = {"w": jnp.zeros((4, 4))}
    tx = pruner.wrap_optax(optax.sgd(0.1))
    state, seen = tx.init(params), []
    for _ in range(4):
        updates, state = jax.jit(tx.update)({"w": jnp.zeros((4, 4))}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(int(jnp.count_nonzero(params["w"])))
    assert seen == [16, 16, 8, 8]


def test_seeds_reach_the_first_masks_through_the_state() -> None:
    params = {"w": jnp.ones((8, 8))}
    views = []
    for seed in (1, 2):
        state = updater(core.StaticRandomSparse, rng_seed=seed).wrap_optax(optax.sgd(0.1)).init(params)
        views.append(updater(core.StaticRandomSparse, rng_seed=0).pre_forward_update(params, state)["w"])
        stored = core.StaticRandomSparse(sparsity_distribution_fn=HALF, rng_seed=seed)
        np.testing.assert_array_equal(views[-1], stored.pre_forward_update(params, stored.init_state(params))["w"])
    assert (views[0] != views[1]).any()


def test_what_needs_stored_masks_says_so() -> None:
    static, params = updater(core.StaticRandomSparse), {"w": jnp.ones((4, 4))}
    state = static.wrap_optax(optax.sgd(0.1)).init(params)
    with pytest.raises(ValueError, match="keep refresh_in_graph=True, or store the masks"):
        static.wrap_optax(optax.sgd(0.1), refresh_in_graph=False)
    with pytest.raises(ValueError, match="keep refresh_in_graph=True, or store the masks"):
        static.refresh(state, params)
    with pytest.raises(ValueError, match="store given masks with use_packed_masks=True"):
        static.with_masks(state, params, {"w": jnp.ones((4, 4), jnp.uint8)})
    with pytest.raises(ValueError, match=r"has shape no mask at all; .* has to be"):
        core.StaticRandomSparse(sparsity_distribution_fn=HALF).wrap_optax(optax.sgd(0.1)).update(params, state, params)
