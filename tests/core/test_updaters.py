"""Single algorithms, by hand and against slow NumPy rules."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.core.selection.random_scores import random_scores
from tests import reference
from tests.quick import quick_jit

HALF = functools.partial(core.uniform, sparsity=0.5)
GROWN = core.PeriodicSchedule(update_freq=2, update_start_step=1)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def row(*values: float) -> dict[str, jax.Array]:
    return {"w": jnp.array([values], jnp.float32)}


def run(updater: core.BaseUpdater, params: Any, gradients: list[Any], inner: Any = None) -> list[tuple[Any, Any]]:
    """Parameters and state after the start and after each gradient."""
    tx = updater.wrap_optax(inner or optax.sgd(1.0))
    state, update = tx.init(params), quick_jit(tx.update)
    seen = [(updater.pre_forward_update(params, state), state)]
    for grads in gradients:
        updates, state = update(grads, state, seen[-1][0])
        seen.append((optax.apply_updates(seen[-1][0], updates), state))
    return seen


def values(seen: list[tuple[Any, Any]]) -> list[list[float]]:
    return [params["w"][0].tolist() for params, _ in seen]


def test_magnitude_prunes_what_is_small_before_the_step() -> None:
    updater = core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(1))
    seen = run(updater, row(1, -4, 3, 2), [row(0, 0, 0, -9), row(0, 0, 2, 0), row(-5, 0, 0, 0)])
    assert values(seen) == [[1, -4, 3, 2], [1, -4, 3, 11], [0, -4, 0, 11], [0, -4, 0, 11]]


def test_saliency_weighs_by_the_gradient_of_the_step() -> None:
    updater = core.SaliencyPruning(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(0))
    assert values(run(updater, row(1, -4, 3, 2), [row(8, 1, 0, 3)]))[1] == [-7, 0, 0, -1]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("cls", [core.GlobalMagnitudePruning, core.GlobalSaliencyPruning])
def test_global_ranks_layers_together(cls: Any, normalize: bool) -> None:
    generator = np.random.default_rng(0)
    params = {name: generator.normal(size=(6, 8)).astype(np.float32) * scale for name, scale in (("a", 1), ("b", 9))}
    params["a"][0] = 30
    updater = cls(sparsity=0.75, use_normalization=normalize, scheduler=core.OneShotSchedule(0))
    state = run(updater, params, [jax.tree.map(np.ones_like, params)])[1][1]
    scores = [np.abs(params[name]) for name in "ab"]
    if normalize:
        scores = [score / np.linalg.norm(score) for score in scores]
    expected = reference.top_k_together(scores, 24)
    masks = core.unpack_masks(params, state.masks)
    for name, mask in zip("ab", expected, strict=True):
        np.testing.assert_array_equal(masks[name], mask)


def test_straight_through_by_hand() -> None:
    """Gradients move hidden weights; one that overtakes comes back with all it has learnt."""
    updater = core.SteMagnitudePruning(sparsity_distribution_fn=HALF)
    seen = run(updater, row(4, 3, 2, 1), [row(1, 0, 0, -4), row(0, 0, 0, 0), row(0, 0, -6, 1)])
    assert values(seen) == [[4, 3, 0, 0], [3, 0, 0, 5], [3, 0, 0, 5], [0, 0, 8, 4]]
    assert seen[2][1].dense_params["w"][0].tolist() == [3, 3, 2, 5]
    assert seen[3][1].dense_params["w"][0].tolist() == [3, 3, 8, 4]


@pytest.mark.parametrize("stored", [True, False, "zeros"])
@pytest.mark.parametrize("cls", [core.SteMagnitudePruning, functools.partial(core.SrSte, decay=0.0)])
def test_a_straight_through_view_is_that_of_the_weights_just_moved(cls: Any, stored: bool | str) -> None:
    updater = cls(sparsity_distribution_fn=HALF, use_packed_masks=stored)
    assert values(run(updater, row(1, 2), [row(-3, 0), row(3, -1)])) == [[0, 2], [4, 0], [0, 3]]


def test_masks_that_follow_every_other_step_are_those_of_that_steps_weights() -> None:
    schedule = core.PeriodicSchedule(update_freq=2, update_start_step=0)
    updater = core.SteMagnitudePruning(sparsity_distribution_fn=HALF, scheduler=schedule)
    assert values(run(updater, row(1, 2), [row(-3, 0), row(0, -9), row(0, 0)])) == [[0, 2], [0, 2], [0, 11], [0, 11]]
    assert values(run(updater, row(1, 2), [row(-3, 0), row(0, 0)])) == [[0, 2], [0, 2], [4, 0]]


def test_straight_through_gradient_is_that_of_the_sparse_view() -> None:
    updater = core.SteMagnitudePruning(sparsity_distribution_fn=HALF)
    params = row(4, 3, 2, 1)
    state = updater.init_state(params)
    loss = lambda p: jnp.sum(jnp.array([[1.0, 2.0, 3.0, 4.0]]) * updater.pre_forward_update(p, state)["w"] ** 2)  # noqa: E731
    assert jax.grad(loss)(params)["w"][0].tolist() == [8, 12, 0, 0]
    linear = lambda p: jnp.sum(jnp.array([[1.0, 2.0, 3.0, 4.0]]) * updater.pre_forward_update(p, state)["w"])  # noqa: E731
    assert jax.grad(linear)(params)["w"][0].tolist() == [1, 2, 3, 4]


def test_straight_through_trains_dense_weights() -> None:
    """With the mask set aside it is the inner optimizer on the dense weights, Adam's moments included."""
    updater = core.SteRandomPruning(sparsity_distribution_fn=HALF, scheduler=core.PeriodicSchedule(1, 0))
    params = {"w": drawn(6, 8)}
    grads = [{"w": drawn(6, 8, seed=i)} for i in range(1, 6)]
    seen = run(updater, params, grads, optax.adam(0.1))
    dense = run(core.NoPruning(), params, grads, optax.adam(0.1))
    for (sparse, state), (expected, _) in zip(seen, dense, strict=True):
        np.testing.assert_allclose(state.dense_params["w"], expected["w"], atol=1e-6)
        assert int(jnp.count_nonzero(sparse["w"])) == 24


def test_no_pruning_is_the_inner_optimizer_bit_for_bit() -> None:
    inner, params = optax.adam(0.1), row(1, 2, 3, 4)
    wrapped = core.NoPruning().wrap_optax(inner)
    (updates, state), (expected_updates, expected_state) = (
        tx.update(params, tx.init(params), params) for tx in (wrapped, inner)
    )
    jax.tree.map(np.testing.assert_array_equal, (updates, state.inner_state), (expected_updates, expected_state))


def test_rigl_by_hand() -> None:
    """Drops the smallest active weight, grows the largest gradient at 0, and moves no weight in that step."""
    updater = core.RigL(
        sparsity_distribution_fn=HALF,
        scheduler=core.OneShotSchedule(1),
        drop_fraction_fn=core.ConstantDrop(0.5),
        use_packed_masks=False,
    )
    tx, params = updater.wrap_optax(optax.sgd(1.0)), row(3, 1, 0, 0)
    state = tx.init(params)._replace(masks={"w": jnp.array([[1, 1, 0, 0]], jnp.uint8)}, count=jnp.int32(1))
    updates, state = tx.update(row(9, 0, 1, -2), state, params)
    params = optax.apply_updates(params, updates)
    assert (params["w"][0].tolist(), state.masks["w"][0].tolist()) == ([3, 0, 0, 0], [1, 0, 0, 1])
    updates, state = tx.update(row(1, 9, 9, -2), state, params)
    assert optax.apply_updates(params, updates)["w"][0].tolist() == [2, 0, 0, 2]


@pytest.mark.parametrize("structure", [core.Unstructured(), core.NByM(2, 4)])
@pytest.mark.parametrize("cls", [core.RigL, core.SET])
def test_regrowth_follows_the_numpy_rule(cls: Any, structure: Any) -> None:
    updater = cls(
        sparsity_distribution_fn=HALF,
        scheduler=GROWN,
        drop_fraction_fn=core.ConstantDrop(0.5),
        sparsity_type=structure,
        use_packed_masks=False,
    )
    params = {"w": drawn(8, 6), "b": jnp.ones(6)}
    grads = [jax.tree.map(lambda p, i=i: drawn(*p.shape, seed=i), params) for i in range(1, 7)]
    seen = run(updater, params, grads, optax.sgd(0.1, momentum=0.9))
    weights, mask = np.array(seen[0][0]["w"]), np.array(seen[0][1].masks["w"])
    trace = np.zeros_like(weights)
    for step, grad in enumerate(grads):
        if step % 2:
            grow = np.abs(grad["w"])
            if cls is core.SET:
                grow = np.array(random_scores(params, seen[step][1].rng, step + 1)["w"])
            if structure == core.Unstructured():
                mask = reference.drop_and_grow(mask, np.abs(weights), grow, 12)
            else:
                mask = reference.n_by_m_drop_and_grow(mask, np.abs(weights), grow, 1, 4, 0)
        trace = np.where(mask & (np.array(seen[step][1].masks["w"]) | (step % 2)), trace, 0) * np.float32(0.9)
        trace = trace + np.where(mask, grad["w"], 0)
        weights = np.where(mask, weights if step % 2 else weights - np.float32(0.1) * trace, 0).astype(np.float32)
        np.testing.assert_array_equal(seen[step + 1][1].masks["w"], mask)
        np.testing.assert_allclose(seen[step + 1][0]["w"], weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_drop_fraction_at_its_ends(fraction: float) -> None:
    """At 0 nothing moves, however large gradients are; at 1 the gradients alone decide."""
    drop = core.ConstantDrop(fraction)
    updater = core.RigL(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(0), drop_fraction_fn=drop)
    params = {"w": drawn(6, 8)}
    huge = {"w": params["w"] * 4096}
    before, after = (core.unpack_masks(params, state.masks)["w"] for _, state in run(updater, params, [huge]))
    np.testing.assert_array_equal(after, reference.top_k(np.abs(np.array(huge["w"])), 24) if fraction else before)


def test_random_masks_only_shrink_and_static_ones_stay() -> None:
    schedule = core.PolynomialSchedule(update_freq=1, update_start_step=0, update_end_step=5)
    params = {"w": jnp.ones((8, 8))}
    seen = run(core.RandomPruning(sparsity_distribution_fn=HALF, scheduler=schedule), params, [params] * 7)
    masks = [core.unpack_masks(params, state.masks)["w"] for _, state in seen]
    assert all((new <= old).all() for old, new in itertools.pairwise(masks))
    assert [int(mask.sum()) for mask in masks][-2:] == [32, 32]
    static = run(core.StaticRandomSparse(sparsity_distribution_fn=HALF, scheduler=schedule), params, [params] * 2)
    assert static[0][1].masks["w"].tolist() == static[-1][1].masks["w"].tolist()


@pytest.mark.parametrize("masked", [True, False])
def test_pruned_weights_take_part_in_a_clipped_norm_unless_gradients_are_masked(masked: bool) -> None:
    updater = core.MagnitudePruning(
        sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(0), is_sparse_gradients=masked
    )
    inner = optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(1.0))
    (_, (after, _)) = run(updater, row(10, 9, 1, 0.5), [row(3, 4, 0, 12)], inner)
    clipped = 1 if masked else 5 / 13
    np.testing.assert_allclose(after["w"], row(10 - 3 * clipped, 9 - 4 * clipped, 0, 0)["w"], rtol=1e-6)


def test_own_topk_and_own_scores_are_used() -> None:
    class Positive(core.MagnitudePruning):
        def calculate_scores(self, params: Any, sparse_state: Any = None, grads: Any = None, **kwargs: Any) -> Any:
            return kwargs["importance"]

    first_half = lambda scores, sparsity: (scores > scores.mean()).astype(jnp.uint8)  # noqa: E731
    updater = Positive(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(0), topk_fn=first_half)
    tx, params = updater.wrap_optax(optax.sgd(0.0)), row(1, 2, 3, 4)
    updates, _ = tx.update(params, tx.init(params), params, importance=row(9, 0, 0, 0))
    assert optax.apply_updates(params, updates)["w"][0].tolist() == [1, 0, 0, 0]
    assert updater.instant_sparsify(params, importance=row(0, 9, 9, 0))[0]["w"][0].tolist() == [0, 2, 3, 0]


def test_own_topk_gets_a_number_that_may_be_calculated_with() -> None:
    def above(scores: jax.Array, sparsity: Any) -> jax.Array:
        return (scores > (1 - (1 - sparsity)) * scores.size).astype(jnp.uint8)

    schedule = core.PolynomialSchedule(1, 0, 2, power=1)
    updater = core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=schedule, topk_fn=above)
    seen = run(updater, row(1, 2, 3, 4, 5, 6, 7, 8), 3 * [row(*8 * [0])])
    kept = [8 * (1 - schedule.get_sparsity_at_step(0.5, step)) for step in range(3)]
    assert [sum(value > 0 for value in step) for step in values(seen)] == [8, *kept]
    assert kept[0] > kept[-1] == 4


@pytest.mark.parametrize("short", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
def test_one_ranking_compares_layers_of_different_precision_by_value(short: Any) -> None:
    params = {"a": jnp.array([[10, 9, 8, 7]], short), "b": jnp.array([[1.0, 2, 3, 4]])}
    updater = core.GlobalMagnitudePruning(sparsity=0.5, use_normalization=False, scheduler=core.OneShotSchedule(0))
    state = jax.jit(updater.refresh)(updater.init_state(params), params, params)
    masks = core.unpack_masks(params, state.masks)
    assert (masks["a"].tolist(), masks["b"].tolist()) == ([[1, 1, 1, 1]], [[0, 0, 0, 0]])


@pytest.mark.parametrize("cls", [core.MagnitudePruning, core.GlobalMagnitudePruning, core.SteMagnitudePruning])
@pytest.mark.usefixtures("full_compilation")
def test_sparsity_zero_is_the_inner_optimizer_bit_for_bit(cls: Any) -> None:
    """A select between update and addition keeps the compiler from fusing them, which would show in the last bit."""
    params = {"w": drawn(64, 48)}
    grads = [{"w": drawn(64, 48, seed=i)} for i in range(1, 21)]
    finals = []
    for tx in (optax.adam(0.01), cls(scheduler=core.PolynomialSchedule(2, 0, 8)).wrap_optax(optax.adam(0.01))):

        @jax.jit
        def step(params: Any, state: Any, grad: Any, tx: Any = tx) -> tuple[Any, Any]:
            updates, state = tx.update(grad, state, params)
            return optax.apply_updates(params, updates), state

        carry = params, tx.init(params)
        for grad in grads:
            carry = step(*carry, grad)
        finals.append(np.asarray(carry[0]["w"]))
    np.testing.assert_array_equal(*finals)


@pytest.mark.thorough
@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("algorithm", ["magnitude", "random", "rigl"])
def test_a_step_between_mask_updates_copies_no_mask(algorithm: str) -> None:
    tx = core.sparsify(optax.sgd(0.1), algorithm, sparsity=0.8, total_steps=100, use_packed_masks=False)
    params = {f"w{i}": jax.ShapeDtypeStruct((256, 512), jnp.float32) for i in range(4)}
    step = jax.jit(lambda params, state, grads: tx.update(grads, state, params), donate_argnums=1)
    compiled = step.lower(params, jax.eval_shape(tx.init, params), params).compile().as_text()
    assert re.findall(r"= u8\[256,512\]\S* copy\(.*", compiled) == []


@pytest.mark.thorough
@pytest.mark.parametrize("cls", [core.MagnitudePruning, core.RigL, core.SET])
@pytest.mark.usefixtures("full_compilation")
def test_masks_of_large_leaves_are_made_in_the_same_memory(cls: Any) -> None:
    """What a compiled step needs beside its arguments is that of one leaf, not of all; and no mask changes by it."""
    updater = cls(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(0))
    tx = updater.wrap_optax(optax.sgd(0.1))
    leaf = drawn(256, 512)

    def temporary(leaves: int) -> int:
        params = {f"w{i}": (i + 1) * leaf for i in range(leaves)}
        memory = jax.jit(tx.update).lower(params, tx.init(params), params).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert temporary(5) - temporary(2) < 1.5 * leaf.nbytes
    params = {f"w{i}": (i + 1) * leaf for i in range(2)}
    together = jax.jit(tx.update)(params, tx.init(params), params)[1].masks
    for name, alone in params.items():
        params_alone = {name: alone}
        state = jax.jit(tx.update)(params_alone, tx.init(params_alone), params_alone)[1]
        np.testing.assert_array_equal(together[name], state.masks[name])
