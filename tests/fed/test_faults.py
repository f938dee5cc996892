"""What goes wrong between clients and server is refused, counted and told; the round goes on with the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins import core, fed
from sparse_plugins.fed.aggregation import Sums, reprune
from sparse_plugins.wire.envelope import read_header
from tests.fed.test_averaging import averaging, growing, run
from tests.fed.toy import GRADIENT, KEPT, MODEL, ROUNDS, clients_of_a_round, num_kept, updater_of

fedjax = fed.import_fedjax()


def single_round(faults=fed.Faults(), clients=None, updater=None, **options):  # noqa: B008
    ledger = fed.Ledger()
    algorithm = averaging(updater or updater_of("static_sparse"), faults=faults, ledger=ledger, **options)
    before = algorithm.init(MODEL.init(jax.random.PRNGKey(0)))
    after, diagnostics = algorithm.apply(before, clients or clients_of_a_round(0))
    return before, after, diagnostics, ledger


class Spoiling(fed.Faults):
    """Client 0's update is replaced."""

    @staticmethod
    def substitute(payload):
        return b""

    def deliver(self, round_num, client, payload):
        return self.substitute(payload) if client == 0 else payload


def without_client_0() -> list:
    return clients_of_a_round(0)[1:]


def with_poisoned_client_0() -> list:
    clients = clients_of_a_round(0)
    data = clients[0][1].raw_examples
    spoilt = fedjax.ClientDataset({**data, "x": np.full_like(data["x"], np.nan)})
    return [(0, spoilt, clients[0][2]), *clients[1:]]


def answering(payload: bytes, values: dict) -> bytes:
    """Other values as an answer to the same broadcast."""
    binding = fed.Binding("update", "", 0, "0", read_header(payload).base_digest)
    return fed.encode(jax.tree.map(lambda p: core.NOT_PRUNED, values), values, binding=binding)


def other_model(payload: bytes) -> bytes:
    return answering(payload, {"w": np.ones(3, np.float32)})


def other_dtype(payload: bytes) -> bytes:
    params = MODEL.init(jax.random.PRNGKey(0))
    return answering(payload, jax.tree.map(lambda p: np.asarray(p, np.float64), params))


@pytest.mark.parametrize(
    ("substitute", "reason"),
    [
        (lambda payload: b"", "refused: a payload has at least"),
        (lambda payload: b"x" * 500, "refused: "),
        (other_model, "refused: this payload is about another model"),
        (other_dtype, "refused: this payload is about another model"),
    ],
)
def test_a_round_goes_on_without_an_update_that_cannot_be_read(substitute, reason):
    channel = type("Channel", (Spoiling,), {"substitute": staticmethod(substitute)})()
    _, after, diagnostics, ledger = single_round(channel)
    _, expected, _, _ = single_round(clients=without_client_0())
    assert diagnostics[0]["status"].startswith(reason)
    assert diagnostics[0]["delta_l2_norm"] is None
    assert [diagnostics[client]["status"] for client in (1, 2, 3)] == ["ok"] * 3
    jax.tree.map(npt.assert_array_equal, after.params, expected.params)
    assert ledger.total().refused == 1
    assert len({entry.up for entry in ledger}) == 1  # what was sent is paid for all the same


@pytest.mark.parametrize("wire", [fed.Wire(), fed.Wire(up="int8")])
def test_an_update_with_nan_is_refused(wire):
    _, after, diagnostics, _ = single_round(clients=with_poisoned_client_0(), wire=wire)
    _, expected, _, _ = single_round(clients=without_client_0(), wire=wire)
    assert diagnostics[0]["status"].startswith(("refused: NaN", "nothing to send"))
    jax.tree.map(npt.assert_array_equal, after.params, expected.params)


def test_an_update_above_the_norm_is_refused():
    norms = {client: told["delta_l2_norm"] for client, told in single_round()[2].items()}
    largest = max(norms, key=norms.get)
    limit = sorted(norms.values())[-2]
    _, _, diagnostics, _ = single_round(max_norm=limit)
    assert {client for client, told in diagnostics.items() if told["status"] != "ok"} == {largest}
    assert "is above" in diagnostics[largest]["status"]


@pytest.mark.parametrize("growth", ["topk", "dense"])
def test_growth_signals_may_be_longer_than_updates(growth):
    """They are gradients: a limit for updates says nothing about them."""
    gentle = lambda *args: jax.tree.map(lambda grad: 10 * grad, GRADIENT(*args))  # noqa: E731
    slow = {"grad_fn": gentle, "client": fedjax.optimizers.sgd(1e-3), "growth": growth}
    state = run(averaging(growing(), **slow), 1)[-1]
    free, told = averaging(growing(), **slow).apply(state, clients_of_a_round(1))
    limit = 1.01 * max(client["delta_l2_norm"] for client in told.values())
    limited, again = averaging(growing(), max_norm=limit, **slow).apply(state, clients_of_a_round(1))
    assert again == told
    jax.tree.map(npt.assert_array_equal, limited.params, free.params)


class LosesGrowth(fed.Faults):
    """In round 1 growth signals, which refer to no masks of the broadcast, arrive as something else or never."""

    substitute = None

    def deliver(self, round_num, client, payload):
        return self.substitute if round_num == 1 and fed.needed_base(payload) is None else payload


@pytest.mark.parametrize(("substitute", "reason"), [(None, "4 too late"), (b"", "4 refused: a payload has at least")])
@pytest.mark.parametrize("name", ["rigl", "gradual_rigl"])
def test_without_a_growth_signal_the_mask_change_waits_for_the_next_round(name, substitute, reason):
    channel = type("Channel", (LosesGrowth,), {"substitute": substitute})()
    updater = growing("rigl") if name == "rigl" else dataclasses.replace(updater_of(name), start_part=0.5)
    algorithm = averaging(updater, faults=channel)
    before = run(algorithm, 1)[-1]
    message = rf"round 1: masks are to change, but none of 4 growth signals can be used \({reason}.*put off"
    with pytest.warns(RuntimeWarning, match=message):
        after, told = algorithm.apply(before, clients_of_a_round(1))
    assert [client["status"] for client in told.values()] == ["ok"] * 4
    jax.tree.map(npt.assert_array_equal, after.opt_state.masks, before.opt_state.masks)
    assert all(jnp.any(after.params[layer]["w"] != before.params[layer]["w"]) for layer in KEPT)
    assert (after.round, int(after.opt_state.count)) == (2, int(before.opt_state.count))
    last = algorithm.apply(after, clients_of_a_round(2))[0]
    assert int(last.opt_state.count) == int(before.opt_state.count) + 1
    assert any((last.opt_state.masks[layer]["w"] != before.opt_state.masks[layer]["w"]).any() for layer in KEPT)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (fed.Faults(drop_out=1.0), "4 dropped out"),
        (fed.Faults(late=1.0), "4 too late"),
        (fed.Faults(damage=1.0), "refused"),
    ],
)
def test_a_round_without_a_valid_client_changes_nothing_and_says_so(faults, reason):
    with pytest.warns(RuntimeWarning, match=f"round 0: 0 valid updates of 4 clients.*{reason}"):
        before, after, _, ledger = single_round(faults)
    assert after.round == 1
    jax.tree.map(npt.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state))
    assert ledger.total().refused == 4
    assert ledger.total().down > 0
    assert bool(ledger.total().up) == (faults.drop_out == 0)


def test_a_round_without_clients_changes_nothing():
    algorithm = averaging(updater_of("static_sparse"))
    before = algorithm.init(MODEL.init(jax.random.PRNGKey(0)))
    with pytest.warns(RuntimeWarning, match="0 valid updates of 0 clients, 1 are needed.*no clients"):
        after, diagnostics = algorithm.apply(before, [])
    assert diagnostics == {}
    jax.tree.map(npt.assert_array_equal, after.params, before.params)


def without_examples(client: tuple) -> tuple:
    name, data, key = client
    empty = {feature: values[:0] for feature, values in data.raw_examples.items()}
    return name, fedjax.ClientDataset(empty), key


@pytest.mark.parametrize("how", ["random", "topk", "delta", "dense", "personal masks", "saliency"])
def test_a_round_without_examples_puts_the_mask_change_off(how):
    growth = {} if how == "saliency" else {"personal_masks": True} if how == "personal masks" else {"growth": how}
    algorithm = averaging(updater_of("saliency") if how == "saliency" else growing(), **growth)
    before = run(algorithm, 1)[-1]
    with pytest.warns(RuntimeWarning, match="round 1: 0 valid updates of 1 clients.*1 nothing to send: no examples"):
        after, told = algorithm.apply(before, [without_examples(clients_of_a_round(1)[0])])
    assert told[0]["status"] == "nothing to send: no examples"
    assert (told[0]["up"], told[0]["growth"], after.round) == (0, 0, 2)
    jax.tree.map(npt.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state))
    last, _ = algorithm.apply(after, clients_of_a_round(2))
    assert int(last.opt_state.count) == int(before.opt_state.count) + 1
    assert any((last.opt_state.masks[layer]["w"] != before.opt_state.masks[layer]["w"]).any() for layer in KEPT)


@pytest.mark.parametrize("options", [{"growth": "topk"}, {"personal_masks": True}])
def test_a_client_without_examples_has_no_say(options):
    algorithm = averaging(growing(), **options)
    before = run(algorithm, 1)[-1]
    first, second, *_ = clients_of_a_round(1)
    after, told = algorithm.apply(before, [without_examples(first), second])
    expected, _ = algorithm.apply(before, [second])
    jax.tree.map(npt.assert_array_equal, (after.params, after.opt_state), (expected.params, expected.opt_state))
    assert [client["status"] for client in told.values()] == ["nothing to send: no examples", "ok"]


def silent_on_zeros(params, batch, rng):
    return jax.tree.map(lambda grad: grad * batch["x"][0, 0], GRADIENT(params, batch, rng))


def silent_clients() -> list:
    silent = lambda data: fedjax.ClientDataset({**data.raw_examples, "x": 0 * data.raw_examples["x"]})  # noqa: E731
    return [(name, silent(data), key) for name, data, key in clients_of_a_round(1)]


def test_a_client_that_learns_nothing_keeps_the_servers_mask():
    """By gradients of 0 it would grow the weights of lowest index."""
    algorithm = averaging(growing(), silent_on_zeros, personal_masks=True)
    before = run(algorithm, 1)[-1]
    after, _ = algorithm.apply(before, silent_clients())
    jax.tree.map(npt.assert_array_equal, after.opt_state.masks, before.opt_state.masks)


@pytest.mark.parametrize("how", ["topk", "delta", "dense", "saliency"])
def test_a_round_in_which_nobody_learns_puts_the_mask_change_off(how):
    """Such as one whose examples all have a loss of weight 0."""
    options = {} if how == "saliency" else {"growth": how}
    algorithm = averaging(updater_of("saliency") if how == "saliency" else growing(), silent_on_zeros, **options)
    before = run(algorithm, 1)[-1]
    with pytest.warns(
        RuntimeWarning, match="round 1: masks are to change by gradients, but all gradients are 0.*put off"
    ):
        after, told = algorithm.apply(before, silent_clients())
    assert [client["status"] for client in told.values()] == ["ok"] * 4
    assert int(after.opt_state.count) == int(before.opt_state.count)
    jax.tree.map(npt.assert_array_equal, after.opt_state.masks, before.opt_state.masks)
    last, _ = algorithm.apply(after, clients_of_a_round(1))
    assert any((last.opt_state.masks[layer]["w"] != before.opt_state.masks[layer]["w"]).any() for layer in KEPT)


def test_too_few_votes_change_nothing():
    with pytest.warns(RuntimeWarning, match="round 0: 4 valid updates of 4 clients, 5 are needed"):
        before, after, _, _ = single_round(aggregation=fed.Aggregation(min_votes=5))
    jax.tree.map(npt.assert_array_equal, after.params, before.params)


def test_a_client_drawn_twice_counts_and_pays_twice():
    clients = clients_of_a_round(0)
    _, _, _, ledger = single_round(clients=[*clients, clients[0]])
    assert [entry.client for entry in ledger] == ["0", "1", "2", "3", "0"]
    assert all(entry.up and entry.down for entry in ledger)


def test_faults_depend_on_seed_round_and_client_alone():
    faults = fed.Faults(drop_out=0.3, late=0.3, damage=0.3, seed=3)
    places = [(number, client) for number in range(20) for client in (b"a", b"b", 7)]
    draw = lambda faults: [(faults.takes_part(*place), faults.deliver(*place, b"payload")) for place in places]  # noqa: E731
    assert draw(faults) == draw(fed.Faults(drop_out=0.3, late=0.3, damage=0.3, seed=3))
    assert draw(faults) != draw(fed.Faults(drop_out=0.3, late=0.3, damage=0.3, seed=4))
    drops = [faults.takes_part(number, b"a") for number in range(2000)]
    assert 0.66 < np.mean(drops) < 0.74
    with pytest.raises(ValueError, match="late"):
        fed.Faults(late=1.5)
    with pytest.raises(ValueError, match="seed is -1"):
        fed.Faults(seed=-1)


def test_training_survives_a_bad_network():
    ledger, faults = fed.Ledger(), fed.Faults(drop_out=0.2, late=0.2, damage=0.2, seed=1)
    states = run(averaging(updater_of("magnitude"), faults=faults, ledger=ledger))
    reasons = {entry.status.partition(":")[0] for entry in ledger}
    assert reasons == {"ok", "dropped out", "too late", "refused"}
    assert num_kept(states[-1].params) == KEPT
    assert len(states) == ROUNDS + 1


def test_the_ledger_is_the_length_of_every_payload():
    lengths = []

    class Weighing(fed.Faults):
        def deliver(self, round_num, client, payload):
            lengths.append((round_num, len(payload)))
            return payload

    ledger = fed.Ledger()
    states = run(averaging(updater_of("rigl"), growth="dense", faults=Weighing(), ledger=ledger))
    for number, total in ledger.by_round().items():
        assert total.up + total.growth == sum(length for place, length in lengths if place == number)
        state = states[number]
        masks = core.unpack_masks(state.params, state.opt_state.masks)
        binding = fed.Binding("broadcast", "", number, masks=fed.masks_digest(masks, state.params))
        broadcast = fed.encode(masks, state.params, binding=binding)
        assert total.down == 4 * len(broadcast)
    assert fed.Ledger.from_csv(ledger.to_csv()).total() == ledger.total()


def test_a_static_mask_travels_as_a_seed():
    data = fedjax.ClientDataset({"x": np.ones((2, 64), np.float32)})
    gradient = lambda params, batch, rng: jax.grad(lambda p: jnp.mean(batch["x"] @ p["w"]))(params)  # noqa: E731
    down = {}
    for name in ("static_sparse", "set"):
        ledger = fed.Ledger()
        algorithm = averaging(updater_of(name), gradient, ledger=ledger)
        algorithm.apply(algorithm.init({"w": jnp.ones((64, 64))}), [("anna", data, jax.random.key(0))])
        down[name] = ledger.total().down
    assert down["static_sparse"] < 4 * 1024 + 80 < down["set"]


def test_a_ledger_is_saved_whole_and_goes_on_from_a_round(tmp_path):
    ledger = fed.Ledger(fed.Entry(number, f'client, "{number}"', 1, 2, 3) for number in range(4))
    ledger.save(tmp_path / "ledger.csv")
    again = fed.Ledger.from_csv((tmp_path / "ledger.csv").read_text())
    assert list(again) == list(ledger)
    again.truncate(before_round=2)
    assert again.total() == ledger.total(before_round=2)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.csv"]
    header = "round,client,down,up,growth,status,growth_status\n"
    for damaged in ("0,a,1,2", "0,a,1,2,3,ok,ok,4", "0,a,1,2,many,ok,"):
        with pytest.raises(ValueError, match="line 2 of the ledger is damaged"):
            fed.Ledger.from_csv(f"{header}{damaged}\n")
    without_growth = header.replace(",growth_status", "")
    with pytest.raises(ValueError, match="line 3 of the ledger is damaged: it has no status; a line has 6 columns"):
        fed.Ledger.from_csv(f"{without_growth}0,a,1,2,3,ok\n3,anna,1,2,3\n")
    assert list(fed.Ledger.from_csv(f"{without_growth}0,a,1,2,3,ok\n")) == [fed.Entry(0, "a", 1, 2, 3)]
    with pytest.raises(ValueError, match="a ledger has the columns"):
        fed.Ledger.from_csv("a,b\n")


small = st.integers(1, 5)


@given(st.data(), small, st.integers(1, 4))
def test_aggregation_follows_the_slow_rule(data, num_clients, min_votes):
    draw = lambda elements: np.array(data.draw(st.lists(elements, min_size=6, max_size=6)))  # noqa: E731
    masks = [draw(st.integers(0, 1)).astype(np.uint8) for _ in range(num_clients)]
    updates = [draw(st.integers(-8, 8)).astype(np.float32) * mask for mask in masks]
    weights = [data.draw(st.integers(1, 9)) for _ in range(num_clients)]
    sums = Sums({"w": jnp.zeros(6), "b": jnp.zeros(2)}, {"w": jnp.ones(6, jnp.uint8), "b": core.NOT_PRUNED})
    for update, weight, mask in zip(updates, weights, masks, strict=True):
        message = {"w": jnp.asarray(update), "b": jnp.full(2, update[0])}
        sums.add(message, weight, {"w": jnp.asarray(mask), "b": core.NOT_PRUNED})
    mean, voters = np.zeros(6), np.zeros(6)
    for place in range(6):
        held = [i for i in range(num_clients) if masks[i][place]]
        total = sum(weights[i] * updates[i][place] for i in held)
        mean[place] = total / sum(weights)
        voters[place] = total / sum(weights[i] for i in held) if held else 0
    bias = sum(w * u[0] for w, u in zip(weights, updates, strict=True)) / sum(weights)
    for rule, expected in (("mean", mean), ("voters", voters)):
        got = sums.aggregate(fed.Aggregation(rule))
        npt.assert_allclose(got["w"], expected, rtol=1e-6)
        npt.assert_allclose(got["b"], [bias] * 2, rtol=1e-6)
    votes = np.sum(masks, axis=0)
    elected = sums.elected(fed.Aggregation(min_votes=min_votes))
    npt.assert_array_equal(elected["w"], votes >= min_votes)
    before, params = masks[0], draw(st.integers(-4, 4)).astype(np.float32)
    kept = reprune({"w": jnp.asarray(params)}, {"w": jnp.asarray(before)}, {"w": elected["w"]})["w"]
    has_say = votes >= min_votes
    rank = lambda i: (0, -abs(params[i]), i) if has_say[i] else (1, -int(before[i]), i)  # noqa: E731
    order = sorted(range(6), key=rank)
    npt.assert_array_equal(np.flatnonzero(kept), sorted(order[: before.sum()]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rule", ["mean", "voters"])
@pytest.mark.parametrize(("weight", "change"), [(1, 1.0), (220, 0.25), (220, 40.0)])
def test_half_precision_updates_of_many_clients_have_the_mean_of_float32(dtype, rule, weight, change):
    """400 clients: past 256 a sum in bfloat16 stops growing, past 65504 one in float16 is infinite."""
    like, masks = {"w": jnp.zeros(2, dtype), "b": jnp.zeros(1, dtype)}, {"w": jnp.ones(2, jnp.uint8)}
    masks["b"] = core.NOT_PRUNED
    sums = Sums(like, masks)
    for _ in range(400):
        sums.add(jax.tree.map(lambda x: jnp.full_like(x, change), like), weight, masks)
    mean = sums.aggregate(fed.Aggregation(rule))
    assert [leaf.dtype for leaf in jax.tree.leaves(mean)] == [dtype] * 2
    assert [leaf.tolist() for leaf in jax.tree.leaves(mean)] == [[change], [change, change]]


def test_sums_in_float32_are_those_of_float32():
    rng, total, weights = np.random.default_rng(0), np.zeros(100, np.float32), range(1, 50)
    sums = Sums({"w": jnp.zeros(100)})
    for weight in weights:
        update = rng.normal(size=100).astype(np.float32)
        sums.add({"w": jnp.asarray(update)}, float(weight))
        total += update * np.float32(weight)
    mean = sums.aggregate(fed.Aggregation())["w"]
    npt.assert_allclose(mean, total / np.float32(sum(weights)), rtol=1e-5)
    assert mean.dtype == jnp.float32


def test_number_formats_that_are_none_are_errors():
    with pytest.raises(ValueError, match="up is 'int4'; choose one of"):
        fed.Wire(up="int4")
