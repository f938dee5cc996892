"""Bytes of FedJAX's own algorithms, measured from outside: the same training, and the lengths of payloads."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import optax
import pytest

from sparse_plugins import fed
from sparse_plugins.fed.mask_in_params import broadcast_masks
from tests.fed.test_averaging import averaging
from tests.fed.toy import (
    ALGORITHMS,
    CLIENT,
    EVALUATE,
    LOSS,
    MODEL,
    ROUNDS,
    SPARSE_CLIENT,
    TRAIN,
    clients_of_a_round,
    updater_of,
)

fedjax = fed.import_fedjax()


def run(make, meter=None) -> list:
    with fedjax.for_each_client_backend(meter):
        algorithm = make()
    states = [algorithm.init(MODEL.init(jax.random.PRNGKey(0)))]
    for num_round in range(ROUNDS):
        states.append(algorithm.apply(states[-1], clients_of_a_round(num_round))[0])
    return states


def sparse_fed_avg():
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater_of("magnitude"))
    return ALGORITHMS["fed_avg"](server, SPARSE_CLIENT)


@pytest.mark.parametrize("algorithm", ["fed_avg", "fed_prox", "apfl"])
def test_metering_changes_nothing(algorithm):
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater_of("magnitude"))
    make = lambda: ALGORITHMS[algorithm](server, SPARSE_CLIENT)  # noqa: E731
    ledger = fed.Ledger()
    metered, plain = run(make, fed.MeteredBackend(ledger)), run(make)
    jax.tree.map(npt.assert_array_equal, metered[-1].params, plain[-1].params)
    assert len(ledger) == 4 * ROUNDS
    assert {entry.round for entry in ledger} == set(range(ROUNDS))


def test_the_counts_are_those_of_the_algorithm_that_counts_itself():
    """Masks read from zeros cost what masks that are known cost, up to the weights that did not move."""
    metered, counted = fed.Ledger(), fed.Ledger()
    run(sparse_fed_avg, fed.MeteredBackend(metered))
    run(lambda: averaging(updater_of("magnitude"), ledger=counted))
    for ours, theirs in zip(metered, counted, strict=True):
        assert abs(ours.down - theirs.down) <= 64
        assert abs(ours.up - theirs.up) <= 64
    dense = fed.Ledger()
    run(lambda: ALGORITHMS["fed_avg"](fedjax.optimizers.adam(0.01), CLIENT), fed.MeteredBackend(dense))
    assert metered.by_round()[ROUNDS - 1].up < 0.6 * dense.by_round()[ROUNDS - 1].up


def test_what_was_decoded_is_what_the_algorithm_goes_on_with():
    exact = run(sparse_fed_avg)[-1]
    narrow = run(sparse_fed_avg, fed.MeteredBackend(fed.Ledger(), fed.Wire(up="bfloat16")))[-1]
    differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), exact.params, narrow.params)
    assert 0 < max(jax.tree.leaves(differences)) < 0.1


def test_mime_makes_two_passes_a_round():
    ledger = fed.Ledger()
    make = lambda: fedjax.algorithms.mime.mime(LOSS, CLIENT, TRAIN, EVALUATE, server_learning_rate=1.0)  # noqa: E731
    states = run(make, fed.MeteredBackend(ledger, passes_per_round=2))
    jax.tree.map(npt.assert_array_equal, states[-1].params, run(make)[-1].params)
    assert {entry.round for entry in ledger} == set(range(ROUNDS))
    assert len(ledger) == 2 * 4 * ROUNDS


def test_what_stays_with_the_client_is_not_counted():
    make = lambda: ALGORITHMS["apfl"](fedjax.optimizers.adam(0.01), CLIENT)  # noqa: E731
    everything, deltas = fed.Ledger(), fed.Ledger()
    run(make, fed.MeteredBackend(everything))
    states = run(make, fed.MeteredBackend(deltas, uploaded=lambda output: output["delta_params"]))
    jax.tree.map(npt.assert_array_equal, states[-1].params, run(make)[-1].params)
    assert 1.9 * deltas.total().up < everything.total().up


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_a_layer_that_is_pruned_whole_is_so_for_clients_of_any_wire(dtype):
    shared = {"gone": jnp.array([-0.0, 0.0, 0.0]), "new": jnp.zeros(3), "part": jnp.array([0.0, 4.0, 1.0])}
    with fedjax.for_each_client_backend(fed.MeteredBackend(fed.Ledger(), fed.Wire(down=dtype))):
        receive = fedjax.for_each_client(lambda shared, _: broadcast_masks(shared), lambda masks, batch: masks)
    ((_, masks),) = receive(shared, [("anna", [], None)])
    expected = {"gone": [False] * 3, "new": [True] * 3, "part": [False, True, True]}
    assert expected == {name: mask.tolist() for name, mask in masks.items()}


def test_signs_of_zero_and_odd_leaves_survive():
    shared = {"w": jnp.array([-0.0, 0.0, jnp.inf]), "n": jnp.array([0, 3]), "x": 2.0}
    with fedjax.for_each_client_backend(fed.MeteredBackend(fed.Ledger())):
        echo = fedjax.for_each_client(lambda shared, _: shared, lambda state, batch: state)
    ((_, output),) = echo(shared, [("anna", [], None)])
    npt.assert_array_equal(np.signbit(output["w"]), [True, False, False])
    assert output["n"].tolist() == [0, 3]
    assert float(output["x"]) == 2.0
    with pytest.raises(ValueError, match="passes_per_round is 0"):
        fed.MeteredBackend(fed.Ledger(), passes_per_round=0)
