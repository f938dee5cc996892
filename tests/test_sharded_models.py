"""Models of Flax that say how they are sharded train on eight devices as on one, masks and all.

This file is also the program that runs where there are eight devices; its argument is where results go.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparse_plugins import core
from tests.eight_devices import run_on_eight_devices
from tests.quick import quick_jit

IMAGES = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
TARGETS = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
INIT = jax.nn.initializers.lecun_normal()
BY_COLUMN, BY_ROW = (None, "model"), ("model", None)
STEPS = 3

UPDATER = core.RigL(
    sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75, filter_fn=core.kernels_only),
    scheduler=core.PeriodicSchedule(update_freq=1, update_start_step=1, update_end_step=10),
    skip_gradients=False,
)
TX = UPDATER.wrap_optax(optax.adam(0.01))

Start = Callable[[], tuple[Any, Any]]
Apply = Callable[[Any, Any], Any]


def linen_model() -> tuple[Start, Apply, Callable]:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.Dense(64, kernel_init=linen.with_partitioning(INIT, BY_COLUMN), name="body")(x)
            return linen.Dense(8, kernel_init=linen.with_partitioning(INIT, BY_ROW), name="head")(linen.relu(x))

    network = Network()

    def start() -> tuple[Any, Any]:
        params = network.init(jax.random.key(0), IMAGES)["params"]
        return params, TX.init(params)

    return start, lambda params, x: network.apply({"params": params}, x), linen.get_partition_spec


def nnx_model() -> tuple[Start, Apply, Callable]:
    class Network(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.body = nnx.Linear(32, 64, kernel_init=nnx.with_partitioning(INIT, BY_COLUMN), rngs=rngs)
            self.head = nnx.Linear(64, 8, kernel_init=nnx.with_partitioning(INIT, BY_ROW), rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(nnx.relu(self.body(x)))

    graph = nnx.split(nnx.eval_shape(Network))[0]

    def start() -> tuple[Any, Any]:
        params = nnx.split(Network(), nnx.Param)[1]
        return params, TX.init(params)

    return start, lambda params, x: nnx.merge(graph, params)(x), nnx.get_partition_spec


MODELS = {"linen": linen_model, "nnx": nnx_model}


def placement(start: Start, specs_of: Callable, mesh: Mesh) -> Any:
    """Shardings of parameters and state as the model's boxes say; the scalars that share a box are whole."""
    shapes = jax.eval_shape(start)
    specs = jax.tree.leaves(specs_of(shapes), is_leaf=lambda node: isinstance(node, PartitionSpec))
    leaves, treedef = jax.tree.flatten(shapes)
    replicated = [spec if leaf.ndim else PartitionSpec() for leaf, spec in zip(leaves, specs, strict=True)]
    return treedef.unflatten([NamedSharding(mesh, spec) for spec in replicated])


def train(start: Callable, apply: Apply, images: Any, **shardings: Any) -> Any:
    """Parameters and state after some steps."""

    def step(pair: Any, images: Any, targets: Any) -> Any:
        params, state = pair
        grads = jax.grad(lambda params: jnp.mean((apply(params, images) - targets) ** 2))(params)
        updates, state = TX.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    pair, step = quick_jit(start, **shardings)(), quick_jit(step, **shardings)
    for _ in range(STEPS):
        pair = step(pair, images, TARGETS)
    return pair


def mesh_of(*shape: int) -> Mesh:
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def on_eight_devices(folder: Path) -> None:
    mesh = mesh_of(4, 2)
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        for name, make in MODELS.items():
            start, apply, specs_of = make()
            params, state = train(start, apply, images, out_shardings=placement(start, specs_of, mesh))
            specs = [leaf.sharding.spec for leaf in jax.tree.leaves(state.masks)]
            assert specs == [PartitionSpec(*BY_COLUMN), PartitionSpec(*BY_ROW)], specs
            np.savez(folder / f"{name}.npz", *jax.tree.leaves((params, state.masks)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What eight devices left."""
    return run_on_eight_devices(__file__, tmp_path_factory.mktemp("eight_devices"))


@pytest.mark.parametrize("name", MODELS)
def test_a_sharded_model_has_the_masks_of_one_device(name: str, folder: Path) -> None:
    with jax.set_mesh(mesh_of(1, 1)):
        start, apply, _ = MODELS[name]()
        params, state = train(start, apply, IMAGES)
    seen = list(np.load(folder / f"{name}.npz").values())
    expected = [*jax.tree.leaves(params), *(masks := jax.tree.leaves(state.masks))]
    for leaf, wanted in zip(seen, expected, strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-3, atol=1e-5)
    for leaf, mask in zip(seen[-len(masks) :], masks, strict=True):
        np.testing.assert_array_equal(leaf, mask)
    summary = core.summarize_sparsity(core.unpack_masks(params, state.masks))
    assert float(summary["_total_sparsity"]) == 0.75


if __name__ == "__main__":
    on_eight_devices(Path(sys.argv[1]))
