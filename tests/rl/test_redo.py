import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.rl.plasticity.links import find_links
from sparse_plugins.rl.plasticity.redo import recycle_inside_mask
from tests.rl.small_network import GRAPH, HALF, OPTIMIZERS, STATIC, kept_counts, network, same_bits, trained, units

# Which weights belong to a unit.


def test_a_flattened_map_owns_the_inputs_where_its_entries_land():
    links = find_links(network(0), units(conv=[1], first=[0, 3]), GRAPH)
    maps = jnp.ones((2, 2, 3))
    for place in np.ndindex(2, 2):
        index = int(np.flatnonzero(np.asarray(jnp.zeros_like(maps).at[*place, 1].set(1.0).reshape(-1)))[0])
        assert links.out_of["first"]["kernel"][index].all()
    assert int(links.out_of["first"]["kernel"][:, 0].sum()) == 4
    assert links.into["conv"]["kernel"][..., 1].all()
    assert not links.into["conv"]["kernel"][..., jnp.array([0, 2])].any()
    assert links.into["conv"]["bias"].tolist() == [False, True, False]
    assert links.into["first"]["bias"].tolist() == [True, False, False, True, False]
    assert links.out_of["second"]["kernel"][:, 0].tolist() == [True, False, False, True, False]
    assert not any(leaf.any() for leaf in jax.tree.leaves((links.into["out"], links.out_of["out"])))


def test_of_a_convolution_the_last_but_one_axis_is_its_input():
    params = {"a": {"w": jnp.ones((1, 1, 1, 3))}, "b": {"w": jnp.ones((2, 2, 3, 4)), "b": jnp.ones(4)}}
    out_of = find_links(params, {"a": jnp.array([False, True, False])}, {"a": ["b"]}).out_of["b"]
    assert out_of["w"][:, :, 1].all()
    assert int(out_of["w"].sum()) == 16
    assert not out_of["b"].any()


@pytest.mark.parametrize(
    ("dead", "graph", "message"),
    [
        ({"frist": jnp.zeros(5, bool)}, GRAPH, "there is no layer 'frist'.*'conv', 'first'"),
        ({}, {"first": ["thrid"]}, "there is no layer 'thrid'"),
        ({"first": jnp.zeros(4, bool)}, GRAPH, "'first/bias' has shape .* and 4 units were given"),
        ({"first": jnp.zeros(5, bool)}, {"first": ["out"]}, "'out/kernel' has shape .* reads 4 inputs.*5 units"),
        ({"first": jnp.zeros(5, bool)}, {"first": ["conv"]}, "'conv/kernel' has shape .* reads 2 inputs.*5 units"),
    ],
)
def test_units_that_do_not_fit_are_refused(dead, graph, message):
    with pytest.raises(ValueError, match=message):
        find_links(network(0), dead, graph)


# Inside the mask.


def test_a_unit_starts_anew_on_its_own_connections():
    mask = jnp.array([[1, 1], [0, 1], [0, 1], [0, 1]], jnp.uint8)
    out_mask = jnp.array([[1, 0], [1, 1]], jnp.uint8)
    params = {"a": {"w": 5.0 * mask, "b": jnp.array([3.0, 4.0])}, "out": {"w": 6.0 * out_mask, "b": jnp.ones(2)}}
    fresh = jax.tree.map(jnp.ones_like, params)
    optimizer = core.StaticRandomSparse(sparsity_distribution_fn=HALF, use_packed_masks=False).wrap_optax(
        optax.adam(0.1)
    )
    state = optimizer.init(params)
    state = state._replace(masks={"a": {**state.masks["a"], "w": mask}, "out": {**state.masks["out"], "w": out_mask}})
    dead = {"a": jnp.array([True, False])}
    recycled = recycle_inside_mask(params, state, dead, {"a": ["out"]}, fresh_params=fresh, optimizer=optimizer)
    # Of four inputs one is kept: twice the initial scale.
    assert recycled.params["a"]["w"].tolist() == [[2.0, 5.0], [0.0, 5.0], [0.0, 5.0], [0.0, 5.0]]
    assert recycled.params["a"]["b"].tolist() == [1.0, 4.0]
    assert recycled.params["out"]["w"].tolist() == [[0.0, 0.0], [6.0, 6.0]]
    assert recycled.params["out"]["b"].tolist() == [1.0, 1.0]
    assert same_bits(recycled.opt_state.masks, state.masks)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("chained", [False, True], ids=["outermost", "last of a chain"])
def test_moments_of_all_weights_of_a_unit_start_again(name, chained):
    wrapped = STATIC.wrap_optax(OPTIMIZERS[name])
    optimizer = optax.chain(optax.trace(0.5), wrapped) if chained else wrapped
    params, state = trained(optimizer)
    dead = units(conv=[1], second=[0])
    new_state = recycle_inside_mask(params, state, dead, GRAPH, fresh_params=network(1), optimizer=optimizer).opt_state
    links = find_links(params, dead, GRAPH)
    touched = jax.tree.map(lambda into, out_of: np.asarray(into | out_of), *links)
    seen = restarted = 0
    pairs = zip(jax.tree_util.tree_leaves_with_path(inner_of(state)), jax.tree.leaves(inner_of(new_state)), strict=True)
    for (path, before), after in pairs:
        layer = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        if not layer:
            assert np.array_equal(before, after)
            continue
        seen += 1
        where = touched[layer[0]][layer[1]]
        assert not np.any(np.asarray(after)[where])
        assert np.array_equal(np.asarray(after)[~where], np.asarray(before)[~where])
        restarted += np.count_nonzero(np.asarray(before)[where])
    assert restarted
    assert seen == 8 * ({"adam": 2, "clip and adam": 2, "adamw": 2, "rmsprop": 2, "sgd": 1}[name] + chained)


def inner_of(state: optax.OptState) -> optax.OptState:
    is_sparse = lambda node: isinstance(node, core.SparseState)  # noqa: E731
    return jax.tree.map(lambda node: node.inner_state if is_sparse(node) else node, state, is_leaf=is_sparse)


def test_start_values_of_moments_other_than_0_come_back():
    optimizer = STATIC.wrap_optax(optax.adagrad(0.1, initial_accumulator_value=0.5))
    params, state = trained(optimizer)
    new = recycle_inside_mask(params, state, units(first=[2]), GRAPH, fresh_params=network(1), optimizer=optimizer)
    sums = new.opt_state.inner_state[0].sum_of_squares["first"]
    assert np.array_equal(sums["bias"], [5.5, 5.5, 0.5, 5.5, 5.5])
    assert np.all(sums["kernel"][:, 2] == 0.5)


def test_what_is_drawn_has_the_variance_of_the_inputs_kept():
    params = {"a": {"w": jnp.zeros((400, 2))}, "out": {"w": jnp.zeros((2, 1))}}
    updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.9))
    optimizer = updater.wrap_optax(optax.sgd(0.1))
    fresh = {"a": {"w": jax.random.normal(jax.random.key(0), (400, 2)) / 20}, "out": params["out"]}
    state = optimizer.init(params)
    dead = {"a": jnp.array([True, False])}
    column = recycle_inside_mask(params, state, dead, {"a": ["out"]}, fresh_params=fresh, optimizer=optimizer).params
    used = np.asarray(core.unpack_masks(params, state.masks)["a"]["w"][:, 0]) == 1
    drawn = np.asarray(column["a"]["w"][:, 0])
    assert np.array_equal(drawn != 0, used)
    np.testing.assert_allclose(drawn[used], fresh["a"]["w"][used, 0] * np.sqrt(400 / used.sum()), rtol=1e-5)


def test_a_unit_behind_dormant_units_alone_can_wake_up():
    optimizer = optax.sgd(0.1)
    params = network(0)
    everything = units(conv=[0, 1, 2], first=[0, 1, 2, 3, 4], second=[0, 1, 2, 3])
    new = recycle_inside_mask(
        params, optimizer.init(params), everything, GRAPH, fresh_params=network(1), optimizer=optimizer
    ).params
    assert all(np.array_equal(new[name]["kernel"], network(1)[name]["kernel"]) for name in GRAPH)
    assert not new["out"]["kernel"].any()
    assert np.array_equal(new["out"]["bias"], params["out"]["bias"])


def test_a_dense_network_is_recycled_too():
    optimizer = optax.adam(0.1)
    params = network(0)
    state = optimizer.init(params)
    new = recycle_inside_mask(params, state, units(first=[1]), GRAPH, fresh_params=network(1), optimizer=optimizer)
    assert np.array_equal(new.params["first"]["kernel"][:, 1], network(1)["first"]["kernel"][:, 1])
    assert jax.tree.structure(new.opt_state) == jax.tree.structure(state)


def test_dense_weights_behind_the_mask_start_anew_with_the_visible_ones():
    updater = core.SteMagnitudePruning(sparsity_distribution_fn=HALF)
    optimizer = updater.wrap_optax(optax.adam(0.01))
    params, state = trained(optimizer, updater=updater)
    dead = units(first=[3])
    new = recycle_inside_mask(params, state, dead, GRAPH, fresh_params=network(1), optimizer=optimizer)
    dense = new.opt_state.dense_params
    masks = core.unpack_masks(params, new.opt_state.masks)
    for name in GRAPH:
        assert np.array_equal(new.params[name]["kernel"], dense[name]["kernel"] * masks[name]["kernel"])
    hidden = np.asarray(masks["first"]["kernel"][:, 3]) == 0
    assert np.array_equal(dense["first"]["kernel"][hidden, 3], network(1)["first"]["kernel"][hidden, 3])
    assert not dense["second"]["kernel"][3].any()
    # Nothing of the old unit comes back with the next step.
    still = jax.tree.map(jnp.zeros_like, params)
    updates, after = optimizer.update(still, new.opt_state, new.params)
    assert not optax.apply_updates(new.params, updates)["second"]["kernel"][3].any()
    assert np.array_equal(after.dense_params["first"]["kernel"][:, 3], dense["first"]["kernel"][:, 3])
    assert kept_counts(params, after) == kept_counts(params, state)


@pytest.mark.parametrize(
    "structure", [core.NByM(2, 4, axis=-2), core.Channel(), core.ConstantFanIn(), core.Block((2, 2))]
)
def test_masks_of_any_structure_stay(structure):
    rules = core.ByPath([("(first|second)/kernel", structure)])
    updater = core.StaticRandomSparse(sparsity_distribution_fn=HALF, sparsity_type=rules)
    optimizer = updater.wrap_optax(optax.adam(0.1))
    params, state = trained(optimizer, updater=updater)
    new = recycle_inside_mask(params, state, units(first=[1]), GRAPH, fresh_params=network(1), optimizer=optimizer)
    assert same_bits(new.opt_state.masks, state.masks)
    assert same_bits(core.apply_masks(new.params, state.masks), new.params)
