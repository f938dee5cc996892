"""One test for each fault found in upstream systems that an updater could repeat and no other test covers."""

import dataclasses
import functools
import itertools
import pickle
from typing import Any

import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests.quick import quick_jit

HALF = functools.partial(core.uniform, sparsity=0.5)
NOW = core.OneShotSchedule(0)
EVERY = core.PeriodicSchedule(update_freq=1, update_start_step=0)
GRADUAL = core.PolynomialSchedule(update_freq=1, update_start_step=0, update_end_step=4)


def normal(shape: tuple[int, ...], seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def run(updater: core.BaseUpdater, params: Any, grads: Any, steps: int, inner: Any = None) -> tuple[list, list]:
    """Parameters and full-size masks before the first step and after each."""
    tx = updater.wrap_optax(inner or optax.sgd(0.1))
    state = quick_jit(tx.init)(params)
    update = quick_jit(tx.update)
    seen, masks = [params], [core.unpack_masks(params, state.masks)]
    for _ in range(steps):
        updates, state = update(grads, state, seen[-1])
        seen.append(optax.apply_updates(seen[-1], updates))
        masks.append(core.unpack_masks(params, state.masks))
    return seen, masks


def test_no_hook_is_needed_in_a_train_state() -> None:
    tx = core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=NOW).wrap_optax(optax.adam(0.1))
    params = {"w": normal((8, 8))}
    state = flax.training.train_state.TrainState.create(apply_fn=lambda: None, params=params, tx=tx)
    assert int(jnp.count_nonzero(state.apply_gradients(grads=params).params["w"])) == 32


def started(cls: Any) -> core.BaseUpdater:
    """An updater whose masks do not change in the first steps."""
    later = {"scheduler": core.PeriodicSchedule(update_freq=2, update_start_step=4)} if cls.exchanges_weights else {}
    return cls(sparsity_distribution_fn=HALF, **later)


@pytest.mark.parametrize("cls", [core.SteMagnitudePruning, core.StaticRandomSparse, core.SET, core.RigL])
def test_what_starts_sparse_is_sparse_before_the_first_step(cls: Any) -> None:
    updater, params = started(cls), {"w": normal((8, 8))}
    state = updater.wrap_optax(optax.sgd(0.1)).init(params)
    assert int(jnp.count_nonzero(updater.pre_forward_update(params, state)["w"])) == 32


def test_one_shot_straight_through_is_dense_before_its_step_and_follows_after() -> None:
    updater = core.SteMagnitudePruning(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(2))
    seen, masks = run(updater, {"w": normal((8, 8))}, {"w": normal((8, 8), 1)}, 30)
    assert [int(jnp.count_nonzero(params["w"])) for params in seen[:5]] == [64, 64, 32, 32, 32]
    assert (masks[2]["w"] != masks[-1]["w"]).any()


@pytest.mark.parametrize("cls", [core.MagnitudePruning, core.SteMagnitudePruning, core.RigL])
def test_mixed_precision_lands_exactly(cls: Any) -> None:
    pairs = list(itertools.product(["float32", "bfloat16", "float16"], repeat=2))
    params = {f"{dtype}, {grad}": normal((8, 8), 0, dtype) for dtype, grad in pairs}
    grads = {f"{dtype}, {grad}": normal((8, 8), 1, grad) for dtype, grad in pairs}
    updater = cls(sparsity_distribution_fn=HALF, scheduler=EVERY, skip_gradients=False)
    seen, _ = run(updater, params, grads, 2, optax.chain(optax.trace(0.9), optax.scale(-0.1)))
    for name, first in params.items():
        last = np.asarray(seen[-1][name].astype(jnp.float32))
        assert seen[-1][name].dtype == first.dtype
        assert np.count_nonzero(last) <= 32, name
        assert not np.signbit(last[last == 0]).any(), name


@pytest.mark.parametrize("cls", [core.MagnitudePruning, core.RandomPruning, core.SteMagnitudePruning, core.RigL])
def test_strict_promotion_and_wide_types_are_enough(cls: Any) -> None:
    updater = cls(sparsity_distribution_fn=HALF, scheduler=GRADUAL, skip_gradients=False)
    with jax.numpy_dtype_promotion("strict"):
        run(updater, {"w": normal((8, 8))}, {"w": normal((8, 8), 1)}, 1)
    with jax.enable_x64(True):
        seen, masks = run(updater, {"w": normal((8, 8), 0, jnp.float64)}, {"w": normal((8, 8), 1, jnp.float64)}, 6)
        assert (seen[-1]["w"].dtype, int(masks[-1]["w"].sum())) == (jnp.float64, 32)


def test_nan_under_a_mask_is_cleared_and_a_nan_score_costs_one_weight() -> None:
    updater, params = core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=NOW), {"w": normal((8, 8))}
    broken = {"w": params["w"].at[0, :3].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))}
    seen, masks = run(updater, broken, params, 1)
    assert int(masks[1]["w"].sum()) == 32
    assert masks[1]["w"][0, :3].tolist() == [0, 1, 1]
    assert jnp.isnan(seen[1]["w"][0, 0])  # no update can add NaN away; the view does away with it
    state = updater.init_state(params)._replace(masks=masks[1])
    poisoned = {"w": jnp.where(masks[1]["w"] == 0, jnp.nan, -1.0)}
    cleaned = updater.post_gradient_update(poisoned, state)["w"]
    np.testing.assert_array_equal(cleaned, -1.0 * masks[1]["w"])
    assert not np.signbit(np.asarray(cleaned)[np.asarray(cleaned) == 0]).any()


def test_a_zero_weight_in_use_keeps_its_place() -> None:
    """A tie at 0 between weights in use and pruned ones must not prune the former for the latter."""
    params = {"w": jnp.array([[0.0, 5.0, 4.0, 3.0]])}
    updater = core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=EVERY)
    freeze = optax.chain(optax.trace(0.0), optax.scale(-1.0))
    seen, masks = run(updater, params, {"w": jnp.array([[0.0, 0.0, 4.0, 0.0]])}, 2, freeze)
    assert [mask["w"][0].tolist() for mask in masks[1:]] == [[0, 1, 1, 0], [0, 1, 1, 0]]
    assert seen[1]["w"][0].tolist() == [0, 5, 0, 0]


def test_an_updater_with_a_structure_can_be_pickled() -> None:
    updater = core.RigL(
        sparsity_distribution_fn=HALF,
        sparsity_type=core.NByM(2, 4),
        scheduler=GRADUAL,
        drop_fraction_fn=core.CosineDrop(0.3, end_step=4),
    )
    again, params = pickle.loads(pickle.dumps(updater)), {"w": normal((8, 4))}
    states = [built.init_state(params) for built in (updater, again)]
    np.testing.assert_array_equal(*(state.masks["w"] for state in states))
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(updater).keys()


def test_n_by_m_follows_a_gradual_schedule() -> None:
    schedule = core.PolynomialSchedule(update_freq=1, update_start_step=0, update_end_step=8, power=1)
    updater = core.MagnitudePruning(
        sparsity_distribution_fn=HALF, scheduler=schedule, sparsity_type=core.NByM(2, 4, axis=-1)
    )
    params = {"w": normal((8, 8))}
    _, masks = run(updater, params, params, 9)
    assert [int(mask["w"].sum()) // 16 for mask in masks] == [4, 4, 4, 3, 3, 3, 2, 2, 2, 2]
    assert (masks[-1]["w"].reshape(-1, 4).sum(axis=1) == 2).all()


def test_rigl_moves_n_by_m_masks() -> None:
    updater = core.RigL(
        sparsity_distribution_fn=HALF,
        scheduler=NOW,
        sparsity_type=core.NByM(2, 4),
        drop_fraction_fn=core.ConstantDrop(0.5),
    )
    _, masks = run(updater, {"w": normal((8, 8))}, {"w": normal((8, 8), 1)}, 1)
    assert (masks[0]["w"] != masks[1]["w"]).any()
    assert (masks[1]["w"].reshape(2, 4, 8).sum(axis=1) == 2).all()


def test_a_layer_of_its_own_follows_the_schedule_of_a_global_pruner() -> None:
    updater = core.GlobalMagnitudePruning(sparsity=0.75, custom_sparsity_map={"own": 0.5}, scheduler=GRADUAL)
    params = {"own": jnp.array([[-4.0, -3.0, 1.0, 2.0]]), "a": normal((8, 8)), "b": normal((8, 8), 1)}
    _, masks = run(updater, params, jax.tree.map(jnp.zeros_like, params), 5)
    assert [int(mask["own"].sum()) for mask in masks] == [4, 3, 2, 2, 2, 2]
    assert masks[-1]["own"][0].tolist() == [1, 1, 0, 0]
    assert int(masks[-1]["a"].sum() + masks[-1]["b"].sum()) == 32


def test_a_small_layer_is_not_emptied_by_a_nan_in_a_global_ranking() -> None:
    updater = core.GlobalMagnitudePruning(sparsity=0.5, scheduler=NOW)
    params = {"a": normal((8, 8)).at[0, 0].set(jnp.nan), "b": normal((8, 8), 1)}
    _, masks = run(updater, params, params, 1)
    assert min(int(masks[1][name].sum()) for name in "ab") > 20


@pytest.mark.parametrize("cls", [core.SET, core.RigL, core.StaticRandomSparse])
def test_moments_do_not_pile_up_under_the_mask(cls: Any) -> None:
    updater, params = started(cls), {"w": normal((8, 8))}
    tx = updater.wrap_optax(optax.adam(0.1))
    _, state = tx.update({"w": normal((8, 8), 1)}, tx.init(params), params)
    mask = core.unpack_masks(params, state.masks)["w"]
    for moment in (state.inner_state[0].mu["w"], state.inner_state[0].nu["w"]):
        np.testing.assert_array_equal(moment != 0, mask != 0)


def test_random_masks_in_bfloat16_do_not_favour_low_indices() -> None:
    updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.995))
    mask = core.unpack_masks(params := {"w": jnp.ones((1000, 100), jnp.bfloat16)}, updater.init_state(params).masks)
    assert int(mask["w"].sum()) == 500
    assert 200 < int(mask["w"][:500].sum()) < 300


def test_empty_and_integer_leaves_and_none_pass_through() -> None:
    params = {"empty": jnp.zeros((0, 4)), "w": normal((8, 8)), "none": None, "nothing": {}}
    for cls in (core.MagnitudePruning, core.RigL, core.SteMagnitudePruning):
        seen, masks = run(cls(sparsity_distribution_fn=HALF, scheduler=NOW), params, params, 1)
        assert jax.tree.structure(seen[1]) == jax.tree.structure(params)
        assert (masks[1]["empty"].shape, int(masks[1]["w"].sum())) == ((0, 4), 32)
    updater = core.StaticRandomSparse(sparsity_distribution_fn=HALF)
    mixed = {"w": normal((8, 8)), "table": jnp.arange(4, dtype=jnp.int8).reshape(2, 2)}
    view = updater.pre_forward_update(mixed, updater.init_state(mixed))
    assert (view["table"].dtype, view["table"].tolist()) == (jnp.int8, [[0, 1], [2, 3]])


def test_saliency_does_not_overflow_in_half_precision() -> None:
    updater = core.SaliencyPruning(sparsity_distribution_fn=HALF, scheduler=NOW)
    params = {"w": jnp.array([[300.0, 400.0, 1e-4, 2e-4]], jnp.float16)}
    for grads, kept in (([300.0, 300.0, 600.0, 700.0], [1, 1, 0, 0]), ([0.0, 0.0, 1e-4, 2e-4], [0, 0, 1, 1])):
        _, masks = run(updater, params, {"w": jnp.array([grads], jnp.float16)}, 1)
        assert masks[1]["w"][0].tolist() == kept
