"""The mask that comes with the parameters: clients stay inside it, and what they upload is zero outside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins import core, fed
from sparse_plugins.fed.mask_in_params import broadcast_masks, mark_in_use
from tests.fed.toy import ALGORITHMS, CLIENT, MODEL, ROUNDS, SPARSE_CLIENT, clients_of_a_round, updater_of

fedjax = fed.import_fedjax()


def listening(server: fedjax.Optimizer, heard: list) -> fedjax.Optimizer:
    """A server optimizer that notes each mean delta and the parameters of the broadcast that it answers."""

    def apply(grads, opt_state, params):
        heard.append((grads, params))
        return server.apply(grads, opt_state, params)

    return fedjax.Optimizer(server.init, apply)


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("name", ["magnitude", "set", "magnitude_ste", "static_sparse"])
@pytest.mark.parametrize("algorithm", ["fed_avg", "fed_prox", "agnostic_fed_avg", "hyp_cluster", "apfl"])
def test_deltas_are_zero_outside_the_mask_that_the_broadcast_carries(algorithm, name):
    updater, heard = updater_of(name), []
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater)
    federated = ALGORITHMS[algorithm](listening(server, heard), SPARSE_CLIENT)
    initial = [MODEL.init(jax.random.PRNGKey(seed)) for seed in (0, 1)]
    initial = [fed.sparse_broadcast(updater, params, server.init(params)) for params in initial]
    state = federated.init(initial if algorithm == "hyp_cluster" else initial[0])
    for num_round in range(ROUNDS):
        state, _ = federated.apply(state, clients_of_a_round(num_round))
        opt_states = state.opt_states if algorithm == "hyp_cluster" else [state.opt_state]
        broadcasts = state.cluster_params if algorithm == "hyp_cluster" else [state.params]
        for params, opt_state in zip(broadcasts, opt_states, strict=True):
            masks = core.unpack_masks(params, opt_state.masks)
            for layer in params:
                npt.assert_array_equal(params[layer]["w"] != 0, masks[layer]["w"])
                assert (params[layer]["b"] != 0).all()
    assert heard
    outside = [
        np.count_nonzero(delta[layer]["w"][params[layer]["w"] == 0]) for delta, params in heard for layer in delta
    ]
    assert outside == [0] * len(outside)
    assert any(jnp.any(params[layer]["w"] == 0) for _, params in heard for layer in params)


def test_biases_that_start_at_zero_learn_from_the_first_round_on():
    heard = []
    server = fed.sparse_server_optimizer(optax.sgd(1.0), updater_of("magnitude"))
    federated = ALGORITHMS["fed_avg"](listening(server, heard), SPARSE_CLIENT)
    federated.apply(federated.init(MODEL.init(jax.random.PRNGKey(0))), clients_of_a_round(0))
    ((delta, params),) = heard
    assert not any(params[layer]["b"].any() for layer in params)
    assert all(delta[layer]["b"].all() for layer in delta)


EMPTIED = "mlp/~/linear_1"


def emptying(how: str) -> core.BaseUpdater:
    """One that prunes the second layer whole: from the start, or as a global ranking does that finds it small."""
    if how == "global":
        schedule = core.OneShotSchedule(target_step=1, step_unit="round")
        return core.GlobalMagnitudePruning(sparsity=0.5, scheduler=schedule, use_normalization=False)
    rules = [(".*linear_1/w", 1.0), (".*/w", 0.5)]
    return core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5, rules=rules))


def small_second_layer(seed: int) -> dict:
    params = MODEL.init(jax.random.PRNGKey(seed))
    return params | {EMPTIED: params[EMPTIED] | {"w": 1e-3 * params[EMPTIED]["w"]}}


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize(
    ("algorithm", "how"), [("fed_avg", "rules"), *((name, "global") for name in ("fed_avg", "hyp_cluster", "apfl"))]
)
def test_a_layer_that_is_pruned_whole_stays_so_on_clients(algorithm, how):
    updater, heard = emptying(how), []
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater)
    federated = ALGORITHMS[algorithm](listening(server, heard), SPARSE_CLIENT)
    initial = [small_second_layer(seed) for seed in (0, 1)]
    initial = [fed.sparse_broadcast(updater, params, server.init(params)) for params in initial]
    state = federated.init(initial if algorithm == "hyp_cluster" else initial[0])
    for num_round in range(4):
        state, _ = federated.apply(state, clients_of_a_round(num_round))
    emptied = [(delta, params) for delta, params in heard if not params[EMPTIED]["w"].any()]
    assert len(emptied) >= 2
    for delta, params in emptied:
        assert not delta[EMPTIED]["w"].any()
        assert not np.signbit(delta[EMPTIED]["w"]).any()
        assert delta[EMPTIED]["b"].all()
        assert np.signbit(params[EMPTIED]["w"]).sum() == 1
    for client in getattr(state, "client_states", {}).values():
        npt.assert_array_equal(broadcast_masks(client.params)[EMPTIED]["w"], client.params[EMPTIED]["w"] != 0)


def test_a_clients_steps_keep_the_sign_that_tells_an_emptied_layer_from_a_new_one():
    client = fed.sparse_client_optimizer(optax.adam(0.1))
    params = {"gone": jnp.array([[-0.0, 0.0]]), "new": jnp.zeros((1, 2)), "part": jnp.array([[1.0, 0.0]])}
    state = client.init(params)
    for _ in range(3):
        state, params = client.apply(jax.tree.map(jnp.ones_like, params), state, params)
    npt.assert_array_equal(np.signbit(params["gone"]), [[True, False]])
    npt.assert_array_equal(params["gone"], np.zeros((1, 2)))
    assert params["new"].all()
    assert params["part"][0, 1] == 0 != params["part"][0, 0]


DRIFT = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u - 0.1, updates))  # moves without a gradient


@pytest.mark.parametrize(
    "inner", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1), optax.adamw(0.1), optax.lamb(0.1), DRIFT]
)
def test_momentum_and_decay_stay_inside_the_mask(inner):
    client = fed.sparse_client_optimizer(inner)
    params = {"w": jnp.where(jnp.arange(24).reshape(4, 6) % 3 == 0, 0.0, 1.0)}
    state, was_zero = client.init(params), params["w"] == 0
    for step in range(4):
        grads = {"w": jax.random.normal(jax.random.key(step), (4, 6))}
        state, params = client.apply(grads, state, params)
        npt.assert_array_equal(params["w"] == 0, was_zero)


def test_a_weight_that_crosses_zero_on_a_client_stays_in_use():
    client = fed.sparse_client_optimizer(optax.sgd(1.0))
    params = {"w": jnp.array([1.0, 0.0])}
    state, params = client.apply({"w": jnp.array([1.0, 5.0])}, client.init(params), params)
    assert params["w"].tolist() == [0.0, 0.0]
    _, params = client.apply({"w": jnp.array([1.0, 5.0])}, state, params)
    assert params["w"].tolist() == [-1.0, 0.0]


VALUES = st.sampled_from([0.0, -0.0, 1e-45, -1e-39, 1e-38, 1.0, -2.0, np.inf, np.nan])


# Few lengths, since each compiles anew.
@given(st.sampled_from([1, 2, 20]).flatmap(lambda size: st.lists(VALUES, min_size=size, max_size=size)))
def test_marked_parameters_carry_their_mask(values):
    for dtype in (np.float32, jnp.bfloat16, np.float16):
        params = {"w": jnp.asarray(values, dtype)}
        mask = np.arange(len(values)) % 2
        params = core.apply_masks(params, {"w": jnp.asarray(mask, jnp.uint8)})
        marked = mark_in_use(params, {"w": jnp.asarray(mask, jnp.uint8)})
        npt.assert_array_equal(np.asarray(marked["w"], np.float64) != 0, mask)
        npt.assert_array_equal(broadcast_masks(marked)["w"], mask)


def test_without_masks_nothing_is_marked():
    params = {"w": jnp.array([0.0, -0.0, 1e-39, 2.0]), "b": jnp.zeros(2)}
    marked = mark_in_use(params, jax.tree.map(lambda p: core.NOT_PRUNED, params))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), marked, params))


def test_gradient_growth_without_a_signal_is_an_error_with_the_remedy():
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater_of("rigl"))
    federated = ALGORITHMS["fed_avg"](server, SPARSE_CLIENT)
    state = federated.init(MODEL.init(jax.random.PRNGKey(0)))
    state, _ = federated.apply(state, clients_of_a_round(0))
    with pytest.raises(ValueError, match=r"round 1 is to grow.*core.SET.*growth='topk'"):
        federated.apply(state, clients_of_a_round(1))


def test_what_is_no_optimizer_is_a_type_error():
    with pytest.raises(TypeError, match="optimizer must be an optax transformation"):
        fed.sparse_client_optimizer(0.1)
    assert isinstance(fed.sparse_client_optimizer(CLIENT), fedjax.Optimizer)


def test_its_state_can_be_serialized_with_a_step():
    state = SPARSE_CLIENT.init({"w": jnp.array([0.0, 1.0])})._replace(inner_state=())
    written = jax.export.export(jax.jit(lambda state: state))(state).serialize()
    assert type(jax.export.deserialize(written).call(state)) is type(state)
