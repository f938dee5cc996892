"""One small network in Linen and in NNX, and updaters whose masks change at steps 0, 2 and 4, or at every step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from sparse_plugins import core

IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float32)
# Entries of the two kernels, and how many of them stay at 75 % sparsity.
SIZES, KEPT = {"conv": 3 * 3 * 4 * 8, "head": 24}, {"conv": 72, "head": 6}
ALGORITHMS = ["magnitude", "rigl", "magnitude_ste"]


class ConvNet(linen.Module):
    """A convolution, batch norm and a head."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = linen.Conv(8, (3, 3), name="conv")(x)
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        return linen.Dense(3, name="head")(linen.relu(x).mean((1, 2)))


class NnxConvNet(nnx.Module):
    """The same with dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))


@functools.cache
def variables() -> Any:
    return jax.jit(ConvNet().init)(jax.random.key(0), IMAGES)


def make_updater(algorithm: str, **settings: Any) -> core.BaseUpdater:
    return core.create_updater_from_config(sparsity_config(algorithm) | settings)


def sparsity_config(algorithm: str) -> dict[str, Any]:
    window = {"update_freq": 2, "update_start_step": 0, "update_end_step": 4} if algorithm != "magnitude_ste" else {}
    return {"algorithm": algorithm, "dist_type": "uniform", "sparsity": 0.75, **window}


def half(**settings: Any) -> core.BaseUpdater:
    """Random masks that never change, at 50 % sparsity."""
    return core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5, **settings))


def assert_on_masks(params: Any, opt_state: Any, algorithm: str, step: int) -> None:
    """Both kernels are exactly 0 outside their masks, all else is dense, and in the end the masks are full."""
    core.check_state(params, opt_state)
    masks = core.unpack_masks(params, core.find_sparse_state(opt_state).masks)
    assert jax.tree.leaves(masks) == jax.tree.leaves([masks["conv"]["kernel"], masks["head"]["kernel"]])
    starts_dense = algorithm == "magnitude" and step < 5
    for name, size in SIZES.items():
        kernel, mask = np.asarray(params[name]["kernel"]), np.asarray(masks[name]["kernel"])
        assert not kernel[mask == 0].any()
        assert KEPT[name] <= mask.sum() <= (size if starts_dense else KEPT[name])


def squares(logits: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(logits - 1.0))


def dense_optimizer() -> optax.GradientTransformation:
    return optax.sgd(0.1, momentum=0.9)
