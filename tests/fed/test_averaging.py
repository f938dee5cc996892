"""Federated averaging with explicit masks: the same training as FedJAX's, exactly sparse, in every path."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import optax
import pytest

from sparse_plugins import core, fed
from sparse_plugins.fed.aggregation import Aggregation, Sums
from sparse_plugins.fed.fedjax.client_training import mean_gradient
from sparse_plugins.fed.mask_change import replaced_per_layer, settled_masks
from tests import reference
from tests.fed.toy import (
    ALGORITHMS,
    CLIENT,
    GRADIENT,
    KEPT,
    MODEL,
    ROUNDS,
    SPARSE_CLIENT,
    TRAIN,
    clients_of_a_round,
    num_kept,
    updater_of,
)

fedjax = fed.import_fedjax()
ADAM = optax.adam(0.01)
DENSE = {"mlp/~/linear_0": 64, "mlp/~/linear_1": 32}


def averaging(updater, grad_fn=GRADIENT, server=ADAM, client=CLIENT, **options) -> fedjax.FederatedAlgorithm:
    return fed.sparse_federated_averaging(grad_fn, client, server, updater, TRAIN, **options)


def run(algorithm, rounds: int = ROUNDS) -> list:
    """The states after init and after each round."""
    states = [algorithm.init(MODEL.init(jax.random.PRNGKey(0)))]
    for num_round in range(rounds):
        states.append(algorithm.apply(states[-1], clients_of_a_round(num_round))[0])
    return states


@functools.cache
def growing(name: str = "rigl") -> core.BaseUpdater:
    """One that replaces half of its weights at every mask change."""
    return dataclasses.replace(updater_of(name), drop_fraction_fn=core.ConstantDrop(0.5))


def masks_of(state) -> dict:
    return core.unpack_masks(state.params, state.opt_state.masks)


@pytest.mark.parametrize(
    "name", ["no_prune", "magnitude", "saliency", "random", "magnitude_ste", "static_sparse", "set"]
)
def test_it_trains_as_fedjax_does_with_sparse_optimizers(name):
    """Masks in the message or in the zeros of the parameters, one after another or by FedJAX: the same run."""
    updater = updater_of(name)
    server = fed.sparse_server_optimizer(ADAM, updater)
    states = run(averaging(updater))
    plain = ALGORITHMS["fed_avg"](server, SPARSE_CLIENT)
    state = plain.init(states[0].params)
    for num_round, ours in enumerate(states[1:]):
        state, _ = plain.apply(state, clients_of_a_round(num_round))
        jax.tree.map(lambda a, b: npt.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours.params, state.params)
        jax.tree.map(npt.assert_array_equal, ours.opt_state.masks, state.opt_state.masks)


@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("name", ["magnitude_ste", "random_ste", "sr_ste", "soft_topk_ste"])
def test_weights_behind_a_straight_through_mask_learn_from_dense_clients_alone(name, is_dense):
    """As the documentation says."""
    server = fed.sparse_server_optimizer(optax.sgd(1.0), updater_of(name))
    algorithm = ALGORITHMS["fed_avg"](server) if is_dense else averaging(updater_of(name), server=optax.sgd(1.0))
    before, after = run(algorithm)[-2:]
    for layer in KEPT:
        hidden = (before.params[layer]["w"] == 0) & (after.params[layer]["w"] == 0)
        old, new = (np.asarray(state.opt_state.dense_params[layer]["w"])[hidden] for state in (before, after))
        assert hidden.any()
        assert np.allclose(old, new, rtol=1e-3, atol=0) != is_dense  # sr_ste decays them a little, all the same


NEED_MORE = {"wanda", "grasp"}


@pytest.mark.parametrize("name", sorted({*core.all_algorithm_names()} - NEED_MORE))
def test_no_path_sees_other_weights_than_those_of_the_masks(name):
    """Clients' gradients, their deltas, what is evaluated and exported: all of it is the sparse forward view."""
    seen = []

    def watching(params, batch, rng):
        jax.debug.callback(lambda used: seen.append(jax.tree.map(int, used)), jax.tree.map(jnp.count_nonzero, params))
        return GRADIENT(params, batch, rng)

    states = run(averaging(updater_of(name), watching, growth="dense"))
    jax.effects_barrier()
    for state in states:
        used = (
            {layer: int(jnp.count_nonzero(mask["w"])) for layer, mask in masks_of(state).items()}
            if name != "no_prune"
            else DENSE
        )
        assert num_kept(state.params) == used
        for layer, mask in masks_of(state).items():
            if name != "no_prune":
                npt.assert_array_equal(state.params[layer]["w"] != 0, mask["w"])
    broadcast = [num_kept(state.params) for state in states[:-1]]
    assert len(seen) >= 2 * 4 * ROUNDS
    most = {layer: max(counts[layer] for counts in broadcast) for layer in KEPT}
    assert all(counts[layer]["w"] <= most[layer] for counts in seen for layer in KEPT)
    if name not in ("no_prune", "global_magnitude", "global_saliency", "snip", "granet"):
        assert num_kept(states[-1].params) == KEPT
        assert all(counts[layer]["w"] <= KEPT[layer] for counts in seen[-8:] for layer in KEPT)


class Listening(fed.Faults):
    """A channel without faults that keeps what it carries."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "payloads", [])

    def deliver(self, round_num, client, payload):
        self.payloads.append((round_num, client, payload))
        return payload


def test_uploads_are_exactly_the_survivors_and_state_no_positions():
    channel = Listening()
    updater = updater_of("magnitude")
    states = run(averaging(updater, faults=channel))
    for round_num, _, payload in channel.payloads:
        state = states[round_num]
        message = fed.decode(payload, state.params, base=masks_of(state))
        assert set(message.forms) <= {"same", "whole", "dense"}  # dense: nothing is pruned yet
        for layer in KEPT:
            assert not message.values[layer]["w"][state.params[layer]["w"] == 0].any()
    sizes = [len(payload) for round_num, _, payload in channel.payloads if round_num == ROUNDS - 1]
    assert max(sizes) <= 4 * (sum(KEPT.values()) + 12) + 60


@pytest.mark.parametrize("protocol", ["topk", "dense"])
def test_growth_by_gradients_is_rigl_on_the_mean_of_the_clients_ranks(protocol):
    """Slow: the gradient of every example at the parameters of the broadcast, dropped and grown by the NumPy rule."""
    updater = growing()
    states = run(averaging(updater, growth=protocol), 2)
    before, clients = states[1], clients_of_a_round(1)
    grads = [GRADIENT(before.params, data.all_examples(), jax.random.key(0)) for _, data, _ in clients]
    drop = updater.drop_fraction_fn(1)
    for layer, kept in KEPT.items():
        weights, mask = np.array(before.params[layer]["w"]), np.array(masks_of(before)[layer]["w"])
        count = mask.size - kept if protocol == "dense" else kept - round((1 - drop) * kept)
        fall = 1.0 if protocol == "dense" else 0.5
        ranks = [reference.signed_ranks(np.array(grad[layer]["w"]), mask == 0, count, fall) for grad in grads]
        signal = np.abs(np.mean(ranks, axis=0).astype(np.float32))
        survivors = kept - (kept - round((1 - drop) * kept))
        expected = reference.drop_and_grow(mask, np.abs(weights), signal, survivors)
        npt.assert_array_equal(masks_of(states[2])[layer]["w"], expected)


@pytest.mark.parametrize("protocol", ["random", "topk", "delta", "dense"])
def test_growth_is_paid_for_only_in_rounds_that_change_masks(protocol):
    ledger = fed.Ledger()
    states = run(averaging(growing(), growth=protocol, ledger=ledger))
    by_round = ledger.by_round()
    changes = [growing().is_refresh_due(number) for number in range(ROUNDS)]
    for number, changed in enumerate(changes):
        moved = any(
            (a["w"] != b["w"]).any()
            for a, b in zip(masks_of(states[number]).values(), masks_of(states[number + 1]).values(), strict=True)
        )
        total = by_round[number]
        assert bool(total.growth) == (changed and protocol in ("topk", "dense"))
        if protocol == "delta":
            assert (total.up > 4 * 4 * 96) == changed
        else:
            assert total.up < 4 * 4 * (24 + 12) + 4 * 60
        assert moved == changed or protocol == "delta"  # a dropped weight may grow back by what its clients changed
        assert num_kept(states[number + 1].params) == KEPT


def test_topk_sends_as_many_gradients_as_weights_are_replaced():
    channel = Listening()
    updater = growing()
    states = run(averaging(updater, growth="topk", faults=channel), 2)
    signals = [payload for round_num, _, payload in channel.payloads if round_num == 1][4:]
    masks = masks_of(states[1])
    for payload in signals:
        sent = fed.decode(payload, states[1].params)
        for layer, kept in KEPT.items():
            replaced = kept - round((1 - updater.drop_fraction_fn(1)) * kept)
            assert sent.masks[layer]["w"].sum() == replaced
            assert not sent.masks[layer]["w"][np.asarray(masks[layer]["w"]) != 0].any()
            assert not sent.masks[layer]["b"].any()


def crowded(name: str) -> core.BaseUpdater:
    """One that grows more weights at its first mask change than are pruned before it."""
    if name in ("gradual_rigl", "granet"):  # from dense
        return core.create_updater_from_config(
            algorithm=name,
            sparsity=0.5,
            update_freq=1,
            update_start_step=0,
            update_end_step=1,
            drop_fraction=0.5,
            step_unit="round",
        )
    return dataclasses.replace(growing(name), sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.2))


CROWDED = ["rigl", "srigl", "gradual_rigl", "granet"]


@pytest.mark.parametrize(
    ("name", "protocol"),
    [(name, how) for name in CROWDED for how in ("topk", "dense") if (name, how) != ("srigl", "topk")],
)
def test_where_few_weights_are_pruned_those_just_dropped_come_back_by_their_gradients(name, protocol):
    """As if the server had all gradients of all weights, of clients as ranks."""
    updater = crowded(name)
    algorithm = averaging(updater, growth=protocol)
    before = algorithm.init(MODEL.init(jax.random.PRNGKey(0)))
    number = next(number for number in range(ROUNDS) if updater.is_refresh_due(number))
    for num_round in range(number):
        before, _ = algorithm.apply(before, clients_of_a_round(num_round))
    clients = clients_of_a_round(number)[: 4 if protocol == "dense" else 1]
    after, _ = algorithm.apply(before, clients)
    grads = [GRADIENT(before.params, data.all_examples(), jax.random.key(0)) for _, data, _ in clients]
    counts = replaced_per_layer(updater, number, masks_of(before))
    settled = settled_masks(updater, before.opt_state, before.params, masks_of(before), counts)
    signal = {}
    for layer, asked in settled.items():
        asked = np.array(asked["w"]) == 0
        ranks = [reference.signed_ranks(np.array(g[layer]["w"]), asked, asked.sum()) for g in grads]
        signal[layer] = {"w": np.float32(np.mean(ranks, axis=0)), "b": np.zeros(grads[0][layer]["b"].shape)}
    expected = updater.refresh(before.opt_state, before.params, signal)
    for layer, mask in core.unpack_masks(before.params, expected.masks).items():
        npt.assert_array_equal(masks_of(after)[layer]["w"], mask["w"])


def test_clients_are_asked_about_weights_that_do_not_survive_where_few_are_pruned():
    channel, updater, ledger = Listening(), crowded("gradual_rigl"), fed.Ledger()
    before, _ = run(averaging(updater, growth="topk", faults=channel, ledger=ledger), 1)
    signals = [payload for _, _, payload in channel.payloads if fed.needed_base(payload) is None][-4:]
    assert ledger.total().growth == sum(map(len, signals)) > 0
    for payload in signals:
        sent = fed.decode(payload, before.params)
        for layer, size in DENSE.items():
            weights = np.abs(np.asarray(before.params[layer]["w"]))
            kept = round((1 - updater.scheduler.get_sparsity_at_step(0.5, 0)) * size)
            survives = weights >= np.sort(weights, axis=None)[-round(kept / 2)]
            assert not sent.masks[layer]["w"][survives].any()
            assert sent.masks[layer]["w"].sum() >= kept - round(kept / 2)


def of_biases_alone(params, batch, rng):
    grads = GRADIENT(params, batch, rng)
    return {name: {"w": jnp.zeros_like(layer["w"]), "b": layer["b"]} for name, layer in grads.items()}


@pytest.mark.parametrize("name", CROWDED)
def test_gradients_of_zero_are_an_error_where_few_weights_are_pruned_too(name):
    with pytest.raises(ValueError, match="is to grow weights by gradients"):
        run(averaging(crowded(name), of_biases_alone))


def test_a_growth_signal_of_nothing_but_zeros_is_an_error():
    blind = lambda params, batch, rng: core.apply_masks(  # noqa: E731
        GRADIENT(params, batch, rng), jax.tree.map(lambda p: (p != 0).astype(jnp.uint8), params)
    )
    algorithm = averaging(growing(), blind, growth="topk")
    state = run(algorithm, 1)[-1]
    with pytest.raises(
        ValueError, match=r"round 1 is to grow weights by gradients.*all gradients of pruned weights are 0"
    ):
        algorithm.apply(state, clients_of_a_round(1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_clients_mean_gradient_has_the_accuracy_of_float32(dtype):
    probe = mean_gradient(lambda params, batch, rng: jax.tree.map(lambda p: jnp.full_like(p, 40.0), params))
    batches = fedjax.ClientDataset({"x": np.ones((2000, 1), np.float32)}).batch(batch_size=2)
    ((_, grads),) = probe({"w": jnp.zeros(2, dtype)}, [(b"anna", batches, {"rng": jax.random.PRNGKey(0)})])
    assert grads["w"].dtype == dtype
    assert grads["w"].tolist() == [40.0, 40.0]


@pytest.mark.parametrize("name", ["set", "rigl"])
@pytest.mark.parametrize("aggregation", [fed.Aggregation(), fed.Aggregation("voters"), fed.Aggregation("voters", 3)])
def test_personal_masks_move_and_stay_at_the_target(name, aggregation):
    ledger = fed.Ledger()
    states = run(averaging(growing(name), personal_masks=True, aggregation=aggregation, ledger=ledger))
    assert [num_kept(state.params) for state in states] == [KEPT] * (ROUNDS + 1)
    first, last = (masks_of(state)["mlp/~/linear_0"]["w"] for state in (states[0], states[-1]))
    assert (first != last).any()
    assert ledger.total().growth == 0
    quiet, moving = ledger.by_round()[0], ledger.by_round()[1]
    assert quiet.up < moving.up < quiet.up + 4 * 2 * 30


@pytest.mark.parametrize("backend", ["debug", "jit"])
def test_it_runs_through_for_each_client(backend):
    with fedjax.for_each_client_backend(backend):
        state = run(averaging(growing()), 2)[-1]
    expected = run(averaging(growing()), 2)[-1]
    jax.tree.map(lambda a, b: npt.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected.params)


def test_one_clients_update_is_used_before_the_next_client_starts():
    """Memory for one update, however many clients a round has."""
    events = []

    class Watched(fedjax.ClientDataset):
        def shuffle_repeat_batch(self, hparams=None, **kwargs):
            def batches():
                events.append("trains")
                yield from super(Watched, self).shuffle_repeat_batch(hparams, **kwargs)

            return batches()

    class Channel(fed.Faults):
        def deliver(self, round_num, client, payload):
            events.append("sends")
            return payload

    clients = [(cid, Watched(data.raw_examples, data.preprocessor), rng) for cid, data, rng in clients_of_a_round(0)]
    algorithm = averaging(updater_of("magnitude"), faults=Channel())
    algorithm.apply(algorithm.init(MODEL.init(jax.random.PRNGKey(0))), clients)
    assert events == ["trains", "sends"] * 4


@pytest.mark.parametrize("wire", [fed.Wire(up="int8"), fed.Wire(up="float16", down="float16"), fed.Wire(up="bfloat16")])
def test_training_goes_on_from_what_was_decoded(wire):
    exact, narrow = (run(averaging(updater_of("magnitude"), wire=wire))[-1] for wire in (fed.Wire(), wire))
    differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), exact.params, narrow.params)
    assert 0 < max(jax.tree.leaves(differences)) < 0.1
    assert num_kept(narrow.params) == KEPT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": "top"}, "growth is 'top'; choose one of random, topk, delta, dense"),
        ({"max_norm": 0.0}, "max_norm is 0.0; give a number above 0"),
        ({"personal_masks": True}, "personal_masks=True works with core.SET and core.RigL"),
    ],
)
def test_bad_arguments_say_what_to_change(options, message):
    with pytest.raises(ValueError, match=message):
        averaging(updater_of("magnitude"), **options)
    with pytest.raises(ValueError, match=r"growth is 'topk' and personal_masks=True.*drop one of the two"):
        averaging(growing(), growth="topk", personal_masks=True)
    with pytest.raises(ValueError, match="cannot serve a PerModule"):
        averaging(core.PerModule([(".*", growing())]))
    with pytest.raises(TypeError, match="updater is a"):
        averaging(optax.sgd(0.1))
    parts = {"grad_fn": GRADIENT, "client_optimizer": CLIENT, "server_optimizer": optax.sgd(1.0)}
    build = lambda **other: fed.sparse_federated_averaging(  # noqa: E731
        **parts | other, updater=updater_of("set"), client_batch_hparams=TRAIN
    )
    build()
    with pytest.raises(TypeError, match=r"client_optimizer is a Grad.*create_optimizer_from_optax\(optax.sgd\(0.1\)\)"):
        build(client_optimizer=optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"grad_fn is a Model; give a function, such as fedjax.model_grad\(model\)"):
        build(grad_fn=MODEL)
    with pytest.raises(TypeError, match="optimizer must be an optax transformation"):
        averaging(updater_of("magnitude"), server=0.1)


def test_a_state_is_a_pytree_that_goes_on_where_it_was():
    algorithm = averaging(growing())
    states = run(algorithm)
    leaves, treedef = jax.tree.flatten(states[2])
    again = jax.tree.unflatten(treedef, [np.asarray(leaf) for leaf in leaves])
    again = dataclasses.replace(again, round=int(again.round))
    for num_round in range(2, ROUNDS):
        again, _ = algorithm.apply(again, clients_of_a_round(num_round))
    jax.tree.map(npt.assert_array_equal, again.params, states[-1].params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("rule", "mean"), [("mean", [2.5, 0.5]), ("voters", [2.5, 2.0])])
def test_sums_of_half_precision_are_strict(rule, mean, dtype):
    masks = [{"w": jnp.array(kept, jnp.uint8)} for kept in ([1, 1], [1, 0])]
    with jax.numpy_dtype_promotion("strict"):
        sums = Sums({"w": jnp.zeros(2, dtype)}, masks[0])
        sums.add({"w": jnp.array([1, 2], dtype)}, weight=1, masks=masks[0])
        sums.add({"w": jnp.array([3, 0], dtype)}, weight=3.0, masks=masks[1])
        update = sums.aggregate(Aggregation(rule))["w"]
    assert (update.tolist(), update.dtype) == (mean, dtype)
