import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.core.masks import IN_ZEROS
from sparse_plugins.rl.plasticity.redo import recycle_inside_mask, recycle_into_growth
from tests.rl.small_network import (
    ADAM,
    GRAPH,
    HALF,
    OPTIMIZERS,
    PICTURES,
    STATIC,
    forward,
    kept_counts,
    network,
    recycle,
    same_bits,
    silence,
    trained,
    units,
)

# What both ways have in common.

INTO = pytest.mark.parametrize("into", ["mask", "growth"])
SETS = st.fixed_dictionaries(
    {"conv": st.sets(st.integers(0, 2)), "first": st.sets(st.integers(0, 4)), "second": st.sets(st.integers(0, 3))}
)


@functools.cache
def compiled(into: str):
    return jax.jit(lambda params, state, dead: recycle(into, params, state, dead, ADAM))


@INTO
@hypothesis.settings(max_examples=15)
@hypothesis.given(sets=SETS, seed=st.integers(0, 5))
def test_recycling_units_that_never_fire_changes_no_output(into, sets, seed):
    dead = units(**{name: sorted(which) for name, which in sets.items()})
    params, state = trained(ADAM, seed)
    params = silence(params, dead)
    hidden, before = forward(params, PICTURES)
    assert all(not jnp.any(hidden[name][..., which]) for name, which in dead.items())
    new = compiled(into)(params, state, dead)
    np.testing.assert_allclose(forward(new.params, PICTURES)[1], before, rtol=1e-6, atol=1e-6)
    assert kept_counts(params, new.opt_state) == kept_counts(params, state)
    assert same_bits(core.apply_masks(new.params, new.opt_state.masks), new.params)
    core.check_state(new.params, new.opt_state)


@INTO
@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_without_dormant_units_nothing_changes(into, name):
    optimizer = optax.chain(optax.clip(1.0), STATIC.wrap_optax(OPTIMIZERS[name]))
    params, state = trained(optimizer)
    for dead in ({}, units(conv=[], first=[], second=[])):
        assert same_bits(tuple(recycle(into, params, state, dead, optimizer)), (params, state))


@INTO
def test_layers_that_cannot_be_recycled_are_left_alone(into):
    params, state = trained(ADAM)
    graph_without = {"conv": ["first"]}
    extra = {"updater": STATIC, "key": 0} if into == "growth" else {}
    function = recycle_into_growth if into == "growth" else recycle_inside_mask
    new = function(params, state, units(second=[0]), graph_without, fresh_params=params, optimizer=ADAM, **extra)
    assert same_bits(tuple(new), (params, state))


@INTO
def test_masks_that_are_zeros_of_the_parameters_stay_readable(into):
    updater = core.StaticRandomSparse(sparsity_distribution_fn=HALF, use_packed_masks="zeros")
    optimizer = updater.wrap_optax(optax.adam(0.1))
    params, state = trained(optimizer, updater=updater)
    new = recycle(into, params, state, units(first=[0, 2]), optimizer, updater)
    assert new.opt_state.masks["first"]["kernel"] == IN_ZEROS
    for name in network(0):
        assert np.count_nonzero(new.params[name]["kernel"]) == np.count_nonzero(params[name]["kernel"])


@INTO
def test_each_part_of_the_parameters_may_have_its_own_updater(into):
    label = lambda params: {name: "head" if name == "out" else "body" for name in params}  # noqa: E731
    static = lambda seed: core.StaticRandomSparse(sparsity_distribution_fn=HALF, rng_seed=seed)  # noqa: E731
    optimizer = optax.partition(
        {"body": static(0).wrap_optax(optax.adam(0.1)), "head": static(1).wrap_optax(optax.sgd(0.1, momentum=0.9))},
        label,
    )
    params = network(0)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    params = optax.apply_updates(params, updates)
    new = recycle(into, params, state, units(second=[1]), optimizer)
    assert jax.tree.structure(new.opt_state) == jax.tree.structure(state)
    head = new.opt_state.inner_states["head"].inner_state
    assert not head.inner_state[0].trace["out"]["kernel"][1].any()
    assert not new.params["out"]["kernel"][1].any()
    for name in ("second", "out"):
        assert np.count_nonzero(params[name]["kernel"]) == params[name]["kernel"].size // 2
    # Updates go on landing on the masks that came out.
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), new.opt_state, new.params)
    after = optax.apply_updates(new.params, updates)
    assert all(np.count_nonzero(after[name]["kernel"]) == after[name]["kernel"].size // 2 for name in params)


# Into growth.


def test_connections_of_a_unit_go_to_the_largest_gradients_elsewhere():
    updater = core.StaticRandomSparse(sparsity_distribution_fn=HALF, use_packed_masks=False)
    optimizer = updater.wrap_optax(optax.adam(0.1))
    mask = jnp.array([[1, 1, 0, 0], [1, 0, 1, 0]], jnp.uint8)
    params = {"a": {"w": 5.0 * mask, "b": jnp.full(4, 2.0)}, "out": {"w": jnp.array([[3.0], [4.0], [0.0], [0.0]])}}
    state = optimizer.init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    adam = state.inner_state[0]._replace(mu=ones, nu=ones)
    masks = {"a": {**state.masks["a"], "w": mask}, "out": {"w": (params["out"]["w"] != 0).astype(jnp.uint8)}}
    state = state._replace(masks=masks, inner_state=(adam, *state.inner_state[1:]))
    grads = {
        "a": {"w": jnp.array([[9.0, 9.0, 1.0, -3.0], [9.0, 9.0, 9.0, 2.0]]), "b": jnp.ones(4)},
        "out": {"w": jnp.array([[9.0], [9.0], [1.0], [-2.0]])},
    }
    dead = {"a": jnp.array([True, False, False, False])}
    new, new_state = recycle_into_growth(
        params, state, dead, {"a": ["out"]}, fresh_params=jax.tree.map(jnp.zeros_like, params), optimizer=optimizer,
        updater=updater, key=0, grads=grads,
    )  # fmt: skip
    # Two inputs of unit 0 are dropped; of the free places the gradient of (1, 1) is largest, then that of (0, 3).
    assert new_state.masks["a"]["w"].tolist() == [[0, 1, 0, 1], [0, 1, 1, 0]]
    assert new["a"]["w"].tolist() == [[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]]
    assert new_state.masks["out"]["w"][:, 0].tolist() == [0, 1, 0, 1]
    assert new["out"]["w"][:, 0].tolist() == [0.0, 4.0, 0.0, 0.0]
    for moment in (new_state.inner_state[0].mu, new_state.inner_state[0].nu):
        assert moment["a"]["w"].tolist() == [[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
        assert moment["out"]["w"][:, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
        assert moment["a"]["b"].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_random_growth_depends_on_its_key_and_grows_nothing_on_the_unit():
    params, state = trained(ADAM)
    dead = units(first=[1, 2])
    grown = lambda key: core.unpack_masks(  # noqa: E731
        params,
        recycle_into_growth(
            params, state, dead, GRAPH, fresh_params=params, optimizer=ADAM, updater=STATIC, key=key
        ).opt_state.masks,
    )["first"]["kernel"]
    assert np.array_equal(grown(0), grown(0))
    assert not np.array_equal(grown(0), grown(1))
    assert not grown(0)[:, 1:3].any()


def test_connections_without_a_free_place_stay_and_are_recycled():
    updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.0))
    optimizer = updater.wrap_optax(optax.adam(0.1))
    params, state = trained(optimizer, updater=updater)
    dead = units(first=[1])
    into_growth = recycle("growth", params, state, dead, optimizer, updater)
    assert same_bits(into_growth, recycle("mask", params, state, dead, optimizer, updater))


def test_sparse_training_goes_on_from_what_was_grown():
    updater = core.RigL(sparsity_distribution_fn=HALF, scheduler=core.PeriodicSchedule(2, 2, 100))
    optimizer = updater.wrap_optax(optax.adam(0.1))
    params, state = trained(optimizer, updater=updater)
    counts = kept_counts(params, state)
    grads = jax.tree.map(jnp.ones_like, params)
    for step in range(4):
        params, state = recycle("growth", params, state, units(second=[step % 4]), optimizer, updater, grads)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert kept_counts(params, state) == counts
        assert same_bits(core.apply_masks(params, state.masks), params)


@pytest.mark.parametrize(
    ("updater", "message"),
    [
        (core.StaticRandomSparse(sparsity_distribution_fn=HALF, sparsity_type=core.Channel()), "is Channel"),
        (core.SteMagnitudePruning(sparsity_distribution_fn=HALF), "follow the dense weights"),
        (core.StaticRandomSparse(sparsity_distribution_fn=HALF, topk_fn=lambda s, _: s > 0), "a topk_fn"),
    ],
)
def test_masks_that_single_weights_would_break_are_not_grown(updater, message):
    optimizer = updater.wrap_optax(optax.adam(0.1))
    params = network(0)
    with pytest.raises(ValueError, match=message) as raised:
        recycle("growth", params, optimizer.init(params), units(first=[0]), optimizer, updater)
    assert "use recycle_inside_mask" in str(raised.value)


def test_a_dense_network_has_nothing_to_grow():
    params = network(0)
    with pytest.raises(ValueError, match="it holds no masks"):
        recycle("growth", params, optax.adam(0.1).init(params), units(first=[0]), optax.adam(0.1))


def test_parameters_of_another_network_are_refused():
    params, state = trained(ADAM)
    with pytest.raises(ValueError, match="fresh parameters and the parameters have different tree structures"):
        recycle_inside_mask(params, state, units(first=[0]), GRAPH, fresh_params={"a": jnp.ones(1)}, optimizer=ADAM)
