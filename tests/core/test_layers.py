"""Roles of axes, in the layouts that people use: stacks by scan and vmap, heads, transposed convolutions."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins import core

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _as_users_write_it() -> Iterator[None]:
    """Biases are added without a word about axes."""
    with jax.numpy_rank_promotion("allow"):
        yield


def roles(layers: core.Layers) -> dict[str, str]:
    return {path.removeprefix("params/"): str(layer) for path, layer in layers.items()}


def traced(model: nn.Module, *inputs: Any) -> dict[str, str]:
    variables = jax.eval_shape(model.init, KEY, *inputs)
    return roles(core.trace_layers(model.apply, variables, *inputs))


ATTENTION = {
    **{f"{name}/kernel": "inputs 16, outputs 4 heads, outputs 4" for name in ("query", "key", "value")},
    **{f"{name}/bias": "elementwise 4, elementwise 4" for name in ("query", "key", "value")},
    "out/kernel": "inputs 4 heads, inputs 4, outputs 16",
    "out/bias": "elementwise 16",
}


def test_attention_of_linen_and_nnx_has_heads_in_outputs_and_inputs() -> None:
    x = jnp.ones((2, 5, 16))
    assert traced(nn.MultiHeadDotProductAttention(4), x, x) == ATTENTION
    graph, state = nnx.split(nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0)))
    found = roles(core.trace_layers(lambda state, x: nnx.merge(graph, state)(x), state, x))
    assert found == ATTENTION


def test_attention_of_equinox_has_outputs_first_and_heads_inside_an_axis() -> None:
    module = eqx.nn.MultiheadAttention(2, 8, key=KEY)
    params, static = eqx.partition(module, eqx.is_array)
    found = roles(core.trace_layers(lambda p, x: eqx.combine(p, static)(x, x, x), params, jnp.ones((5, 8))))
    projections = {
        f"{name}_proj/weight": "(outputs 2 heads × outputs 4), inputs 8" for name in ("query", "key", "value")
    }
    assert found == {**projections, "output_proj/weight": "outputs 8, (inputs 2 heads × inputs 4)"}


def test_heads_that_share_keys_and_values() -> None:
    """Eight heads ask two: each of these serves a group."""
    params = {
        "query": jnp.ones((16, 8, 4)),
        "key": jnp.ones((16, 2, 4)),
        "value": jnp.ones((16, 2, 4)),
        "out": jnp.ones((8, 4, 16)),
    }

    def apply(params: Any, x: jax.Array) -> jax.Array:
        query = jnp.einsum("btd,dhk->bthk", x, params["query"]).reshape(*x.shape[:2], 2, 4, 4)
        key, value = (jnp.einsum("btd,dhk->bthk", x, params[name]) for name in ("key", "value"))
        weights = jax.nn.softmax(jnp.einsum("btgrk,bsgk->bgrts", query, key))
        heads = jnp.einsum("bgrts,bsgk->btgrk", weights, value).reshape(*x.shape[:2], 8, 4)
        return jnp.einsum("bthk,hkd->btd", heads, params["out"])

    assert roles(core.trace_layers(apply, params, jnp.ones((2, 5, 16)))) == {
        "key": "inputs 16, outputs 2 heads, outputs 4",
        "value": "inputs 16, outputs 2 heads, outputs 4",
        "query": "inputs 16, (outputs 2 heads × outputs 4), outputs 4",
        "out": "(inputs 2 heads × inputs 4), inputs 4, outputs 16",
    }


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(16)(nn.relu(nn.Dense(32)(x))), None


def test_a_scan_over_blocks_stacks_every_parameter_of_a_block() -> None:
    x = jnp.ones((2, 5, 16))
    block_axes = traced(Block(), x, None)
    for block in (Block, nn.remat(Block)):
        stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        assert traced(stack(), x, None) == {path: f"stack 3, {its}" for path, its in block_axes.items()}
    inside = nn.scan(Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=3)
    assert traced(inside(), x, None)["Dense_0/kernel"] == "inputs 32, stack 3, outputs 16"


class Critic(nn.Module):
    @nn.compact
    def __call__(self, state: jax.Array, action: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(32)(jnp.concatenate([state, action], -1)))
        return nn.Dense(1)(nn.relu(nn.LayerNorm()(nn.Dense(32)(hidden))))[..., 0]


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input each"])
def test_critics_under_vmap_are_a_stack_in_every_layer(shared: bool) -> None:
    inputs = jnp.ones((6, 5)), jnp.ones((6, 3))
    critic = traced(Critic(), *inputs)
    many = nn.vmap(Critic, {"params": 0}, {"params": True}, in_axes=None if shared else 0, axis_size=2)
    given_inputs = inputs if shared else jax.tree.map(lambda x: jnp.stack([x, x]), inputs)
    assert traced(many(), *given_inputs) == {path: f"stack 2, {its}" for path, its in critic.items()}


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(nn.GroupNorm(4)(x)))
        x = nn.max_pool(nn.relu(nn.Conv(12, (3, 3), feature_group_count=4)(x)), (2, 2), (2, 2))
        x = nn.ConvTranspose(6, (3, 3))(x)
        x = nn.ConvTranspose(5, (3, 3), transpose_kernel=True)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


CONVOLUTIONS = {
    "Conv_0/kernel": "space 3, space 3, inputs 2, outputs 8",
    "Conv_1/kernel": "space 3, space 3, inputs 1, outputs 8",
    "Conv_2/kernel": "space 3, space 3, inputs 2, outputs 12",
    "ConvTranspose_0/kernel": "space 3, space 3, inputs 12, outputs 6",
    "ConvTranspose_1/kernel": "space 3, space 3, outputs 5, inputs 6",
    "Dense_0/kernel": "inputs 80, outputs 3",
    **{f"{name}/bias": f"elementwise {size}" for name, size in (("Conv_0", 8), ("Conv_1", 8), ("Conv_2", 12))},
    **{f"{name}/bias": f"elementwise {size}" for name, size in (("ConvTranspose_0", 6), ("ConvTranspose_1", 5))},
    **{f"{name}": "elementwise 8" for name in ("GroupNorm_0/scale", "GroupNorm_0/bias")},
    "Dense_0/bias": "elementwise 3",
}


def test_convolutions_grouped_depthwise_and_transposed() -> None:
    x = jnp.ones((2, 8, 8, 2))
    assert traced(Convolutions(), x) == CONVOLUTIONS
    many = nn.vmap(Convolutions, {"params": 0}, {"params": True}, in_axes=None, axis_size=5)
    stacked = {path: f"stack 5, {its}" for path, its in CONVOLUTIONS.items()}
    stacked["Conv_1/kernel"] = "stack 5, space 3, space 3, single 1, outputs 8"
    assert traced(many(), x) == stacked


class Language(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(50, 16)
        positions = self.param("positions", nn.initializers.normal(), (12, 16))
        hidden = nn.RNN(nn.OptimizedLSTMCell(16))(embed(tokens) + positions[: tokens.shape[1]])
        return embed.attend(nn.RNN(nn.GRUCell(16))(hidden))


def test_embeddings_tied_to_the_output_and_cells_used_at_every_step() -> None:
    tokens = jnp.ones((2, 6), jnp.int32)
    layers = core.trace_layers(Language().apply, jax.eval_shape(Language().init, KEY, tokens), tokens)
    embedding = layers["params/Embed_0/embedding"]
    assert str(embedding) == "rows 50, outputs 16 (tied)"
    assert [[part.role for part in axis] for axis in embedding.tied[0]] == [["outputs"], ["inputs"]]
    assert str(layers["params/positions"]) == "elementwise 12, elementwise 16"
    kernels = {str(layer) for path, layer in layers.items() if "Cell" in path and path.endswith("kernel")}
    assert kernels == {"inputs 16, outputs 16"}


def test_layers_that_are_chosen_one_by_one_from_an_array_are_a_stack() -> None:
    params = {"w": jnp.ones((4, 3, 3)), "b": jnp.ones((4, 3))}

    def unrolled(params: Any, x: jax.Array) -> jax.Array:
        for place in range(4):
            x = jnp.tanh(x @ params["w"][place] + params["b"][place])
        return x

    def rolled(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 4, lambda i, x: jnp.tanh(x @ params["w"][i] + params["b"][i]), x)

    for apply in (unrolled, rolled):
        found = roles(core.trace_layers(apply, params, jnp.ones((2, 3))))
        assert found == {"w": "stack 4, inputs 3, outputs 3", "b": "stack 4, elementwise 3"}


def test_weights_that_are_made_of_others() -> None:
    """Queries, keys and values in one array; low-rank updates; weights divided by their norm; masks."""
    params = {"qkv": jnp.ones((8, 24)), "a": jnp.ones((8, 2)), "b": jnp.ones((2, 8)), "scale": jnp.ones(8)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        query, key, value = jnp.split(params["qkv"], 3, axis=1)
        weight = params["a"] @ params["b"]
        weight = params["scale"] * weight / jnp.linalg.norm(weight, axis=0, keepdims=True)
        return (x @ query) * (x @ key) + (x @ value) @ weight

    found = roles(core.trace_layers(apply, params, jnp.ones((4, 8))))
    assert found["qkv"] == "inputs 8, outputs 24"
    assert found["a"].startswith("inputs 8, ")
    assert found["b"].startswith("unknown 2, outputs 8")


def test_noise_that_a_kernel_and_its_bias_share_makes_no_layer_of_the_bias() -> None:
    """Noisy networks: the outputs of both are multiplied by one array."""
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    noise = np.ones((1, 3), np.float32)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return x @ (params["kernel"] * noise) + params["bias"] * noise[0]

    def derived(params: Any, x: jax.Array) -> jax.Array:
        shared = jnp.sin(noise)
        return x @ (params["kernel"] * shared) + params["bias"] * jnp.squeeze(shared)

    for function in (apply, derived):
        layers = core.trace_layers(function, params, jnp.ones((2, 4)))
        assert roles(layers) == {"kernel": "inputs 4, outputs 3", "bias": "elementwise 3"}
        assert all(axes.is_as_by_shape for axes in layers.values())


def test_tokens_that_are_repeated_for_every_example() -> None:
    """As class tokens are, whose tile has a length of 1, and others."""
    params = {"token": jnp.ones((1, 1, 4)), "pair": jnp.ones((2, 4)), "w": jnp.ones((4, 3))}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = jnp.concatenate([jnp.tile(params["token"], (x.shape[0], 1, 1)), x], axis=1)
        return (x + jnp.tile(params["pair"], (3, 1))) @ params["w"]

    found = roles(core.trace_layers(apply, params, jnp.ones((2, 5, 4))))
    assert found["token"] == "single 1, elementwise 1, elementwise 4"
    assert found["pair"] == "elementwise 2, elementwise 4"
    assert found["w"] == "inputs 4, outputs 3"


def test_weights_that_only_constants_are_multiplied_by_say_so() -> None:
    params = {"bias": jnp.ones((4, 8))}
    near = np.eye(8, dtype=np.float32)[[0, 1, 2]]
    layers = core.trace_layers(lambda p, x: x + near @ p["bias"].T, params, jnp.ones((2, 3, 4)))
    note = "not followed, because no input meets all of its axes"
    assert str(layers["bias"]) == f"elementwise 4, unknown 8: {note}"
    plan = core.describe_plan(core.build_updater("static_sparse", sparsity=0.5, layers=layers), params)
    assert f"one layer ({note})" in plan


def test_what_is_not_used_or_not_followed_says_so() -> None:
    params = {"w": jnp.ones((3, 3)), "odd": jnp.ones((3, 3)), "left": jnp.ones((3, 3))}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return x @ params["w"] + jnp.linalg.inv(params["odd"])[0]

    layers = core.trace_layers(apply, params, jnp.ones((2, 3)))
    assert "not used by the function" in str(layers["left"])
    assert "not followed" in str(layers["odd"])
    assert not layers["left"].is_layer
    assert not layers["odd"].is_layer
    assert str(layers["w"]) == "inputs 3, outputs 3"


def test_a_function_that_needs_a_key_says_how_to_wrap_it() -> None:
    with pytest.raises(TypeError, match="is wrapped, as in"):
        core.trace_layers(lambda params, x, key: x, {"w": jnp.ones(3)}, jnp.ones(3))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


@pytest.mark.parametrize(
    "apply",
    [
        lambda params, x: Normed().apply(params, x),  # writes statistics
        lambda params, x: x @ params["params"]["Dense_0"]["kernel"].T,  # of other shapes
        lambda params, x: x if x.sum() > 0 else -x,  # a branch by values
    ],
    ids=["collections", "shapes", "values"],
)
def test_functions_that_cannot_be_traced_say_how_to_wrap_them(apply: Any) -> None:
    variables = jax.eval_shape(Normed().init, KEY, jnp.ones((2, 4)))
    with pytest.raises(TypeError, match=r"(?s)cannot be traced .* is wrapped, as in .* mutable=.* lax\.cond"):
        core.trace_layers(apply, variables, jnp.ones((2, 4)))


def test_a_stack_of_one_layer_or_of_none() -> None:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["blocks"])[0] @ params["head"]

    for length in (1, 0):
        params = {"blocks": jnp.ones((length, 4, 4)), "head": jnp.ones((4, 4))}
        layers = core.trace_layers(apply, params, jnp.ones((2, 4)))
        assert str(layers["blocks"]) == f"stack {length}, inputs 4, outputs 4"
        updater = core.build_updater("static_sparse", sparsity=0.5, layers=layers)
        masks = core.unpack_masks(params, updater.init_state(params).masks)
        assert [int(jnp.sum(mask)) for mask in masks.values()] == [8 * length, 8]
        assert ("blocks/0" in core.describe_plan(updater, params)) == bool(length)


def test_layers_that_were_told_and_contradict_the_trace_are_refused() -> None:
    params = {"kernel": jnp.ones((4, 4))}
    traced = core.trace_layers(lambda params, x: x @ params["kernel"], params, jnp.ones((2, 4)))
    right = core.describe_layers(params, [("kernel", core.Axes(inputs=0, outputs=1))])
    wrong = core.describe_layers(params, [("kernel", core.Axes(inputs=1, outputs=0))])
    make = functools.partial(core.build_updater, "static_sparse", sparsity=0.5)
    assert make(layers=right).knowing(traced).layers is right
    with pytest.raises(
        ValueError, match=r"say of 'kernel' that it is outputs 4, inputs 4, and the model .* inputs 4, o"
    ):
        make(layers=wrong).knowing(traced)


def test_matrices_of_a_layer_and_back() -> None:
    kernel = jnp.arange(3 * 4 * 2 * 5.0).reshape(3, 4, 2, 5)
    params = {"k": kernel}
    apply = lambda params, x: jnp.einsum("sbi,shid->sbhd", x, jnp.swapaxes(params["k"], 1, 2))  # noqa: E731
    layer = core.trace_layers(apply, {"k": kernel}, jnp.ones((3, 7, 4)))["k"]
    assert str(layer) == "stack 3, inputs 4, outputs 2, outputs 5"
    matrices = layer.to_matrices(kernel)
    assert matrices.shape == (3, 4, 10)
    np.testing.assert_array_equal(layer.from_matrices(matrices), params["k"])
    transposed = jnp.arange(24.0).reshape(4, 6)
    other = core.trace_layers(lambda p, x: x @ p.T, transposed, jnp.ones((2, 6)))[""]
    np.testing.assert_array_equal(other.to_matrices(transposed), transposed.T[None])
    np.testing.assert_array_equal(other.from_matrices(transposed.T[None]), transposed)


def test_matrices_of_no_layer_or_of_another_shape_are_refused() -> None:
    layers = core.trace_layers(
        lambda p, x: x @ p["w"] + p["b"], {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((1, 3))
    )
    with pytest.raises(ValueError, match="'b' is no layer, but elementwise 2"):
        layers["b"].to_matrices(jnp.ones(2))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), where \(3, 2\)"):
        layers["w"].to_matrices(jnp.ones((2, 3)))


# Random networks, built from layers whose roles are known: (inputs, outputs) -> shape, roles, step, outputs.
Built = tuple[tuple[int, ...], str, Callable[[jax.Array, jax.Array], jax.Array], int]
convolved = functools.partial(
    jax.lax.conv_general_dilated, window_strides=(1,), padding="SAME", dimension_numbers=("NWC", "WIO", "NWC")
)
LAYERS: dict[str, Callable[[int, int], Built]] = {
    "dense": lambda i, o: ((i, o), f"inputs {i}, outputs {o}", lambda w, x: jax.nn.relu(x @ w), o),
    "transposed": lambda i, o: ((o, i), f"outputs {o}, inputs {i}", lambda w, x: jnp.tanh(x @ w.T), o),
    "heads": lambda i, o: (
        (i, 2, o),
        f"inputs {i}, outputs 2, outputs {o}",
        lambda w, x: jnp.einsum("bi,iho->bho", x, w).sum(1),
        o,
    ),
    "flat": lambda i, o: (
        (2 * o, i),
        f"outputs {2 * o}, inputs {i}",
        lambda w, x: (x @ w.T).reshape(-1, 2, o).max(1),
        o,
    ),
    "scan": lambda i, o: (
        (3, i, i),
        f"stack 3, inputs {i}, outputs {i}",
        lambda w, x: jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0],
        i,
    ),
    "ensemble": lambda i, o: (
        (2, i, o),
        f"stack 2, inputs {i}, outputs {o}",
        lambda w, x: jax.vmap(lambda w, x: x @ w, (0, 0))(w, jnp.stack([x, -x])).min(0),
        o,
    ),
    "norm": lambda i, o: ((i,), f"elementwise {i}", lambda w, x: w * (x - x.mean(-1, keepdims=True)), i),
    "residual": lambda i, o: ((i, i), f"inputs {i}, outputs {i}", lambda w, x: x + jax.nn.gelu(x) @ w, i),
    "embedded": lambda i, o: (
        (5, o),
        f"rows 5, outputs {o}",
        lambda w, x: x.sum(-1, keepdims=True) * w[jnp.argmax(x, -1) % 5],
        o,
    ),
    "convolution": lambda i, o: (
        (3, 1, o),
        f"space 3, inputs 1, outputs {o}",
        lambda w, x: jax.lax.conv_general_dilated(
            x[..., None], w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        ).sum(1),
        o,
    ),
}


@st.composite
def networks(draw: st.DrawFn) -> tuple[Callable[..., Any], dict[str, Any], dict[str, str], jax.Array]:
    """Layers one after another on [batch, features]."""
    params, expected, steps = {}, {}, {}
    width = features = draw(st.sampled_from([4, 6, 12]))
    for place in range(draw(st.integers(1, 5))):
        name = f"layer{place}"
        make = LAYERS[draw(st.sampled_from(sorted(LAYERS)))]
        shape, expected[name], steps[name], features = make(features, draw(st.sampled_from([4, 6, 12])))
        params[name] = jnp.ones(shape)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for name, step in steps.items():
            x = step(params[name], x)
        return x

    return apply, params, expected, jnp.ones((2, width))


@pytest.mark.thorough
@given(networks())
def test_traced_roles_are_those_of_the_construction(network: Any) -> None:
    apply, params, expected, x = network
    layers = core.trace_layers(apply, params, x)
    assert roles(layers) == expected
    for path, layer in layers.items():
        if layer.is_layer:
            entries = jnp.arange(float(math.prod(layer.shape))).reshape(layer.shape)
            np.testing.assert_array_equal(layer.from_matrices(layer.to_matrices(entries)), entries, err_msg=path)
