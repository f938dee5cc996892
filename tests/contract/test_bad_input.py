"""Contract 8 at the level of updaters: errors say what came, what is allowed and what to do."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from sparse_plugins import core

PARAMS = {"w": jnp.ones((8, 6)), "b": jnp.ones(6)}
HALF = functools.partial(core.uniform, sparsity=0.5)
UPDATER = core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(3))
TX = UPDATER.wrap_optax(optax.adam(0.1))
STATE = TX.init(PARAMS)

DENSE_STATE = optax.adam(0.1).init(PARAMS)
MORE, WIDER = PARAMS | {"v": jnp.ones((4, 4))}, PARAMS | {"w": jnp.ones((16, 6))}
Act = Callable[[], Any]


def planned(plan: Any) -> core.BaseUpdater:
    return core.RigL(sparsity_distribution_fn=plan)


TYPE_ERRORS: dict[str, tuple[Act, str]] = {
    "structure class": (lambda: core.RigL(sparsity_type=core.NByM), "an instance and not the class"),
    "structure string": (lambda: core.RigL(sparsity_type="2:4"), r"'2:4'; give Unstructured\(\), NByM"),
    "scheduler": (lambda: core.RigL(scheduler=100), r"100; give an instance of a schedule, such as Poly"),
    "scheduler class": (lambda: core.RigL(scheduler=core.OneShotSchedule), "scheduler is .*OneShotSchedule"),
    "distribution": (lambda: planned(0.8), r"0.8; give a function, e.g. partial"),
    "topk": (lambda: core.MagnitudePruning(topk_fn=3), "topk_fn is 3; give a function"),
    "seed": (lambda: core.SET(rng_seed="7"), "rng_seed is '7'; give an int or one JAX key"),
    "drop fraction": (lambda: core.SET(drop_fraction_fn=0.3), r"0.3; give e.g. CosineDrop\(0.3"),
    "flag": (lambda: core.MagnitudePruning(use_packed_masks="no"), "use_packed_masks is 'no'"),
    "optimizer factory": (lambda: UPDATER.wrap_optax(optax.adam), "give an optax transformation such as optax.adam"),
    "wrapped twice": (lambda: UPDATER.wrap_optax(TX).init(PARAMS), "sparse already: wrap the dense one, once"),
    "dense state": (
        lambda: TX.update(PARAMS, DENSE_STATE, PARAMS),
        r"no masks. A dense checkpoint .* tx.init\(params\)",
    ),
    "no scores": (lambda: core.BaseUpdater().calculate_scores(PARAMS), "override calculate_scores"),
}
VALUE_ERRORS: dict[str, tuple[Act, str]] = {
    "too sparse": (lambda: planned(functools.partial(core.erk, sparsity=1.5)), r"1.5; give a number in \[0, 1\]"),
    "regrowth topk": (lambda: core.SET(topk_fn=max), "drop topk_fn"),
    "masked STE": (lambda: core.SteRandomPruning(is_sparse_gradients=True), "is_sparse_gradients=False"),
    "dense RigL": (lambda: core.RigL(is_sparse_gradients=False), "is_sparse_gradients=True"),
    "global 2:4": (lambda: core.GlobalMagnitudePruning(sparsity_type=core.NByM(2, 4)), "such as MagnitudePruning"),
    "global layers": (lambda: core.GlobalSaliencyPruning(sparsity_distribution_fn=HALF), "give sparsity="),
    "no plan": (lambda: planned(None).init_state(PARAMS), "RigL has no sparsity_distribution_fn"),
    "other plan": (lambda: planned(lambda p: {"kernel": 0.5}).init_state(PARAMS), "sparsities and the parameters have"),
    "bad target": (lambda: planned(lambda p: {"w": 2, "b": None}).init_state(PARAMS), "sparsity of 'w' is 2.0"),
    "nothing to prune": (lambda: TX.init({"b": jnp.ones(3)}), r"prune nothing: none of \['b'\] .* use NoPruning"),
    "params missing": (lambda: TX.update(PARAMS, STATE), r"call update\(grads, state, params\)"),
    "new layer": (lambda: TX.update(MORE, STATE, MORE), "masks and the parameters .* call init again"),
    "new layer, traced": (lambda: jax.eval_shape(TX.update, MORE, STATE, MORE), "call init again"),
    "lost gradient": (lambda: TX.update({"w": PARAMS["w"]}, STATE, PARAMS), "gradients and the parameters"),
    "new shape": (lambda: TX.update(WIDER, STATE, WIDER), r"'w'.* \(16, 6\).*after init"),
    "new shape seen": (lambda: UPDATER.pre_forward_update(WIDER, STATE), r"shape \(16, 6\)"),
    "refresh dense": (lambda: UPDATER.refresh(DENSE_STATE, PARAMS), "no SparseState .*updater.wrap_optax"),
    "no gradients": (lambda: core.SaliencyPruning().calculate_scores(PARAMS), "pass grads"),
    "grow without": (lambda: planned(HALF).refresh(STATE, PARAMS), r"grows by \|gradient\|: pass grads"),
}


@pytest.mark.parametrize("case", TYPE_ERRORS)
def test_a_wrong_type_is_explained(case: str) -> None:
    act, message = TYPE_ERRORS[case]
    with pytest.raises(TypeError, match=message):
        act()


@pytest.mark.parametrize("case", VALUE_ERRORS)
def test_a_wrong_value_is_explained(case: str) -> None:
    act, message = VALUE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        act()


IDLE = {
    "magnitude": (core.MagnitudePruning, "keeps every weight"),
    "snip": (lambda: core.SnipPruning(sparsity=0.5, scheduler=core.NoUpdateSchedule()), "keeps every weight"),
    "rigl": (core.RigL, "is a static random mask"),
    "set": (core.SET, "is a static random mask"),
    "gradual_rigl": (core.GradualRigL, "is a static random mask"),
}


@pytest.mark.parametrize("name", IDLE)
def test_masks_that_are_to_change_and_never_would_are_an_error(name: str) -> None:
    make, result = IDLE[name]
    idle = make() if name == "snip" else make(sparsity_distribution_fn=HALF)
    with pytest.raises(ValueError, match=f"NoUpdateSchedule.* {result}: give a schedule that changes masks"):
        idle.wrap_optax(optax.sgd(0.1)).init(PARAMS)
    idle.wrap_optax(optax.sgd(0.1), refresh_in_graph=False).init(PARAMS)


@pytest.mark.parametrize("name", core.all_algorithm_names())
def test_without_a_schedule_masks_either_need_none_or_are_an_error(name: str) -> None:
    """No algorithm becomes another one, or none, because nobody said when its masks change."""
    needs_none = name in ("no_prune", "static_sparse", "snip", "grasp") or "ste" in name
    exchanges = "set" in name or "rigl" in name or name == "granet"
    if exchanges:
        with pytest.raises(ValueError, match="is a static random mask: give a schedule"):
            core.create_updater_from_config(algorithm=name, sparsity=0.5)
        return
    tx = core.create_updater_from_config(algorithm=name, sparsity=0.5).wrap_optax(optax.adam(0.1))
    if needs_none:
        tx.init(PARAMS)
    else:
        with pytest.raises(ValueError, match="keeps every weight: give a schedule"):
            tx.init(PARAMS)


def test_an_updater_that_has_nothing_to_change_needs_no_schedule() -> None:
    for quiet in (core.MagnitudePruning(), core.NoPruning(), core.SET()):
        quiet.wrap_optax(optax.sgd(0.1)).init(PARAMS)


def test_a_state_of_another_plan_is_refused() -> None:
    other = core.MagnitudePruning(
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5, rules=[("w", None), ("b", 0.5)])
    )
    with pytest.raises(ValueError, match="this updater prunes 'b' but the state has no mask"):
        other.refresh(STATE, PARAMS)
