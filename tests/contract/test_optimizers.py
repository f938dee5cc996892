"""Contracts 2 and 3 over every optimizer inside and everything around."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests.contract.optimizer_rows import LOOKAHEAD, NO_MOMENTS, OPTIMIZERS, UNSUPPORTED, covered, factories
from tests.contract.rows import (
    STEPS,
    SURROUNDINGS,
    TREES,
    UPDATERS,
    assert_on_mask,
    assert_same,
    gradient,
    kept_counts,
    make_step,
    make_updater,
)
from tests.quick import quick_jit


def with_garbage_under_masks(state: core.SparseState) -> tuple[core.SparseState, int]:
    """Every array of the inner state that could be laid out like a pruned parameter gets 7 where that is pruned.

    Wherever it stands in the state: this knows nothing of how the moments are found. Also says how many there were.
    """
    params = TREES["dict"]()
    masks = {params[name].shape: core.unpack_masks(params, state.masks)[name] for name in ("w", "head")}
    leaves, treedef = jax.tree.flatten(state.inner_state)
    under = [masks.get(jnp.shape(leaf)[-2:]) for leaf in leaves]

    def spoil(leaf: Any, mask: Any) -> Any:
        return leaf if mask is None else jnp.asarray(np.where(mask, leaf, np.asarray(7, leaf.dtype)))

    spoiled = treedef.unflatten(map(spoil, leaves, under))
    return state._replace(inner_state=spoiled), sum(mask is not None for mask in under)


@pytest.mark.thorough
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_stays_on_the_mask_and_restarts_moments(name: str) -> None:
    updater = make_updater("rigl")
    tx = updater.wrap_optax(OPTIMIZERS[name]())
    step, params = quick_jit(make_step(tx)), TREES["dict"]()
    state = tx.init(params)
    params = updater.pre_forward_update(params, state)
    first = state.masks
    for number in range(STEPS):
        garbage, places = with_garbage_under_masks(state)
        assert (places > 0) == (name not in NO_MOMENTS), "NO_MOMENTS lists what keeps no number per weight"
        spoiled = step(params, garbage)
        params, state = step(params, state)
        assert_same((params, state.masks), (spoiled[0], spoiled[1].masks))
        if not updater.is_refresh_due(number):  # there weights come back, which are not pruned where garbage was
            assert_same(*(jax.tree.map(comparable, each.inner_state) for each in (state, spoiled[1])))
        assert_on_mask(params, state)
    assert kept_counts(params, state) == UPDATERS["rigl"][1]
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(state.masks), strict=True))
    assert step._cache_size() == 1, "a leaf of the state changed its shape or dtype"
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def comparable(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_every_optimizer_of_optax_is_a_row() -> None:
    assert len(OPTIMIZERS) >= 24
    missing = sorted(factories() - covered())
    assert not missing, f"add a row to OPTIMIZERS for {missing}, or list it in UNSUPPORTED or LEFT_OUT"


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_moments_that_cannot_be_restarted_are_an_error_when_built(name: str) -> None:
    make, message = UNSUPPORTED[name]
    params = TREES["dict"]()
    with pytest.raises(ValueError, match=message):
        make_updater("rigl").wrap_optax(make()).init(params)
    make_updater("magnitude").wrap_optax(make()).init(params)


@pytest.mark.parametrize("row", ["magnitude", "rigl"])
def test_lookahead_inside_is_an_error_when_built(row: str) -> None:
    tx, params = make_updater(row).wrap_optax(LOOKAHEAD()), TREES["dict"]()
    for model in (params, optax.LookaheadParams.init_synced(params)):
        with pytest.raises(TypeError, match=r"pairs of fast and slow parameters.* Give the fast optimizer alone"):
            tx.init(model)


@pytest.mark.parametrize("row", ["magnitude_ste", "rigl"])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_anything_may_stand_around(name: str, row: str) -> None:
    updater = make_updater(row)
    tx = SURROUNDINGS[name](updater.wrap_optax(optax.adam(0.1)))
    step, params = quick_jit(make_step(tx)), TREES["dict"]()
    state = tx.init(params)
    params = updater.pre_forward_update(params, state)
    for _ in range(STEPS):
        params, state = step(params, state)
        assert_on_mask(params, state)
        assert_same(params, updater.pre_forward_update(params, state))
        core.check_state(params, state)
    assert kept_counts(params, state)[0] < 48
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", ["masked", "partition", "last of a chain"])
def test_explicit_refresh_reaches_a_nested_state(name: str) -> None:
    updater, params = make_updater("magnitude"), TREES["dict"]()
    tx = SURROUNDINGS[name](updater.wrap_optax(optax.sgd(0.1), refresh_in_graph=False))
    state = tx.init(params)
    refresh = quick_jit(lambda params, state: updater.refresh(state, params, gradient(params)))
    shapes = jax.tree.map(jnp.shape, state)
    for _ in range(2):
        state = refresh(params, state)
        assert jax.tree.map(jnp.shape, state) == shapes
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        assert_on_mask(params, state)


@pytest.mark.parametrize("label", ["masked", "partition"])
def test_whole_branches_may_be_left_to_another_optimizer(label: str) -> None:
    updater, params = make_updater("static_sparse"), {"net": TREES["dict"](), "other": TREES["tuples and lists"]()}
    wrapped = updater.wrap_optax(optax.sgd(0.1))
    around = {
        "masked": lambda: optax.masked(wrapped, {"net": True, "other": False}),
        "partition": lambda: optax.partition({"s": wrapped, "d": optax.sgd(0.1)}, {"net": "s", "other": "d"}),
    }
    tx = around[label]()
    state = tx.init(params)
    view = updater.pre_forward_update(params, state)
    assert int(jnp.count_nonzero(view["net"]["w"])) == 12
    assert_same(view["other"], params["other"])
    core.check_state(params, state)


def test_two_updaters_share_a_model() -> None:
    parts = {"w": make_updater("magnitude", sparsity=0.5), "head": make_updater("rigl")}
    wrapped = {name: updater.wrap_optax(optax.sgd(0.1)) for name, updater in parts.items()}
    tx = optax.partition({**wrapped, "b": optax.sgd(0.1)}, {"w": "w", "head": "head", "b": "b"})
    params = TREES["dict"]()
    state = tx.init(params)
    step = quick_jit(make_step(tx))
    for _ in range(STEPS):
        params, state = step(params, state)
    assert [int(jnp.count_nonzero(params[name])) for name in ("w", "head", "b")] == [24, 6, 6]
    with pytest.raises(ValueError, match="2 SparseStates"):
        core.find_sparse_state(state)
    alone = core.find_sparse_state(state.inner_states["head"])
    assert_same(params, parts["head"].pre_forward_update(params, alone))


@pytest.mark.parametrize("after", ["scale", "lookahead"])
def test_what_changes_the_updates_again_is_not_sparse(after: str) -> None:
    wrapped = make_updater("static_sparse").wrap_optax(optax.sgd(0.1))
    params = TREES["dict"]()
    if after == "scale":
        tx, model = optax.chain(wrapped, optax.scale(0.5)), params
    else:
        tx, model = optax.lookahead(wrapped, 1, 0.5), optax.LookaheadParams.init_synced(params)
    updates, _ = tx.update(gradient(params), tx.init(model), model)
    moved = jax.tree.leaves(optax.apply_updates(model, updates))
    assert all(np.count_nonzero(leaf) == leaf.size for leaf in moved)


def test_optax_maps_over_the_state() -> None:
    """Sharding code asks optax which parts of a state lie like the parameters, by init with a placeholder."""
    params = {"w": jnp.ones((8, 6)), "b": jnp.ones(6)}
    tx = core.sparsify(optax.adam(0.1), "rigl", sparsity=0.5, total_steps=100)
    named = optax.tree.map_params(tx, lambda _: "like params", tx.init(params), transform_non_params=lambda _: "own")
    assert named.inner_state[0].mu == {"w": "like params", "b": "like params"}
    assert (named.masks, named.target_sparsities, named.count) == ("own", "own", "own")
