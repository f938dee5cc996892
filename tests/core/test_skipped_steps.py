"""An updater that skips every step in which weights move is refused; others train."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from sparse_plugins import core

HALF = functools.partial(core.uniform, sparsity=0.5)
PARAMS = {"w": jnp.arange(1.0, 17.0).reshape(4, 4), "b": jnp.ones(4)}
Periodic, Polynomial = core.PeriodicSchedule, core.PolynomialSchedule


def accumulate(every: Any) -> optax.GradientTransformation:
    multi = optax.MultiSteps(optax.adam(0.1), every).gradient_transformation()
    return optax.chain(optax.clip(1.0), multi)


@pytest.mark.parametrize(
    ("cls", "schedule"),
    [
        (core.SET, Periodic(1, 0)),
        (core.RigL, Periodic(1, 5, 100)),
        (core.SRigL, Periodic(1, 0, 1)),
        (core.GradualRigL, Polynomial(1, 0, 8)),
        (core.GradualSET, Polynomial(5, 3, 4)),  # both on the grid and at its end
        (core.GraNet, Polynomial(1, 0, 8)),
        (functools.partial(core.MagnitudePruning, skip_gradients=True), Polynomial(1, 0, 8)),
        (functools.partial(core.SteMagnitudePruning, skip_gradients=True), core.NoUpdateSchedule()),
        (functools.partial(core.SteRandomPruning, skip_gradients=True), core.OneShotSchedule(3)),
    ],
)
def test_masks_that_change_at_every_step_leave_none_to_train_in(cls: Any, schedule: Any) -> None:
    updater = cls(scheduler=schedule)
    with pytest.raises(ValueError, match=r"changes masks at every optimizer step .* larger update_freq, or skip_grad"):
        updater.wrap_optax(optax.sgd(0.1))
    with pytest.raises(ValueError, match="no weight would be trained"):
        core.PerModule([("w", updater)]).wrap_optax(optax.sgd(0.1))
    dataclasses.replace(updater, skip_gradients=False).wrap_optax(optax.sgd(0.1))


def test_a_configuration_is_no_exception() -> None:
    updater = core.create_updater_from_config(algorithm="set", sparsity=0.5, update_freq=1, update_start_step=0)
    with pytest.raises(ValueError, match="SET changes masks at every optimizer step"):
        updater.wrap_optax(optax.sgd(0.1))


@pytest.mark.parametrize(
    "schedule",
    [
        core.OneShotSchedule(0),
        Periodic(1, 3, 3),
        Periodic(2, 0),
        Periodic(2, 0, 9),
        Periodic(5, 0, 4),
    ],
)
def test_single_changes_and_schedules_with_steps_between_are_allowed(schedule: Any) -> None:
    tx = core.SET(sparsity_distribution_fn=HALF, scheduler=schedule).wrap_optax(optax.sgd(0.1))
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
    kept = (core.unpack_masks(params, state.masks)["w"] != 0) & (params["w"] != 0)
    assert bool((params["w"] != PARAMS["w"])[kept].all())


@pytest.mark.parametrize(
    ("schedule", "every", "is_refused"),
    [
        (Periodic(4, 3), 4, True),
        (Periodic(2, 1, 20), 4, True),
        (Periodic(4, 0), 4, False),
        (Periodic(2, 0), 4, False),
        (Periodic(4, 3), 2, False),
        (Periodic(4, 3, 6), 4, False),  # one change while weights move
        (Periodic(4, 3), lambda step: 4 + 4 * (step > 0), False),
    ],
)
def test_an_optimizer_that_accumulates_moves_weights_seldom(schedule: Any, every: Any, is_refused: bool) -> None:
    updater = core.SET(sparsity_distribution_fn=HALF, scheduler=schedule)
    message = r"accumulates 4 gradients .* one that is no divisor of 4, or skip_gradients=False"
    for tried_updater in (updater, core.PerModule([("w", updater)])):
        init = tried_updater.wrap_optax(accumulate(every)).init
        for tried in (init, jax.jit(init)):
            with pytest.raises(ValueError, match=message) if is_refused else contextlib.nullcontext():
                tried(PARAMS)
    dataclasses.replace(updater, skip_gradients=False).wrap_optax(accumulate(every)).init(PARAMS)


def test_what_was_refused_would_indeed_not_have_trained() -> None:
    """The same updater without its check."""

    class Unchecked(core.SET):
        def check_steps(self, period: int) -> None:
            pass

    tx = Unchecked(sparsity_distribution_fn=HALF, scheduler=Periodic(4, 3)).wrap_optax(accumulate(4))
    update, params, state = jax.jit(tx.update), PARAMS, tx.init(PARAMS)
    for _ in range(12):
        updates, state = update(PARAMS, state, params)
        assert not updates["b"].any()
