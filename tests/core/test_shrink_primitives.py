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
    """Over fewer channels the mean of (h - mean)**2 is another one; behind a last layer of zeros nobody sees it."""
    params = {"a": drawn(6, 8), "b": drawn(8, 3) if zeros == "inputs" else np.zeros((8, 3), np.float32)}
    x = np.zeros((4, 6), np.float32) if zeros == "inputs" else drawn(4, 6)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = x @ params["a"]
        return (h / jnp.sqrt(jnp.var(h, axis=-1, keepdims=True) + 1e-6)) @ params["b"]

    graph = core.channel_graph(apply, params, x)
    with pytest.raises(ValueError, match="without the channels of 'a' outputs differ"):
        core.shrink(graph, params, core.channel_masks(graph, params, 0.5))
    fine = core.channel_graph(lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"], params, x)
    assert core.shrink(fine, params, core.channel_masks(fine, params, 0.5)).params["a"].shape == (6, 4)


def test_query_heads_that_share_keys_leave_with_the_rows_that_read_them() -> None:
    params = {"q": drawn(6, 4, 3), "k": drawn(6, 3), "v": drawn(6, 5), "out": drawn(4, 5, 2)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        q, k, v = jnp.einsum("bti,ihe->bthe", x, params["q"]), x @ params["k"], x @ params["v"]
        weights = jax.nn.softmax(jnp.einsum("bthe,bse->bhts", q, k))
        return jnp.einsum("bthe,heo->bto", jnp.einsum("bhts,bse->bthe", weights, v), params["out"])

    x = drawn(2, 5, 6)
    graph = core.channel_graph(apply, params, x)
    with pytest.raises(ValueError, match=r"channels of 'q' outputs differ .*prune what reads them, too \(out\)"):
        core.shrink(graph, params, core.channel_masks(graph, params, 0.5))
    masks = core.channel_masks(graph, params, 0.5, readers=True)
    small = core.shrink(graph, params, masks)
    assert {name: p.shape for name, p in small.params.items()} == {
        "q": (6, 2, 2),
        "k": (6, 2),
        "v": (6, 2),
        "out": (2, 2, 2),
    }
    close(quick_jit(apply)(core.apply_masks(params, masks), x), quick_jit(small.apply)(small.params, x))


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
