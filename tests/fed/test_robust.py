"""A few hostile clients: what they send is bounded by what honest ones say, under every robust rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins import core, fed
from sparse_plugins.fed.aggregation import Sums, Updates
from tests.fed.test_averaging import averaging, growing, masks_of, run
from tests.fed.toy import KEPT, clients_of_a_round, num_kept, updater_of

fedjax = fed.import_fedjax()
MASKS = {"w": jnp.ones(4, jnp.uint8), "b": core.NOT_PRUNED}
LIKE = {"w": jnp.zeros(4), "b": jnp.zeros(1)}
MEDIAN, TRIMMED, KRUM, MULTI_KRUM = fed.FedMedian(), fed.FedTrimmedAvg(0.2), fed.Krum(1), fed.Krum(1, 2)


def message(values, mask=(1, 1, 1, 1)):
    """An update of five entries, of which the last is never pruned, and masks."""
    masks = {"w": np.array(mask, np.uint8), "b": core.NOT_PRUNED}
    values = np.array(values, np.float32)
    return {"w": values[:4] * masks["w"], "b": values[4:]}, masks


def gathered(clients, aggregation, weights=None):
    updates = aggregation.gather(LIKE, MASKS, is_personal=True)
    for (values, masks), weight in zip(clients, weights or [1.0] * len(clients), strict=True):
        updates.add(aggregation.clipped(values), weight, masks)
    return updates


def aggregated(clients, aggregation, weights=None) -> np.ndarray:
    mean = gathered(clients, aggregation, weights).aggregate(aggregation)
    return np.concatenate([mean["w"], mean["b"]])


def slow_trimmed_mean(clients, cut, min_votes):
    """One weight after the other: sort what its holders say, leave out the ends, take the mean of the rest."""
    result = np.zeros(5)
    for place in range(5):
        said = sorted(
            float(np.append(values["w"], values["b"])[place])
            for values, masks in clients
            if place == 4 or masks["w"][place]
        )
        if len(said) >= min_votes:
            most = (len(said) - 1) // 2
            result[place] = np.mean(said[min(cut, most) : len(said) - min(cut, most)])
    return result


def slow_krum(clients, num_malicious, num_to_keep):
    """Scores by the definition, then the clients of the smallest."""
    rows = [np.append(values["w"], values["b"]).astype(np.float64) for values, _ in clients]
    scores = []
    for i, row in enumerate(rows):
        others = sorted(sum((row - other) ** 2) for j, other in enumerate(rows) if j != i)
        scores.append(sum(others[: len(rows) - num_malicious - 2]))
    return sorted(sorted(range(len(rows)), key=lambda i: (scores[i], i))[:num_to_keep])


whole = st.integers(-8, 8)
clients_of = lambda size: st.lists(  # noqa: E731
    st.builds(message, st.lists(whole, min_size=5, max_size=5), st.lists(st.integers(0, 1), min_size=4, max_size=4)),
    min_size=size,
    max_size=size,
)


@given(st.integers(1, 7).flatmap(clients_of), st.integers(1, 3), st.sampled_from([0.0, 0.1, 0.25, 0.4]))
def test_medians_and_trimmed_means_follow_the_slow_rule(clients, min_votes, beta):
    slow = slow_trimmed_mean(clients, 99, min_votes)
    npt.assert_allclose(aggregated(clients, fed.Aggregation(MEDIAN, min_votes)), slow, rtol=1e-6)
    middle = [np.median([v["b"] for v, _ in clients])]
    npt.assert_allclose(slow[4:], middle if len(clients) >= min_votes else 0)
    cut = next(cut for cut in itertools.count() if cut >= round(beta * len(clients), 9))
    rule = fed.Aggregation(fed.FedTrimmedAvg(beta), min_votes)
    npt.assert_allclose(aggregated(clients, rule), slow_trimmed_mean(clients, cut, min_votes), rtol=1e-6)


@given(st.integers(5, 8).flatmap(clients_of), st.data())
def test_krum_follows_the_slow_rule(clients, data):
    num_malicious = data.draw(st.integers(0, (len(clients) - 3) // 2))
    num_to_keep = data.draw(st.integers(1, len(clients) - num_malicious - 2))
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(clients), max_size=len(clients)))
    aggregation = fed.Aggregation(fed.Krum(num_malicious, num_to_keep))
    chosen = slow_krum(clients, num_malicious, num_to_keep)
    mean = sum(weights[i] * np.append(clients[i][0]["w"], clients[i][0]["b"]) for i in chosen)
    mean = mean / sum(weights[i] for i in chosen)
    npt.assert_allclose(aggregated(clients, aggregation, weights), mean, rtol=1e-5, atol=1e-7)
    votes = sum(clients[i][1]["w"] for i in chosen)
    elected = gathered(clients, aggregation).elected(fed.Aggregation(aggregation.rule, min_votes=2))
    npt.assert_array_equal(elected["w"], votes >= 2)
    assert elected["b"] == core.NOT_PRUNED


@given(st.integers(5, 7).flatmap(clients_of), st.permutations(range(7)))
def test_the_order_of_clients_changes_no_bit(clients, order):
    shuffled = [clients[i] for i in order if i < len(clients)]
    for rule in (MEDIAN, TRIMMED):
        npt.assert_array_equal(*(aggregated(some, fed.Aggregation(rule)) for some in (clients, shuffled)))


hostile = st.sampled_from([3e38, -3e38, 1e30, -5.0, 0.0, 7.0])


@given(st.integers(5, 8).flatmap(clients_of), st.data())
def test_hostile_clients_move_nothing_out_of_the_range_of_honest_ones(clients, data):
    """Also where they claim any number of examples; for a weight that at least 2 f + 1 clients hold."""
    f = data.draw(st.integers(1, (len(clients) - 3) // 2))
    for i in range(f):
        sent = data.draw(st.lists(hostile, min_size=5, max_size=5))
        clients[i] = message(sent, data.draw(st.lists(st.integers(0, 1), min_size=4, max_size=4)))
    weights = [1e9] * f + [1.0] * (len(clients) - f)
    honest = [(np.append(v["w"], v["b"]), np.append(m["w"], 1)) for v, m in clients[f:]]
    for rule in (MEDIAN, fed.FedTrimmedAvg(f / len(clients))):
        got = aggregated(clients, fed.Aggregation(rule, min_votes=2 * f + 1), weights)
        for place in range(5):
            said = [values[place] for values, mask in honest if mask[place]] + [0.0]
            assert min(said) <= got[place] <= max(said)


@given(clients_of(7), st.sampled_from([1e30, -40.0, 40.0]))
def test_krum_leaves_out_what_is_far_from_all_others(clients, far):
    outsiders = [message([far] * 5), message([-far] * 5)]
    for rule in (fed.Krum(2), fed.Krum(2, 3)):
        npt.assert_allclose(
            aggregated([*outsiders, *clients], fed.Aggregation(rule)),
            np.mean(
                [
                    np.append(v["w"], v["b"])
                    for v, _ in (clients[i - 2] for i in slow_krum([*outsiders, *clients], 2, rule.num_to_keep))
                ],
                axis=0,
            ),
            rtol=1e-5,
        )


def test_a_mean_is_moved_anywhere_by_one_client_and_a_robust_rule_is_not():
    honest = [message([1, 2, 3, 4, 5]) for _ in range(6)]
    attacked = [*honest, message([-1e6] * 5)]
    assert (aggregated(attacked, fed.Aggregation()) < -1e5).all()
    for rule in (MEDIAN, TRIMMED, KRUM, MULTI_KRUM):
        npt.assert_allclose(aggregated(attacked, fed.Aggregation(rule)), [1, 2, 3, 4, 5])
    clipped = aggregated(attacked, fed.Aggregation(clipping_norm=1.0))
    npt.assert_allclose(clipped, (6 * np.arange(1, 6) / 55**0.5 - 5**-0.5) / 7, rtol=1e-5)


@pytest.mark.parametrize(("entry", "norm"), [(3e38, 2.0), (1e-30, 1e-31), (4.0, 9.0), (0.0, 1.0)])
def test_a_clipped_update_keeps_its_direction(entry, norm):
    values, _ = message([entry, -entry, 0, 0, entry])
    clipped = fed.Aggregation(clipping_norm=norm).clipped(values)
    length = 3**0.5 * entry
    expected = np.array([entry, -entry, 0, 0, entry]) * (min(1, norm / length) if entry else 1)
    npt.assert_allclose(np.append(clipped["w"], clipped["b"]), expected, rtol=1e-5)
    assert fed.Aggregation().clipped(values) is values


def test_without_holders_enough_a_weight_stays_where_it_is():
    clients = [message([5, 5, 5, 5, 5], mask) for mask in ([1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0])]
    assert aggregated(clients, fed.Aggregation(MEDIAN, min_votes=2)).tolist() == [0, 5, 0, 0, 5]
    assert aggregated(clients, fed.Aggregation(TRIMMED)).tolist() == [5, 5, 5, 0, 5]
    elected = gathered(clients, fed.Aggregation(MEDIAN)).elected(fed.Aggregation(MEDIAN, min_votes=3))
    assert elected["w"].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("rule", ["mean", "voters", MEDIAN, TRIMMED, KRUM])
def test_clients_without_examples_have_no_say(rule):
    aggregation = fed.Aggregation(rule)
    clients = [message([i, 2, 3, 4, 5]) for i in range(5)]
    idle = [message([-99] * 5, (1, 1, 1, 0))] * 3
    updates = gathered([*idle, *clients], aggregation, [0, 0, 0, 1, 1, 1, 1, 1])
    assert updates.clients == 5
    npt.assert_array_equal(
        aggregated([*idle, *clients], aggregation, [0] * 3 + [1] * 5), aggregated(clients, aggregation)
    )
    if rule is not KRUM:
        assert updates.elected(fed.Aggregation(rule, min_votes=6))["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rule", ["voters", MEDIAN])
def test_a_leaf_that_a_client_sends_whole_is_held_whole(rule):
    clients = [message([1, 1, 1, 1, 1], (1, 0, 1, 0)), message([3, 3, 3, 3, 3])]
    clients[1][1]["w"] = core.NOT_PRUNED
    clients[0][1]["b"] = np.zeros(1, np.uint8)
    assert aggregated(clients, fed.Aggregation(rule)).tolist() == [2, 3, 2, 3, 2]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("rule", [MEDIAN, TRIMMED, KRUM])
def test_robust_updates_have_the_dtypes_of_the_parameters(dtype, rule):
    like = {"w": jnp.zeros((2, 2), dtype), "b": jnp.zeros((), dtype), "none": jnp.zeros((0, 3), dtype)}
    masks = {"w": jnp.ones((2, 2), jnp.uint8), "b": core.NOT_PRUNED, "none": core.NOT_PRUNED}
    updates = Updates(like, masks)
    for _ in range(5):
        updates.add(jax.tree.map(lambda x: np.asarray(x + 40), like), 1.0, masks)
    mean = updates.aggregate(fed.Aggregation(rule))
    assert jax.tree.map(lambda x: (x.dtype, x.shape), mean) == jax.tree.map(lambda x: (x.dtype, x.shape), like)
    assert all((leaf == 40).all() for leaf in jax.tree.leaves(mean))


def test_only_survivors_are_kept():
    like = {"w": jnp.zeros(80_000)}
    masks = {"w": (np.arange(80_000) % 20 == 0).astype(np.uint8)}
    updates = Updates(like, masks)
    for client in range(3):
        updates.add({"w": np.full(80_000, client, np.float32) * masks["w"]}, 1.0, masks)
    stored = sum(leaf.nbytes for kept in (updates._kept, updates._held) for client in kept for leaf in client)
    assert stored == 3 * (4 * 4_000 + 10_000)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: fed.FedTrimmedAvg(beta=0.5), "beta is 0.5; give the fraction to leave out at each end"),
        (lambda: fed.FedTrimmedAvg(beta=-0.1), "beta is -0.1"),
        (lambda: fed.FedTrimmedAvg(beta=float("nan")), "beta is nan"),
        (lambda: fed.Krum(-1), "num_malicious is -1; give 0 or more"),
        (lambda: fed.Krum(1, 0), "num_to_keep is 0; give 1 for Krum"),
        (lambda: fed.Aggregation("median"), r"rule is 'median'; choose 'mean', 'voters', fed.FedMedian\(\)"),
        (lambda: fed.Aggregation(min_votes=0), "min_votes is 0"),
        (lambda: fed.Aggregation(clipping_norm=0.0), "clipping_norm is 0.0; give a finite number above 0"),
        (lambda: fed.Aggregation(clipping_norm=float("inf")), "clipping_norm is inf"),
        (
            lambda: averaging(growing(), personal_masks=True, aggregation=fed.Aggregation(fed.Krum(1, 2), 3)),
            r"min_votes is 3, but Krum\(num_malicious=1, num_to_keep=2\) keeps fewer updates",
        ),
    ],
)
def test_what_cannot_be_is_an_error(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_a_rule_is_an_instance():
    with pytest.raises(TypeError, match=r"give 'mean', 'voters', or an instance of fed\.FedMedian"):
        fed.Aggregation(fed.FedMedian)


def test_too_many_hostile_clients_for_krum_are_an_error_and_drop_outs_an_idle_round():
    algorithm = averaging(updater_of("static_sparse"), aggregation=fed.Aggregation(fed.Krum(1)))
    with pytest.raises(ValueError, match=r"Krum\(num_malicious=1, num_to_keep=1\) needs 5 clients a round.*has 4"):
        run(algorithm, 1)
    assert [fed.Krum(f, m).min_clients for f, m in ((0, 1), (1, 1), (2, 1), (2, 3), (2, 6))] == [3, 5, 7, 7, 10]
    halved = type("Halved", (fed.Faults,), {"takes_part": lambda self, round_num, client: client < 2})()
    dropping = averaging(updater_of("static_sparse"), aggregation=fed.Aggregation(fed.Krum(0)), faults=halved)
    with pytest.warns(RuntimeWarning, match="round 0: 2 valid updates of 4 clients, 3 are needed"):
        run(dropping, 1)


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("magnitude", {}, MEDIAN),
        ("rigl", {"growth": "topk"}, TRIMMED),
        ("rigl", {"growth": "delta"}, MEDIAN),
        ("set", {"personal_masks": True}, TRIMMED),
        ("set", {"personal_masks": True}, fed.Krum(0, 2)),
    ],
)
def test_robust_rounds_stay_on_the_masks(name, options, rule):
    updater = updater_of(name) if name == "magnitude" else growing(name)
    states = run(averaging(updater, aggregation=fed.Aggregation(rule, clipping_norm=1.0), **options), 4)
    for state in states:
        for layer, mask in masks_of(state).items():
            npt.assert_array_equal(state.params[layer]["w"] != 0, mask["w"])
    assert num_kept(states[-1].params) == KEPT
    assert any((states[-1].params[layer]["w"] != states[-2].params[layer]["w"]).any() for layer in KEPT)


def test_sums_of_a_mean_take_no_more_than_before():
    assert isinstance(fed.Aggregation("voters").gather(LIKE, MASKS, True), Sums)
    assert isinstance(fed.Aggregation(TRIMMED).gather(LIKE, MASKS, True), Updates)


def test_a_client_without_examples_is_not_asked_and_no_vote():
    clients = clients_of_a_round(0)
    empty = fedjax.ClientDataset({key: value[:0] for key, value in clients[0][1].raw_examples.items()})
    clients[0] = (0, empty, clients[0][2])
    algorithm = averaging(
        updater_of("static_sparse"), aggregation=fed.Aggregation(min_votes=4), ledger=(ledger := fed.Ledger())
    )
    before = run(algorithm, 0)[0]
    with pytest.warns(
        RuntimeWarning, match="round 0: 3 valid updates of 4 clients, 4 are needed.*1 nothing to send: no"
    ):
        after, told = algorithm.apply(before, clients)
    assert told[0] == {
        "status": "nothing to send: no examples",
        "growth_status": "",
        "delta_l2_norm": None,
        "down": told[0]["down"],
        "up": 0,
        "growth": 0,
    }
    jax.tree.map(npt.assert_array_equal, after.params, before.params)
    assert ledger.total().refused == 1
