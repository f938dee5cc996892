import functools
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.core.masks import is_pruned, map_pruned, pack, packed_shape, unpack
from sparse_plugins.core.trees import aligned, leaf_names, prunable_dtype

bounded = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = [(), (1,), (7,), (8,), (9,), (1, 1), (0, 4), (8, 16), (3, 3, 5, 64), (2, 9, 1), (5, 3, 17), (13, 11)]
unpack_jit = jax.jit(unpack, static_argnums=1)


# LLVM of jaxlib 0.10 aborts on a load that bytes of this very leaf ask for, on some AMD CPUs.
SCAN_IN_FLOAT16 = """
import jax, jax.numpy as jnp, optax
from sparse_plugins import core
updater = core.create_updater_from_config(
    algorithm="set", sparsity=0.5, update_freq=2, update_start_step=1, update_end_step=5)
tx, params = updater.wrap_optax(optax.sgd(0.1)), {"w": jnp.ones((8, 8), jnp.float16)}
def step(carry, _):
    updates, state = tx.update(carry[0], carry[1], carry[0])
    return (optax.apply_updates(carry[0], updates), state), None
end = jax.jit(lambda start: jax.lax.scan(step, start, length=6))((params, tx.init(params)))
print(int((core.unpack_masks(params, end[0][1].masks)["w"] != 0).sum()))
"""


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


@bounded
@given(st.sampled_from(SHAPES), st.integers(0, 2**31))
def test_packing_round_trip(shape: tuple, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, shape).astype(np.uint8)
    packed = jax.jit(pack)(mask)
    assert (packed.shape, packed.dtype) == (packed_shape(shape), jnp.uint8)
    np.testing.assert_array_equal(unpack_jit(packed, shape), mask == 1)
    np.testing.assert_array_equal(unpack(mask, shape), mask == 1)
    assert np.bitwise_count(np.asarray(packed)).sum() == mask.sum()


def test_outside_of_a_program_a_shape_is_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not each operation: an optimizer's `init` is usually called so."""
    stored = jnp.asarray(np.zeros((2, 5), np.uint8))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        pack(unpack(stored, (11, 5)))
    assert [record.message.split()[1] for record in caplog.records if record.message.startswith("Compiling")] == [
        "jit(unpack)",
        "jit(pack)",
    ]


@pytest.mark.parametrize(
    ("shape", "packed"),
    [((8, 16), (1, 16)), ((3, 3, 5, 64), (3, 3, 5, 8)), ((12,), (2,)), ((40, 3), (5, 3)), ((16, 7, 8), (2, 7, 8))],
)
def test_packed_shape_keeps_the_other_axes_and_wastes_little(shape: tuple, packed: tuple) -> None:
    assert packed_shape(shape) == packed


@pytest.mark.parametrize("shape", [(8, 16), (6, 5)])
def test_packed_masks_are_never_used_as_factors(shape: tuple) -> None:
    params, mask = {"w": jnp.ones(shape)}, {"w": (jnp.arange(shape[0] * shape[1]) % 3 == 0).reshape(shape)}
    plain = {"w": mask["w"].astype(jnp.uint8)}
    packed = core.pack_masks(params, plain)
    for masks in (plain, packed):
        np.testing.assert_array_equal(core.apply_masks(params, masks)["w"], mask["w"].astype(np.float32))
        np.testing.assert_array_equal(core.unpack_masks(params, masks)["w"], plain["w"])
    np.testing.assert_array_equal(core.pack_masks(params, packed)["w"], packed["w"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8])
def test_pruned_entries_are_plus_zero_and_the_dtype_stays(dtype: np.dtype) -> None:
    values = jnp.array([3, -3, -3, 4]).astype(dtype)
    masked = core.apply_masks({"w": values}, {"w": jnp.array([1, 1, 0, 0], jnp.uint8)})["w"]
    assert masked.dtype == dtype
    assert masked.tolist() == [3, -3, 0, 0]
    assert not np.signbit(np.asarray(masked, np.float32))[2:].any()


def test_pruned_nan_and_infinity_become_zero() -> None:
    values = jnp.array([jnp.nan, jnp.inf, -jnp.inf, jnp.nan])
    masked = core.apply_masks(values, jnp.array([0, 0, 0, 1], jnp.uint8))
    np.testing.assert_array_equal(masked, [0, 0, 0, np.nan])


def test_gradients_pass_straight_through_a_mask() -> None:
    mask = {"w": jnp.array([1, 0], jnp.uint8)}
    grads = jax.jit(jax.grad(lambda p: jnp.sum(core.apply_masks(p, mask)["w"] * jnp.array([2.0, 5.0]))))
    assert grads({"w": jnp.array([1.0, jnp.nan])})["w"].tolist() == [2.0, 5.0]


def test_leaves_that_stay_dense_pass_through_in_any_tree() -> None:
    params = ({"layer": Layer(jnp.ones((2, 2)), jnp.ones(2)), "empty": {}}, [jnp.ones(3)])
    masks = ({"layer": Layer(jnp.zeros((2, 2), jnp.uint8), core.NOT_PRUNED), "empty": {}}, [None])
    assert leaf_names(params) == ["0/layer/w", "0/layer/b", "1/0"]
    masked = jax.jit(core.apply_masks)(params, masks)
    assert jax.tree.structure(masked) == jax.tree.structure(params)
    assert [int(leaf.sum()) for leaf in jax.tree.leaves(masked)] == [0, 2, 3]
    assert len(jax.tree.leaves(core.pack_masks(params, masks))) == 1
    assert not is_pruned(None)


def test_dtypes_that_can_be_pruned() -> None:
    leaves = [jnp.ones(1), jnp.ones(1, jnp.bfloat16), np.ones(1, np.float16), jnp.ones(1, jnp.int8)]
    assert [prunable_dtype(leaf) for leaf in [*leaves, jnp.ones(1, complex), 1.0]] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("stored", [(16, 8), (8,), (8, 2), (1, 8)])
def test_a_mask_of_another_parameter_is_refused(stored: tuple) -> None:
    with pytest.raises(ValueError, match=r"be \(8, 16\) or \(1, 16\) or no mask at all\. A mask of another"):
        unpack(jnp.ones(stored, jnp.uint8), (8, 16))


@pytest.mark.parametrize("other", [{"w": 1}, {"w": 1, "c": 2}, [1, 2], {"w": 1, "b": 2, "c": 3}, None])
def test_trees_of_another_structure_are_refused(other: object) -> None:
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    message = r"masks and the parameters have different .* leaves \['b', 'w'\], masks \[.*call init again"
    with pytest.raises(ValueError, match=message):
        aligned(params, other, "masks")
    with pytest.raises(ValueError, match=message):
        map_pruned(lambda p, m: p, params, other, otherwise=lambda p: p)


def test_plain_masks_in_a_state_are_not_mixed_with_packed_ones() -> None:
    """(1, 16) packed bytes broadcast to (8, 16) and would keep too much."""
    updater = core.MagnitudePruning(
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5), scheduler=core.OneShotSchedule(0)
    )
    params = {"w": jnp.arange(128.0).reshape(8, 16)}
    tx = updater.wrap_optax(optax.sgd(0.0))
    plain = tx.init(params)._replace(masks={"w": jnp.ones((8, 16), jnp.uint8)})
    with pytest.raises((TypeError, ValueError), match=r"shape|packed"):
        tx.update(params, plain, params)


@pytest.mark.thorough
def test_masks_of_an_8_by_8_leaf_in_float16_compile_inside_a_scan() -> None:
    run = [sys.executable, "-c", SCAN_IN_FLOAT16]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": ""}, check=False)
    assert (done.stdout.strip(), done.returncode) == ("32", 0), done.stderr[-2000:]
