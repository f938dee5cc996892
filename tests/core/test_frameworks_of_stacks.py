"""Stacks and heads as frameworks make them are pruned as the same layers one by one."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sparse_plugins import core
from tests.quick import thorough

KEY, X, LAYERS = jax.random.key(0), jnp.ones((2, 8)), 3


class Cell(nn.Module):
    """Two layers, as scan and vmap stack them."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> Any:
        x = nn.relu(nn.Dense(6, bias_init=nn.initializers.normal())(x))
        return nn.Dense(8)(x), None


def linen_scan() -> tuple[Any, Any]:
    model = nn.scan(Cell, variable_axes={"params": 1}, split_rngs={"params": True}, length=LAYERS)()
    return (lambda params, x: model.apply({"params": params}, x, None)), model.init(KEY, X, None)["params"]


def linen_vmap() -> tuple[Any, Any]:
    model = nn.vmap(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=LAYERS)()
    return (lambda params, x: model.apply({"params": params}, x)), model.init(KEY, X)["params"]


def haiku_layer_stack() -> tuple[Any, Any]:
    block = lambda x: hk.Linear(8)(jax.nn.relu(hk.Linear(6)(x)))  # noqa: E731
    model = hk.without_apply_rng(hk.transform(lambda x: hk.experimental.layer_stack(LAYERS)(block)(x)))
    return model.apply, model.init(KEY, X)


def equinox_filter_vmap() -> tuple[Any, Any]:
    make = lambda key: eqx.nn.MLP(8, 4, 6, 1, key=key)  # noqa: E731
    params, static = eqx.partition(eqx.filter_vmap(make)(jax.random.split(KEY, LAYERS)), eqx.is_array)
    run = eqx.filter_vmap(lambda layer, x: jax.vmap(layer)(x), in_axes=(eqx.if_array(0), None))
    return (lambda params, x: run(eqx.combine(params, static), x)), params


def nnx_vmap() -> tuple[Any, Any]:
    block = lambda rngs: nnx.Sequential(nnx.Linear(8, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 8, rngs=rngs))  # noqa: E731
    graph, params = nnx.split(nnx.split_rngs(splits=LAYERS)(nnx.vmap(block, in_axes=0, out_axes=0))(nnx.Rngs(0)))
    run = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None), out_axes=0)
    return (lambda params, x: run(nnx.merge(graph, params), x)), params


def uneven(leaf: jax.Array, stack: int) -> np.ndarray:
    """Layers of other scales, which one ranking of all would not prune alike."""
    return np.stack([layer * 10.0**i for i, layer in enumerate(np.moveaxis(np.asarray(leaf), stack, 0))], stack)


@pytest.mark.parametrize(
    "make", [linen_scan, *map(thorough, (linen_vmap, haiku_layer_stack, equinox_filter_vmap, nnx_vmap))]
)
def test_a_stack_of_any_framework_is_pruned_as_its_layers(make: Any) -> None:
    apply, params = make()
    with jax.numpy_rank_promotion("allow"):
        layers = core.trace_layers(apply, params, X)
    leaves, treedef = jax.tree.flatten(params)
    stacks = [[part.role for (part,) in axes.axes].index("stack") for axes in layers.of(params)]
    leaves = list(map(uneven, leaves, stacks))
    apart = {name: list(np.moveaxis(*pair, 0)) for name, *pair in zip(layers, leaves, stacks, strict=True)}
    updater = core.create_updater_from_config(algorithm="magnitude", sparsity=0.6, dist_type="erk")
    _, masks = dataclasses.replace(updater, layers=layers).instant_sparsify(jax.tree.unflatten(treedef, leaves))
    _, alone = updater.instant_sparsify(apart)
    for name, mask, stack in zip(layers, treedef.flatten_up_to(masks), stacks, strict=True):
        if hasattr(mask, "shape"):
            np.testing.assert_array_equal(np.moveaxis(np.asarray(mask), stack, 0), alone[name])
        else:
            assert mask == alone[name][0] == core.NOT_PRUNED


SEQUENCE = jnp.ones((2, 5, 8))


def heads_in_axes(name: str, leaf: jax.Array) -> jax.Array:
    """Kernels (inputs, heads, dims) and (heads, dims, outputs) as matrices, biases as vectors."""
    return leaf.reshape({1: leaf.shape, 2: (leaf.size,), 3: (-1, 8) if "out" in name else (8, -1)}[leaf.ndim])


def linen_attention() -> tuple[Any, Any, Any]:
    model = nn.MultiHeadDotProductAttention(4)
    apply = lambda params, x: model.apply({"params": params}, x, x)  # noqa: E731
    return apply, model.init(KEY, SEQUENCE, SEQUENCE)["params"], heads_in_axes


def nnx_attention() -> tuple[Any, Any, Any]:
    graph, params = nnx.split(nnx.MultiHeadAttention(4, 8, decode=False, rngs=nnx.Rngs(0)), nnx.Param)
    return (lambda params, x: nnx.merge(graph, params)(x)), params, heads_in_axes


def haiku_attention() -> tuple[Any, Any, Any]:
    attend = lambda x: hk.MultiHeadAttention(4, 2, w_init=hk.initializers.RandomNormal())(x, x, x)  # noqa: E731
    model = hk.without_apply_rng(hk.transform(attend))
    return model.apply, model.init(KEY, SEQUENCE), lambda name, leaf: leaf


def equinox_attention() -> tuple[Any, Any, Any]:
    params, static = eqx.partition(eqx.nn.MultiheadAttention(4, 8, key=KEY, use_output_bias=True), eqx.is_array)
    attend = lambda params, x: jax.vmap(lambda x: eqx.combine(params, static)(x, x, x))(x)  # noqa: E731
    return attend, params, lambda name, leaf: leaf.T


@pytest.mark.parametrize("make", [linen_attention, nnx_attention, haiku_attention, equinox_attention])
@pytest.mark.parametrize("settings", [{"dist_type": "erk", "sparsity_type": "fan_in"}, {"sparsity_type": "2:4"}])
def test_attention_is_pruned_as_its_kernels_flattened(make: Any, settings: dict[str, Any]) -> None:
    apply, params, flattened = make()
    with jax.numpy_rank_promotion("allow"):
        layers = core.trace_layers(apply, params, SEQUENCE)
    flat = {name: flattened(name, leaf) for name, leaf in zip(layers, jax.tree.leaves(params), strict=True)}
    make_updater = functools.partial(core.create_updater_from_config, algorithm="magnitude", sparsity=0.6)
    _, masks = make_updater(layers=layers, **settings).instant_sparsify(params)
    _, expected = make_updater(**settings).instant_sparsify(flat)
    for name, mask in zip(layers, jax.tree.structure(params).flatten_up_to(masks), strict=True):
        if hasattr(mask, "shape"):
            np.testing.assert_array_equal(flattened(name, mask), expected[name])
        else:
            assert mask == expected[name] == core.NOT_PRUNED


@pytest.mark.thorough
@pytest.mark.parametrize("make", [linen_attention, nnx_attention, haiku_attention, equinox_attention])
def test_attention_trains_as_its_kernels_flattened(make: Any, full_compilation: None) -> None:
    apply, params, flattened = make()
    with jax.numpy_rank_promotion("allow"):
        layers = core.trace_layers(apply, params, SEQUENCE)
    leaves, treedef = jax.tree.flatten(params)
    inputs = jax.random.normal(jax.random.key(1), SEQUENCE.shape)
    changes = {"update_freq": 1, "update_start_step": 1, "update_end_step": 3}
    settings = {"algorithm": "magnitude", "sparsity": 0.6, "sparsity_type": "fan_in", **changes}
    make_updater = functools.partial(core.create_updater_from_config, **settings)

    def trained(updater: core.BaseUpdater, tree: Any, apply: Any) -> Any:
        optimizer = updater.wrap_optax(optax.sgd(0.01, momentum=0.9))  # Adam would blow up the rounding of 0

        def step(carried: Any, _: None) -> Any:
            tree, state = carried
            grads = jax.grad(lambda tree: jnp.sum((apply(tree, inputs) - 1.0) ** 2))(tree)
            updates, state = optimizer.update(grads, state, tree)
            return (optax.apply_updates(tree, updates), state), None

        return jax.jit(lambda tree: jax.lax.scan(step, (tree, optimizer.init(tree)), None, 4)[0][0])(tree)

    def of_flat(flat: Any, x: jax.Array) -> jax.Array:
        # The transpose of what only moves numbers is its inverse.
        undo = [jax.linear_transpose(functools.partial(flattened, name), leaf) for name, leaf in named]
        return apply(treedef.unflatten([move(flat[name])[0] for move, (name, _) in zip(undo, named, strict=True)]), x)

    named = list(zip(layers, leaves, strict=True))
    flat = {name: flattened(name, leaf) for name, leaf in named}
    with jax.numpy_rank_promotion("allow"):
        after = trained(make_updater(layers=layers), params, apply)
        expected = trained(make_updater(), flat, of_flat)
    for name, leaf in zip(layers, jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(flattened(name, leaf), expected[name], rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(flattened(name, leaf) == 0, expected[name] == 0)
        assert expected[name].ndim < 2 or 0.3 < np.mean(leaf == 0) < 0.9
