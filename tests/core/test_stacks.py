"""Stacks of layers and attention heads: pruned as the same layers unrolled, and as the same kernels flattened."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.core.selection.structured_topk import MaskRule
from tests import reference
from tests.contract.rows import make_updater
from tests.quick import quick_jit, thorough

SCALES = (1e-3, 0.01, 0.1, 0.3, 1, 2, 3, 4)
LAYERS, WIDTH = len(SCALES), 8
THOROUGH = ("wanda", "srigl", "saliency", "saliency 2x2", "granet", "soft_topk_ste", "gradual_rigl")
STACKED = {
    "blocks/kernel": core.Axes(stack=0, inputs=1, outputs=2),
    "blocks/bias": core.Axes(stack=0, elementwise=1),
    "head": core.Axes(inputs=0, outputs=1),
}


def stacked_params() -> Any:
    draw = np.random.default_rng(0)
    kernel = np.stack([draw.normal(size=(WIDTH, WIDTH)) * scale for scale in SCALES])
    params = {"blocks": {"kernel": kernel, "bias": np.ones((LAYERS, WIDTH))}, "head": draw.normal(size=(WIDTH, 5))}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def unrolled(tree: Any) -> Any:
    """A tree of stacks with a list of layers in place of each."""
    apart = lambda leaf: list(leaf) if hasattr(leaf, "shape") else [leaf] * LAYERS  # noqa: E731
    is_leaf = lambda node: not isinstance(node, dict)  # noqa: E731
    return {**tree, "blocks": jax.tree.map(apart, tree["blocks"], is_leaf=is_leaf)}


def described(params: Any, rules: dict[str, core.Axes]) -> core.Layers:
    return core.describe_layers(params, list(rules.items()))


def trained(updater: core.BaseUpdater, params: Any, start: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
    """Masks and parameters after six steps from given first masks."""
    tx = updater.wrap_optax(optax.adam(0.01))
    state = tx.init(params)
    if not updater.starts_dense and not updater.keeps_dense_weights:
        state = updater.with_masks(state, params, start)

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        grads = jax.tree.map(lambda p: jnp.sin(7 * p) + p, params)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = quick_jit(step)
    for _ in range(6):
        params, state = step(params, state)
    return core.unpack_masks(params, state.masks), params


@pytest.mark.parametrize(
    "row",
    [
        *("magnitude erk", "rigl 2:4"),
        *map(thorough, THOROUGH),
    ],
)
def test_a_stack_is_trained_as_its_layers_unrolled(row: str) -> None:
    params = stacked_params()
    alone = make_updater(row)
    together = dataclasses.replace(alone, layers=described(params, STACKED))
    seen = {"blocks": {"kernel": jnp.arange(1.0, 1 + LAYERS * WIDTH).reshape(LAYERS, -1), "bias": None}}
    seen |= {"head": jnp.arange(1.0, 1 + WIDTH)}
    start = core.unpack_masks(params, together.init_state(params).masks)
    masks, end = trained(together, params, start, {"activations": seen})
    others = trained(alone, unrolled(params), unrolled(start), {"activations": unrolled(seen)})
    jax.tree.map(np.testing.assert_array_equal, (unrolled(masks), unrolled(end)), others)


def test_layers_of_other_scales_each_keep_their_own_exact_count() -> None:
    params = {"blocks": stacked_params()["blocks"]}
    layers = described(params, {path: axes for path, axes in STACKED.items() if "blocks" in path})
    updater = core.create_updater_from_config(algorithm="magnitude", sparsity=0.9, layers=layers)
    _, masks = updater.instant_sparsify(params)
    expected = [reference.top_k(abs(np.asarray(layer)), 6) for layer in params["blocks"]["kernel"]]
    np.testing.assert_array_equal(masks["blocks"]["kernel"], expected)
    assert masks["blocks"]["bias"] == core.NOT_PRUNED
    _, unstacked = dataclasses.replace(updater, layers=None).instant_sparsify(params)
    assert int(unstacked["blocks"]["kernel"][0].sum()) == 0  # what no longer happens


def test_plans_summaries_and_erk_list_the_layers_of_a_stack() -> None:
    params = stacked_params()
    updater = dataclasses.replace(make_updater("magnitude erk"), layers=described(params, STACKED))
    lines = core.describe_plan(updater, params).splitlines()[2:]
    of_lists = described(
        unrolled(params),
        {"blocks/kernel/.*": core.Axes(inputs=0, outputs=1), "blocks/bias/.*": core.Axes(elementwise=0)}
        | {"head": core.Axes(inputs=0, outputs=1)},
    )
    other = dataclasses.replace(updater, layers=of_lists)
    assert lines == core.describe_plan(other, unrolled(params)).splitlines()[2:]
    assert lines[0].split() == ["blocks/bias/0", "(8,)", "elementwise", "8", "dense", "8", "of", "8"]
    sparse, masks = updater.instant_sparsify(params)
    summary = core.summarize_sparsity(sparse, layers=updater.layers)
    by_layer = core.summarize_sparsity(unrolled(sparse))
    assert {name: float(value) for name, value in summary.items()} == {
        name: pytest.approx(float(value)) for name, value in by_layer.items()
    }
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
    assert kept == round(0.25 * (LAYERS * WIDTH**2 + WIDTH * 5))


HEADS = {
    "query": core.Axes(inputs=0, outputs=(1, 2), heads=1),
    "out": core.Axes(inputs=(0, 1), outputs=2, heads=0),
    "bias": core.Axes(elementwise=(0, 1)),
}
SHAPES = {"query": (12, 3, 4), "out": (3, 4, 8), "bias": (3, 4)}
FLAT = {"query": (12, 12), "out": (12, 8), "bias": (12,)}


def attention() -> Any:
    draw = np.random.default_rng(1)
    return {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def flat(tree: Any) -> Any:
    return {name: leaf.reshape(FLAT[name]) if hasattr(leaf, "shape") else leaf for name, leaf in tree.items()}


@pytest.mark.parametrize("row", ["magnitude 2:4", *map(thorough, ("srigl", "magnitude channel", "wanda"))])
def test_kernels_with_heads_are_pruned_as_the_same_kernels_flattened(row: str) -> None:
    params = attention()
    structure = core.Channel() if "channel" in row else make_updater(row).sparsity_type
    alone = dataclasses.replace(make_updater(row), sparsity_type=structure)
    together = dataclasses.replace(alone, layers=described(params, HEADS))
    seen = {"query": jnp.arange(1.0, 13), "out": jnp.arange(1.0, 13).reshape(3, 4), "bias": None}
    start = core.unpack_masks(params, together.init_state(params).masks)
    masks, end = trained(together, params, start, {"activations": seen})
    others = trained(alone, flat(params), flat(start), {"activations": {**seen, "out": jnp.arange(1.0, 13)}})
    jax.tree.map(np.testing.assert_array_equal, (flat(masks), flat(end)), others)


def test_heads_are_kept_whole_if_asked() -> None:
    params = attention()
    layers = described(params, HEADS)
    updater = core.create_updater_from_config(
        algorithm="magnitude", sparsity=0.34, sparsity_type="heads", layers=layers, rules=[("out", None)]
    )
    query = np.asarray(updater.instant_sparsify(params)[1]["query"])
    strength = np.abs(np.asarray(params["query"])).sum((0, 2))
    assert query.any((0, 2)).tolist() == query.all((0, 2)).tolist() == (strength > strength.min()).tolist()


def test_weights_are_scaled_to_the_inputs_that_each_output_of_each_layer_keeps() -> None:
    params, stack = attention(), stacked_params()
    masks = jax.tree.map(lambda leaf: (leaf > 0).astype(jnp.uint8), (params, stack))
    scaled = core.rescale_to_fan_in(params, masks[0] | {"bias": core.NOT_PRUNED}, layers=described(params, HEADS))
    by_hand = core.rescale_to_fan_in(flat(params), flat(masks[0]) | {"bias": core.NOT_PRUNED})
    jax.tree.map(np.testing.assert_array_equal, flat(scaled), by_hand)
    scaled = core.rescale_to_fan_in(stack, masks[1], layers=described(stack, STACKED))
    np.testing.assert_array_equal(
        scaled["blocks"]["kernel"][1],
        core.rescale_to_fan_in(stack["blocks"]["kernel"][1], masks[1]["blocks"]["kernel"][1]),
    )


@pytest.mark.parametrize(
    "structure", [core.NByM(2, 4), core.Channel(), core.ConstantFanIn(), core.Block((2, 2)), core.Channel(None, True)]
)
@pytest.mark.parametrize("shape", [(3, 4, 5), (40, 8, 8, 8), (2, 2, 2, 2, 2)])
def test_a_structure_on_axes_that_nobody_told_names_the_ways_out(structure: Any, shape: tuple[int, ...]) -> None:
    updater = core.MagnitudePruning(
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5), sparsity_type=structure
    )
    for function in (updater.init_state, updater.instant_sparsify):
        with pytest.raises(ValueError, match=r"'w' of shape .*core\.trace_layers\(.*core\.describe_layers\("):
            function({"w": jnp.ones(shape)})


def test_axes_that_are_named_need_no_roles() -> None:
    ones = {"w": jnp.ones((3, 4, 6))}
    for structure in (core.NByM(2, 4, axis=1), core.Channel(-1), core.ConstantFanIn(0), core.Block((1, 2, 2))):
        updater = core.MagnitudePruning(
            sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5), sparsity_type=structure
        )
        assert int(updater.instant_sparsify(ones)[1]["w"].sum()) == 36
    layers = core.describe_layers(ones, [("w", core.Axes(stack=0, inputs=1, outputs=2))])
    with pytest.raises(ValueError, match="runs along axis 0 of 'w', which stacks layers"):
        dataclasses.replace(updater, sparsity_type=core.Channel(0), layers=layers).init_state(ones)


def test_layers_of_another_tree_are_refused() -> None:
    params = stacked_params()
    updater = dataclasses.replace(make_updater("magnitude"), layers=described(params, STACKED))
    with pytest.raises(ValueError, match="do not know parameter 'params/blocks/bias'"):
        updater.init_state({"params": params})
    with pytest.raises(ValueError, match=r"'head' has shape \(8, 4\), and the layers say \(8, 5\)"):
        updater.init_state(params | {"head": params["head"][:, :4]})
    with pytest.raises(TypeError, match="layers is a dict"):
        dataclasses.replace(updater, layers=dict(updater.layers))
    with pytest.raises(TypeError, match="by which layers choose"):
        updater.topk_fn(params["head"], 0.5)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_stack_may_hold_one_layer_or_none(layers: int) -> None:
    params = {"w": jnp.ones((4, layers, 4)), "head": jnp.ones((4, 4))}
    rules = {"w": core.Axes(inputs=0, stack=1, outputs=2), "head": core.Axes(inputs=0, outputs=1)}
    updater = dataclasses.replace(make_updater("magnitude erk"), layers=described(params, rules))
    assert int(updater.instant_sparsify(params)[1]["w"].sum()) == 4 * layers
    assert core.describe_plan(updater, params).count("w/") == layers


SIZES = {"stack": 2, "space": 3, "inputs": 4, "heads": 2, "outputs": 3}
STRUCTURES = [core.NByM(1, 2), core.ConstantFanIn(), core.Channel(), core.Unstructured()]


@settings(max_examples=12)
@given(st.permutations(list(SIZES)), st.sampled_from(STRUCTURES), st.integers(0, 99))
def test_any_order_of_axes_gives_the_masks_of_the_matrices(order: list[str], structure: Any, seed: int) -> None:
    """Masks, ties included, are those that NumPy makes of each layer as [window, inputs, outputs]."""
    scores = np.random.default_rng(seed).integers(0, 5, [SIZES[name] for name in order]).astype(np.float32)
    of_role = {role: order.index(role) for role in ("stack", "space", "inputs")}
    axes = core.Axes(**of_role, outputs=(order.index("heads"), order.index("outputs"))).of("w", scores.shape)
    create_mask = MaskRule(structure, scores.shape, axes, "w").create_mask
    mask = np.asarray(quick_jit(lambda scores: create_mask(scores, 0.5))(scores))
    outputs = sorted(["heads", "outputs"], key=order.index)
    as_stored = [name for name in order if name != "stack"]
    for layer, layer_mask in zip(
        np.moveaxis(scores, of_role["stack"], 0), np.moveaxis(mask, of_role["stack"], 0), strict=True
    ):
        expected = layer
        if not isinstance(structure, core.Unstructured):
            to_matrix = [as_stored.index(name) for name in ("space", "inputs", *outputs)]
            expected, layer_mask = (array.transpose(to_matrix).reshape(3, 4, 6) for array in (layer, layer_mask))
        if isinstance(structure, core.NByM):
            expected = reference.n_by_m(expected, 1, 2, -2)
        elif isinstance(structure, core.ConstantFanIn):
            expected = reference.constant_fan_in(expected, -1, 0.5)
        elif isinstance(structure, core.Channel):
            expected = reference.channel(expected, -1, 3)
        else:  # ties go by the order in which entries are stored
            expected = reference.top_k(expected, 36)
        np.testing.assert_array_equal(layer_mask, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_masks_of_a_checkpoint_that_prune_channels_in_part_are_ranked_by_what_is_left(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.standard_normal((3, 16, 8)) + 0.3 * np.arange(8), dtype)
    kept = rng.random(weights.shape) < 0.7
    kept[..., :3] = False
    tx = core.sparsify(
        optax.sgd(0.0),
        "magnitude",
        sparsity=0.5,
        structure=core.Channel(),
        scheduler=core.OneShotSchedule(0),
        layers=core.describe_layers({"w": weights}, [("w", core.Axes(stack=0, inputs=1, outputs=2))]),
    )
    updater, params = core.updater_of(tx), {"w": weights}
    state = updater.with_masks(tx.init(params), params, {"w": jnp.asarray(kept, jnp.uint8)})
    params = updater.pre_forward_update(params, state)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
    mask = core.unpack_masks(params, state.masks)["w"]
    for layer, left, new in zip(np.abs(np.asarray(weights, np.float64)), kept, mask, strict=True):
        best = np.argsort(-(layer * left).sum(0))[:4]
        np.testing.assert_array_equal(new, np.broadcast_to(np.isin(np.arange(8), best), new.shape))
