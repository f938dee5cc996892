"""Train states and optimizers that are given inputs rank stacks layer by layer, and say nothing of axes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sparse_plugins import core, vision

HALF = {"algorithm": "magnitude", "sparsity": 0.5, "update_start_step": 0, "update_end_step": 0}
X = jnp.ones((2, 8))


class Block(nn.Module):
    """A layer, and its name for the axis it is stacked along."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        bias = nn.with_logical_partitioning(nn.initializers.normal(), ("mlp",))
        return nn.relu(nn.Dense(8, kernel_init=kernel, bias_init=bias)(x)), None


STACK = nn.scan(
    Block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=4,
    metadata_params={nn.PARTITION_NAME: "layers"},
)()


def uneven(kernel: jax.Array) -> jax.Array:
    """Layers of scales that differ by thousands: one ranking of all would empty the first."""
    return kernel * jnp.array([1e-3, 1.0, 10.0, 1e3])[:, None, None]


def expected(kernel: jax.Array) -> np.ndarray:
    magnitudes = np.abs(np.asarray(kernel)).reshape(4, -1)
    return (magnitudes >= np.sort(magnitudes, axis=1)[:, 32:33]).reshape(4, 8, 8)


def test_a_linen_state_reads_axes_from_inputs_or_from_names() -> None:
    params = STACK.init(jax.random.key(0), X, None)["params"]
    boxed = jax.tree.map(lambda leaf: uneven(leaf) if leaf.ndim == 3 else leaf, params)
    plain = nn.unbox(boxed)
    for given, inputs in ((plain, (X, None)), (boxed, (X, None)), (boxed, ())):
        updater = core.create_updater_from_config(HALF)
        state = vision.TrainState.create(
            apply_fn=STACK.apply, params=given, tx=optax.sgd(0.0), updater=updater, inputs=inputs
        )
        state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
        masks = core.unpack_masks(given, core.find_sparse_state(state.opt_state).masks)
        np.testing.assert_array_equal(nn.unbox(masks)["Dense_0"]["kernel"], expected(plain["Dense_0"]["kernel"]))
        assert np.all(nn.unbox(state.params)["Dense_0"]["bias"] != 0)


class Stack(nnx.Module):
    """Four layers by `nnx.vmap`, applied by `nnx.scan`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        make = lambda rngs: nnx.Linear(8, 8, rngs=rngs)  # noqa: E731
        self.blocks = nnx.split_rngs(splits=4)(nnx.vmap(make, in_axes=0, out_axes=0))(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.scan(lambda x, block: nnx.relu(block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)


def test_an_nnx_optimizer_reads_axes_from_inputs() -> None:
    model = Stack(nnx.Rngs(0))
    model.blocks.kernel[...] = kernel = uneven(model.blocks.kernel[...])
    optimizer = vision.Optimizer(model, optax.sgd(0.0), core.create_updater_from_config(HALF), inputs=(X,))
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    np.testing.assert_array_equal(model.blocks.kernel[...] != 0, expected(kernel))
