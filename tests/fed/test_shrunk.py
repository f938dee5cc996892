"""Runs that go on without the channels that masks have pruned: the same training, with smaller messages."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import optax
import pytest

from sparse_plugins import core, fed
from tests.fed import toy
from tests.fed.test_checkpoints import assert_same_bits

fedjax = fed.import_fedjax()
ROUNDS, HALF = 4, {"mlp/~/linear_0": {"b": (4,), "w": (8, 4)}, "mlp/~/linear_1": {"b": (4,), "w": (4, 4)}}


def graph_of(grad_fn: Any = toy.GRADIENT) -> core.ChannelGraph:
    _, data, key = toy.clients_of_a_round(0)[0]
    return core.channel_graph(grad_fn, toy.MODEL.init(jax.random.PRNGKey(0)), next(iter(data.batch(batch_size=8))), key)


GRAPH = graph_of()


def averaging(updater: Any = "magnitude", **options: Any) -> Any:
    words = (
        {} if updater != "magnitude" else {"sparsity": 0.5, "rounds": ROUNDS, "structure": core.ChannelGroups(GRAPH)}
    )
    return fed.sparse_federated_averaging(
        toy.GRADIENT, toy.CLIENT, optax.adam(0.01), updater, toy.TRAIN, **{**words, **options}
    )


def rounds_of(algorithm: Any, state: Any, count: int) -> tuple[Any, list[Any]]:
    told = []
    for _ in range(count):
        state, diagnostics = algorithm.apply(state, toy.clients_of_a_round(state.round))
        told.append(diagnostics)
    return state, told


class Masked(NamedTuple):
    algorithm: Any
    ledger: fed.Ledger
    state: Any


@pytest.fixture(scope="module")
def masked() -> Masked:
    """A run after its last change of masks."""
    ledger = fed.Ledger()
    algorithm = averaging(ledger=ledger)
    state, _ = rounds_of(algorithm, algorithm.init(toy.MODEL.init(jax.random.PRNGKey(0))), ROUNDS)
    return Masked(algorithm, ledger, state)


def test_it_goes_on_as_the_masked_run_does_with_smaller_messages(masked: Masked) -> None:
    masked.ledger.truncate(ROUNDS)
    whole, told = rounds_of(masked.algorithm, masked.state, 2)
    of_masked = masked.ledger.by_round()[ROUNDS + 1]
    masked.ledger.truncate(ROUNDS)

    algorithm, state, small = fed.shrunk(masked.algorithm, masked.state, GRAPH)
    assert jax.tree.map(jnp.shape, state.params) == HALF
    assert state.round == ROUNDS
    after, told_small = rounds_of(algorithm, state, 2)
    assert after.round == whole.round
    expanded = core.expand(small, after.params)
    kept = core.apply_masks(whole.params, jax.tree.map(jnp.ones_like, whole.params))
    jax.tree.map(lambda a, b: npt.assert_allclose(a, b * (a != 0), rtol=1e-5, atol=1e-6), expanded, kept)
    for ours, theirs in zip(told_small, told, strict=True):  # what readers of pruned channels learn is nothing
        norms = [[its[client]["delta_l2_norm"] for client in its] for its in (ours, theirs)]
        npt.assert_allclose(*norms, rtol=1e-5)
    of_small = masked.ledger.by_round()[ROUNDS + 1]
    values = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
    clients = of_small.clients
    assert values < of_small.up / clients < values + 100
    assert of_small.up < of_masked.up
    assert of_small.down < of_masked.down
    outputs = [
        model.apply_for_eval(params, toy.clients_of_a_round(0)[0][1].all_examples())
        for model, params in ((toy.MODEL, expanded), (toy.model_of(4), after.params))
    ]
    npt.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


def test_a_killed_run_is_shrunk_again_and_goes_on_bit_for_bit(masked: Masked, tmp_path: Any) -> None:
    whole, small = (tmp_path / name for name in ("whole", "small"))
    fed.Checkpoints(whole, updater=masked.algorithm).save(ROUNDS, masked.state)
    algorithm, state, _ = fed.shrunk(masked.algorithm, masked.state, GRAPH)
    state, _ = rounds_of(algorithm, state, 1)
    fed.Checkpoints(small, updater=algorithm).save(state.round, state)
    expected, _ = rounds_of(algorithm, state, 2)

    again = averaging()
    found = fed.Checkpoints(whole, updater=again).restore(like=again.init(toy.MODEL.init(jax.random.PRNGKey(9))))
    again, first, _ = fed.shrunk(again, found.state, graph_of())
    newest = fed.Checkpoints(small, updater=again).restore(like=first)
    assert newest.round == ROUNDS + 1
    assert_same_bits(newest.state, state)
    assert_same_bits(rounds_of(again, newest.state, 2)[0], expected)
    with pytest.raises(fed.CheckpointMismatchError):
        fed.Checkpoints(small, updater=masked.algorithm).restore(like=masked.state)


def test_widths_of_clients_and_the_backend_are_those_of_the_run(masked: Masked) -> None:
    ran: list[int] = []

    class Counting(fed.ScanBackend):
        def __call__(self, *parts: Any) -> Any:
            train = super().__call__(*parts)
            return lambda *inputs: ran.append(1) or train(*inputs)

    with fedjax.for_each_client_backend(Counting()):
        algorithm = averaging(client_widths=fed.ClientWidths({0: 0.5}))
    algorithm, state, _ = fed.shrunk(algorithm, masked.state, GRAPH)
    _, told = rounds_of(algorithm, state, 1)
    assert len(ran) == 2, "a call for each width"
    values = 4 * (8 * 2 + 2 + 2 * 4 + 4)
    assert values < told[0][0]["up"] < values + 120
    assert told[0][1]["up"] > 4 * (8 * 4 + 4 + 4 * 4 + 4)


def test_what_cannot_shrink_is_said(masked: Masked) -> None:
    with pytest.raises(ValueError, match=r"masks still change \(the last time at step \d\), and training is at step 0"):
        fed.shrunk(masked.algorithm, masked.algorithm.init(toy.MODEL.init(jax.random.PRNGKey(0))), GRAPH)
    with pytest.raises(TypeError, match=r"none of fed\.sparse_federated_averaging\. For FedJAX's own, shrink params"):
        fed.shrunk(toy.ALGORITHMS["fed_avg"](fedjax.optimizers.sgd(1.0)), masked.state, GRAPH)
    dense = averaging(core.NoPruning())
    with pytest.raises(ValueError, match="no channel"):
        fed.shrunk(dense, dense.init(toy.MODEL.init(jax.random.PRNGKey(0))), GRAPH)
    other = toy.model_of(16).init(jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="make a graph of these"):
        fed.shrunk(dense, dense.init(other), GRAPH)


def test_fedjaxs_own_algorithms_shrink_as_the_message_says(masked: Masked) -> None:
    adam = optax.adam(0.01)
    server = fed.sparse_server_optimizer(
        adam, "magnitude", sparsity=0.5, rounds=ROUNDS, structure=core.ChannelGroups(GRAPH)
    )
    algorithm = toy.ALGORITHMS["fed_avg"](server, toy.SPARSE_CLIENT)
    state = algorithm.init(toy.MODEL.init(jax.random.PRNGKey(0)))
    for number in range(ROUNDS):
        state, _ = algorithm.apply(state, toy.clients_of_a_round(number))
    masks = core.find_sparse_state(state.opt_state).masks
    small = core.shrink(GRAPH, state.params, masks, opt_state=state.opt_state)
    smaller = fedjax.algorithms.fed_avg.federated_averaging(
        small.narrow(toy.GRADIENT), toy.SPARSE_CLIENT, fed.sparse_server_optimizer(adam, small.updater), toy.TRAIN
    )
    after, _ = smaller.apply(type(state)(small.params, small.opt_state), toy.clients_of_a_round(ROUNDS))
    assert jax.tree.map(jnp.shape, after.params) == HALF
    whole, _ = algorithm.apply(state, toy.clients_of_a_round(ROUNDS))
    expanded = core.expand(small, after.params)
    jax.tree.map(
        lambda a, b: npt.assert_allclose(a, np.where(a == 0, 0, b), rtol=1e-5, atol=1e-6), expanded, whole.params
    )
