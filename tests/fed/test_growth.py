"""What clients say about which weights to grow: each has the same say, and who is refused has none."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins import core, fed
from sparse_plugins.fed.growth import PROTOCOLS, Signals, growth_protocol, ranked, strongest_pruned
from sparse_plugins.fed.mask_change import MaskChange, can_change_masks, replaced_per_layer
from sparse_plugins.fed.replies import growth_of
from tests import reference
from tests.fed.test_averaging import averaging, growing, masks_of, run
from tests.fed.toy import KEPT, MODEL, clients_of_a_round, updater_of


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
    signals = Signals(PROTOCOLS[protocol], MaskChange(growing(), state.opt_state, state.params, masks))
    add = signals.add_update if protocol == "delta" else signals.add_gradients
    for grads in (loud, honest, honest):
        add(jax.tree.map(np.asarray, grads))
    total = signals.total()
    for layer, count in replaced_per_layer(growing(), 0, masks).items():
        heard = np.abs(total[layer]["w"])
        expected = np.where(masks[layer]["w"], 0, np.abs(honest[layer]["w"]))
        best = reference.top_k(heard, count["w"])
        npt.assert_array_equal(best, reference.top_k(expected, count["w"]))


@dataclasses.dataclass(eq=False)
class GrowsAsDeclared(core.SET):
    """Not RigL, and none of its kin, but it says what it does."""

    grows_by_gradient: ClassVar[bool] = True

    def update_state(self, sparse_state, params, grads, **kwargs):
        return of_class(core.RigL, self).update_state(sparse_state, params, grads, **kwargs)


def of_class(algorithm, updater: core.BaseUpdater) -> core.BaseUpdater:
    return algorithm(**{field.name: getattr(updater, field.name) for field in dataclasses.fields(updater)})


class AllGradients(fed.GrowthProtocol):
    """What `dense` does, as a user writes it."""

    name = "mine"

    def sent_values(self, change):
        return PROTOCOLS["dense"].sent_values(change)

    def asked(self, change):
        return growth_of(change.settled)


def test_an_updater_and_a_protocol_of_users_grow_as_our_own_do():
    ledgers = fed.Ledger(), fed.Ledger()
    ours = run(averaging(growing(), growth="dense", ledger=ledgers[0]), 2)[-1]
    theirs = run(averaging(of_class(GrowsAsDeclared, growing()), growth=AllGradients(), ledger=ledgers[1]), 2)[-1]
    jax.tree.map(npt.assert_array_equal, (ours.params, ours.opt_state), (theirs.params, theirs.opt_state))
    assert list(ledgers[0]) == list(ledgers[1])
    assert ledgers[0].total().growth > 0
    assert growth_protocol(of_class(GrowsAsDeclared, growing()), None) is PROTOCOLS["topk"]


@dataclasses.dataclass(eq=False)
class ScoresByGradient(core.MagnitudePruning):
    scores_by_gradient: ClassVar[bool] = True


@dataclasses.dataclass(eq=False)
class GrowsAnyNumber(core.MagnitudePruning):
    grows_by_gradient: ClassVar[bool] = True


@pytest.mark.parametrize("algorithm", [ScoresByGradient, GrowsAnyNumber, GrowsAsDeclared])
def test_what_is_declared_decides_whether_a_round_without_gradients_may_change_masks(algorithm):
    half = lambda params: {"w": 0.5}  # noqa: E731
    updater = algorithm(sparsity_distribution_fn=half, scheduler=core.PeriodicSchedule(1, 0, 9))
    params, nothing = {"w": jnp.array([[1.0, 4.0, 3.0, 2.0]])}, {"w": jnp.zeros((1, 4))}
    state = updater.with_masks(updater.init_state(params), params, {"w": jnp.array([[0, 1, 1, 0]], jnp.uint8)})
    assert not can_change_masks(updater, state, params, nothing, nothing)
    assert can_change_masks(updater, state, params, params, params)
    if algorithm is GrowsAnyNumber:
        assert replaced_per_layer(updater, 0, core.unpack_masks(params, state.masks)) == {"w": 2}


@pytest.mark.parametrize("growth", [3, core.RigL, "dens"])
def test_what_is_no_protocol_is_named(growth):
    with pytest.raises((TypeError, ValueError), match=r"growth is .*random, topk, delta, dense"):
        averaging(growing(), growth=growth)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_costs_what_it_says_and_little_less(name, dtype):
    ledger = fed.Ledger()
    algorithm = averaging(growing(), growth=name, ledger=ledger, wire=fed.Wire(up=dtype))
    before = run(algorithm, 1)[-1]
    ordinary = ledger.total().up // 4
    algorithm.apply(before, clients_of_a_round(1))
    change = MaskChange(growing(), before.opt_state, before.params, masks_of(before))
    most = PROTOCOLS[name].most_bytes(change, dtype)
    values = sum(PROTOCOLS[name].sent_values(change))
    of_value = {"float32": 4, "int8": 1}[dtype]
    for entry in [entry for entry in ledger if entry.round == 1]:
        assert entry.status == "ok"
        assert entry.growth_status == ("ok" if name in ("topk", "dense") else "")
        assert values * of_value <= entry.up - ordinary + entry.growth <= most
    assert most - values * of_value < 120
    assert (values > 0) == (name != "random")


broken = st.sampled_from([np.nan, np.inf, -np.inf])


@given(st.lists(st.one_of(st.integers(-9, 9), broken), min_size=12, max_size=12), st.integers(0, 12), st.data())
def test_what_is_not_finite_never_grows_a_weight(values, count, data):
    grads = np.array(values, np.float32)
    masks = np.array(data.draw(st.lists(st.integers(0, 1), min_size=12, max_size=12)), np.uint8)
    may_grow = (masks == 0) & np.isfinite(grads)
    chosen = np.asarray(strongest_pruned({"w": grads}, {"w": masks}, {"w": np.int32(count)})["w"])
    expected = reference.top_k(np.where(may_grow, np.abs(grads), -1), min(count, int(may_grow.sum())))
    npt.assert_array_equal(chosen, expected)
    assert not chosen[~may_grow].any()
    for counts in (None, {"w": count}):
        ranks = ranked({"w": grads}, {"w": masks}, counts)["w"]
        assert not ranks[~may_grow].any()
        npt.assert_array_equal(ranks, ranked({"w": np.where(may_grow, grads, 0)}, {"w": masks}, counts)["w"])


class DrawnOnce(core.StaticRandomSparse):
    """A class of a user; whether its masks follow from the seed is inherited."""


def test_masks_of_users_that_follow_from_a_seed_are_sent_as_one():
    ledgers = fed.Ledger(), fed.Ledger()
    ours = updater_of("static_sparse")
    for updater, ledger in zip((ours, of_class(DrawnOnce, ours)), ledgers, strict=True):
        run(averaging(updater, ledger=ledger), 1)
    assert list(ledgers[0]) == list(ledgers[1])


def test_personal_masks_are_for_updaters_that_exchange_weights_and_keep_their_number():
    averaging(of_class(GrowsAsDeclared, growing()), personal_masks=True)
    for updater in (updater_of("gradual_rigl"), of_class(DrawnOnce, updater_of("static_sparse"))):
        with pytest.raises(ValueError, match="declare exchanges_weights and not to start dense"):
            averaging(updater, personal_masks=True)
