"""What clients say about which weights to grow: each has the same say, and who is refused has none."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins import fed
from sparse_plugins.fed.growth import Signals, ranked, replaced_per_layer
from tests import reference
from tests.fed.test_averaging import averaging, growing, masks_of, run
from tests.fed.toy import KEPT, MODEL, clients_of_a_round


class Refused(fed.Faults):
    """In round 1 client 0's update arrives as something else, its growth signal, which refers to no masks, does not."""

    is_dense = False

    def deliver(self, round_num, client, payload):
        is_update = self.is_dense or fed.needed_base(payload) is not None
        return b"" if (round_num, client, is_update) == (1, 0, True) else payload


@pytest.mark.parametrize("growth", ["topk", "dense", "delta"])
def test_a_client_whose_update_is_refused_does_not_decide_growth(growth):
    channel = type("Channel", (Refused,), {"is_dense": growth == "delta"})()
    algorithm = averaging(growing(), growth=growth, faults=channel)
    before = run(algorithm, 1)[-1]
    after, told = algorithm.apply(before, clients_of_a_round(1))
    assert told[0]["status"].startswith("refused")
    assert told[0]["growth"] == 0
    expected, _ = averaging(growing(), growth=growth).apply(before, clients_of_a_round(1)[1:])
    jax.tree.map(npt.assert_array_equal, (after.params, after.opt_state), (expected.params, expected.opt_state))


class Shouting(fed.Faults):
    """Client 0's growth signal names weights that nobody else wants, as many as may be named, and loudly."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "heard", [])

    def deliver(self, round_num, client, payload):
        if round_num != 1 or fed.needed_base(payload) is not None:
            return payload
        like = self.like.params
        sent = fed.decode(payload, like)
        if client != 0:
            self.heard.append(sent.masks)
            return payload
        masks = jax.tree.map(lambda m: np.zeros(m.shape, np.uint8), sent.masks)
        for layer, mask in masks.items():
            wanted = np.argsort(self.unwanted[layer]["w"].ravel(), kind="stable")[: sent.masks[layer]["w"].sum()]
            mask["w"].ravel()[wanted] = 1
        return fed.encode(masks, jax.tree.map(lambda m: 1e30 * m.astype(np.float32), masks))


def test_one_clients_signal_does_not_outvote_three_that_agree():
    """None of the grown weights is the one client's choice; with sums of gradients all of them were."""
    channel = Shouting()
    algorithm = averaging(growing(), growth="topk", faults=channel)
    before = run(averaging(growing(), growth="topk"), 1)[-1]
    clients = clients_of_a_round(1)
    clients = [clients[0], *((number, clients[1][1], clients[1][2]) for number in (1, 2, 3))]
    expected, _ = averaging(growing(), growth="topk").apply(before, clients[1:])
    grown = jax.tree.map(lambda new, old: new | old, masks_of(expected), masks_of(before))
    object.__setattr__(channel, "like", before)
    object.__setattr__(channel, "unwanted", jax.tree.map(np.asarray, grown))
    after, told = algorithm.apply(before, clients)
    assert told[0]["growth"] > 0
    assert len(channel.heard) == 3
    for layer in KEPT:
        npt.assert_array_equal(masks_of(after)[layer]["w"], masks_of(expected)[layer]["w"])


signal = st.lists(st.one_of(st.integers(-9, 9), st.sampled_from([3e38, -3e38, 1e30, 0.0])), min_size=20, max_size=20)


@given(signal, st.integers(1, 8), st.data())
def test_ranks_follow_the_slow_rule_and_say_no_more_than_any_client(values, count, data):
    grads = np.array(values, np.float32)
    masks = np.array(data.draw(st.lists(st.integers(0, 1), min_size=20, max_size=20)), np.uint8)
    for counts, most, fall in ((None, int((masks == 0).sum()), 1.0), ({"w": count}, count, 0.5)):
        ranks = ranked({"w": grads}, {"w": masks}, counts)["w"]
        most = min(most, int((masks == 0).sum()))
        npt.assert_allclose(ranks, reference.signed_ranks(grads, masks == 0, most, fall), rtol=1e-6)
        assert np.abs(ranks).sum() <= sum(1 - fall * place / most for place in range(most)) + 1e-5
        assert not ranks[masks != 0].any()


@given(st.permutations(range(20)), signal, st.integers(1, 6), st.data())
def test_what_four_clients_name_alike_is_grown_whatever_a_fifth_says(places, values, count, data):
    named = np.zeros(20, np.float32)
    total = np.zeros(20)
    for _ in range(4):
        named[list(places[:count])] = data.draw(st.permutations(range(1, count + 1)))
        total += ranked({"w": named}, {"w": np.zeros(20, np.uint8)}, {"w": count})["w"]
    total += ranked({"w": np.array(values, np.float32)}, {"w": np.zeros(20, np.uint8)}, {"w": count})["w"]
    assert {*np.argsort(-np.abs(total), kind="stable")[:count].tolist()} == {*places[:count]}


@pytest.mark.parametrize("protocol", ["topk", "delta"])
def test_large_gradients_and_large_deltas_are_heard_as_small_ones_are(protocol):
    state = averaging(growing()).init(MODEL.init(jax.random.PRNGKey(0)))
    masks = masks_of(state)
    honest = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), state.params)
    loud = jax.tree.map(lambda x: jnp.where(jnp.abs(x) < 0.3, 1e20 * x, 0), honest)  # what nobody else wants
    signals = Signals(growing(), state.opt_state, state.params, masks, protocol)
    for grads in (loud, honest, honest):
        signals.add(jax.tree.map(np.asarray, grads))
    total = signals.total()
    for layer, count in replaced_per_layer(growing(), 0, masks).items():
        heard = np.abs(total[layer]["w"])
        expected = np.where(masks[layer]["w"], 0, np.abs(honest[layer]["w"]))
        best = reference.top_k(heard, count["w"])
        npt.assert_array_equal(best, reference.top_k(expected, count["w"]))
