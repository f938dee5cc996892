"""Channel groups as a structure: what is pruned can leave, in as many channels as were asked for."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings

from sparse_plugins import core
from sparse_plugins.core.selection.structured_topk import kept_units
from tests.core.test_layers import networks
from tests.quick import quick_jit, thorough

KEY = jax.random.key(0)
UNIFORM = functools.partial(core.uniform, sparsity=0.5)
THOROUGH = ("rigl", "set", "gradual_set", "random_ste")


def perceptron() -> tuple[Any, Any]:
    """Two hidden layers with biases; the channels of each are a group."""
    shapes = {"a": (5, 8), "a_bias": (8,), "b": (8, 6), "b_bias": (6,), "head": (6, 2)}
    draw = np.random.default_rng(0)
    params = {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(x @ params["a"] + params["a_bias"][None])
        return jnp.tanh(x @ params["b"] + params["b_bias"][None]) @ params["head"]

    return apply, params


@functools.cache
def perceptron_graph() -> core.ChannelGraph:
    apply, params = perceptron()
    return core.channel_graph(apply, params, jnp.ones((3, 5)))


def magnitude(structure: Any, distribution: Any = UNIFORM) -> core.MagnitudePruning:
    return core.MagnitudePruning(sparsity_type=structure, sparsity_distribution_fn=distribution)


def pruned(updater: core.BaseUpdater, params: Any) -> Any:
    """The masks at the target."""
    return quick_jit(updater.instant_sparsify)(params)[1]


def whole(graph: core.ChannelGraph, masks: Any) -> dict[str, int]:
    """How many channels each group keeps; fails where a maker keeps part of one, or another than the others."""
    leaves = jax.tree.structure(graph.params).flatten_up_to(masks)
    kept: dict[str, set[int]] = {}
    for name, group in graph.groups.items():
        for member in group.members:
            if member.makes and jax.tree.leaves(leaves[member.leaf]):
                along = np.moveaxis(np.asarray(leaves[member.leaf]) != 0, member.axis, 0)
                alive = {c for c in range(group.size) if along[member.labels == c].any()}
                assert kept.setdefault(name, alive) == alive, (name, member.path)
    return {name: len(channels) for name, channels in kept.items()}


def test_channels_are_ranked_by_all_that_makes_them() -> None:
    _, params = perceptron()
    masks = pruned(magnitude(core.ChannelGroups(perceptron_graph())), params)
    for layer, count in (("a", 4), ("b", 3)):
        weights, bias = np.asarray(params[layer]), np.asarray(params[f"{layer}_bias"])
        order = np.argsort(-(np.abs(weights).sum(0) + np.abs(bias)), kind="stable")
        expected = np.isin(np.arange(len(bias)), order[:count])
        np.testing.assert_array_equal(masks[f"{layer}_bias"], expected)
        np.testing.assert_array_equal(masks[layer], np.broadcast_to(expected, weights.shape))
    assert not jax.tree.leaves(masks["head"])


@pytest.mark.parametrize(
    ("size", "multiple", "sparsity", "expected"),
    [(8, 4, 0.5, 4), (8, 4, 0.4, 8), (6, 4, 0.5, 4), (6, 4, 0.2, 6), (8, 4, 0.99, 4), (8, 4, 1.0, 0)],
)
def test_a_multiple_of_channels_stays(size: int, multiple: int, sparsity: float, expected: int) -> None:
    structure = core.ChannelGroups(perceptron_graph(), multiple_of=multiple)
    assert kept_units(structure, (size,), sparsity) == expected
    assert int(kept_units(structure, (size,), jnp.float32(sparsity))) == expected
    np.testing.assert_array_equal(kept_units(structure, (size,), np.array([sparsity])), [expected])


def test_other_layers_have_other_structures() -> None:
    _, params = perceptron()
    groups = core.ChannelGroups(perceptron_graph())
    updater = magnitude(core.ByPath([("a", groups), ("head", core.NByM(1, 2))]))
    masks = pruned(updater, params)
    assert [int(masks[name].sum()) for name in ("a", "a_bias", "b", "head")] == [20, 4, 24, 6]
    assert (masks["b"].sum(0) != 8).any()
    assert not jax.tree.leaves(masks["b_bias"])


def test_groups_take_the_mean_of_their_layers_and_stay_whole_beside_a_dense_one() -> None:
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((4, 8)), "c": jnp.ones((8, 6)), "d": jnp.ones((6, 2))}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ params["a"] + x @ params["b"]) @ params["c"]) @ params["d"]

    groups = core.ChannelGroups(core.channel_graph(apply, params, jnp.ones((1, 4))))
    targets = lambda *rules: magnitude(groups, functools.partial(UNIFORM, rules=rules)).target_sparsities(params)  # noqa: E731
    found = targets(("a", 0.25))
    assert (found["a"], found["b"], found["c"]) == (0.375, 0.375, 0.5)
    found = targets(("a", None))
    assert (found["a"], found["b"], found["c"], found["d"]) == (core.NOT_PRUNED, core.NOT_PRUNED, 0.5, core.NOT_PRUNED)


@pytest.mark.parametrize("algorithm", ["magnitude", *map(thorough, THOROUGH)])
def test_what_training_prunes_can_leave(algorithm: str) -> None:
    apply, params = perceptron()
    x = jax.random.normal(KEY, (3, 5))
    structure = core.ChannelGroups(perceptron_graph(), multiple_of=2)
    tx = core.sparsify(optax.adam(0.1), algorithm, sparsity=0.5, total_steps=8, structure=structure, update_freq=2)
    state = tx.init(params)
    loss = lambda params: jnp.mean((apply(params, x) - 1) ** 2)  # noqa: E731

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    step, before = quick_jit(step), None
    for _ in range(8):
        before = before or core.unpack_masks(params, core.find_sparse_state(state).masks)
        params, state = step(params, state)
    masks = core.unpack_masks(params, core.find_sparse_state(state).masks)
    assert whole(perceptron_graph(), masks) == {"a": 4, "b": 4}
    assert algorithm == "rigl" or (before["a"] != masks["a"]).any()
    small = core.shrink(perceptron_graph(), params, masks, opt_state=state)
    shapes = {name: leaf.shape for name, leaf in small.params.items()}
    assert shapes == {"a": (5, 4), "a_bias": (4,), "b": (4, 4), "b_bias": (4,), "head": (4, 2)}
    updates, _ = small.updater.wrap_optax(optax.adam(0.1)).update(small.params, small.opt_state, small.params)
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(updates))


class ResidualWithNorm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        x = nn.relu(x + norm()(nn.Conv(8, (3, 3), use_bias=False)(nn.relu(norm()(nn.Conv(6, (1, 1))(x))))))
        return nn.Dense(3)(x.mean((1, 2)))


class AttentionBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(8)(x)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8)(nn.RMSNorm()(x))
        return nn.Dense(3)((x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.RMSNorm()(x))))).mean(1))


@pytest.mark.thorough
def test_a_residual_network_whose_statistics_nobody_optimizes() -> None:
    x = jax.random.normal(KEY, (2, 6, 6, 2))
    variables = quick_jit(ResidualWithNorm().init)(KEY, x)
    graph = core.channel_graph(ResidualWithNorm().apply, variables, x)
    masks = pruned(magnitude(core.ChannelGroups(graph)), variables["params"])
    masks = {"params": masks, "batch_stats": jax.tree.map(lambda _: core.NOT_PRUNED, variables["batch_stats"])}
    assert sorted(whole(graph, masks).values()) == [3, 4]
    assert int(masks["params"]["BatchNorm_2"]["scale"].sum()) == 3
    small = core.shrink(graph, variables, masks)
    assert small.params["batch_stats"]["BatchNorm_0"]["var"].shape == (4,)


@pytest.mark.thorough
def test_heads_leave_whole_and_keep_half_of_their_entries() -> None:
    x = jax.random.normal(KEY, (2, 3, 5))
    params = quick_jit(AttentionBlock().init)(KEY, x)
    graph = core.channel_graph(AttentionBlock().apply, params, x)
    masks = pruned(magnitude(core.ChannelGroups(graph)), params)
    assert sorted(whole(graph, masks).values()) == [1, 2, 2, 4, 6]
    small = core.shrink(graph, params, masks)
    assert small.params["params"]["MultiHeadDotProductAttention_0"]["value"]["kernel"].shape == (4, 1, 2)


def test_heads_are_pruned_with_wide_integers_as_before_without() -> None:
    draw = np.random.default_rng(0)
    params = {name: draw.normal(size=shape).astype(np.float32) for name, shape in (("q", (5, 12)), ("out", (12, 3)))}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        heads = (x @ params["q"]).reshape(3, 4, 3)
        return (heads * jax.nn.sigmoid(heads.sum(-1, keepdims=True))).reshape(3, 12) @ params["out"]

    structure = core.ChannelGroups(core.channel_graph(apply, params, jnp.ones((3, 5))))
    tx = core.sparsify(optax.sgd(0.1), "magnitude", sparsity=0.5, structure=structure, total_steps=4)
    masks = []
    for is_wide in (False, True):
        with jax.enable_x64(is_wide):
            state = tx.init(params)
            for _ in range(4):
                _, state = quick_jit(tx.update)(params, state, params)
            masks.append(core.unpack_masks(params, state.masks)["q"])
    np.testing.assert_array_equal(*masks)
    assert np.unique(masks[0].reshape(5, 4, 3).any((0, 2)), return_counts=True)[1].tolist() == [2, 2]


def test_the_plan_counts_what_is_kept() -> None:
    _, params = perceptron()
    updater = magnitude(core.ChannelGroups(perceptron_graph()))
    masks = pruned(updater, params)
    text = core.describe_plan(updater, params)
    for name in ("a", "a_bias", "b", "b_bias"):
        assert f"channels of {name[0]}" in text
        assert f"{int(masks[name].sum())} of {masks[name].size}" in text


def test_what_cannot_be_served_is_said() -> None:
    apply, params = perceptron()
    graph = perceptron_graph()
    with pytest.raises(TypeError, match=r"graph is a function; give what core\.channel_graph"):
        core.ChannelGroups(apply)
    with pytest.raises(ValueError, match="multiple_of is 0"):
        core.ChannelGroups(graph, multiple_of=0)
    lone = core.channel_graph(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"no channels can leave(.|\n)*w\[0\], because of an input"):
        core.ChannelGroups(lone)
    groups = core.ChannelGroups(graph)
    with pytest.raises(ValueError, match="topk_fn ranks one array by itself"):
        core.MagnitudePruning(sparsity_type=groups, topk_fn=lambda scores, sparsity: scores)
    updater = magnitude(groups)
    with pytest.raises(ValueError, match="the graph is of other parameters"):
        updater.init_state({"other": jnp.ones((3, 4))})
    with pytest.raises(ValueError, match=r"'a' of shape \(5, 8\), and parameter 'a' has shape \(5, 9\)"):
        updater.init_state(params | {"a": jnp.ones((5, 9))})
    with pytest.raises(ValueError, match="made by a_bias as well, which this optimizer does not see"):
        updater.init_state({name: leaf for name, leaf in params.items() if name != "a_bias"})


def test_layers_of_a_group_have_one_structure() -> None:
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((4, 8)), "c": jnp.ones((8, 2))}
    apply = lambda p, x: jnp.tanh(x @ p["a"] + x @ p["b"]) @ p["c"]  # noqa: E731
    groups = core.ChannelGroups(core.channel_graph(apply, params, jnp.ones((1, 4))))
    with pytest.raises(ValueError, match="need the same structure, and they have"):
        magnitude(core.ByPath([("a", groups)])).init_state(params)


def test_a_graph_of_one_part_of_the_parameters() -> None:
    _, params = perceptron()
    both = {"actor": params, "critic": jax.tree.map(jnp.ones_like, params)}
    structure = core.ByPath([("actor/.*", core.ChannelGroups(perceptron_graph()))])
    masks = pruned(magnitude(structure), both)
    assert whole(perceptron_graph(), masks["actor"]) == {"a": 4, "b": 3}
    assert int(masks["critic"]["head"].sum()) == 6


@pytest.mark.thorough
def test_modules_with_channel_groups_and_with_single_weights_train_and_shrink_together() -> None:
    apply, params = perceptron()
    both = {"actor": params, "critic": jax.tree.map(lambda p: p[..., ::-1], params)}
    x = jax.random.normal(KEY, (3, 5))
    outputs = lambda params, x: jnp.stack([apply(params["actor"], x), apply(params["critic"], x)])  # noqa: E731
    quarter = functools.partial(core.uniform, sparsity=0.25, rules=[("critic/head", None)])
    groups = core.MagnitudePruning(
        sparsity_type=core.ChannelGroups(perceptron_graph()),
        sparsity_distribution_fn=UNIFORM,
        scheduler=core.OneShotSchedule(1),
    )
    single = core.SET(sparsity_distribution_fn=quarter, scheduler=core.PeriodicSchedule(2, 1, 3))
    updater = core.PerModule([("actor/.*", groups), ("critic/.*", single)])
    tx = updater.wrap_optax(optax.adam(0.01))
    both, state = core.start(tx, both)

    @quick_jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.grad(lambda params: jnp.mean((outputs(params, x) - 1) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(4):
        both, state = step(both, state)
    masks = core.unpack_masks(both, core.find_sparse_state(state).masks)
    assert whole(perceptron_graph(), masks["actor"]) == {"a": 4, "b": 3}
    assert int(masks["critic"]["a"].sum()) == 30
    assert not jax.tree.leaves(masks["critic"]["a_bias"])
    small = core.shrink(core.channel_graph(outputs, both, x), both, masks, opt_state=state)
    shapes = [{name: leaf.shape for name, leaf in small.params[part].items()} for part in ("actor", "critic")]
    assert shapes[0] == {"a": (5, 4), "a_bias": (4,), "b": (4, 3), "b_bias": (3,), "head": (3, 2)}
    assert shapes[1] == {name: leaf.shape for name, leaf in params.items()}
    np.testing.assert_allclose(outputs(both, x), small.apply(small.params, x), atol=1e-5)
    updates, _ = small.updater.wrap_optax(optax.adam(0.01)).update(small.params, small.opt_state, small.params)
    kept = jnp.count_nonzero(updates["critic"]["a"])
    assert int(kept) == 30


@pytest.mark.thorough
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks())
def test_masks_of_random_networks_are_whole(network: Any) -> None:
    apply, params, _, x = network
    with jax.numpy_rank_promotion("allow"):
        graph = core.channel_graph(apply, params, x)
    if not graph.groups:
        return
    everything = functools.partial(UNIFORM, filter_fn=lambda name, leaf: True)
    masks = pruned(magnitude(core.ChannelGroups(graph), everything), params)
    made = {name for name, group in graph.groups.items() if any(member.makes for member in group.members)}
    kept = whole(graph, masks)
    assert kept == {name: max(1, round(graph.groups[name].size * 0.5)) for name in made}


@pytest.mark.parametrize("algorithm", ["magnitude", "rigl"])
def test_a_layer_that_a_rule_leaves_dense_keeps_its_channels(algorithm: str) -> None:
    draw = np.random.default_rng(0).normal
    params = {
        name: draw(size=shape).astype(np.float32) for name, shape in (("a", (5, 8)), ("c", (8, 8)), ("b", (8, 3)))
    }
    params["bias"] = draw(size=8).astype(np.float32)

    def apply(p: Any, x: Any) -> Any:
        return jnp.tanh(jnp.tanh(x @ p["a"] + p["bias"][None]) @ p["c"]) @ p["b"]

    graph = core.channel_graph(apply, params, np.ones((2, 5), np.float32))
    words = {"structure": core.ChannelGroups(graph), "distribution": "uniform", "sparsity": 0.5}
    schedule = {"update_start_step": 1, "update_end_step": 3, "update_freq": 2}
    tx = core.sparsify(optax.sgd(0.1), algorithm, rules=[("a", None)], **words, **schedule)
    params, state = core.start(tx, params)
    update = quick_jit(tx.update)
    for _ in range(4):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    kept = {name: np.asarray(leaf) != 0 for name, leaf in params.items()}
    assert kept["a"].all()
    assert kept["bias"].all()
    assert sorted(kept["c"].all(axis=0)) == 4 * [False] + 4 * [True]
    assert (kept["c"].any(axis=0) == kept["c"].all(axis=0)).all()
