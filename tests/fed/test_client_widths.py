"""Clients with a part of the channels: what they train, what they cost, and how their updates become one."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core, fed
from tests.fed import rounds, toy
from tests.quick import quick_jit

fedjax = fed.import_fedjax()
HIDDEN = "mlp/~/linear_0"
HEAD = "mlp/~/linear_1"


def averaging(widths: Any, updater: Any = None, **settings: Any) -> Any:
    return fed.sparse_federated_averaging(
        settings.pop("grad_fn", toy.GRADIENT),
        client_optimizer=toy.CLIENT,
        server_optimizer=settings.pop("server_optimizer", optax.sgd(1.0)),
        updater=updater or core.NoPruning(),
        client_batch_hparams=toy.TRAIN,
        client_widths=widths,
        **settings,
    )


def trained(params: Any, data: Any, key: jax.Array) -> Any:
    """What plain stochastic gradient descent makes of a network of two layers, whatever its width."""

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden = jnp.tanh(batch["x"] @ params[HIDDEN]["w"] + params[HIDDEN]["b"][None])
        logits = hidden @ params[HEAD]["w"] + params[HEAD]["b"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    step = quick_jit(
        lambda params, batch: jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, batch))
    )
    for batch in data.shuffle_repeat_batch(toy.TRAIN):
        params = step(params, {name: batch[name] for name in ("x", "y")})
    return params


def channels_of(params: Any, its: np.ndarray) -> Any:
    return {
        HIDDEN: {"w": params[HIDDEN]["w"][:, its], "b": params[HIDDEN]["b"][its]},
        HEAD: {"w": params[HEAD]["w"][its], "b": params[HEAD]["b"]},
    }


@pytest.mark.parametrize(("channels", "number"), [("nested", 0), ("rolling", 6), ("largest", 0)])
def test_a_round_is_training_by_hand_averaged_over_holders(channels: Any, number: int) -> None:
    params = toy.MODEL.init(jax.random.key(0))
    clients = toy.clients_of_a_round(0)[:2]
    widths = fed.ClientWidths({1: 0.5}, channels)
    algorithm = averaging(widths)
    state = algorithm.init(params)
    state = type(state)(state.params, state.opt_state, number)
    after, diagnostics = algorithm.apply(state, clients)
    assert [diagnostics[client]["status"] for client in (0, 1)] == ["ok", "ok"]

    strength = sum(
        np.sum(np.square(part), axis=axis)
        for part, axis in ((params[HIDDEN]["w"], 0), (params[HIDDEN]["b"][None], 0), (params[HEAD]["w"], 1))
    )
    its = {"nested": np.arange(4), "rolling": np.array([0, 1, 6, 7]), "largest": np.sort(np.argsort(-strength)[:4])}
    chosen = its[channels]
    whole = trained(params, clients[0][1], clients[0][2])
    narrow = trained(channels_of(params, chosen), clients[1][1], clients[1][2])
    weights = [len(data) for _, data, _ in clients]
    expected = jax.tree.map(np.array, whole)
    place = {
        (HIDDEN, "w"): (slice(None), chosen),
        (HIDDEN, "b"): (chosen,),
        (HEAD, "w"): (chosen,),
        (HEAD, "b"): (slice(None),),
    }
    for (layer, name), where in place.items():
        both = weights[0] * whole[layer][name][where] + weights[1] * narrow[layer][name]
        expected[layer][name][where] = both / sum(weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected)


@pytest.mark.parametrize("updater", ["no_prune", "set", "magnitude_ste"])
def test_what_no_client_of_a_round_had_stays_as_it_was(updater: str) -> None:
    """Moments would go on moving it without a gradient, and shrink beside gradients that are missing."""
    widths = fed.ClientWidths((0.5,), "rolling")
    algorithm = averaging(widths, toy.updater_of(updater), server_optimizer=optax.adamw(0.1))
    state = algorithm.init(toy.MODEL.init(jax.random.key(0)))
    for number in range(toy.ROUNDS):
        before = state
        state, _ = algorithm.apply(before, toy.clients_of_a_round(number))
        others = (number + np.arange(4, 8)) % 8
        masks = [core.unpack_masks(each.params, each.opt_state.masks) for each in (before, state)]
        whole = [jax.tree.map(jnp.ones_like, state.params) if updater == "no_prune" else its for its in masks]
        columns = [
            (each.params, *(getattr(each.opt_state.inner_state[0], moment) for moment in ("mu", "nu")))
            for each in (before, state)
        ]
        for old, new in zip(*columns, strict=True):
            for layer, place in {HIDDEN: (slice(None), others), HEAD: (others,)}.items():
                was, after, *kept = (tree[layer]["w"][place] for tree in (old, new, *whole))
                stays = np.logical_and(*kept)
                assert stays.any()
                np.testing.assert_array_equal(after[stays], was[stays])
        assert not np.array_equal(state.params[HIDDEN]["w"], before.params[HIDDEN]["w"])
        assert int(state.opt_state.count) == number + 1


def test_a_narrow_client_costs_what_it_holds() -> None:
    network = lambda batch: hk.nets.MLP([64, 64, 4])(batch["x"])  # noqa: E731
    model = fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(network),
        sample_batch={"x": np.zeros((1, 8), np.float32)},
        train_loss=lambda batch, logits: optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]),
    )
    ledger = fed.Ledger()
    algorithm = averaging(fed.ClientWidths({1: 0.5}), grad_fn=fedjax.model_grad(model), ledger=ledger)
    _, told = algorithm.apply(algorithm.init(model.init(jax.random.key(0))), toy.clients_of_a_round(0)[:2])
    up = {client: told[client]["up"] for client in (0, 1)}
    assert ledger.total().up == sum(up.values())
    half = 4 * (8 * 32 + 32 + 32 * 32 + 32 + 32 * 4 + 4)
    assert half < up[1] < half + 80
    assert up[1] / up[0] < 0.32  # the first and the last layer lose half, those between three quarters


def test_masks_of_the_server_hold_inside_narrow_clients_too() -> None:
    algorithm = averaging(fed.ClientWidths((0.5, 1.0), "rolling", seed=1), toy.updater_of("set"))
    state = algorithm.init(toy.MODEL.init(jax.random.key(0)))
    seen = set()
    for number in range(toy.ROUNDS):
        state, diagnostics = algorithm.apply(state, toy.clients_of_a_round(number))
        assert {told["status"] for told in diagnostics.values()} == {"ok"}
        seen |= {told["up"] for told in diagnostics.values()}
        assert toy.num_kept(state.params) == toy.KEPT
    assert len(seen) > 2  # whole and narrow updates, of masks that move


def test_a_width_that_takes_no_channel_is_the_whole_network() -> None:
    params, clients = toy.MODEL.init(jax.random.key(0)), toy.clients_of_a_round(0)[:2]
    algorithm = averaging(fed.ClientWidths({1: 0.99}))
    after, told = algorithm.apply(algorithm.init(params), clients)
    assert told[0]["up"] == told[1]["up"]
    whole = averaging(None)
    expected, _ = whole.apply(whole.init(params), clients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected.params)


def test_masks_that_leave_nothing_of_a_narrow_network_are_told() -> None:
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    axes = fed.ClientWidths((0.5,), groups={"hidden": [("a", 1), ("b", 0)]}).channels_of(params)
    masks = {"a": jnp.zeros((3, 4), jnp.uint8).at[:, 3].set(1), "b": core.NOT_PRUNED}
    network = fed.ClientWidths((0.5,)).network(axes, params, 0.5, 0)
    assert network is not None
    with pytest.warns(RuntimeWarning, match="a client of width 0.5 has no weight of 'a' that is not pruned"):
        left = network.take_masks(masks)
    assert left["a"].shape == (3, 2)
    assert left["b"] is core.NOT_PRUNED
    held = network.held({"a": jnp.ones((3, 2), jnp.uint8), "b": core.NOT_PRUNED})
    assert held["a"][0].tolist() == held["b"][:, 0].tolist() == [1, 1, 0, 0]


def test_dropout_pooling_and_convolutions_of_any_model_are_narrower() -> None:
    algorithm = averaging(fed.ClientWidths((0.5,)), grad_fn=rounds.GRADIENT)
    params = rounds.MODEL.init(jax.random.key(0))
    with jax.log_compiles(False):
        state, diagnostics = algorithm.apply(algorithm.init(params), rounds.clients_of_a_round(0))
    assert sorted(told["status"] for told in diagnostics.values()) == ["nothing to send: no examples", *["ok"] * 4]
    moved = np.abs(state.params["conv2_d"]["w"] - params["conv2_d"]["w"]).sum((0, 1, 2))
    assert (moved > 0).tolist() == [True, True, False, False]


def test_numbers_that_a_network_has_for_its_channels_are_those_of_the_channels_that_a_client_gets() -> None:
    def gradient(params: Any, batch: Any, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            scales = jax.random.uniform(jax.random.key(5), (6,))  # the same in every call, whatever the client's key
            hidden = jnp.tanh(batch["x"] @ params["a"]) * scales[None]
            return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["b"], batch["y"]).mean()

        return jax.grad(loss)(params)

    draw = np.random.default_rng(0).normal
    params = {"a": draw(size=(8, 6)).astype(np.float32), "b": draw(size=(6, 4)).astype(np.float32)}
    algorithm = averaging(fed.ClientWidths((0.5,), "rolling"), grad_fn=gradient)
    state = algorithm.init(params)
    client = toy.clients_of_a_round(0)[0]
    for number in (0, 2):
        state = type(state)(params, state.opt_state, number)
        after, _ = algorithm.apply(state, [client])
        kept = np.arange(number, number + 3)
        whole = params
        for batch in client[1].shuffle_repeat_batch(toy.TRAIN):
            only = {"a": np.zeros((8, 6), np.float32), "b": np.zeros((6, 4), np.float32)}
            only["a"][:, kept], only["b"][kept] = 1, 1
            masked = jax.tree.map(np.multiply, whole, only)
            steps = jax.tree.map(np.multiply, gradient(masked, batch, client[2]), only)
            whole = jax.tree.map(lambda p, g: p - 0.1 * g, whole, steps)
        for name in params:
            np.testing.assert_allclose(after.params[name], whole[name], atol=1e-5)


def test_widths_are_dealt_by_seed_round_and_client() -> None:
    widths = fed.ClientWidths((0.25, 0.5, 1.0), seed=4)
    dealt = [[widths.of(client, number) for client in range(30)] for number in range(2)]
    assert dealt == [[fed.ClientWidths((0.25, 0.5, 1.0), seed=4).of(c, n) for c in range(30)] for n in range(2)]
    assert dealt[0] != dealt[1]
    assert {*dealt[0]} == {0.25, 0.5, 1.0}


@pytest.mark.parametrize("widths", [{}, (), "half", 0.5])
def test_widths_of_another_kind_are_errors(widths: Any) -> None:
    with pytest.raises(TypeError, match="give fractions by client id"):
        fed.ClientWidths(widths)


GROUPS = {
    "nothing": ({}, "groups are empty"),
    "a group of nothing": ({"hidden": []}, "it has no axes"),
    "another array": ({"hidden": [("c", 1)]}, r"has \('c', 1\); give \(array, number of the axis\), of a \(3, 4\)"),
    "another axis": ({"hidden": [("a", 2)]}, r"has \('a', 2\)"),
    "no pair": ({"hidden": ["a"]}, "has 'a'; give"),
    "other lengths": ({"hidden": [("a", 0), ("b", 0)]}, "3 of 'a', axis 0; 4 of 'b', axis 0"),
    "labels of another length": (
        {"hidden": [("a", 1), ("b", 0, [0, 1])]},
        "give an integer from -1 up for each of its 4",
    ),
    "labels that leave one out": ({"hidden": [("a", 1, [0, 0, 2, 2])]}, "other numbers of channels"),
}


@pytest.mark.parametrize("what", GROUPS)
def test_axes_that_share_no_channels_are_errors(what: str) -> None:
    groups, told = GROUPS[what]
    with pytest.raises(ValueError, match=told):
        fed.ClientWidths((0.5,), groups=groups).channels_of({"a": np.ones((3, 4)), "b": np.ones((4, 2))})


@pytest.mark.parametrize("width", [0, 1.5, -0.5, "1"])
def test_widths_out_of_range_are_errors(width: Any) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        fed.ClientWidths({"phone": width})


def test_what_does_not_go_together_is_said_at_construction() -> None:
    with pytest.raises(ValueError, match="choose 'nested'"):
        fed.ClientWidths((0.5,), "random")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"groups is a list; give core\.channel_graph"):
        fed.ClientWidths((0.5,), groups=[("w", 0)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="here they are traced from grad_fn: drop them"):
        averaging(fed.ClientWidths((0.5,), groups={"hidden": [("w", 0)]}))
    with pytest.raises(ValueError, match="grow by gradients, such as RigL"):
        averaging(fed.ClientWidths((0.5,)), toy.updater_of("rigl"))


def test_a_network_without_channels_that_can_leave_says_why() -> None:
    grad_fn = lambda params, batch, rng: jax.grad(lambda p: jnp.mean((batch["x"] @ p["w"]) ** 2))(params)  # noqa: E731
    algorithm = averaging(fed.ClientWidths((0.5,)), grad_fn=lambda p, b, r: grad_fn(p, {"x": b["x"]}, r))
    state = algorithm.init({"w": jnp.ones((8, 1))})
    with pytest.raises(ValueError, match=r"no channel can leave this network(.|\n)*stays: w"):
        algorithm.apply(state, toy.clients_of_a_round(0))
