import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.core.selection.random_scores import joined_seed, key_words
from tests.quick import quick_jit

PARAMS = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
UPDATER = core.SteMagnitudePruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
TX = UPDATER.wrap_optax(optax.sgd(0.1))
STATE = TX.init(PARAMS)
TREE = {"w": jnp.arange(1.0, 17.0).reshape(4, 4), "b": jnp.ones(4)}


def test_fields_of_a_fresh_state() -> None:
    assert STATE.masks["w"].dtype == jnp.uint8
    assert STATE.masks["w"].nbytes == 4  # 16 entries, half a byte each row
    assert STATE.target_sparsities == {"w": 0.5, "b": core.NOT_PRUNED}
    assert (int(STATE.count), STATE.rng.tolist()) == (0, [0, 0])
    assert STATE.dense_params["w"].tolist() == PARAMS["w"].tolist()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(STATE)} == {"uint8", "float32", "int32", "uint32"}


def test_long_seeds_keep_all_their_bits() -> None:
    found = {seed: key_words(seed).tolist() for seed in (0, 7, 2**32 - 1, 2**32 + 7, 2**64 - 1, -1)}
    assert list(found.values()) == [[0, 0], [0, 7], [0, 2**32 - 1], [1, 7], [2**32 - 1] * 2, [0, 2**32 - 1]]
    for seed in (0, 7, 2**32 - 1, -1):
        np.testing.assert_array_equal(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")), found[seed])
    with pytest.raises(ValueError, match=f"rng_seed is {2**64}; give an int from"):
        core.SET(rng_seed=2**64)


def test_seeds_and_keys_are_joined_without_a_collision() -> None:
    words = lambda seed, key: tuple(joined_seed(seed, jnp.array(key, jnp.uint32)).tolist())  # noqa: E731
    pairs = [(seed, key) for seed in (0, 1, 5, 2**32 + 1, jnp.array([0, 1], jnp.uint32)) for key in ([0, 1], [0, 5])]
    found = [words(*pair) for pair in pairs]
    assert found[:2] == [(0, 1), (0, 5)], "a seed of 0 adds nothing"
    assert len(set(found)) == 8
    assert found[2:4] == found[8:], "an int is the key of the same words"


def test_it_is_found_wherever_it_is() -> None:
    nested = {"agent": [(), optax.MaskedState((STATE,))], "step": 3}
    assert core.find_sparse_state(nested) is STATE
    with pytest.raises(ValueError, match=r"2 SparseStates .* passing that state alone"):
        core.find_sparse_state([STATE, STATE])
    with pytest.raises(ValueError, match=r"no SparseState .* dense checkpoint\? Build it with updater.wrap_optax"):
        core.find_sparse_state(optax.adam(0.1).init(PARAMS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"masks": {"w": jnp.ones((4, 5), jnp.uint8), "b": core.NOT_PRUNED}},
            r"'w'.* \(4, 5\)",
        ),
        ({"masks": {"w": core.NOT_PRUNED, "b": core.NOT_PRUNED}}, "'w' has a target but not both"),
        ({"target_sparsities": {"w": 0.5, "b": 0.5}}, "'b' has a target but not both"),
        ({"masks": {"kernel": STATE.masks["w"], "b": core.NOT_PRUNED}}, "masks .* different tree structures"),
        ({"dense_params": {"w": jnp.ones((4, 5)), "b": core.NOT_PRUNED}}, r"dense weights of 'w' .* \(4, 5\)"),
    ],
)
def test_broken_invariants_are_named(change: dict[str, Any], message: str) -> None:
    core.check_state(PARAMS, STATE)
    with pytest.raises(ValueError, match=message):
        core.check_state(PARAMS, STATE._replace(**change))


@pytest.mark.parametrize("key", [jax.random.PRNGKey(5), jax.random.key(5)], ids=["old", "typed"])
def test_a_donated_state_takes_nothing_of_the_updater_along(key: jax.Array) -> None:
    half = functools.partial(core.uniform, sparsity=0.5)
    updater = core.SET(sparsity_distribution_fn=half, scheduler=core.PeriodicSchedule(2, 0), rng_seed=key)
    tx = updater.wrap_optax(optax.adam(0.1))
    step = jax.jit(lambda state, params: tx.update(PARAMS, state, params)[1], donate_argnums=0)
    first, second = (step(tx.init(PARAMS), PARAMS) for _ in range(2))
    assert first.rng.tolist() == second.rng.tolist()


jax.export.register_namedtuple_serialization(optax.EmptyState, serialized_name="optax.EmptyState")  # not ours to do


@pytest.mark.parametrize("settings", [{}, {"use_packed_masks": "zeros"}, {"algorithm": "magnitude_ste"}], ids=str)
def test_a_step_is_exported_serialized_and_called_again(settings: dict[str, Any]) -> None:
    defaults = {"algorithm": "rigl", "sparsity": 0.5, "update_start_step": 0, "update_end_step": 4, "update_freq": 2}
    tx = core.create_updater_from_config(**(defaults | settings)).wrap_optax(optax.sgd(0.1))
    params, state = TREE, tx.init(TREE)

    def step(params: Any, state: core.SparseState) -> tuple[Any, core.SparseState]:
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    written = jax.export.export(quick_jit(step))(params, state).serialize()
    again = jax.export.deserialize(written).call(params, state)
    jax.tree.map(np.testing.assert_array_equal, again, quick_jit(step)(params, state))
    assert type(again[1]) is core.SparseState
    assert again[1].masks["b"] == core.NOT_PRUNED


def test_optax_takes_masks_and_targets_for_no_parameters() -> None:
    tx = optax.chain(optax.clip(1.0), UPDATER.wrap_optax(optax.sgd(0.1, momentum=0.9)))
    state = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(1), tx.init(TREE))
    emptied = optax.tree.map_params(tx, lambda leaf: leaf * 0, state)[1]
    for name in ("masks", "target_sparsities", "count", "rng"):
        jax.tree.map(np.testing.assert_array_equal, getattr(emptied, name), getattr(state[1], name))
    # Momentum and dense weights are laid out like the parameters; a layer that stays dense has none of the latter.
    assert not emptied.inner_state[0].trace["b"].any()
    assert not emptied.dense_params["w"].any()
    assert emptied.dense_params["b"] == core.NOT_PRUNED
    is_marker = lambda node: isinstance(node, type(core.NOT_PRUNED))  # noqa: E731
    beside = optax.tree.map_params(
        tx, lambda leaf, spec: leaf if is_marker(leaf) else spec, state, {"w": "x", "b": "y"}, is_leaf=is_marker
    )[1]
    assert (beside.dense_params, beside.inner_state[0].trace) == (
        {**state[1].dense_params, "w": "x"},
        {"w": "x", "b": "y"},
    )


def test_optax_finds_the_count_of_the_schedule_and_that_of_adam() -> None:
    tx = UPDATER.wrap_optax(optax.adam(0.1))
    state = (tx.init(TREE)._replace(count=jnp.int32(5)),)
    assert core.find_sparse_state(state).count == 5
    of = lambda name: optax.tree.get(state, "count", filtering=lambda path, _: path[-1].tuple_name == name)  # noqa: E731
    assert (int(of("SparseState")), int(of("ScaleByAdamState"))) == (5, 0)
    assert int(optax.tree.get(core.find_sparse_state(state).inner_state, "count")) == 0
