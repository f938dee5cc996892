"""Algorithms without a server optimizer, clusters and personal models, made sparse from outside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy.testing as npt
import optax
import pytest

from sparse_plugins import core, fed
from tests.fed.toy import (
    ALGORITHMS,
    CLIENT,
    END_ROUND,
    EVALUATE,
    KEPT,
    LOSS,
    MODEL,
    ROUNDS,
    TRAIN,
    clients_of_a_round,
    num_kept,
    updater_of,
)

fedjax = fed.import_fedjax()
mime, mime_lite = fedjax.algorithms.mime, fedjax.algorithms.mime_lite
DENSE_SERVER = fedjax.optimizers.adam(0.01)

DENSE = {
    "mime": lambda: mime.mime(LOSS, CLIENT, TRAIN, EVALUATE, server_learning_rate=1.0),
    "mime, slow server": lambda: mime.mime(LOSS, CLIENT, TRAIN, EVALUATE, server_learning_rate=0.5),
    "mime_lite": lambda: mime_lite.mime_lite(LOSS, CLIENT, TRAIN, EVALUATE, server_learning_rate=0.5),
    **{name: lambda make=make: make(DENSE_SERVER) for name, make in ALGORITHMS.items()},
}


def run(algorithm, rounds: int = ROUNDS, clusters: bool = False) -> list:
    """The states after init and after each round."""
    initial = [MODEL.init(jax.random.PRNGKey(seed)) for seed in (0, 1)]
    states = [algorithm.init(initial if clusters else initial[0])]
    for num_round in range(rounds):
        states.append(algorithm.apply(states[-1], clients_of_a_round(num_round))[0])
    return states


def models(state) -> list:
    return state.cluster_params if hasattr(state, "cluster_params") else [state.params]


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("name", ["magnitude", "set", "magnitude_ste"])
@pytest.mark.parametrize("algorithm", ["mime", "mime, slow server", "mime_lite", "hyp_cluster", "apfl"])
def test_every_algorithm_ends_exactly_sparse_and_learns(algorithm, name):
    states = run(fed.sparsify(DENSE[algorithm](), updater_of(name)), clusters=algorithm == "hyp_cluster")
    for state in states[END_ROUND + 1 :]:
        assert [num_kept(params) for params in models(state)] == [KEPT] * len(models(state))
        for client in getattr(state, "client_states", {}).values():
            for layer, personal in client.params.items():
                assert not personal["w"][state.params[layer]["w"] == 0].any()
    first, last = (models(state)[0]["mlp/~/linear_0"]["b"] for state in (states[1], states[-1]))
    assert not jnp.allclose(first, last)


def test_personal_models_are_on_the_servers_mask_where_its_zeros_are_the_mask():
    updater = dataclasses.replace(updater_of("magnitude"), use_packed_masks="zeros")
    state = run(fed.sparsify(DENSE["apfl"](), updater))[-1]
    stored = run(fed.sparsify(DENSE["apfl"](), updater_of("magnitude")))[-1]
    assert state.client_states
    for name, client in state.client_states.items():
        for layer, personal in client.params.items():
            assert not personal["w"][state.params[layer]["w"] == 0].any()
            npt.assert_allclose(personal["w"], stored.client_states[name].params[layer]["w"], rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("algorithm", ["mime", "fed_avg", "hyp_cluster", "apfl"])
def test_without_pruning_nothing_changes(algorithm):
    sides = DENSE[algorithm](), fed.sparsify(DENSE[algorithm](), core.NoPruning())
    plain, sparse = (models(run(side, 3, clusters=algorithm == "hyp_cluster")[-1]) for side in sides)
    jax.tree.map(lambda a, b: npt.assert_allclose(a, b, rtol=1e-5, atol=1e-7), sparse, plain)


@pytest.mark.filterwarnings("ignore:Some donated buffers")
def test_clusters_share_one_schedule_and_have_their_own_masks():
    states = run(fed.sparsify(DENSE["hyp_cluster"](), updater_of("magnitude")), clusters=True)
    assert [int(s.count) for s in states[-1].opt_states] == [ROUNDS, ROUNDS]
    kept, other_kept = (params["mlp/~/linear_0"]["w"] != 0 for params in states[-1].cluster_params)
    assert (kept != other_kept).any()


@pytest.mark.parametrize("name", ["rigl", "gradual_rigl", "saliency"])
def test_a_cluster_without_clients_changes_its_masks_by_gradients_when_it_has_some(name):
    dense = DENSE["fed_avg"]()
    idle_until_the_end = fedjax.FederatedAlgorithm(
        dense.init, lambda state, clients: dense.apply(state, clients) if clients else (state, {})
    )
    algorithm = fed.sparsify(idle_until_the_end, updater_of(name))
    state = first = algorithm.init(MODEL.init(jax.random.PRNGKey(0)))
    state, _ = algorithm.apply(state, [])
    for _ in range(END_ROUND + 1):
        with pytest.warns(RuntimeWarning, match="round 1: masks are to change by gradients.*put off to the next round"):
            state, _ = algorithm.apply(state, [])
    jax.tree.map(npt.assert_array_equal, state.params, first.params)
    assert int(state.opt_states[0].count) == 1
    for num_round in range(END_ROUND):
        state, _ = algorithm.apply(state, clients_of_a_round(num_round))
    assert num_kept(state.params) == KEPT


def test_growth_follows_what_dense_clients_changed():
    states = run(fed.sparsify(DENSE["mime"](), updater_of("rigl")))
    masks = [state.params["mlp/~/linear_0"]["w"] != 0 for state in states]
    assert (masks[1] != masks[-1]).any()
    assert num_kept(states[0].params) == num_kept(states[-1].params) == KEPT


@pytest.mark.parametrize("second", ["rigl", "set"])
def test_parts_of_a_model_have_their_own_updaters(second):
    rules = [("mlp/~/linear_0/.*", updater_of("magnitude")), ("mlp/~/linear_1/.*", updater_of(second))]
    states = run(fed.sparsify(DENSE["mime"](), core.PerModule(rules)))
    assert num_kept(states[0].params) == {"mlp/~/linear_0": 64, "mlp/~/linear_1": 8}
    assert num_kept(states[-1].params) == KEPT


def test_the_state_before_a_round_stays_as_it_was():
    algorithm = fed.sparsify(DENSE["apfl"](), updater_of("magnitude"))
    states = run(algorithm, 2)
    assert not states[0].client_states
    again = algorithm.apply(states[1], clients_of_a_round(1))[0]
    jax.tree.map(npt.assert_array_equal, again.params, states[2].params)


def test_a_state_without_parameters_is_a_type_error():
    algorithm = fedjax.FederatedAlgorithm(lambda params: {"count": 0}, lambda state, clients: (state, {}))
    with pytest.raises(TypeError, match="a dict without params or cluster_params"):
        fed.sparsify(algorithm, updater_of("magnitude")).init({})
    with pytest.raises(TypeError, match="updater is a"):
        fed.sparsify(algorithm, optax.sgd(0.1))
