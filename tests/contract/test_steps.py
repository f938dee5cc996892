"""Contracts 1, 2, 4, 5 and 9 over every updater."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests import reference
from tests.contract.rows import (
    FAMILIES,
    MIXTURES,
    NEVER_CHANGE,
    RIGL_AND_STE,
    ROWS,
    STEPS,
    TREES,
    TWO_PHASES,
    UPDATERS,
    WINDOW,
    assert_on_mask,
    assert_same,
    equations,
    gradient,
    inner,
    kept_counts,
    make_step,
    make_updater,
    score_arguments,
    trajectory,
)
from tests.quick import quick_jit, thorough

every_updater = pytest.mark.parametrize("row", ROWS)
every_family = pytest.mark.parametrize("row", FAMILIES)
REFRESHED = ("magnitude", "random_ste", "rigl", "granet", RIGL_AND_STE)


@every_updater
def test_updates_land_on_the_mask_and_reach_the_target(row: str) -> None:
    _, states = trajectory(row)
    for params, state in states[1:]:
        assert_on_mask(params, state)
        assert all(leaf.any() for leaf in jax.tree.leaves(params))
    kept, wanted = kept_counts(*states[-1]), UPDATERS[row][1]
    assert (kept if len(wanted) == 2 else (sum(kept),)) == wanted


@every_updater
def test_one_program_serves_all_steps(row: str) -> None:
    step, states = trajectory(row)
    assert step._cache_size() == 1
    describe = lambda pair: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), pair)  # noqa: E731
    assert all(describe(pair) == describe(states[0]) for pair in states)
    assert [int(state.count) for _, state in states] == list(range(STEPS + 1))
    assert float(states[-1][1].inner_state[0]) == STEPS  # what the argument `unknown` adds up to


@every_updater
def test_parameters_are_their_own_forward_view(row: str) -> None:
    updater, (_, states) = make_updater(row), trajectory(row)
    for params, state in states[1:]:
        core.check_state(params, state)
        assert_same(params, updater.pre_forward_update(params, (state,)))
        assert_same(params, updater.post_gradient_update(params, state))
    first = updater.post_gradient_update(*states[0])
    assert_same(first, updater.post_gradient_update(first, states[0][1]))
    assert_on_mask(first, states[0][1])


@pytest.mark.parametrize("row", ["magnitude_ste", "sr_ste", "soft_topk_ste", "magnitude_ste 2:4", RIGL_AND_STE])
def test_a_straight_through_view_is_the_best_of_the_dense_weights_as_they_are(row: str) -> None:
    schedule, states = core.PolynomialSchedule(**WINDOW), trajectory(row)[1]
    for step, (params, state) in enumerate(states[1:], 1):
        dense, mask = np.asarray(state.dense_params["head"]), core.unpack_masks(params, state.masks)["head"]
        np.testing.assert_array_equal(params["head"], np.where(mask, dense, 0))
        if step in (1, 3, 4, 5):
            kept = reference.keep_count(dense.size, schedule.get_sparsity_at_step(0.75, step))
            size = np.abs(dense)
            best = reference.n_by_m(size, 2, 4, 0) if "2:4" in row else reference.top_k(size, kept)
            np.testing.assert_array_equal(mask, best)


# A PerModule with 'zeros' is a named error. A byte a weight differs from a bit only in how it is read and written.
STORED = [*((row, "zeros") for row in UPDATERS if row not in MIXTURES), *((row, False) for row in FAMILIES)]


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "stored"), STORED)
def test_scan_and_any_storage_of_masks_give_the_same_run(row: str, stored: bool | str) -> None:
    _, states = trajectory(row)
    tx = make_updater(row, use_packed_masks=stored).wrap_optax(inner())
    step = make_step(tx)
    every = lambda pair, _: (step(*pair), pair[0])  # noqa: E731
    run = quick_jit(lambda params: jax.lax.scan(every, (params, tx.init(params)), length=STEPS))
    (last, state), seen = run(states[0][0])
    assert_same(core.unpack_masks(last, state.masks), core.unpack_masks(last, states[-1][1].masks))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), last, states[-1][0])
    middle = jax.tree.map(lambda leaf: leaf[3], seen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), middle, states[3][0])


@pytest.mark.parametrize("row", [row if row in REFRESHED else thorough(row) for row in FAMILIES])
def test_explicit_refresh_gives_the_same_run(row: str) -> None:
    updater, (_, states) = make_updater(row), trajectory(row)
    tx = updater.wrap_optax(inner(), refresh_in_graph=False)
    step = quick_jit(make_step(tx))
    refresh = quick_jit(
        lambda params, state: updater.refresh(state, params, gradient(params), **score_arguments(params))
    )
    params, state = states[0]
    for number in range(STEPS):
        if updater.is_refresh_due(number):
            state = refresh(params, state)
        params, state = step(params, state)
        assert_same(state.masks, states[number + 1][1].masks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, states[-1][0])


@every_family
def test_jit_and_eager_give_the_same_masks(row: str) -> None:
    _, states = trajectory(row)
    eager = make_step(make_updater(row).wrap_optax(inner()))(*states[1])[1]
    assert_same(eager.masks, states[2][1].masks)


@every_updater
def test_only_masks_pass_the_guard(row: str) -> None:
    updater, params = make_updater(row), TREES["dict"]()
    tx = updater.wrap_optax(optax.adam(0.1))
    state = jax.eval_shape(tx.init, params)
    jaxpr = jax.make_jaxpr(make_step(tx))(params, state).jaxpr
    outside = list(equations(jaxpr, into_branches=False))
    guards = [equation for equation in outside if equation.primitive.name == "cond"]
    # Masks that follow the weights change after these have moved, others before.
    assert len(guards) == (2 if row in TWO_PHASES else row not in NEVER_CHANGE)
    assert {str(out.aval.dtype) for guard in guards for out in guard.outvars} <= {"uint8"}
    assert not {equation.primitive.name for equation in outside} & {"while", "scan"}
    costly = {"top_k", "pure_callback", "io_callback", "debug_callback"}
    inside = list(equations(jaxpr, into_branches=True))
    assert not {equation.primitive.name for equation in inside} & costly
    # Nothing is sorted but a sample, at most every 32nd score.
    sorts = [equation for equation in inside if equation.primitive.name == "sort"]
    assert all(sort.invars[0].aval.shape[sort.params["dimension"]] <= 4 for sort in sorts)


@pytest.mark.parametrize(
    ("row", "branches"),
    [
        *(("magnitude", 1), ("random_ste", 1)),
        thorough("rigl", 1),
        thorough("mixture of set and random_ste", 4),
    ],
)
def test_vmap_over_seeds_keeps_the_branch(row: str, branches: int) -> None:
    def start(seed: jax.Array) -> tuple[Any, Any]:
        updater = dataclasses.replace(make_updater(row), rng_seed=jax.random.key(seed))
        tx = updater.wrap_optax(optax.sgd(0.1, momentum=0.9))
        params = jax.tree.map(lambda p: p + seed.astype(p.dtype) / 8, TREES["dict"]())
        return params, tx.init(params)._replace(count=seed)  # so that lanes refresh at different steps

    seeds = jnp.arange(4).reshape(2, 2)
    step = make_step(make_updater(row).wrap_optax(optax.sgd(0.1, momentum=0.9)))
    states = quick_jit(jax.vmap(jax.vmap(start)))(seeds)
    jaxpr = jax.make_jaxpr(jax.vmap(jax.vmap(step)))(*states).jaxpr
    guards = [equation for equation in equations(jaxpr, into_branches=True) if equation.primitive.name == "cond"]
    assert [guard.invars[0].aval.shape for guard in guards] == [()] * branches  # by lane, it would be a select
    lanes = quick_jit(jax.vmap(jax.vmap(step)))
    single_step = quick_jit(step)
    lane = lambda tree, i: jax.tree.map(lambda leaf: leaf[i // 2, i % 2], tree)  # noqa: E731
    singles = [lane(states, i) for i in range(4)]
    for _ in range(STEPS):
        states = lanes(*states)
        singles = [single_step(*single) for single in singles]
    for i, (params, state) in enumerate(singles):
        assert_same(lane(states[1].masks, i), state.masks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), lane(states[0], i), params)


@pytest.mark.thorough
@pytest.mark.parametrize("row", ["magnitude", "magnitude_ste"])
def test_meta_gradients_pass_through_updates(row: str) -> None:
    updater, params = make_updater(row), TREES["dict"]()

    def loss_after_three_steps(log_rate: jax.Array) -> jax.Array:
        tx = updater.wrap_optax(optax.sgd(jnp.exp(log_rate)))
        step = make_step(tx)
        pair = (params, tx.init(params))
        for _ in range(3):
            pair = step(*pair)
        return optax.tree.norm(gradient(pair[0]), squared=True)

    value = quick_jit(loss_after_three_steps)
    at, width = jnp.float32(-3.0), 1e-2
    expected = (value(at + width) - value(at - width)) / (2 * width)
    np.testing.assert_allclose(quick_jit(jax.grad(loss_after_three_steps))(at), expected, rtol=1e-2)


@pytest.mark.parametrize(
    "row", ["magnitude", "global_magnitude", "magnitude_ste", "rigl", "mixture of rigl and magnitude_ste"]
)
def test_a_loop_without_jit_compiles_nothing_twice(row: str, caplog: pytest.LogCaptureFixture) -> None:
    """An eager branch or search would be compiled anew at every call, and in the end exhaust the process."""
    updater = make_updater(row, sparsity=0.5, drop_fraction=0.1, update_start_step=0, update_end_step=8)
    tx, params = updater.wrap_optax(optax.sgd(0.1)), {"w": jnp.arange(1.0, 49.0).reshape(8, 6), "head": jnp.eye(6, 4)}
    state = tx.init(params)

    def two_steps(params: Any, state: Any) -> tuple[Any, Any]:
        for _ in range(2):  # one changes masks, one does not
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = two_steps(params, state)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        two_steps(params, state)
    assert [record.message for record in caplog.records if "ompil" in record.message] == []
