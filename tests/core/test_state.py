import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from sparse_plugins import core

PARAMS = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
UPDATER = core.SteMagnitudePruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
TX = UPDATER.wrap_optax(optax.sgd(0.1))
STATE = TX.init(PARAMS)


def test_fields_of_a_fresh_state() -> None:
    assert STATE.masks["w"].dtype == jnp.uint8
    assert STATE.masks["w"].nbytes == 4  # 16 entries, half a byte each row
    assert STATE.target_sparsities == {"w": 0.5, "b": core.NOT_PRUNED}
    assert (int(STATE.count), STATE.rng.tolist()) == (0, [0, 0])
    assert STATE.dense_params["w"].tolist() == PARAMS["w"].tolist()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(STATE)} == {"uint8", "float32", "int32", "uint32"}


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
    updater = core.SET(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5), rng_seed=key)
    tx = updater.wrap_optax(optax.adam(0.1))
    step = jax.jit(lambda state, params: tx.update(PARAMS, state, params)[1], donate_argnums=0)
    first, second = (step(tx.init(PARAMS), PARAMS) for _ in range(2))
    assert first.rng.tolist() == second.rng.tolist()
