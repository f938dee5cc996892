"""Contracts 3 and 7: any pytree, and randomness from seeds, steps and names alone."""

import functools
import itertools
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests.contract.rows import ROWS, STEPS, TREES, assert_on_mask, assert_same, make_step, make_updater
from tests.quick import quick_jit

RANDOM = ["random", "random_ste", "static_sparse", "set", "mixture of set and random_ste"]


@functools.cache
def programs(row: str) -> tuple[Any, Any]:
    """Start from a seed, and a step: the seed is data, so one program serves all."""
    wrap = lambda updater: updater.wrap_optax(optax.sgd(0.1))  # noqa: E731
    start = lambda params, seed: wrap(make_updater(row, rng_seed=seed)).init(params)  # noqa: E731
    return quick_jit(start), quick_jit(make_step(wrap(make_updater(row))))


def masks_of_a_run(row: str, params: Any, steps: int = STEPS, seed: Any = 0) -> Any:
    start, step = programs(row)
    pair = (params, start(params, jax.random.key(seed)))
    for _ in range(steps):
        pair = step(*pair)
        assert_on_mask(*pair)
    assert jax.tree.structure(pair[0]) == jax.tree.structure(params)
    return core.unpack_masks(pair[0], pair[1].masks)


PAIRS = list(zip(TREES, itertools.cycle(["set", "magnitude_ste", "global_magnitude"]), strict=False))


@pytest.mark.parametrize(("name", "row"), PAIRS)
def test_any_tree(name: str, row: str) -> None:
    kept = sorted(int(mask.sum()) for mask in jax.tree.leaves(masks_of_a_run(row, TREES[name]())))
    assert sum(kept) == 18
    assert row == "global_magnitude" or kept == [6, 12]


@pytest.mark.parametrize("box", ["nnx", "partitioned"])
def test_kernels_are_found_by_name_inside_their_boxes(box: str) -> None:
    init = flax.linen.with_partitioning(flax.linen.initializers.lecun_normal(), ("a", "b"))
    boxed = flax.linen.Dense(6, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 8)))
    params = TREES["nnx"]() if box == "nnx" else boxed
    pruned = jax.tree.leaves(core.uniform(params, 0.5, filter_fn=core.kernels_only))
    assert pruned == [0.5] * (2 if box == "nnx" else 1)


@pytest.mark.parametrize("row", RANDOM)
def test_seeds_reach_all_that_is_random_and_repeat(row: str) -> None:
    params = TREES["dict"]()
    same, again, other = (masks_of_a_run(row, params, 2, seed) for seed in (3, 3, 4))
    assert_same(same, again)
    assert all((same[name] != other[name]).any() for name in ("w", "head"))


@pytest.mark.parametrize("row", ROWS)
def test_what_draws_randomly_says_so(row: str) -> None:
    params = TREES["dict"]()

    def first_step(words: Any) -> Any:
        tx = make_updater(row).seeded(words).wrap_optax(optax.adam(0.1))
        return make_step(tx)(params, tx.init(params))

    draws = "mixed_indices" in str(jax.make_jaxpr(first_step)(jnp.zeros(2, jnp.uint32)))
    if not row.startswith("gradual_rigl"):  # which starts dense here, from a drawn order that keeps everything
        assert draws == bool(make_updater(row).describe_seed())


def test_seeds_reach_nothing_else() -> None:
    params = TREES["dict"]()
    assert_same(*(masks_of_a_run("magnitude", params, seed=seed) for seed in (3, 4)))


def test_random_masks_of_two_steps_and_two_layers_differ() -> None:
    params = {"a": jnp.ones((16, 16)), "b": jnp.ones((16, 16))}
    updater = make_updater("random_ste", update_freq=1, update_start_step=0)
    tx = updater.wrap_optax(optax.sgd(0.1))
    step, pair = quick_jit(make_step(tx)), (params, quick_jit(tx.init)(params))
    seen = []
    for _ in range(7):
        pair = step(*pair)
        seen.append(core.unpack_masks(params, pair[1].masks))
    overlap = np.mean([seen[5]["a"], seen[6]["a"], seen[6]["b"]], axis=(1, 2))
    np.testing.assert_array_equal(overlap, 0.25)
    for mask, other_mask in ((seen[5]["a"], seen[6]["a"]), (seen[6]["a"], seen[6]["b"])):
        assert int((mask & other_mask).sum()) < 32  # 16 are expected of independent masks with 64 entries each


@pytest.mark.parametrize("row", ["random", "set", "mixture of set and random_ste"])
def test_another_layer_does_not_move_the_masks(row: str) -> None:
    params = TREES["dict"]()
    more = {"a new first layer": jnp.ones((4, 4)), **params}
    wide = masks_of_a_run(row, more, 3)
    assert_same(masks_of_a_run(row, params, 3), {name: wide[name] for name in params})


@pytest.mark.parametrize("seed", [jax.random.PRNGKey(3), jax.random.key(3), jax.random.key(3, impl="rbg"), np.int64(3)])
def test_any_kind_of_seed_works(seed: Any) -> None:
    updater, params = make_updater("set", rng_seed=seed), {"w": jnp.ones((2, 2))}
    assert int(jnp.count_nonzero(updater.pre_forward_update(params, updater.init_state(params))["w"])) == 1
