"""Slices, stacks, extremes and shared attention heads in networks that lose channels; and what zeros would hide."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests.core.test_shrink import close, drawn, whole_masks
from tests.quick import quick_jit


@pytest.fixture(autouse=True)
def _as_users_write_it() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def halves(h: jax.Array) -> jax.Array:
    return h[..., :8] * jax.nn.sigmoid(h[..., 8:])


def of_three_lengths(h: jax.Array) -> jax.Array:
    first, second, third = h[..., :7], h[..., 7:12], h[..., 12:]
    return jnp.concatenate([second, first[..., :4] * third], -1)


def stacked(h: jax.Array) -> jax.Array:
    both = jnp.stack([jnp.tanh(h), h * h], 1)
    first, second = jnp.unstack(both, axis=1)
    return first + second


GATES = {"halves": (halves, [8], 8), "lengths": (of_three_lengths, [3, 4, 5], 9), "stacked": (stacked, [16], 16)}


@pytest.mark.parametrize("name", GATES)
def test_gates_by_slices_lose_channels_and_so_do_their_gradients(name: str) -> None:
    gate, sizes, width = GATES[name]
    params = {"a": drawn(6, 16), "bias": drawn(16), "b": drawn(width, 2)}
    x = drawn(4, 6)
    apply = lambda params, x: gate(x @ params["a"] + params["bias"]) @ params["b"]  # noqa: E731
    graph = core.channel_graph(apply, params, x)
    assert sorted(group.size for group in graph.groups.values()) == sizes, str(graph)
    masks = whole_masks(graph, params)
    small = core.shrink(graph, params, masks)
    gradient = jax.grad(lambda params, x: jnp.sum(apply(params, x) ** 2))
    of_gradient = core.channel_graph(gradient, params, x)
    of_channels = {name: group.size for name, group in of_gradient.groups.items() if group.size != 2}
    assert sorted(of_channels.values()) == sizes, str(of_gradient)
    narrow = core.shrink(of_gradient, params, masks)  # a function that returns gradients, as in FedJAX
    dense = quick_jit(gradient)(core.expand(small, small.params), x)
    kept = core.expand(small, jax.tree.map(np.ones_like, small.params))
    expected = jax.tree.map(np.multiply, dense, kept)
    close(expected, core.expand(small, quick_jit(narrow.apply)(narrow.params, x)))
    of_small = jax.grad(lambda params: jnp.sum(small.apply(params, x) ** 2))
    close(expected, core.expand(small, quick_jit(of_small)(small.params)))


def test_rows_that_inputs_of_this_length_do_not_read_stay() -> None:
    params = {"table": drawn(9, 8), "a": drawn(6, 8), "b": drawn(8, 3)}
    apply = lambda params, x: (jnp.tanh(x @ params["a"]) + params["table"][: x.shape[1]]) @ params["b"]  # noqa: E731
    graph = core.channel_graph(apply, params, drawn(2, 5, 6))
    assert [group.size for group in graph.groups.values()] == [8]
    assert "cut off" in graph.stays["table", 0]


@pytest.mark.parametrize("over", [jnp.max, jnp.prod, jax.nn.logsumexp], ids=["max", "prod", "softmax"])
def test_an_extreme_over_channels_keeps_them(over: Any) -> None:
    """Of many channels one is above 0 nearly always, so that outputs of one batch would not tell."""
    params = {"a": drawn(6, 64), "b": drawn(64, 3)}
    apply = lambda params, x: (h := jnp.tanh(x @ params["a"])) @ params["b"] + over(h, axis=-1, keepdims=True)  # noqa: E731
    graph = core.channel_graph(apply, params, drawn(4, 6))
    assert graph.groups == {}
    assert "to which a 0 counts" in graph.stays["a", 1]


@pytest.mark.parametrize("zeros", ["parameters", "inputs"])
def test_what_zeros_hide_is_found(zeros: str) -> None:
    """A pruned channel is as large as the largest input; behind a last layer of zeros nobody sees it."""
    params = {"a": drawn(6, 8), "b": drawn(8, 3) if zeros == "inputs" else np.zeros((8, 3), np.float32)}
    x = np.zeros((4, 6), np.float32) if zeros == "inputs" else drawn(4, 6)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jnp.maximum(x @ params["a"], jnp.max(x**2, axis=-1, keepdims=True)) @ params["b"]

    graph = core.channel_graph(apply, params, x)
    with pytest.raises(ValueError, match="without the channels of 'a' outputs differ"):
        core.shrink(graph, params, core.channel_masks(graph, params, 0.5))
    fine = core.channel_graph(lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"], params, x)
    assert core.shrink(fine, params, core.channel_masks(fine, params, 0.5)).params["a"].shape == (6, 4)


def test_query_heads_that_share_keys_stay_and_those_that_share_none_leave() -> None:
    """Without its query a head gives the mean of values, which are those of the others, too."""
    params = {"q": drawn(6, 4, 3), "k": drawn(6, 2, 3), "v": drawn(6, 2, 5), "out": drawn(4, 5, 2)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("bti,ihe->bthe", x, params[name]) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("btghe,bsge->bghts", q.reshape(2, 5, 2, 2, 3), k))
        return jnp.einsum(
            "bthe,heo->bto", jnp.einsum("bghts,bsge->btghe", weights, v).reshape(2, 5, 4, 5), params["out"]
        )

    x = drawn(2, 5, 6)
    graph = core.channel_graph(apply, params, x)
    masks = core.channel_masks(graph, params, 0.5)
    small = core.shrink(graph, params, masks)  # two heads of four, which are those of one key
    assert {name: p.shape for name, p in small.params.items()} == {
        "q": (6, 2, 2),
        "k": (6, 1, 2),
        "v": (6, 1, 2),
        "out": (2, 2, 2),
    }
    close(quick_jit(apply)(core.apply_masks(params, masks), x), quick_jit(small.apply)(small.params, x))


def centred(h: jax.Array, scale: jax.Array) -> jax.Array:
    mean = jnp.mean(h, axis=-1, keepdims=True)
    return (h - mean) / jnp.sqrt(jnp.mean((h - mean) ** 2, axis=-1, keepdims=True) + 1e-6) * scale


def of_squares(h: jax.Array, scale: jax.Array) -> jax.Array:
    mean = jnp.mean(h, axis=-1, keepdims=True)
    return (h - mean) / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) - mean**2 + 1e-6) * scale


MAPS = {
    "sigmoid": (lambda h, scale: jax.nn.sigmoid(h), False),
    "gate": (lambda h, scale: h * jax.nn.sigmoid(h), True),
    "shift": (lambda h, scale: jnp.tanh(h + 1), False),
    "where": (lambda h, scale: jnp.where(h > 0, h**2, 0.0) + jnp.minimum(jax.nn.relu(h), 6), True),
    "softplus": (lambda h, scale: jax.nn.softplus(h) - jnp.log(2.0), False),
    "mish": (lambda h, scale: jax.nn.mish(h) + jax.nn.gelu(h) + jax.nn.elu(h) + jax.nn.hard_swish(h), True),
    "centred": (centred, False),
    "of squares": (of_squares, True),
    "without scale": (lambda h, scale: of_squares(h, jnp.ones(())), False),
}


@pytest.mark.parametrize("name", MAPS)
def test_what_is_not_0_for_a_pruned_channel_stays(name: str) -> None:
    mapped, leaves = MAPS[name]
    params = {"a": drawn(6, 8), "scale": drawn(8), "b": drawn(8, 2)}
    graph = core.channel_graph(lambda p, x: mapped(x @ p["a"], p["scale"]) @ p["b"], params, drawn(4, 6))
    assert ("a" in graph.groups) == leaves, str(graph)
    assert leaves or "not 0 for a pruned channel" in graph.stays["a", 1]


def test_a_gradient_that_is_0_but_for_rounding_and_norms_in_it_do_not_stop_channels() -> None:
    """Softmax forgets the bias of keys; and what a norm hands back is nowhere 0, but meets pruned weights."""
    params = {name: drawn(8, 8, seed=i) for i, name in enumerate("qkv")} | {
        "bias": drawn(8),
        "scale": drawn(8),
        "a": drawn(6, 8),
        "out": drawn(8, 2),
    }

    def loss(params: Any, x: jax.Array) -> jax.Array:
        h = of_squares(x @ params["a"], params["scale"])
        q, k, v = h @ params["q"], h @ params["k"] + params["bias"], h @ params["v"]
        return jnp.sum((jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v @ params["out"]) ** 2)

    x = drawn(2, 5, 6)
    graph = core.channel_graph(jax.grad(loss), params, x)
    assert {"a", "k", "v"} <= {name for name, group in graph.groups.items() if group.size == 8}
    masks = [np.ones(leaf.shape, np.uint8) for leaf in jax.tree.leaves(params)]
    for member in (m for group in graph.groups.values() for m in group.members if group.size == 8):
        np.moveaxis(masks[member.leaf], member.axis, 0)[member.labels >= 4] = 0
    small = core.shrink(graph, params, jax.tree.unflatten(jax.tree.structure(params), masks))
    dense = quick_jit(graph.apply)(core.expand(small, small.params), x)
    kept = core.expand(small, jax.tree.map(np.ones_like, small.params))
    close(jax.tree.map(np.multiply, dense, kept), core.expand(small, quick_jit(small.apply)(small.params, x)))


def test_whoever_cannot_run_narrower_is_named() -> None:
    params = {"a": drawn(6, 8), "b": drawn(8, 3)}

    @jax.custom_vjp
    def doubled(x: jax.Array) -> jax.Array:
        return 2 * x

    doubled.defvjp(lambda x: (2 * x, x.shape), lambda shape, g: (jnp.broadcast_to(2 * g, shape),))
    graph = core.channel_graph(lambda p, x: doubled(x @ p["a"]) @ p["b"], params, drawn(2, 6))
    with pytest.raises(ValueError, match=r"custom_vjp.* has cannot leave"):
        core.shrink(graph, params, core.channel_masks(graph, params, 0.5))


def test_a_state_of_some_parameters_alone_is_one_to_go_on_from() -> None:
    params = {"body": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}, "head": {"kernel": jnp.ones((8, 4))}}
    labels = {"body": {"kernel": "sparse", "bias": "dense"}, "head": {"kernel": "dense"}}

    def optimizer(sparsity: float) -> optax.GradientTransformation:
        sparse = core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=sparsity)
        return optax.multi_transform({"sparse": sparse, "dense": optax.sgd(0.1)}, labels)

    tx = optimizer(0.5)
    state = tx.init(params)
    assert core.check_restored(tx, params, state, core.identity_of(tx)) is state
    with pytest.raises(core.CheckpointMismatchError, match=r"'body/kernel' ends at sparsity 0.5, and here it is 0.75"):
        core.check_restored(optimizer(0.75), params, state)
    meant = core.find_sparse_state(core.check_restored(optimizer(0.75), params, state, keep_targets=False))
    assert jax.tree.leaves(meant.target_sparsities) == [0.75]
