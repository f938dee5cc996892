"""Channels that leave: the smaller network computes what the masked one does, gradients and all."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings

from sparse_plugins import core
from tests.core.test_layers import networks
from tests.quick import quick_jit, thorough

KEY = jax.random.key(0)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(autouse=True)
def _as_users_write_it() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def whole_masks(graph: core.ChannelGraph, params: Any, part: float = 0.5, seed: int = 0) -> Any:
    """Masks that prune the same channels of a group in all that makes them, drawn at random; one is always kept."""
    draw = np.random.default_rng(seed)
    masks = [np.ones(leaf.shape, np.uint8) for leaf in jax.tree.leaves(params)]
    for group in graph.groups.values():
        gone = draw.permutation(group.size)[: min(group.size - 1, round(group.size * part))]
        for member in group.members:
            if member.makes:
                mask = np.moveaxis(masks[member.leaf], member.axis, 0)
                mask[np.isin(member.labels, gone)] = 0
    return jax.tree.unflatten(jax.tree.structure(params), masks)


def close(tree: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """As a share of the largest entry of all: gradients of some biases are 0 but for rounding."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1e-3, largest), rtol=0)


def initialized(model: nn.Module, x: jax.Array) -> Any:
    """Parameters whose biases matter."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(model.init, KEY, x))
    return jax.tree.unflatten(treedef, [0.3 * drawn(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])


class Nature(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features, size, stride in ((8, 8, 4), (12, 4, 2), (12, 3, 1)):
            x = nn.relu(nn.Conv(features, (size, size), (stride, stride))(x))
        return nn.Dense(5)(nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1))))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        for _ in range(2):
            hidden = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2)(x))
            x = nn.relu(x + nn.Conv(8, (3, 3))(hidden))
        wider = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2)))
        x = nn.relu(wider + nn.Conv(12, (3, 3))(x))
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=12)(x))
        return nn.Dense(3)(nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2)))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(16)(x)
        x = x + nn.MultiHeadDotProductAttention(4)(nn.RMSNorm()(x))
        gate, value = jnp.split(nn.Dense(24)(nn.RMSNorm()(x)), 2, axis=-1)
        return nn.Dense(3)((x + nn.Dense(16)(nn.gelu(gate) * value)).mean(1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = x + nn.MultiHeadDotProductAttention(2)(nn.RMSNorm()(x))
        return x + nn.Dense(8)(nn.silu(nn.Dense(16)(x))), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stack = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack()(nn.Dense(8)(x), None)
        return nn.Dense(3)(x)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.RNN(nn.OptimizedLSTMCell(8))(nn.RNN(nn.GRUCell(6))(x))
        return nn.Dense(3)(jnp.concatenate([x, nn.tanh(nn.Dense(4)(x))], -1))


class Embedded(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(11, 8)
        return embed.attend(nn.RMSNorm()(nn.Dense(8)(nn.relu(nn.Dense(12)(embed(tokens))))))


MODELS = {
    "nature": (Nature(), drawn(2, 44, 44, 4)),
    "residual": (Residual(), drawn(2, 8, 8, 3)),
    "transformer": (Transformer(), drawn(2, 5, 6)),
    "stacked": (Stacked(), drawn(2, 5, 6)),
    "recurrent": (Recurrent(), drawn(2, 5, 6)),
    "embedded": (Embedded(), np.arange(10).reshape(2, 5)),
}
GROUPS = {"nature": 4, "residual": 6, "transformer": 5, "stacked": 5, "recurrent": 3, "embedded": 2}


@pytest.mark.parametrize("name", [name if name == "transformer" else thorough(name) for name in MODELS])
def test_outputs_and_gradients_are_those_of_the_masked_network(name: str) -> None:
    model, x = MODELS[name]
    params = initialized(model, x)
    graph = core.channel_graph(model.apply, params, x)
    assert len(graph.groups) == GROUPS[name], str(graph)
    masks = whole_masks(graph, params)
    small = core.shrink(graph, params, masks)
    masked = core.apply_masks(params, masks)
    assert all(len(left) < graph.groups[group].size for group, left in small.kept.items())

    def loss(apply: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        outputs = apply(params, x)
        return jnp.sum(outputs**2), outputs

    def evaluated(apply: Any, params: Any) -> tuple[Any, Any]:
        step = jax.value_and_grad(functools.partial(loss, apply), has_aux=True)
        (_, outputs), grads = quick_jit(step)(params)
        return outputs, grads

    outputs, dense = evaluated(model.apply, masked)
    smaller_outputs, smaller = evaluated(small.apply, small.params)
    close(outputs, smaller_outputs)
    kept = core.expand(small, jax.tree.map(np.ones_like, small.params))
    close(jax.tree.map(np.multiply, dense, kept), core.expand(small, smaller))


def test_the_smaller_function_is_an_ordinary_one() -> None:
    model, x = MODELS["transformer"]
    params = initialized(model, x)
    graph = core.channel_graph(model.apply, params, x)
    small = core.shrink(graph, params, whole_masks(graph, params))
    dense = quick_jit(model.apply)
    more = drawn(7, 9, 6, seed=1)
    masked = core.expand(small, small.params)
    close(dense(masked, more), quick_jit(small.apply)(small.params, more))
    each = quick_jit(jax.vmap(small.apply, (None, 0)))(small.params, more[:, None])
    close(dense(masked, more), each[:, 0])
    exported = jax.export.export(jax.jit(small.apply))(small.params, x)
    read = jax.export.deserialize(exported.serialize())
    _, scanned = quick_jit(jax.lax.scan, static_argnums=0)(
        lambda params, x: (params, read.call(params, x)), small.params, np.stack([x, 2 * x])
    )
    close(dense(masked, 2 * x), scanned[1])
    again = core.channel_graph(small.apply, small.params, x)
    twice = core.shrink(again, small.params, whole_masks(again, small.params, seed=1))
    inner = core.expand(twice, twice.params)
    close(dense(core.expand(small, inner), x), quick_jit(twice.apply)(twice.params, x))


def test_training_goes_on_with_the_optimizer_that_shrank_along() -> None:
    params = {"a": drawn(6, 8), "b": drawn(8, 3)}
    apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]  # noqa: E731
    x, y = drawn(16, 6), drawn(16, 3)
    updater = core.MagnitudePruning(
        sparsity_type=core.ByPath([("a", core.Channel(axis=1))]),
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5, rules=[("b", None)]),
        scheduler=core.OneShotSchedule(target_step=1),
    )
    tx = updater.wrap_optax(optax.adam(0.1))
    state = tx.init(params)

    @functools.partial(quick_jit, static_argnums=(0, 1))
    def step(tx: Any, apply: Any, params: Any, state: Any) -> tuple[Any, Any]:
        grads = jax.grad(lambda params: jnp.mean((apply(params, x) - y) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(4):
        params, state = step(tx, apply, params, state)
    graph = core.channel_graph(apply, params, x)
    average = jax.tree.map(lambda p: 2 * p, params)
    small = core.shrink(graph, params, core.find_sparse_state(state).masks, opt_state=state, also=[average])
    assert small.params["a"].shape == (6, 4)
    assert small.opt_state.inner_state[0].mu["b"].shape == (4, 3)
    np.testing.assert_array_equal(small.also[0]["a"], 2 * small.params["a"])
    assert float(core.find_sparse_state(small.opt_state).target_sparsities["a"]) == 0
    smaller, small_state = small.params, small.opt_state
    for _ in range(3):
        params, state = step(tx, apply, params, state)
        smaller, small_state = step(tx, small.apply, smaller, small_state)
    left = core.expand(small, jax.tree.map(np.ones_like, small.params))
    close(jax.tree.map(np.multiply, params, left), core.expand(small, smaller), 1e-4)


def two_layers(bias: bool = False) -> tuple[Any, Any, jax.Array]:
    params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))} | ({"bias": jnp.ones(8)} if bias else {})
    return (
        lambda params, x: jax.nn.relu(x @ params["a"] + params.get("bias", 0)) @ params["b"],
        params,
        jnp.ones((4, 3)),
    )


def test_a_bias_that_is_kept_is_named() -> None:
    apply, params, x = two_layers(bias=True)
    graph = core.channel_graph(apply, params, x)
    masks = {"a": jnp.ones((3, 8)).at[:, :4].set(0), "b": core.NOT_PRUNED, "bias": core.NOT_PRUNED}
    with pytest.raises(ValueError, match=r"without the channels of 'a' outputs differ .* \(a, bias\)"):
        core.shrink(graph, params, masks)
    with pytest.raises(ValueError, match=r"only by some of their makers: 4 of 8 of 'a' \(a, bias\).*whole_channels"):
        core.shrink(graph, params, masks | {"bias": jnp.ones(8)})


def test_half_pruned_channels_that_stay_beside_whole_ones_are_told() -> None:
    apply, params, x = two_layers(bias=True)
    graph = core.channel_graph(apply, params, x)
    of_a, of_bias = np.array([0, 0, 1, 1, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1, 1, 1, 1])
    masks = {"a": jnp.ones((3, 8), jnp.uint8) * of_a, "b": core.NOT_PRUNED, "bias": jnp.asarray(of_bias)}
    with pytest.warns(UserWarning, match=r"3 of 8 of 'a' \(a, bias\)\. The nearest .*whole_channels"):
        small = core.shrink(graph, params, masks)
    assert small.half_pruned["a"].tolist() == [1, 2, 4]
    assert str(small) == "a: 7 of 8 channels left, 3 of them half pruned"
    whole = core.whole_channels(graph, params, masks)  # a has three entries of each channel, and the bias one
    assert whole["a"].tolist() == [[0, 0, 1, 1, 0, 1, 1, 1]] * 3
    assert whole["bias"].tolist() == [0, 0, 1, 1, 0, 1, 1, 1]
    again = core.shrink(graph, params, whole)  # and without a warning, which here would be an error
    assert (len(again.kept["a"]), again.half_pruned) == (5, {})
    none_whole = {**masks, "a": jnp.zeros((3, 8)).at[0, 0].set(1), "bias": jnp.ones(8).at[0].set(0)}
    assert core.whole_channels(graph, params, none_whole)["bias"].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_a_network_in_which_nothing_can_leave_and_one_of_other_parameters() -> None:
    params = {"w": jnp.ones((3, 2))}
    graph = core.channel_graph(lambda params, x: x @ params["w"], params, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"whatever is pruned:\nstays: w\[0\], because of an input\nstays: w\[1\]"):
        core.shrink(graph, params, {"w": jnp.ones((3, 2)).at[:, 0].set(0)})
    with pytest.raises(TypeError, match="cannot be traced with these parameters and inputs: 'other'"):
        core.channel_graph(lambda params, x: x @ params["other"], params, jnp.ones((1, 3)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (jnp.ones((3, 8)).at[0].set(0), "masks of single weights leave some of each"),
        (jnp.zeros((3, 8)), "all 8 channels of 'a' are pruned: keep some"),
    ],
    ids=["inputs", "all"],
)
def test_masks_with_which_nothing_can_leave(mask: jax.Array, message: str) -> None:
    apply, params, x = two_layers()
    graph = core.channel_graph(apply, params, x)
    with pytest.raises(ValueError, match=message):
        core.shrink(graph, params, {"a": mask, "b": core.NOT_PRUNED})


def test_a_sigmoid_and_an_own_derivative_are_refused() -> None:
    params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
    masks = {"a": jnp.ones((3, 8)).at[:, :4].set(0), "b": core.NOT_PRUNED}
    graph = core.channel_graph(lambda p, x: jax.nn.sigmoid(x @ p["a"]) @ p["b"], params, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"stays: a\[1\], because of a sum over what is not 0"):
        core.shrink(graph, params, masks)

    @jax.custom_vjp
    def straight(x: jax.Array) -> jax.Array:
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    graph = core.channel_graph(lambda p, x: straight(x @ p["a"]) @ p["b"], params, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="its own derivative is written for all of them"):
        core.shrink(graph, params, masks)


def test_other_parameters_and_optimizers_that_hold_something_else() -> None:
    apply, params, x = two_layers()
    graph = core.channel_graph(apply, params, x)
    with pytest.raises(ValueError, match="other shapes than those of the graph"):
        core.shrink(graph, {"a": jnp.ones((3, 9)), "b": jnp.ones((9, 2))}, params)
    with pytest.raises(ValueError, match="different tree structures"):
        core.shrink(graph, {"a": jnp.ones((3, 8))}, {"a": jnp.ones((3, 8))})
    masks = {"a": jnp.ones((3, 8)).at[:, :4].set(0), "b": core.NOT_PRUNED}
    rows = optax.scale_by_factored_rms(min_dim_size_to_factor=2).init(params)
    with pytest.raises(ValueError, match="Start a new optimizer state"):
        core.shrink(graph, params, masks, opt_state=rows)


def test_inputs_that_the_network_refuses_and_parameters_that_are_one_array() -> None:
    apply, params, x = two_layers()
    with pytest.raises(TypeError, match="dot_general"):
        core.channel_graph(apply, params, jnp.ones((4, 5)))
    square = jnp.asarray(drawn(3, 3))
    twice = {"a": square, "b": square}  # one buffer under two names: its channels leave each as its group says
    graph = core.channel_graph(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], twice, x)
    small = core.shrink(graph, twice, {"a": jnp.ones((3, 3)).at[:, 1].set(0), "b": core.NOT_PRUNED})
    np.testing.assert_array_equal(small.params["a"], square[:, np.array([0, 2])])
    np.testing.assert_array_equal(small.params["b"], square[np.array([0, 2])])
    np.testing.assert_array_equal(twice["a"], square)


def test_what_stays_says_why() -> None:
    params = {"a": jnp.ones((4, 6)), "sorted": jnp.ones((6, 6)), "b": jnp.ones((6, 2))}
    apply = lambda p, x: jnp.sort(jax.nn.relu(x @ p["a"]) @ p["sorted"]) @ p["b"]  # noqa: E731
    graph = core.channel_graph(apply, params, jnp.ones((1, 4)))
    assert list(graph.groups) == ["a"]
    assert graph.stays["a", 0] == "an input"
    assert graph.stays["b", 1] == "an output"
    assert "a sort" in graph.stays["sorted", 1]
    assert "a: 6 channels of a[1], sorted[0]" in str(graph)


@pytest.mark.thorough
def test_running_statistics_shrink_along() -> None:
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3), use_bias=False)(x))
            return nn.Dense(3)(nn.max_pool(nn.relu(x), (2, 2), (2, 2)).reshape(x.shape[0], -1))

    x = drawn(2, 6, 6, 2)
    variables = Normalized().init(KEY, x)
    graph = core.channel_graph(Normalized().apply, variables, x)
    masks = whole_masks(graph, variables)
    masks["batch_stats"] = jax.tree.map(lambda _: core.NOT_PRUNED, masks["batch_stats"])
    small = core.shrink(graph, variables, masks)
    assert small.params["batch_stats"]["BatchNorm_0"]["var"].shape == (4,)
    close(Normalized().apply(core.apply_masks(variables, masks), x), small.apply(small.params, x))
    params = jax.tree.map(lambda p: p + 1.0, variables["params"])
    masks["params"]["BatchNorm_0"]["bias"] = core.NOT_PRUNED
    with pytest.raises(ValueError, match="statistics, sigmoid or softmax"):
        core.shrink(graph, {**variables, "params": params}, masks)


def test_a_derivative_of_its_own_is_kept() -> None:
    """At 0 relu's is 0; of the maximum that it is made of it would be a half."""
    params = {"a": jnp.ones((2, 4)), "bias": jnp.zeros(4), "b": jnp.ones((4, 1))}
    apply = lambda params, x: jax.nn.relu(x @ params["a"] + params["bias"]) @ params["b"]  # noqa: E731
    graph = core.channel_graph(apply, params, jnp.ones((1, 2)))
    small = core.shrink(graph, params, core.channel_masks(graph, params, 0.5))
    grads = jax.grad(lambda params: small.apply(params, jnp.zeros((3, 2))).sum())(small.params)
    assert grads["bias"].tolist() == [0.0, 0.0]


def test_half_precision_is_compared_as_it_rounds() -> None:
    """Channels leave sums, which half precision rounds in another order; a kept bias is more than that."""
    params = {"a": drawn(64, 128), "b": drawn(128, 3), "bias": jnp.ones(128)}
    x = jax.random.normal(KEY, (8, 64), jnp.bfloat16)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        return jnp.tanh(x @ half["a"] + half["bias"]) @ half["b"]

    graph = core.channel_graph(apply, params, x)
    masks = core.channel_masks(graph, params, 0.5)
    small = core.shrink(graph, params, masks)
    assert (small.params["a"].dtype, small.params["a"].shape) == (jnp.float32, (64, 64))
    with pytest.raises(ValueError, match="outputs differ"):
        core.shrink(graph, params, masks | {"bias": core.NOT_PRUNED})


@pytest.mark.thorough
def test_statistics_of_training_come_back_smaller() -> None:
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.BatchNorm(use_running_average=False, momentum=0.9)(nn.Dense(8)(x))
            return nn.Dense(3)(nn.relu(x))

    x = drawn(16, 5)
    variables = Normalized().init(KEY, x)
    train = lambda variables, x: Normalized().apply(variables, x, mutable=["batch_stats"])  # noqa: E731
    graph = core.channel_graph(train, variables, x)
    masks = core.channel_masks(graph, variables, 0.5)
    masks["batch_stats"] = jax.tree.map(lambda _: core.NOT_PRUNED, variables["batch_stats"])
    small = core.shrink(graph, variables, masks)
    outputs, statistics = train(core.apply_masks(variables, masks), x)
    smaller_outputs, smaller = small.apply(small.params, x)
    close(outputs, smaller_outputs)
    (left,) = small.kept.values()
    for name in ("mean", "var"):
        of = lambda found, name=name: found["batch_stats"]["BatchNorm_0"][name]  # noqa: E731
        close(of(statistics)[left], of(smaller))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.Dropout(0.5, deterministic=False)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(nn.Dropout(0.3, deterministic=False)(nn.relu(nn.Dense(10)(x))))


@pytest.mark.thorough
def test_dropout_draws_for_what_is_left_what_it_drew_for_it_among_all() -> None:
    model, x = Dropped(), drawn(4, 8, 8, 2)
    params = model.init({"params": KEY, "dropout": KEY}, x)
    train = lambda params, x, key: model.apply(params, x, rngs={"dropout": key})  # noqa: E731
    graph = core.channel_graph(train, params, x, KEY)
    assert [group.size for group in graph.groups.values()] == [6, 10]
    small = core.shrink(graph, params, core.channel_masks(graph, params, 0.5))
    other = jax.random.key(8)
    close(train(core.expand(small, small.params), x, other), small.apply(small.params, x, other))
    assert not np.allclose(small.apply(small.params, x, KEY), small.apply(small.params, x, other))


@pytest.mark.thorough
def test_a_gradient_shrinks_as_the_function_does() -> None:
    """Whoever has nothing but a function that returns gradients, as in FedJAX, shrinks that."""

    def loss(params: Any, images: jax.Array, rows: jax.Array, key: jax.Array) -> jax.Array:
        logits = Dropped().apply(params["images"], images, rngs={"dropout": key})
        return jnp.sum(jnp.tanh(params["table"][rows]) @ params["head"] * logits)

    images, rows = drawn(4, 8, 8, 2), jnp.array([1, 0, 4, 4])
    params = {
        "images": Dropped().init({"params": KEY, "dropout": KEY}, images),
        "table": drawn(5, 8),
        "head": drawn(8, 3),
    }
    gradient = jax.grad(loss)
    graph = core.channel_graph(gradient, params, images, rows, KEY)
    assert sorted(group.size for group in graph.groups.values()) == [3, 6, 8, 10], str(graph)
    masks = [np.ones(leaf.shape, np.uint8) for leaf in jax.tree.leaves(params)]
    for group in graph.groups.values():
        for member in group.members if group.size > 3 else ():  # the classes of the loss are a group, too
            np.moveaxis(masks[member.leaf], member.axis, 0)[member.labels >= group.size // 2] = 0
    small = core.shrink(graph, params, jax.tree.unflatten(jax.tree.structure(params), masks))
    assert sorted(map(len, small.kept.values())) == [3, 4, 5]
    dense = quick_jit(gradient)(core.expand(small, small.params), images, rows, KEY)
    kept = core.expand(small, jax.tree.map(np.ones_like, small.params))
    smaller = quick_jit(small.apply)(small.params, images, rows, KEY)
    close(jax.tree.map(np.multiply, dense, kept), core.expand(small, smaller))


@pytest.mark.thorough
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks())
def test_random_networks_shrink_or_are_left_alone(network: Any) -> None:
    """What the trace lets go computes the same; sums and means over fewer channels are refused, never wrong."""
    apply, params, _, x = network
    params = {name: drawn(*p.shape, seed=i) for i, (name, p) in enumerate(params.items())}
    x = drawn(*x.shape)
    graph = core.channel_graph(apply, params, x)
    if not graph.groups:
        return
    masks = whole_masks(graph, params)
    small = core.shrink(graph, params, masks, tolerance=np.inf)
    masked = core.apply_masks(params, masks)
    try:
        close(quick_jit(apply)(masked, x), quick_jit(small.apply)(small.params, x), 1e-4)
    except AssertionError:
        with pytest.raises(ValueError, match="outputs differ"):
            core.shrink(graph, params, masks)


def normalized_model() -> tuple[core.ChannelGraph, dict, dict]:
    """A graph, variables with statistics that sort before the parameters, and masks of half of the channels."""
    draw = np.random.default_rng(3).normal
    params = {"a": draw(size=(8, 8)).astype(np.float32), "b": draw(size=(8, 3)).astype(np.float32)}
    variables = {"batch_stats": {"mean": np.zeros(8, np.float32)}, "params": params}

    def apply(v: Any, x: Any) -> Any:
        return jax.nn.relu(x @ v["params"]["a"] - v["batch_stats"]["mean"][None]) @ v["params"]["b"]

    mask = np.ones((8, 8), np.uint8)
    mask[:, 4:] = 0
    masks = {"batch_stats": {"mean": core.NOT_PRUNED}, "params": {"a": mask, "b": core.NOT_PRUNED}}
    return core.channel_graph(apply, variables, np.ones((2, 8), np.float32)), variables, masks


def test_trees_beside_the_parameters_shrink_by_name_or_not_at_all() -> None:
    graph, variables, masks = normalized_model()
    params = variables["params"]
    small = core.shrink(graph, variables, masks, also=[params, variables], optimized="params")
    average, whole = small.also
    np.testing.assert_array_equal(average["a"], params["a"][:, :4])
    np.testing.assert_array_equal(average["b"], params["b"][:4])
    np.testing.assert_array_equal(whole["params"]["a"], params["a"][:, :4])
    with pytest.raises(ValueError, match="laid out otherwise than the parameters: they differ in a, b, batch_stats"):
        core.shrink(graph, variables, masks, also=[params])
    transposed = {**variables, "params": {"a": params["a"], "b": params["b"].T}}
    with pytest.raises(ValueError, match=r"has shape \(3, 8\), and the parameter in its place has \(8, 3\)"):
        core.shrink(graph, variables, masks, also=[transposed])
    broadcast = {**small.params, "params": {**small.params["params"], "a": small.params["params"]["a"][:1]}}
    with pytest.raises(ValueError, match=r"has shape \(1, 4\), and the parameter in its place has \(8, 4\)"):
        core.expand(small, broadcast)


def test_a_shrunk_state_with_single_weights_pruned_is_that_of_its_updater() -> None:
    params = {"a": np.ones((50, 8), np.float32), "b": np.ones((8, 3), np.float32)}
    graph = core.channel_graph(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, np.ones((2, 50), np.float32))
    updater = core.StaticRandomSparse(sparsity_distribution_fn=lambda _: {"a": 0.5, "b": core.NOT_PRUNED})
    state = updater.wrap_optax(optax.sgd(0.1)).init(params)
    for single in range(1, 8):  # shares that float32 rounds
        mask = np.ones((50, 8), np.uint8)
        mask[:, 4:], mask[:single, 0] = 0, 0
        masked = updater.with_masks(state, params, {"a": jnp.asarray(mask), "b": core.NOT_PRUNED})
        small = core.shrink(graph, params, {"a": mask, "b": core.NOT_PRUNED}, opt_state=masked)
        core.check_restored(small.updater, small.params, small.opt_state)
