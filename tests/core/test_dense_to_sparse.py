"""Gradual regrowth and alternating phases, by hand and against slow NumPy rules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests import reference
from tests.quick import quick_jit

WINDOW = {"update_freq": 2, "update_start_step": 2, "update_end_step": 8}
GRADUAL = core.PolynomialSchedule(**WINDOW)
SHAPES = {"w": (12, 10), "head": (10, 4)}


def draw(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def run(updater: core.BaseUpdater, steps: int, inner: Any = None) -> list[tuple[Any, Any, Any]]:
    """Before every step: parameters, masks and gradients."""
    tx = updater.wrap_optax(inner or optax.sgd(0.1))
    params = draw(0)
    state = tx.init(params)
    params = updater.pre_forward_update(params, state)
    update, seen = quick_jit(tx.update), []
    for number in range(steps):
        grads = draw(number + 1)
        seen.append((params, core.unpack_masks(params, state.masks), grads))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return [*seen, (params, core.unpack_masks(params, state.masks), None)]


def settings(name: str, **more: Any) -> core.BaseUpdater:
    return core.create_updater_from_config(algorithm=name, sparsity=0.75, drop_fraction=0.5, **{**WINDOW, **more})


def drop_at(step: int) -> float:
    return 0.25 * (1 + np.cos(np.pi * step / 8))


def test_gradual_rigl_keeps_the_largest_and_grows_by_gradients() -> None:
    seen = run(settings("gradual_rigl"), 10)
    for step in range(10):
        (params, mask, grads), new = seen[step], seen[step + 1][1]
        for name, shape in SHAPES.items():
            expected = mask[name]
            if step in (2, 4, 6, 8):
                sparsity = reference.polynomial(0.75, step, 2, 8, 3)
                kept = reference.keep_count(int(np.prod(shape)), sparsity)
                survivors = round((1 - drop_at(step)) * kept)
                alive = reference.top_k(np.where(mask[name], np.abs(params[name]), -1), survivors)
                grow = np.where(alive, -1, np.abs(grads[name]))
                expected = alive | reference.top_k(grow, kept - survivors)
            np.testing.assert_array_equal(new[name], expected, err_msg=f"{name} at {step}")
    assert [int(mask["w"].sum()) for _, mask, _ in seen[2:6]] == [120, 82, 82, 41]


def test_granet_prunes_across_layers_and_regenerates_within() -> None:
    seen = run(settings("granet"), 10)
    for step in (2, 4, 6, 8):
        (params, mask, grads), new = seen[step], seen[step + 1][1]
        kept = reference.keep_count(160, reference.polynomial(0.75, step, 2, 8, 3))
        ranked = [np.where(mask[name], np.abs(params[name]), -1) for name in ("head", "w")]
        for name, left in zip(("head", "w"), reference.top_k_together(ranked, kept), strict=True):
            survivors = round((1 - drop_at(step)) * int(left.sum()))
            expected = reference.drop_and_grow(left, np.abs(params[name]), np.abs(grads[name]), survivors)
            np.testing.assert_array_equal(new[name], expected, err_msg=f"{name} at {step}")
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(seen[-1][1])) == 40


def test_gradual_set_grows_at_random_and_may_start_part_way() -> None:
    updater = core.GradualSET(
        sparsity_distribution_fn=lambda p: core.uniform(p, 0.75), scheduler=GRADUAL, start_part=0.8, rng_seed=3
    )
    seen = run(updater, 10)
    counts = [int(mask["w"].sum()) for _, mask, _ in seen]
    assert counts[0] == 120 * 0.4
    assert counts[-1] == 30
    assert counts == sorted(counts, reverse=True)
    again = run(core.GradualSET(**{**vars(updater), "rng_seed": 4}), 1)
    assert (again[0][1]["w"] != seen[0][1]["w"]).any()


@pytest.mark.parametrize(("target", "shape"), [(0.58, (5, 5)), (0.59, (5, 10)), (0.62, (5, 5))])
def test_a_start_part_way_ends_at_the_planned_count(target: float, shape: tuple[int, int]) -> None:
    updater = core.GradualRigL(
        sparsity_distribution_fn=lambda p: core.uniform(p, target), scheduler=core.OneShotSchedule(0), start_part=0.1
    )
    params = {"w": jax.random.normal(jax.random.key(0), shape)}
    masks = core.unpack_masks(params, updater.refresh(updater.init_state(params), params, params).masks)
    kept = round((1 - target) * (shape[0] * shape[1]))
    assert int(masks["w"].sum()) == kept
    assert f"{kept} of {shape[0] * shape[1]} kept" in core.describe_plan(updater, params)


def test_counts_without_an_end_are_exact_beyond_the_whole_numbers_of_float32() -> None:
    updater = core.GradualSET(
        sparsity_distribution_fn=lambda p: core.uniform(p, 0.1), scheduler=core.PeriodicSchedule(10, 0)
    )
    size = 2**25 + 33
    kept, survivors = jax.jit(lambda step: updater.kept_and_survivors(core.Unstructured(), (size, 1), 0.1, step))(
        jnp.int32(10)
    )
    assert int(kept) == round(0.9 * size)
    assert int(survivors) == round(0.7 * int(kept))


def test_without_dropping_gradual_rigl_is_magnitude_pruning() -> None:
    options: dict[str, Any] = {"sparsity_distribution_fn": lambda p: core.uniform(p, 0.75), "scheduler": GRADUAL}
    regrown = core.GradualRigL(drop_fraction_fn=core.ConstantDrop(0.0), skip_gradients=False, **options)
    pruned = core.MagnitudePruning(**options)
    for left, right in zip(run(regrown, 10), run(pruned, 10), strict=True):
        jax.tree.map(np.testing.assert_array_equal, left[:2], right[:2])


def test_acdc_alternates_and_ends_sparse() -> None:
    seen = run(settings("acdc"), 10, optax.sgd(0.1, momentum=0.9))
    counts = [int(mask["w"].sum()) for _, mask, _ in seen]
    assert counts == [120, 120, 120, 30, 30, 120, 120, 30, 30, 30, 30]
    assert [np.count_nonzero(params["w"]) for params, _, _ in seen] == counts
    assert (seen[3][1]["w"] != seen[8][1]["w"]).any()  # a dense phase lets other weights in
    before, after, grads = seen[4][0]["w"], seen[5][0]["w"], seen[4][2]["w"]
    back = np.asarray(seen[4][1]["w"]) == 0
    np.testing.assert_allclose((after - before)[back], -0.1 * grads[back], rtol=1e-5)  # fresh momentum


@pytest.mark.parametrize(
    ("end", "steps"), [(8, [2, 4, 6, 8]), (9, [2, 4, 6, 8, 9]), (2, [2])], ids=["sparse", "dense", "at once"]
)
def test_an_alternating_schedule_is_sparse_at_its_end(end: int, steps: list[int]) -> None:
    schedule = core.AlternatingSchedule(**{**WINDOW, "update_end_step": end})
    assert schedule.refresh_steps().tolist() == steps
    assert [step for step in range(12) if schedule.is_mask_update_iter(step)] == steps
    traced = jax.jit(lambda step: schedule.get_sparsity_at_step(jnp.float32(0.5), step))
    host = [schedule.get_sparsity_at_step(0.5, step) for step in range(12)]
    assert [float(traced(step)) for step in range(12)] == host
    assert host[end:] == [0.5] * (12 - end)


def test_bad_parts_and_ends_are_refused() -> None:
    with pytest.raises(ValueError, match=r"start_part is 2.0; give a number in \[0, 1\]"):
        core.GradualSET(start_part=2)
    with pytest.raises(ValueError, match="AlternatingSchedule is sparse from there on, so give a step"):
        core.AlternatingSchedule(update_freq=2, update_start_step=0)
    with pytest.raises(ValueError, match="update_end_step is missing"):
        settings("acdc", update_end_step=None)
