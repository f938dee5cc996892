import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.core import (
    ConstantDrop,
    CosineDrop,
    LinearDrop,
    NoUpdateSchedule,
    OneShotSchedule,
    PeriodicSchedule,
    PolynomialSchedule,
)
from sparse_plugins.core.schedules import at_refresh
from sparse_plugins.core.selection.counts import StepTable, keep_count
from tests import reference

bounded = settings(max_examples=100, deadline=None, derandomize=True)


def sparsity_in_force(schedule: PeriodicSchedule, target: float, step: int) -> float:
    value = at_refresh(lambda s: schedule.get_sparsity_at_step(target, s), schedule, jnp.int32(step))
    return float(value.values[value.index]) if isinstance(value, StepTable) else value


@pytest.mark.parametrize("power", [1, 3, 2.5])
def test_polynomial_values_equal_the_formula_on_host_and_traced(power: float) -> None:
    schedule = PolynomialSchedule(7, 3, 31, power=power)
    steps = np.arange(40)
    slow = np.array([reference.polynomial(0.8, step, 3, 31, power) for step in steps])
    np.testing.assert_allclose([schedule.get_sparsity_at_step(0.8, int(s)) for s in steps], slow, rtol=1e-12)
    np.testing.assert_allclose(schedule.get_sparsity_at_step(0.8, steps), slow, rtol=1e-12)
    traced = jax.jit(jax.vmap(lambda step: schedule.get_sparsity_at_step(0.8, step)))(steps)
    np.testing.assert_allclose(traced, slow, rtol=1e-5)


def test_polynomial_keeps_the_paper_values_and_any_tree() -> None:
    schedule = PolynomialSchedule(update_freq=5, update_start_step=0, update_end_step=20)
    assert schedule.get_sparsity_at_step({"a": (0.5, [1.0])}, 9) == {"a": (0.4375, [0.875])}


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (NoUpdateSchedule(), []),
        (OneShotSchedule(20), [20]),
        (PeriodicSchedule(5, 2, 13), [2, 7, 12]),
        (PeriodicSchedule(15, 30), [30, 45]),
        (PeriodicSchedule(1, 4, 4), [4]),
        (PolynomialSchedule(20, 10, 50), [10, 30, 50]),
        (PolynomialSchedule(20, 7, 50), [7, 27, 47, 50]),
        (PolynomialSchedule(100, 0, 50), [0, 50]),
    ],
    ids=str,
)
def test_steps_of_mask_changes_on_host_and_traced(schedule: NoUpdateSchedule, steps: list[int]) -> None:
    assert [step for step in range(60) if schedule.is_mask_update_iter(step)] == steps
    traced = jax.vmap(lambda s: jnp.asarray(schedule.is_mask_update_iter(s)))(jnp.arange(60))
    assert np.flatnonzero(traced).tolist() == steps
    if schedule.refresh_steps() is not None:
        assert schedule.refresh_steps().tolist() == steps
    assert schedule.is_mask_update_iter(None) is False


def test_target_is_reached_when_the_end_is_off_the_grid() -> None:
    schedule = PolynomialSchedule(update_freq=100, update_start_step=0, update_end_step=150)
    assert sparsity_in_force(schedule, 0.8, 149) < 0.8
    assert [sparsity_in_force(schedule, 0.8, step) for step in (150, 151, 10_000)] == [0.8] * 3


@bounded
@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 300), st.floats(0.01, 1), st.sampled_from([1, 2.5, 3]))
def test_last_refresh_lands_on_the_target(freq: int, start: int, length: int, target: float, power: float) -> None:
    schedule = PolynomialSchedule(freq, start, start + length, power=power)
    steps = schedule.refresh_steps()
    values = schedule.get_sparsity_at_step(target, steps)
    assert steps[-1] == start + length
    assert values[-1] == sparsity_in_force(schedule, target, start + length) == target
    assert (np.diff(values) >= 0).all()
    assert (values >= 0).all()
    for step in (0, start, start + length // 2, start + length, start + length + freq):
        latest = max(np.searchsorted(steps, step, side="right") - 1, 0)
        if len(np.unique(values)) > 1:
            assert int(schedule.refresh_index(jnp.int32(step))) == latest


def test_counts_of_a_traced_step_come_from_the_host_table() -> None:
    schedule, n = PolynomialSchedule(10, 5, 45), 25_165_824

    @jax.jit
    def kept(step: jax.Array) -> jax.Array:
        return keep_count(n, at_refresh(lambda s: schedule.get_sparsity_at_step(0.9, s), schedule, step))

    for step in schedule.refresh_steps().tolist():
        assert int(kept(step)) == keep_count(n, schedule.get_sparsity_at_step(0.9, step))


def test_at_refresh_without_an_end_or_with_one_value() -> None:
    endless = PeriodicSchedule(5, 0)
    assert at_refresh(lambda step: step * 2, endless, 15) == 30
    assert at_refresh(lambda step: 0.3, PeriodicSchedule(5, 0, 20), jnp.int32(7)) == 0.3
    assert at_refresh(lambda step: 0.3, NoUpdateSchedule(), jnp.int32(7)) == 0.3


@pytest.mark.parametrize(
    ("drop", "values"),
    [
        (ConstantDrop(0.4), [0.4, 0.4, 0.4, 0.4]),
        (CosineDrop(0.4, end_step=100), [0.4, 0.2, 0.0, 0.0]),
        (LinearDrop(0.4, end_step=100), [0.4, 0.2, 0.0, 0.0]),
    ],
)
def test_drop_fractions_on_host_and_traced(drop: ConstantDrop, values: list[float]) -> None:
    steps = [0, 50, 100, 500]
    np.testing.assert_allclose([float(drop(step)) for step in steps], values, atol=1e-12)
    np.testing.assert_allclose([jax.jit(drop)(step) for step in steps], values, atol=1e-7)
    np.testing.assert_allclose(drop(np.array(steps)) * np.ones(4), values, atol=1e-12)


LIMIT = 2**31 - 1  # where the count of an optimizer stays


@pytest.mark.parametrize(
    "schedule",
    [PeriodicSchedule(7, 1), PeriodicSchedule(LIMIT, 0), PolynomialSchedule(7, 1, LIMIT - 1), OneShotSchedule(5)],
    ids=repr,
)
def test_nothing_is_due_for_ever_where_steps_are_counted_no_further(schedule: NoUpdateSchedule) -> None:
    for step in (LIMIT, jnp.int32(LIMIT)):
        assert not bool(schedule.is_mask_update_iter(step))
    near = [step for step in range(LIMIT - 8, LIMIT) if schedule.is_mask_update_iter(step)]
    assert near == [step for step in range(LIMIT - 8, LIMIT) if bool(schedule.is_mask_update_iter(jnp.int32(step)))]
    assert all((step - 1) % 7 == 0 or step == LIMIT - 1 for step in near)


def test_the_target_holds_where_a_step_is_too_large_to_add_to() -> None:
    schedule = PolynomialSchedule(5, 0, 20)
    for step in (LIMIT, jnp.int32(LIMIT), LIMIT - 1, 20, 19):
        assert float(schedule.get_sparsity_at_step(0.5, step)) == 0.5


@pytest.mark.parametrize(
    ("updater", "message"),
    [
        (core.SET(scheduler=PeriodicSchedule(5, 2**32)), f"update_start_step of PeriodicSchedule is {2**32}, and"),
        (core.SET(scheduler=OneShotSchedule(LIMIT)), f"target_step of OneShotSchedule is {LIMIT}, and an optimizer"),
        (core.SET(drop_fraction_fn=core.CosineDrop(0.3, end_step=2**31)), f"end_step of CosineDrop is {2**31}"),
        (core.PerModule([(".*", core.SET(scheduler=OneShotSchedule(2**40)))]), "target_step of OneShotSchedule"),
    ],
    ids=["start", "once", "drop", "part"],
)
def test_steps_that_no_optimizer_counts_to_are_refused(updater: core.BaseUpdater, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        updater.wrap_optax(optax.sgd(0.1))


@pytest.mark.thorough
def test_a_run_goes_on_training_where_its_count_stays() -> None:
    schedule = PeriodicSchedule(7, 1)  # with 2**31 - 1 on its grid
    updater = core.SET(sparsity_distribution_fn=lambda params: {"w": 0.5}, scheduler=schedule)
    tx, params = updater.wrap_optax(optax.sgd(0.1)), {"w": jnp.ones((4, 4))}
    state = tx.init(params)._replace(count=jnp.int32(LIMIT - 7))
    step, seen = jax.jit(tx.update), []
    for _ in range(9):
        updates, after = step({"w": jnp.ones((4, 4))}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append((int(after.count), bool((after.masks["w"] != state.masks["w"]).any())))
        state = after
    assert seen[0] == (LIMIT - 6, True)
    assert seen[1:] == [*((LIMIT - 6 + i, False) for i in range(1, 7)), (LIMIT, False), (LIMIT, False)]
    assert float(updates["w"].min()) == pytest.approx(-0.1)


def test_plans_name_their_step_unit() -> None:
    assert NoUpdateSchedule().describe() == "masks never change"
    assert OneShotSchedule(7, step_unit="frame").describe() == "masks change once, at frame 7"
    assert "every 5 environment steps from environment step 2 on" in (
        PeriodicSchedule(5, 2, step_unit="environment step").describe()
    )
    assert PolynomialSchedule(20, 7, 50, step_unit="round").describe() == (
        "masks change 4 times, every 20 rounds from round 7 to 50"
    )


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: PeriodicSchedule(0, 0), ValueError, "update_freq is 0; the smallest allowed value is 1"),
        (lambda: PeriodicSchedule(2.5, 0), TypeError, "update_freq is 2.5; give an int"),
        (lambda: PeriodicSchedule(5, -1), ValueError, "update_start_step is -1; the smallest allowed value is 0"),
        (lambda: PeriodicSchedule(5, 10, 9), ValueError, r"update_end_step \(9\) lies before update_start_step \(10\)"),
        (lambda: PolynomialSchedule(5, 10, 9), ValueError, r"\(9\) lies before .* \(10\); swap them or move the end"),
        (lambda: PolynomialSchedule(5, 10), ValueError, "update_end_step is None; .*give a step"),
        (lambda: PolynomialSchedule(5, 0, 9, power=0), ValueError, "power is 0; give a positive number, 3 for"),
        (lambda: PolynomialSchedule(5, 0, 9, power=float("nan")), ValueError, "power is nan; give a positive"),
        (lambda: OneShotSchedule("7"), TypeError, "target_step is '7'; give an int"),
        (lambda: OneShotSchedule(True), ValueError, "target_step is True"),
        (lambda: NoUpdateSchedule(step_unit="epoch"), ValueError, "step_unit is 'epoch'; allowed are .*round, env"),
        (lambda: ConstantDrop(1.2), ValueError, r"drop fraction is 1.2; give a number in \[0, 1\]"),
        (lambda: CosineDrop(0.3, end_step=0), ValueError, "end_step is 0; the smallest allowed value is 1"),
        (lambda: LinearDrop(0.3, end_step=None), TypeError, "end_step is None; give an int"),
    ],
)
def test_bad_schedules_are_refused_when_built(build, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build()
