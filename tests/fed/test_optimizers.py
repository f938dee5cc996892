import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import optax
import pytest

from sparse_plugins import core, fed
from tests.fed.test_averaging import averaging
from tests.fed.toy import (
    ALGORITHMS,
    CLIENT,
    END_ROUND,
    GRADIENT,
    KEPT,
    MODEL,
    ROUNDS,
    SPARSE_CLIENT,
    clients_of_a_round,
    num_kept,
    updater_of,
)

fedjax = fed.import_fedjax()
KEY = jax.random.PRNGKey(0)


def run(algorithm: str, server, rounds: int = ROUNDS) -> list[list]:
    """The parameter trees that the server broadcasts after each round: one, or one for each cluster."""
    federated = ALGORITHMS[algorithm](server)
    initial = MODEL.init(jax.random.PRNGKey(0))
    clusters = [initial, MODEL.init(jax.random.PRNGKey(1))]
    state = federated.init(clusters if algorithm == "hyp_cluster" else initial)
    broadcasts = []
    for num_round in range(rounds):
        state, _ = federated.apply(state, clients_of_a_round(num_round))
        broadcasts.append(state.cluster_params if algorithm == "hyp_cluster" else [state.params])
    return broadcasts


@pytest.mark.filterwarnings("ignore:Some donated buffers")  # of the loss evaluator that hyp_cluster uses
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fedjax_algorithms_end_at_the_exact_count(algorithm):
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater_of("magnitude"))
    assert [num_kept(params) for params in run(algorithm, server)[-1]] == [KEPT] * (1 + (algorithm == "hyp_cluster"))


# A server optimizer is given parameters and a delta, and nothing about inputs or curvature.
NEED_MORE = {"wanda": "pass activations=", "grasp": "pass hessian_gradient="}
ONE_RANKING = {"global_magnitude", "global_saliency", "snip", "granet"}


@pytest.mark.parametrize("name", NEED_MORE)
def test_updaters_that_need_more_than_a_delta_say_so(name):
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater_of(name))
    with pytest.raises(ValueError, match=NEED_MORE[name]):
        run("fed_avg", server)


@pytest.mark.parametrize("name", sorted({*core.all_algorithm_names()} - {*NEED_MORE}))
def test_every_updater_broadcasts_sparse_parameters_from_the_end_of_its_schedule_on(name):
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater_of(name))
    broadcasts = [params for (params,) in run("fed_avg", server)][END_ROUND:]
    if name == "no_prune":
        expected = {"mlp/~/linear_0": 64, "mlp/~/linear_1": 32}
        assert [num_kept(params) for params in broadcasts] == [expected] * len(broadcasts)
    elif name in ONE_RANKING:
        assert [sum(num_kept(params).values()) for params in broadcasts] == [24] * len(broadcasts)
    else:
        assert [num_kept(params) for params in broadcasts] == [KEPT] * len(broadcasts)


@pytest.mark.parametrize(
    ("updater", "dense"),
    [
        (core.NoPruning(), optax.adam(0.01)),
        # A rate that is no power of two rounds in another place where XLA fuses product and sum.
        (updater_of("magnitude", sparsity=0.0), optax.sgd(0.5)),
    ],
)
@pytest.mark.usefixtures("full_compilation")
def test_without_sparsity_it_is_federated_averaging_bit_for_bit(updater, dense):
    expected = run("fed_avg", fedjax.optimizers.create_optimizer_from_optax(dense), rounds=3)
    sparse = run("fed_avg", fed.sparse_server_optimizer(dense, updater), rounds=3)
    jax.tree.map(npt.assert_array_equal, sparse, expected)


def test_without_pruning_zeros_stay_zeros():
    """A weight whose gradient is 0, or that is frozen."""
    server = fed.sparse_server_optimizer(optax.sgd(0.5), core.NoPruning())
    params = {"w": jnp.array([0.0, -0.0, 1.0]), "b": jnp.zeros(2)}
    _, after = server.apply({"w": jnp.array([0.0, 0.0, 1.0]), "b": jnp.array([0.0, 2.0])}, server.init(params), params)
    assert (after["w"].tolist(), after["b"].tolist()) == ([0.0, 0.0, 0.5], [0.0, -1.0])
    algorithm = averaging(core.NoPruning(), lambda params, batch, rng: jax.tree.map(jnp.zeros_like, params))
    start = jax.tree.map(jnp.zeros_like, MODEL.init(jax.random.PRNGKey(0)))
    state, _ = algorithm.apply(algorithm.init(start), clients_of_a_round(0))
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.params))


def test_a_fedjax_optimizer_serves_as_well_as_the_transformation_in_it():
    servers = [
        fed.sparse_server_optimizer(dense, updater_of("magnitude"))
        for dense in (optax.adam(0.01, eps=1e-4), fedjax.optimizers.adam(0.01, eps=1e-4))
    ]
    jax.tree.map(npt.assert_array_equal, *(run("fed_avg", server, rounds=3) for server in servers))


@pytest.mark.parametrize("updater_class", [core.SET, core.RigL])
def test_the_delta_of_a_round_that_changes_masks_is_applied(updater_class):
    updater = updater_class(
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5),
        scheduler=core.PeriodicSchedule(update_freq=1, update_start_step=1, step_unit="round"),
    )
    assert updater.skip_gradients
    server = fed.sparse_server_optimizer(optax.sgd(1.0), updater)
    params = {"w": jax.random.normal(jax.random.PRNGKey(0), (8, 8))}
    delta = {"w": jax.random.normal(jax.random.PRNGKey(1), (8, 8))}
    state, before = server.apply(delta, server.init(params), params)
    _, after = server.apply(delta, state, before)
    was_kept, is_kept = before["w"] != 0, after["w"] != 0
    assert (was_kept != is_kept).any()
    survivors = was_kept & is_kept
    npt.assert_array_equal(after["w"][survivors], (before["w"] - delta["w"])[survivors])


def per_module(second: str) -> core.PerModule:
    return core.PerModule([("mlp/~/linear_0/.*", updater_of("magnitude")), ("mlp/~/linear_1/.*", updater_of(second))])


@pytest.mark.parametrize("second", ["rigl", "set"])
def test_a_per_module_updater_serves_a_fedjax_server_part_by_part(second):
    alone = [run("fed_avg", fed.sparse_server_optimizer(optax.sgd(1.0), updater_of("magnitude")), rounds=1)]
    alone += [run("fed_avg", fed.sparse_server_optimizer(optax.sgd(1.0), updater_of(second)), rounds=1)]
    together = run("fed_avg", fed.sparse_server_optimizer(optax.sgd(1.0), per_module(second)))
    ((first,),), ((other,),), ((now,), *_, (last,)) = *alone, together
    npt.assert_array_equal(now["mlp/~/linear_0"]["w"], first["mlp/~/linear_0"]["w"])
    npt.assert_array_equal(now["mlp/~/linear_1"]["w"], other["mlp/~/linear_1"]["w"])
    assert num_kept(last) == KEPT
    assert ((now["mlp/~/linear_1"]["w"] != 0) != (last["mlp/~/linear_1"]["w"] != 0)).any()


@pytest.mark.parametrize("second", ["rigl", "set"])
def test_the_delta_of_a_round_that_changes_masks_is_applied_in_every_part(second):
    updater = core.PerModule([("a", updater_of("magnitude")), ("b", updater_of(second))])
    assert dict(updater.updaters)["b"].skip_gradients
    server = fed.sparse_server_optimizer(optax.sgd(1.0), updater)
    draw = lambda seed: {name: jax.random.normal(jax.random.PRNGKey(seed), (8, 8)) for name in "ab"}  # noqa: E731
    state, before = server.apply(draw(1), server.init(draw(0)), draw(0))
    _, after = server.apply(draw(2), state, before)
    for name in "ab":
        survivors = (before[name] != 0) & (after[name] != 0)
        assert ((before[name] != 0) != (after[name] != 0)).any()
        npt.assert_array_equal(after[name][survivors], (before[name] - draw(2)[name])[survivors])


def test_a_part_that_grows_by_gradients_needs_some():
    server = fed.sparse_server_optimizer(optax.adam(0.01), per_module("rigl"))
    federated = ALGORITHMS["fed_avg"](server, SPARSE_CLIENT)
    state, _ = federated.apply(federated.init(MODEL.init(jax.random.PRNGKey(0))), clients_of_a_round(0))
    with pytest.raises(ValueError, match="round 1 is to grow weights by gradients"):
        federated.apply(state, clients_of_a_round(1))


UNLUCKY = {
    "rigl": lambda: updater_of("rigl"),
    "rigl, masks in zeros": lambda: dataclasses.replace(updater_of("rigl"), use_packed_masks="zeros"),
    "gradual_rigl": lambda: updater_of("gradual_rigl"),
    "granet": lambda: updater_of("granet"),
    "saliency": lambda: updater_of("saliency"),
    "snip": lambda: updater_of("snip"),
    "parts": lambda: per_module("rigl"),
}


@pytest.mark.parametrize("name", UNLUCKY)
def test_a_mask_change_waits_for_a_round_in_which_someone_learns(name):
    """By gradients of 0 the weights of lowest index would be kept and grown."""
    updater = UNLUCKY[name]()
    server = fed.sparse_server_optimizer(optax.adam(0.01), updater)
    params = MODEL.init(jax.random.PRNGKey(0))
    delta = lambda seed: GRADIENT(params, clients_of_a_round(0)[seed % 4][1].all_examples(), jax.random.key(0))  # noqa: E731
    state, params = server.init(params), fed.sparse_broadcast(updater, params, server.init(params))
    while not updater.is_refresh_due(state.count):
        state, params = server.apply(delta(0), state, params)
    number, masks = int(state.count), core.unpack_masks(params, state.masks)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=f"round {number}: masks are to change by gradients.*put off"):
            state, params = server.apply(jax.tree.map(jnp.zeros_like, params), state, params)
        assert int(state.count) == number
        jax.tree.map(npt.assert_array_equal, core.unpack_masks(params, state.masks), masks)
    for seed in range(ROUNDS):
        state, params = server.apply(delta(seed), state, params)
    assert int(state.count) == number + ROUNDS
    assert sum(num_kept(params).values()) == sum(KEPT.values())


@pytest.mark.parametrize("clients", [[], [("anna", fedjax.ClientDataset({"x": np.zeros((0, 8), np.float32)}), KEY)]])
def test_a_fedjax_algorithm_survives_a_round_without_examples(clients):
    federated = ALGORITHMS["fed_avg"](fed.sparse_server_optimizer(optax.adam(0.01), updater_of("rigl")))
    state, _ = federated.apply(federated.init(MODEL.init(jax.random.PRNGKey(0))), clients_of_a_round(0))
    with pytest.warns(RuntimeWarning, match="round 1: masks are to change by gradients.*put off"):
        state, _ = federated.apply(state, clients)
    before = state.opt_state.masks
    state, _ = federated.apply(state, clients_of_a_round(1))
    assert (int(state.opt_state.count), num_kept(state.params)) == (2, KEPT)
    assert any((before[layer]["w"] != state.opt_state.masks[layer]["w"]).any() for layer in KEPT)


def test_a_server_is_told_rounds_and_not_steps() -> None:
    with pytest.raises(TypeError, match=r"give rounds=\.\.\. for the length of the run, not total_steps"):
        fed.sparse_server_optimizer(optax.sgd(1.0), "set", sparsity=0.5, total_steps=10)


def test_an_algorithm_and_the_rounds_of_a_run_say_all_of_a_server() -> None:
    words = {"sparsity": 0.75, "rounds": 100, "rng_seed": 5}
    for algorithm in ("set", core.SET):
        server = fed.sparse_server_optimizer(optax.sgd(1.0), algorithm, **words)
        updater = core.updater_of(server)
        assert updater.scheduler == core.PeriodicSchedule(10, 0, 75, step_unit="round")
        assert (updater.rng_seed, updater.skip_gradients) == (5, False)
    dense = MODEL.init(jax.random.PRNGKey(0))
    params = fed.first_params(server, dense)
    state = ALGORITHMS["fed_avg"](server).init(params)
    masks = core.unpack_masks(params, state.opt_state.masks)
    for layer in KEPT:
        mask = np.asarray(masks[layer]["w"]).astype(bool)
        assert (np.asarray(params[layer]["w"]) != 0).tolist() == mask.tolist(), "round 0 is sparse"
        scale = np.sqrt(len(mask) / np.maximum(mask.sum(axis=0), 1))
        npt.assert_allclose(params[layer]["w"], np.where(mask, np.asarray(dense[layer]["w"]) * scale, 0), rtol=1e-5)


def test_a_server_warns_once_of_an_algorithm_that_moves_weights_off_their_masks() -> None:
    params = {"w": jnp.ones((4, 4))}
    server = fed.sparse_server_optimizer(optax.sgd(1.0), "static_sparse", sparsity=0.5)
    state = server.init(params)
    state, _ = server.apply(params, state, params)  # round 0 may begin with dense parameters
    server.apply(params, server.init(params), params)  # and so may that of another cluster
    with pytest.warns(RuntimeWarning, match="after the first mask update, 8 of the 8 pruned weights of 'w' are not 0"):
        server.apply(params, state, params)
    server.apply(params, state, params)


@pytest.mark.parametrize(
    ("updater", "words", "message"),
    [
        ("rigl", {"sparsity": 0.5}, "give rounds=..., the number of rounds of the run"),
        ("rigl", {"rounds": 9}, "sparsity is missing"),
        (
            core.MagnitudePruning(scheduler=core.OneShotSchedule(9)),
            {},
            "counts optimizer steps, and a server counts rounds",
        ),
        (core.RigL(scheduler=core.PeriodicSchedule(1, 1, step_unit="frame")), {}, "counts frames, and a server counts"),
        (
            core.MagnitudePruning(scheduler=core.OneShotSchedule(9, step_unit="round")),
            {"rounds": 9},
            "in a run of 9 rounds",
        ),
    ],
)
def test_a_server_counts_rounds_and_knows_how_many(updater: object, words: dict, message: str) -> None:
    grad_fn = client = hparams = None
    for build in (
        lambda: fed.sparse_server_optimizer(optax.sgd(1.0), updater, **words),
        lambda: fed.sparse_federated_averaging(grad_fn, client, optax.sgd(1.0), updater, hparams, **words),
        lambda: fed.sparsify(None, updater, **words),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_a_round_that_a_broken_client_ruined_is_left_out_if_that_is_asked_for() -> None:
    params, broken = {"w": jnp.ones((8, 8))}, {"w": jnp.full((8, 8), jnp.nan)}
    words = {"sparsity": 0.75, "rounds": 100}
    guarded = fed.sparse_server_optimizer(optax.adam(0.1), "set", skip_broken_rounds=True, **words)
    state = guarded.init(params)
    with pytest.warns(RuntimeWarning, match="round 0: the mean delta is not finite, .*so the round is left out"):
        after, kept = guarded.apply(broken, state, params)
    jax.tree.map(npt.assert_array_equal, (after, kept), (state, params))
    _, moved = guarded.apply(params, after, kept)
    assert np.isfinite(moved["w"]).all()
    bare = fed.sparse_server_optimizer(optax.adam(0.1), "set", **words)
    assert np.isnan(bare.apply(broken, bare.init(params), params)[1]["w"]).any()


SGD, MAGNITUDE = optax.sgd(0.1), core.MagnitudePruning()
FROZEN = fedjax.optimizers.ignore_grads_haiku(CLIENT, [("linear", "w")])


@pytest.mark.parametrize(
    ("optimizer", "updater", "message"),
    [
        (MAGNITUDE, SGD, "updater is a GradientTransformation.*; give an updater"),
        (optax.sgd, MAGNITUDE, "optimizer must be an optax transformation.*function sgd itself"),
        (0.1, MAGNITUDE, "optimizer must be an optax transformation.*got a float"),
        (FROZEN, MAGNITUDE, "pass the optax transformation"),
        (fedjax.Optimizer(SGD.init, SGD.update), MAGNITUDE, "pass the optax transformation"),
        (MAGNITUDE.wrap_optax(SGD), MAGNITUDE, "sparse already"),
        (fed.sparse_server_optimizer(SGD, MAGNITUDE), MAGNITUDE, "sparse already"),
    ],
)
def test_wrong_arguments_are_type_errors(optimizer, updater, message):
    with pytest.raises(TypeError, match=message):
        fed.sparse_server_optimizer(optimizer, updater)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_broken_when_it_is_pruned_is_zero_in_the_broadcast(broken: float) -> None:
    half = functools.partial(core.uniform, sparsity=0.5)
    schedule = core.OneShotSchedule(target_step=0)
    updater = core.RandomPruning(sparsity_distribution_fn=half, scheduler=schedule)
    params = {"w": jnp.full((4, 4), broken)}
    server = fed.sparse_server_optimizer(optax.sgd(0.0), updater)
    state, after = server.apply({"w": jnp.zeros((4, 4))}, server.init(params), params)
    outside = np.asarray(core.unpack_masks(after, state.masks)["w"]) == 0
    assert outside.sum() == 8
    assert (np.asarray(after["w"])[outside] == 0).all()


class TestLayersOfAModel:
    """A model at hand says which axes stack layers."""

    MODEL = fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(
            lambda batch: hk.experimental.layer_stack(3)(lambda x: jnp.tanh(hk.Linear(8)(x)))(batch["x"])
        ),
        sample_batch={"x": np.zeros((1, 8), np.float32)},
        train_loss=lambda batch, out: jnp.sum(out**2, axis=1),
    )
    BATCH = {"x": jax.ShapeDtypeStruct((4, 8), jnp.float32)}  # noqa: RUF012
    WORDS = {"sparsity": 0.75, "distribution": "uniform", "rounds": 2}  # noqa: RUF012

    def test_servers_rank_every_layer_of_its_stacks_by_itself(self):
        params = self.MODEL.init(jax.random.PRNGKey(0))
        server = fed.sparse_server_optimizer(
            optax.sgd(1.0), "static_sparse", model=self.MODEL, batch=self.BATCH, **self.WORDS
        )
        averaging = fed.sparse_federated_averaging(
            fedjax.model_grad(self.MODEL),
            fedjax.optimizers.sgd(0.1),
            optax.sgd(1.0),
            core.build_updater("static_sparse", sparsity=0.75, distribution="uniform"),
            fedjax.ShuffleRepeatBatchHParams(batch_size=2, num_epochs=1, seed=0),
            model=self.MODEL,
            batch=self.BATCH,
        )
        for sparse in (fed.first_params(server, params), averaging.init(params).params):
            (stack,) = [layer for path, layer in sparse.items() if "linear" in path]
            assert np.count_nonzero(stack["w"], axis=(1, 2)).tolist() == [16] * 3

    def test_a_model_without_a_batch_and_what_is_no_model_are_refused(self):
        with pytest.raises(ValueError, match="give model= and batch=, or neither"):
            fed.sparse_server_optimizer(optax.sgd(1.0), "static_sparse", model=self.MODEL, **self.WORDS)
        with pytest.raises(TypeError, match=r"model is a function; give a fedjax\.Model"):
            fed.sparse_server_optimizer(optax.sgd(1.0), "set", model=lambda x: x, batch=self.BATCH, **self.WORDS)
