"""A layer that is not asked to be empty keeps a unit; where a ranking across layers empties one, it is said."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests.quick import quick_jit, thorough

NEARLY_ALL = functools.partial(core.uniform, sparsity=0.98)
GRADUAL = core.PolynomialSchedule(update_freq=2, update_start_step=0, update_end_step=5)
PARAMS = {"w": jnp.arange(16.0).reshape(4, 4) - 20.0, "b": jnp.ones(4)}
GRADS = {"w": jnp.cos(PARAMS["w"]), "b": jnp.ones(4)}


def counts_of_run(updater: core.BaseUpdater, steps: int = 8) -> list[int]:
    """Entries kept before the first step and after each."""
    tx, params = updater.wrap_optax(optax.sgd(0.0)), PARAMS
    state, update = tx.init(params), quick_jit(tx.update)
    counts = [int(core.unpack_masks(params, state.masks)["w"].sum())]
    for _ in range(steps):
        updates, state = update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        counts.append(int(core.unpack_masks(params, state.masks)["w"].sum()))
    assert f"prunable: {counts[-1]} of 16 kept" in core.describe_plan(updater, PARAMS)
    return counts


@pytest.mark.parametrize(
    ("structure", "least"),
    [(core.Unstructured(), 1), (core.Block((2, 2)), 4), (core.Channel(), 4), (core.ConstantFanIn(), 4)],
    ids=str,
)
@pytest.mark.parametrize("cls", [core.MagnitudePruning, thorough(core.GradualRigL)])
def test_a_unit_stays_at_every_step_of_a_schedule(cls: Any, structure: Any, least: int) -> None:
    counts = counts_of_run(cls(sparsity_distribution_fn=NEARLY_ALL, scheduler=GRADUAL, sparsity_type=structure))
    assert counts[0] == 16
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == least


@pytest.mark.parametrize("cls", [core.RigL, core.SET, core.SteMagnitudePruning])
def test_the_last_unit_may_be_exchanged_but_not_lost(cls: Any) -> None:
    schedule = core.PeriodicSchedule(update_freq=2, update_start_step=0)
    assert set(counts_of_run(cls(sparsity_distribution_fn=NEARLY_ALL, scheduler=schedule))) == {1}
    everything = functools.partial(core.uniform, sparsity=1.0)
    assert set(counts_of_run(cls(sparsity_distribution_fn=everything, scheduler=schedule))) == {0}


@pytest.mark.parametrize("cls", [core.GlobalMagnitudePruning, core.GraNet])
def test_one_ranking_keeps_one_weight_in_all(cls: Any) -> None:
    assert counts_of_run(cls(sparsity=0.98, scheduler=GRADUAL))[-1] == 1
    assert counts_of_run(cls(sparsity=1.0, scheduler=GRADUAL))[-1] == 0


@pytest.mark.parametrize(
    ("params", "rules", "kept"),
    [
        ({"w": PARAMS["w"], "z": jnp.ones((0, 4))}, (), [8, 0]),
        ({"a": jnp.ones((0, 4)), "w": PARAMS["w"]}, (), [0, 8]),
        (PARAMS, [("w", 0.75)], [4]),
    ],
    ids=["an empty layer last", "first", "rules for every layer"],
)
@pytest.mark.parametrize("algorithm", ["global_magnitude", "granet", "snip"])
def test_one_ranking_may_hold_little_or_nothing(algorithm: str, params: Any, rules: Any, kept: list[int]) -> None:
    tx = core.sparsify(optax.sgd(0.1), algorithm, sparsity=0.5, total_steps=8, rules=rules)
    params, state = core.start(tx, params)
    step = quick_jit(lambda params, state: tx.update(jax.tree.map(jnp.cos, params), state, params))
    for _ in range(8):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    assert [int(mask.sum()) for mask in jax.tree.leaves(core.unpack_masks(params, state.masks))] == kept


def test_a_schedule_without_an_end_and_one_whose_target_is_empty() -> None:
    endless = core.GradualSET(sparsity_distribution_fn=NEARLY_ALL, scheduler=core.PeriodicSchedule(2, 0))
    assert counts_of_run(endless)[-1] == 1
    everything = functools.partial(core.uniform, sparsity=1.0)
    emptied = counts_of_run(core.MagnitudePruning(sparsity_distribution_fn=everything, scheduler=GRADUAL))
    assert (emptied[-1], min(emptied[:5])) == (0, 1)  # on the way there one stays


def test_erk_gives_a_lone_small_layer_one_weight() -> None:
    plan = core.erk({"w": jnp.ones((4, 4))}, 0.98)
    assert plan["w"] == 1 - 1 / 16
    with pytest.raises(ValueError, match="may keep 1 entries in all, fewer than there are layers"):
        core.erk({"w": jnp.ones((4, 4)), "v": jnp.ones((4, 4))}, 0.99)


LAYERS = {"small": jnp.full((2, 2), 0.01), "large": jnp.ones((4, 4)), "head": 2 * jnp.ones((2, 2))}
TOGETHER = core.GlobalMagnitudePruning(sparsity=0.5, use_normalization=False, scheduler=core.OneShotSchedule(0))


def test_a_plan_names_what_a_ranking_across_layers_empties() -> None:
    assert core.describe_plan(TOGETHER, LAYERS).endswith("\nemptied, if ranked together as the weights are now: small")
    unknown = "\nranked together by scores not known yet, which may empty some: head, large, small"
    assert core.describe_plan(core.SnipPruning(sparsity=0.5), LAYERS).endswith(unknown)
    assert core.describe_plan(TOGETHER, jax.eval_shape(lambda: LAYERS)).endswith(unknown)
    by_part = core.PerModule([("head|small", TOGETHER), (".*", core.SnipPruning(sparsity=0.5))])
    assert core.describe_plan(by_part, LAYERS).splitlines()[-2:] == [
        "emptied, if ranked together as the weights are now: small",
        "ranked together by scores not known yet, which may empty some: large",
    ]
    evenly = core.GlobalMagnitudePruning(sparsity=0.5, scheduler=core.OneShotSchedule(0))
    assert core.describe_plan(evenly, LAYERS).endswith("(sparsity 0.5)")


@pytest.mark.parametrize("act", ["instant", "refresh", "eager update", "compiled and checked", "zeros"])
def test_a_layer_emptied_across_layers_is_warned_about_on_the_host(act: str) -> None:
    updater = TOGETHER
    if act == "zeros":
        updater = core.GlobalMagnitudePruning(**{**vars(TOGETHER), "use_packed_masks": "zeros"})
    tx = updater.wrap_optax(optax.sgd(0.0))
    state = tx.init(LAYERS)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(2):
            if act == "instant":
                updater.instant_sparsify(LAYERS)
            elif act == "refresh":
                updater.refresh(state, LAYERS)
            elif act == "eager update":
                tx.update(LAYERS, state, LAYERS)
            else:
                core.check_state(LAYERS, state)
                updates, after = quick_jit(tx.update)(LAYERS, state, LAYERS)
                assert not seen
                core.check_state(optax.apply_updates(LAYERS, updates), after)
                break
    assert [str(warning.message).partition(",")[0] for warning in seen] == [
        "a ranking across layers pruned all weights of 'small'"
    ]
    assert "rules=[('small', 0.9)]" in str(seen[0].message)


def test_a_layer_that_is_asked_to_be_empty_is_no_surprise() -> None:
    params = {"w": jnp.ones((4, 4)), "v": jnp.ones((4, 4))}
    all_gone = core.GlobalMagnitudePruning(sparsity=1.0, scheduler=core.OneShotSchedule(0))
    with_rule = core.GlobalMagnitudePruning(sparsity=0.5, rules=[("v", 1.0)], scheduler=core.OneShotSchedule(0))
    for updater in (all_gone, with_rule):
        tx = updater.wrap_optax(optax.sgd(0.0))
        state = tx.update(params, tx.init(params), params)[1]
        core.check_state(params, state)
        assert "emptied" not in core.describe_plan(updater, params)
        assert not np.any(core.unpack_masks(params, state.masks)["v"])
