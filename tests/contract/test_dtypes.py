"""Half precision, and JAX's strict promotion, under which arrays of different dtypes do not mix."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests.contract.rows import (
    MIXTURES,
    STEPS,
    TREES,
    UPDATERS,
    assert_on_mask,
    kept_counts,
    make_step,
    make_updater,
    watch_squares,
)
from tests.quick import quick_jit

HALF_PRECISION = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
INNER = optax.chain(watch_squares(), optax.sgd(0.1, momentum=0.9))
STORED = [(row, stored) for row in UPDATERS for stored in (True, "zeros") if row not in MIXTURES or stored is True]


@pytest.fixture
def strictly() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"):
        yield


def half(params: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@pytest.mark.thorough
@HALF_PRECISION
@pytest.mark.parametrize(("row", "stored"), STORED)
def test_the_strict_program_is_the_usual_one(row: str, stored: bool | str, dtype: Any) -> None:
    """Promotion is all a matter of tracing: the programs are the same, so the bits are."""
    updater, params = make_updater(row, use_packed_masks=stored), half(TREES["dict"](), dtype)
    tx = updater.wrap_optax(INNER)
    step, state = make_step(tx), jax.eval_shape(tx.init, params)
    trace = lambda: str(jax.make_jaxpr(step, return_shape=False)(params, state))  # noqa: E731
    usual = trace()
    with jax.numpy_dtype_promotion("strict"):
        strict = trace()
        after = jax.eval_shape(step, params, state)
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert describe(after) == describe((params, state))
    if not jax.tree.leaves(state.dense_params):  # the updates of straight-through updaters are wider where they may be
        assert strict == usual


@pytest.mark.parametrize("row", UPDATERS)
@pytest.mark.usefixtures("strictly")
def test_wide_integers_mix_with_no_narrow_ones(row: str) -> None:
    """Nor with what was traced without them: for JAX, an int64 array of NumPy is then an int32 one for good."""
    tx = make_updater(row).wrap_optax(INNER)
    for is_wide in (False, True):
        with jax.enable_x64(is_wide):
            params = TREES["dict"]()
            state = jax.eval_shape(tx.init, params)
            after = jax.eval_shape(make_step(tx), params, state)
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert describe(after) == describe((params, state))


@HALF_PRECISION
@pytest.mark.parametrize("row", ["global_saliency", "magnitude_ste"])
@pytest.mark.usefixtures("strictly")
def test_strict_runs_reach_their_target_on_the_mask(row: str, dtype: Any) -> None:
    tx = make_updater(row).wrap_optax(INNER)
    params = half(TREES["dict"](), dtype)
    step, state = quick_jit(make_step(tx)), tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
        assert_on_mask(params, state)
    kept, wanted = kept_counts(params, state), UPDATERS[row][1]
    assert (kept if len(wanted) == 2 else (sum(kept),)) == wanted


@HALF_PRECISION
@pytest.mark.usefixtures("strictly")
def test_what_stands_beside_the_step_is_strict_too(dtype: Any) -> None:
    params = half(TREES["dict"](), dtype)
    updater = make_updater("magnitude_ste")
    sparse, masks = updater.instant_sparsify(params)
    state = updater.with_masks(updater.init_state(params), params, masks)
    for leaf in jax.tree.leaves(updater.pre_forward_update(params, state)):
        assert leaf.dtype == dtype
    summary = core.summarize_sparsity(sparse, masks=masks)
    np.testing.assert_allclose(summary["_total_sparsity"], 0.75)
    assert float(core.summarize_intersection(masks, masks)["_total_intersection"]) == 1.0
    assert "0.75" in core.describe_plan(updater, params)
    packed = core.export.to_n_by_m(sparse["w"], masks["w"], core.NByM(6, 6))
    product = core.export.matmul(jnp.ones((1, 8), dtype), packed)
    np.testing.assert_allclose(*(np.asarray(x, float) for x in (product[0], sparse["w"].sum(axis=0))), rtol=0.05)
