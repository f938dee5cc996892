"""Mask changes whose gradients overflowed or are NaN: nothing is grown or pruned by index, and counts stay."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.core.selection.structured_topk import kept_units, regrow_mask
from tests import reference
from tests.quick import quick_jit

HALF = functools.partial(core.uniform, sparsity=0.5)
NOW = core.OneShotSchedule(0)
BROKEN = [jnp.nan, jnp.inf, -jnp.inf]
SIZES = [float(size) for size in np.random.default_rng(0).permutation(np.arange(1, 49))]

regrown = quick_jit(regrow_mask, static_argnums=3)


def weights(dtype: Any = jnp.float32) -> jax.Array:
    signed = np.reshape(SIZES, (6, 8)) * np.where(np.arange(8) % 2, 1, -1)
    return jnp.asarray(signed, dtype)


@functools.cache
def started(updater: core.BaseUpdater, dtype: Any) -> tuple[Any, Any, Any]:
    """Parameters, state and the compiled update, which broken numbers of every sort share."""
    tx, params = updater.wrap_optax(optax.sgd(0.1)), {"w": weights(dtype)}
    state = tx.init(params)
    return updater.pre_forward_update(params, state), state, quick_jit(tx.update)


def changed(updater: core.BaseUpdater, grads: Any, **extra: Any) -> tuple[Any, Any, Any]:
    """Masks before and after one step, and the parameters then."""
    params, state, update = started(updater, grads.dtype)
    updates, after = update({"w": grads}, state, params, **extra)
    masks = [np.asarray(core.unpack_masks(params, moment.masks)["w"]) for moment in (state, after)]
    return *masks, optax.apply_updates(params, updates)["w"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from([core.Unstructured(), core.NByM(2, 4, axis=0), core.NByM(1, 5, axis=1), core.ConstantFanIn(0)]),
    st.integers(0, 99),
    st.floats(0, 1),
    st.sampled_from([0, 0.1, 0.5, 0.9, 1]),
)
def test_only_finite_scores_grow_and_counts_stay(structure: Any, seed: int, drop_fraction: float, part: float) -> None:
    generator, shape = np.random.default_rng(seed), (6, 10)
    drop, grow = (generator.integers(0, 20, shape).astype(np.float32) for _ in range(2))
    grow[generator.random(shape) < part] = generator.choice(BROKEN)
    kept = int(kept_units(structure, shape, 0.6))
    mask = regrown(jnp.zeros(shape, bool), drop, drop, structure, kept, kept) != 0
    survivors = reference.survivor_count(kept, drop_fraction)
    new = np.asarray(regrown(mask, drop, grow, structure, kept, survivors))
    mask = np.asarray(mask)
    assert new.sum() == mask.sum()
    assert np.isfinite(grow[(new != 0) & ~mask]).all()
    slow = functools.partial(reference.drop_and_grow, survivors=survivors)
    if isinstance(structure, core.NByM):
        expected = reference.n_by_m_drop_and_grow(mask, drop, grow, survivors, structure.m, structure.place)
    elif isinstance(structure, core.ConstantFanIn):
        expected = np.stack([slow(*rows) for rows in zip(mask, drop, grow, strict=True)])
    else:
        expected = slow(mask, drop, grow)
    np.testing.assert_array_equal(new, expected)


@functools.cache
def growing(structure: Any) -> core.BaseUpdater:
    return core.RigL(sparsity_distribution_fn=HALF, scheduler=NOW, sparsity_type=structure)


@pytest.mark.parametrize(
    "structure",
    [core.Unstructured(), core.NByM(2, 4), core.Block((2, 2)), core.Channel(), core.ConstantFanIn()],
    ids=str,
)
@pytest.mark.parametrize("broken", BROKEN)
def test_no_finite_gradient_no_exchange(structure: Any, broken: float) -> None:
    before, after, params = changed(growing(structure), jnp.full((6, 8), broken))
    np.testing.assert_array_equal(after, before)
    assert np.isfinite(params).all()  # RigL moves no weight at a mask change


@pytest.mark.parametrize("structure", [core.Block((2, 2)), core.Block((2, 2), use_avg_pooling=False), core.Channel()])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_unit_with_one_broken_gradient_is_not_grown(structure: Any, broken: float) -> None:
    mask = jnp.zeros((4, 8), bool).at[:, :4].set(True)
    drop = jnp.ones((4, 8)).at[:, 0].set(0.0)
    grow = jnp.arange(32.0).reshape(4, 8).at[::2, 6:].set(broken)
    new = regrown(mask, drop, grow, structure, 4, 3)  # blocks and channels: of 8 each, 4 are kept
    assert int(new.sum()) == 16
    assert bool(new[:, 4:6].any())
    assert not new[:, 6:].any()


@pytest.mark.parametrize(
    ("structure", "kept", "found"),
    [
        (core.Unstructured(), 20, 16),
        (core.NByM(2, 4, axis=0), 2, 8),
        (core.ConstantFanIn(), 2, 8),
        (core.Block((2, 2)), 5, 16),
        (core.Channel(), 5, 16),
    ],
    ids=str,
)
def test_a_mask_that_is_short_of_units_is_not_filled_up_with_broken_ones(structure: Any, kept: int, found: int) -> None:
    mask = jnp.zeros((4, 8), bool).at[:, :2].set(True)
    grow = jnp.ones((4, 8)).at[:, 4:].set(jnp.nan)
    new = regrown(mask, jnp.ones((4, 8)), grow, structure, kept, kept)
    assert int(new.sum()) == found
    assert not new[:, 4:].any()


def test_overflow_in_half_precision_is_no_large_gradient() -> None:
    updater = core.RigL(sparsity_distribution_fn=HALF, scheduler=NOW, drop_fraction_fn=core.ConstantDrop(0.5))
    grads = jnp.asarray(np.random.default_rng(1).normal(size=(6, 8)), jnp.float16)
    overflown = grads.at[0].set(jnp.float16(6e4) * 2).at[1].set(jnp.nan)
    before, after, _ = changed(updater, overflown)
    grown = (after != 0) & (before == 0)
    assert after.sum() == before.sum() == 24
    assert grown.sum() > 0
    assert not grown[:2].any()
    expected = reference.drop_and_grow(before, np.abs(weights(jnp.float16)) * before, np.abs(overflown), 12)
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("cls", [core.RigL, core.GradualRigL, core.GraNet, core.SET])
def test_zero_nans_inside_trains_on_with_masks_that_are_ranked_outside(cls: Any) -> None:
    """The optimizer gets zeros for NaN; what is grown is chosen before it."""
    sparsity = {"sparsity": 0.5} if cls is core.GraNet else {"sparsity_distribution_fn": HALF}
    gradual = core.PolynomialSchedule(2, 1, 6) if cls.starts_dense else core.PeriodicSchedule(2, 1, 6)
    updater = cls(scheduler=gradual, drop_fraction_fn=core.ConstantDrop(0.5), **sparsity)
    tx = updater.wrap_optax(optax.chain(optax.zero_nans(), optax.sgd(0.1)))
    params = {"w": weights()}
    state = tx.init(params)
    params = updater.pre_forward_update(params, state)
    update, masks = quick_jit(tx.update), [core.unpack_masks(params, state.masks)["w"]]
    for _ in range(8):
        updates, state = update({"w": jnp.full((6, 8), jnp.nan)}, state, params)
        params = optax.apply_updates(params, updates)
        masks.append(core.unpack_masks(params, state.masks)["w"])
    assert np.isfinite(params["w"]).all()
    assert int(masks[-1].sum()) == 24
    if cls is core.SET:
        assert (masks[-1] != masks[0]).any()  # it never looks at gradients
    else:  # magnitude alone has decided, or nothing moved
        largest = reference.top_k(np.abs(weights()), 24)
        np.testing.assert_array_equal(masks[-1], largest if cls.starts_dense else masks[0])


def test_lanes_of_a_vmap_are_broken_each_for_itself() -> None:
    updater = core.RigL(sparsity_distribution_fn=HALF, scheduler=NOW, drop_fraction_fn=core.ConstantDrop(0.5))
    tx, params = updater.wrap_optax(optax.sgd(0.1)), {"w": weights()}
    state = tx.init(params)
    grads = {"w": jnp.stack([jnp.cos(weights()), jnp.full((6, 8), jnp.nan)])}
    both = quick_jit(jax.vmap(lambda grads: tx.update(grads, state, params)[1].masks["w"]))(grads)
    assert (both[0] != state.masks["w"]).any()
    np.testing.assert_array_equal(both[1], state.masks["w"])


@functools.cache
def product_of(cls: Any) -> Any:
    """One gradient-ranked pruner and the extra arguments with which its scores are weight times `grads`."""
    if cls is core.GraspPruning:
        return core.GraspPruning(sparsity=0.5), lambda grads: {"hessian_gradient": {"w": grads}}
    if cls is core.WandaPruning:
        updater = core.WandaPruning(sparsity_distribution_fn=HALF, sparsity_type=core.Unstructured(), scheduler=NOW)
        return updater, lambda grads: {"activations": {"w": grads[:, 0]}}
    if issubclass(cls, core.GlobalSaliencyPruning):
        return cls(sparsity=0.5, scheduler=NOW), lambda grads: {}
    return cls(sparsity_distribution_fn=HALF, scheduler=NOW), lambda grads: {}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("part", [slice(None), slice(3)], ids=["all", "half"])
@pytest.mark.parametrize(
    "cls",
    [core.SaliencyPruning, core.GlobalSaliencyPruning, core.SnipPruning, core.GraspPruning, core.WandaPruning],
)
def test_a_pruner_without_scores_goes_by_magnitude(cls: Any, part: slice, broken: float) -> None:
    updater, extra = product_of(cls)
    grads = jnp.ones((6, 8)).at[part].set(broken)
    _, mask, _ = changed(updater, grads, **extra(grads))
    np.testing.assert_array_equal(mask, reference.top_k(np.abs(weights()), 24))


def test_fisher_without_a_finite_second_moment_goes_by_magnitude() -> None:
    updater = core.FisherPruning(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(1))
    tx, params = updater.wrap_optax(optax.chain(optax.adam(0.1), optax.scale(0.0))), {"w": weights()}
    state, update = tx.init(params), quick_jit(tx.update)
    for _ in range(2):
        _, state = update({"w": jnp.full((6, 8), 1e30)}, state, params)  # its square is infinite
    mask = core.unpack_masks(params, state.masks)["w"]
    np.testing.assert_array_equal(mask, reference.top_k(np.abs(weights()), 24))


def test_a_broken_layer_leaves_the_scale_of_a_common_ranking_alone() -> None:
    """Saliencies of one layer and magnitudes of another cannot be compared: all go by magnitude."""
    params = {"a": weights(), "b": 2 * weights(), "own": weights()}
    grads = {"a": 1e-3 / weights(), "b": jnp.full((6, 8), jnp.nan), "own": 1 / weights() ** 2}
    updater = core.GlobalSaliencyPruning(sparsity=0.5, use_normalization=False, rules=[("own", 0.5)])
    masks = updater.instant_sparsify(params, grads)[1]
    expected = reference.top_k_together([np.abs(params[name]) for name in "ab"], 48)
    for name, mask in zip("ab", expected, strict=True):
        np.testing.assert_array_equal(masks[name], mask)
    np.testing.assert_array_equal(masks["own"], reference.top_k(-np.abs(params["own"]), 24))


def test_what_is_pruned_or_broken_itself_says_nothing_about_gradients() -> None:
    params = {"w": jnp.array([[0.0, 3.0, jnp.nan, 1.0]])}
    grads = {"w": jnp.array([[jnp.nan, 1.0, 1.0, 9.0]])}
    updater = core.SaliencyPruning(sparsity_distribution_fn=lambda p: core.uniform(p, 0.75))
    assert updater.instant_sparsify(params, grads)[1]["w"].tolist() == [[0, 0, 0, 1]]


def test_a_gradual_pruner_reaches_its_target_on_broken_gradients() -> None:
    updater = core.SaliencyPruning(sparsity_distribution_fn=HALF, scheduler=core.PolynomialSchedule(2, 0, 5))
    tx, params = updater.wrap_optax(optax.chain(optax.zero_nans(), optax.sgd(0.1))), {"w": weights()}
    state, update = tx.init(params), quick_jit(tx.update)
    for _ in range(7):
        updates, state = update({"w": jnp.full((6, 8), jnp.nan)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["w"] != 0, reference.top_k(np.abs(weights()), 24) != 0)


def test_a_norm_that_overflows_does_not_level_a_ranking() -> None:
    params = {"huge": weights() * 1e30, "small": weights()}
    masks = core.GlobalMagnitudePruning(sparsity=0.5).instant_sparsify(params)[1]
    for name in params:
        np.testing.assert_array_equal(masks[name], reference.top_k(np.abs(weights()), 24))
