"""Layers told by hand, by names of axes and by layer classes give what the trace reads from the computation."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from sparse_plugins import core

KEY = jax.random.key(0)


def words(layers: core.Layers) -> dict[str, str]:
    return {path.removesuffix("/value"): str(axes) for path, axes in layers.items()}


class Block(nn.Module):
    """A gated layer whose axes have names."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        named = lambda *names: nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)  # noqa: E731
        bias = nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",))
        hidden = nn.Dense(12, kernel_init=named("embed", "mlp"), bias_init=bias, name="up")(x)
        return nn.Dense(8, kernel_init=named("mlp", "embed"), use_bias=False, name="down")(nn.relu(hidden)), None


def test_logical_names_of_scanned_linen_blocks_tell_what_the_trace_tells() -> None:
    stack = nn.scan(
        Block,
        variable_axes={"params": 1},
        split_rngs={"params": True},
        length=3,
        metadata_params={"partition_name": "layers"},
    )()
    x = jnp.ones((2, 8))
    boxed = jax.eval_shape(stack.init, KEY, x, None)["params"]
    traced = core.trace_layers(lambda p, x: stack.apply({"params": nn.unbox(p)}, x, None)[0], boxed, x)
    told = core.describe_layers(boxed)
    assert words(told) == words(traced)
    assert str(told["up/kernel/value"]) == "inputs 8, stack 3, outputs 12"
    updater = core.create_updater_from_config(algorithm="magnitude", sparsity=0.5, layers=told)
    targets = updater.target_sparsities(nn.unbox(boxed))  # boxed or not, the paths belong together
    assert targets == {"up": {"kernel": 0.5, "bias": core.NOT_PRUNED}, "down": {"kernel": 0.5}}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("embed", "joined_kv"), core.Axes(inputs=0, outputs=1)),  # T5X
        (("embed", "layers", "mlp"), core.Axes(stack=1, inputs=0, outputs=2)),
        (("relpos_buckets", "heads"), core.Axes(outputs=1, rows=0)),
        (("heads", "relpos_buckets"), core.Axes(outputs=0, rows=1)),
        (("vocab", "embed"), core.Axes(outputs=1, rows=0)),
        (("embed", "vocab"), core.Axes(inputs=0, outputs=1)),
        (("embed", "q_heads", "kv"), core.Axes(inputs=0, outputs=(1, 2), heads=1)),  # MaxText
        (("heads", "layers", "kv", "embed"), core.Axes(stack=1, inputs=(0, 2), outputs=3, heads=0)),
        (("layers", "kv_heads", "kv_head_dim"), core.Axes(stack=0, elementwise=(1, 2))),
        (("exp", "embed", "mlp"), core.Axes(stack=0, inputs=1, outputs=2)),
        (("norm", "layers"), core.Axes(stack=1, elementwise=0)),
        (("conv_height", "conv_width", "conv_in", "conv_out"), core.Axes(inputs=2, outputs=3, space=(0, 1))),
        (("a", "b", "c"), None),
        (("model", None), None),
    ],
)
def test_names_of_axes(names: tuple[Any, ...], expected: core.Axes | None) -> None:
    shape = tuple(range(2, 2 + len(names)))
    layers = core.describe_layers({"w": jnp.ones(shape)}, axis_names={"w": jax.sharding.PartitionSpec(*names)})
    by_hand = [("w", expected)] if expected else []
    assert layers == core.describe_layers({"w": jnp.ones(shape)}, by_hand)


def test_metadata_of_nnx_and_rules_that_come_before_it() -> None:
    rules = {"sharding_rules": (("embed", None), ("mlp", None))}
    kernel = nnx.with_partitioning(nnx.initializers.ones, ("embed", "mlp"), **rules)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        params = nnx.state(nnx.Linear(2, 3, kernel_init=kernel, rngs=nnx.Rngs(0)), nnx.Param)
    assert words(core.describe_layers(params)) == {"kernel": "inputs 2, outputs 3", "bias": "unknown 3: not described"}
    turned = core.describe_layers(params, [("kernel", core.Axes(outputs=0, inputs=1))])
    assert words(turned)["kernel"] == "outputs 2, inputs 3"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: core.Axes(inputs="in"), TypeError, "Axes.inputs is 'in'; give the number of an axis"),
        (lambda: core.Axes(inputs=0, elementwise=1), ValueError, "a bias or a scale and a layer at once"),
        (lambda: described(core.Axes(inputs=0)), ValueError, "does not say what axis 1 of 'w', whose shape is (4, 6)"),
        (lambda: described(core.Axes(inputs=0, outputs=2)), ValueError, "names axis 2, which 'w' of shape (4, 6)"),
        (lambda: described(core.Axes(inputs=0, outputs=-2)), ValueError, "axis -2 of 'w' twice, as inputs and outputs"),
        (lambda: described(core.Axes(inputs=0, outputs=1, heads=()), "v"), ValueError, "rule 'v' matches no leaf"),
        (lambda: described(core.Axes(stack=0, outputs=1, heads=0)), ValueError, "are no inputs or outputs of 'w'"),
        (lambda: described((0, 1)), TypeError, "the axes of 'w' are (0, 1); give core.Axes"),
        (lambda: named(("layers", "embed", "mlp")), ValueError, "are named ('layers', 'embed', 'mlp'), and its shape"),
        (lambda: core.describe_layers({"w": jnp.ones(2)}, axis_names={"v": ("a",)}), ValueError, "axis names"),
    ],
)
def test_what_contradicts_the_shapes_is_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        make()


def described(axes: Any, pattern: str = "w") -> core.Layers:
    return core.describe_layers({"w": jnp.ones((4, 6))}, [(pattern, axes)])


def named(names: tuple[str, ...]) -> core.Layers:
    return core.describe_layers({"w": jnp.ones((4, 6))}, axis_names={"w": names})
