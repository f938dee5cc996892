from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins.core.masks import NOT_PRUNED, pack
from sparse_plugins.core.transform.moments import check_restartable, reset_pruned

PARAMS = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
MASK = jnp.array([[1, 0], [0, 1]], jnp.uint8)
SEVENS = {"w": jnp.full((2, 2), 7.0), "b": jnp.full(2, 7.0)}
ON_MASK = [[7.0, 0.0], [0.0, 7.0]]


@pytest.mark.parametrize("mask", [MASK, pack(MASK)], ids=["plain", "packed"])
def test_adam_moments_of_pruned_weights_start_again(mask: jnp.ndarray) -> None:
    fresh = optax.adam(0.1).init(PARAMS)
    state = (fresh[0]._replace(count=jnp.int32(5), mu=SEVENS, nu=SEVENS), *fresh[1:])
    adam = reset_pruned(state, fresh, PARAMS, {"w": mask, "b": NOT_PRUNED})[0]
    assert isinstance(adam, optax.ScaleByAdamState)
    assert (int(adam.count), adam.mu["b"].tolist()) == (5, [7.0, 7.0])
    assert adam.mu["w"].tolist() == adam.nu["w"].tolist() == ON_MASK


def test_start_values_other_than_zero_come_back() -> None:
    fresh = optax.adagrad(0.1, initial_accumulator_value=0.5).init(PARAMS)
    state = (fresh[0]._replace(sum_of_squares=SEVENS), *fresh[1:])
    reset = reset_pruned(state, fresh, PARAMS, {"w": MASK, "b": NOT_PRUNED})
    assert reset[0].sum_of_squares["w"].tolist() == [[7.0, 0.5], [0.5, 7.0]]


def test_only_what_is_laid_out_like_the_parameters_is_touched() -> None:
    state = {
        "history": {"w": jnp.full((3, 2, 2), 7.0), "b": jnp.full((3, 2), 7.0)},
        "rows": {"w": jnp.full(2, 7.0), "b": jnp.zeros(1)},
        "one leaf of that shape": jnp.full((2, 2), 7.0),
        "partial": {"w": jnp.full((2, 2), 7.0), "b": optax.MaskedNode()},
        "none": (),
    }
    fresh = {key: value if key in ("rows", "none") else optax.tree.zeros_like(value) for key, value in state.items()}
    reset = reset_pruned(state, fresh, PARAMS, {"w": MASK, "b": NOT_PRUNED})
    assert reset["history"]["w"].tolist() == [ON_MASK] * 3
    assert reset["rows"]["w"].tolist() == [7.0, 7.0]
    assert reset["one leaf of that shape"].tolist() == [[7.0, 7.0]] * 2
    assert reset["partial"]["w"].tolist() == ON_MASK
    assert reset["partial"]["b"] == optax.MaskedNode()


def test_parameters_in_tuples_are_not_mixed_up_with_states_in_tuples() -> None:
    params, masks = (jnp.ones((2, 2)), jnp.ones(2)), (MASK, NOT_PRUNED)
    fresh = optax.chain(optax.trace(0.9), optax.ema(0.9)).init(params)
    sevens = (jnp.full((2, 2), 7.0), jnp.full(2, 7.0))
    state = (fresh[0]._replace(trace=sevens), fresh[1]._replace(ema=sevens))
    reset = reset_pruned(state, fresh, params, masks)
    assert reset[0].trace[0].tolist() == reset[1].ema[0].tolist() == ON_MASK
    assert reset[0].trace[1].tolist() == [7.0, 7.0]


def sevens(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, 7), tree)


def reset_sevens(tx: optax.GradientTransformation, params: Any, masks: Any) -> Any:
    fresh = tx.init(params)
    return reset_pruned(sevens(fresh), fresh, params, masks)


@pytest.mark.parametrize(
    "make",
    [
        lambda tx: optax.masked(tx, {"net": True, "rest": False}),
        lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"net": "a", "rest": "b"}),
    ],
    ids=["masked", "partition"],
)
def test_whole_branches_may_be_hidden(make: Callable) -> None:
    params = {"net": PARAMS, "rest": {"v": jnp.ones((2, 2)), "u": jnp.ones(2)}}
    masks = {"net": {"w": MASK, "b": NOT_PRUNED}, "rest": {"v": MASK, "u": NOT_PRUNED}}
    reset = reset_sevens(make(optax.trace(0.9)), params, masks)
    assert sorted(leaf.tolist() for leaf in jax.tree.leaves(reset) if leaf.ndim == 2) == [ON_MASK]


def test_several_arrays_may_stand_for_one_parameter() -> None:
    pairs = optax.GradientTransformation(lambda params: jax.tree.map(lambda p: (0 * p, [p]), params), None)
    reset = reset_sevens(pairs, PARAMS, {"w": MASK, "b": NOT_PRUNED})
    assert reset["w"][0].tolist() == ON_MASK
    assert reset["w"][1][0].tolist() == [[7.0, 1.0], [1.0, 7.0]]
    assert reset["b"][0].tolist() == [7.0, 7.0]


def test_a_factor_is_reset_where_it_has_an_entry_per_weight() -> None:
    params = {"vector": jnp.ones(2), "column": jnp.ones((2, 1)), "matrix": jnp.ones((2, 2))}
    masks = {"vector": MASK[0], "column": MASK[:, :1], "matrix": MASK}
    factors = reset_sevens(optax.scale_by_sm3(), params, masks).mu
    assert [axis.tolist() for axis in factors["vector"]] == [[7.0, 0.0]]
    assert [axis.tolist() for axis in factors["column"]] == [[7.0, 0.0], [7.0]]
    assert [axis.tolist() for axis in factors["matrix"]] == [[7.0, 7.0], [7.0, 7.0]]


def test_a_bare_parameter_and_a_restored_state_are_served() -> None:
    fresh = optax.adam(0.1, mu_dtype=jnp.bfloat16).init(jnp.ones((2, 2)))
    reset = reset_pruned(jax.tree.map(np.asarray, sevens(fresh)), fresh, jnp.ones((2, 2)), MASK)
    assert reset[0].mu.tolist() == reset[0].nu.tolist() == ON_MASK
    assert (reset[0].mu.dtype, reset[0].count) == (jnp.bfloat16, 7)


def test_what_is_not_there_after_init_is_left_alone() -> None:
    tx = optax.chain(optax.trace(0.9), optax.monitor({"norm": optax.tree.norm, "all": lambda updates: updates}))
    _, state = tx.update(SEVENS, tx.init(PARAMS), PARAMS)
    reset = reset_pruned(state, tx.init(PARAMS), PARAMS, {"w": MASK, "b": NOT_PRUNED})
    assert reset[0].trace["w"].tolist() == ON_MASK
    assert reset[1].measurements["all"]["w"].tolist() == SEVENS["w"].tolist()


# Smaller than the memory of L-BFGS or the numbers of mechanize: what keeps its size whatever the model is no moment.
SERVED = {
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "sm3": optax.sm3(0.1),
    "novograd": optax.novograd(0.1),
    "lbfgs": optax.lbfgs(memory_size=10),
    "mechanize": optax.contrib.mechanize(optax.sgd(0.1)),
    "noise": optax.add_noise(0.1, 0.5, key=jax.random.key(0)),
    "flattened rest": optax.partition(
        {"w": optax.trace(0.9), "b": optax.flatten(optax.ema(0.9))}, {"w": "w", "b": "b"}
    ),
}
REFUSED = {
    "flatten": (optax.flatten(optax.trace(0.9)), r"'trace' of shape \(6,\)"),
    "transposed": (
        optax.GradientTransformation(lambda params: {"m": jnp.zeros((3, *params["w"].shape, 2))}, None),
        r"'m' of shape \(3, 2, 2, 2\)",
    ),
    "lone": (optax.GradientTransformation(lambda params: (params["w"],), None), r"'0' of shape \(2, 2\)"),
}


@pytest.mark.parametrize("name", SERVED)
def test_state_that_can_be_restarted_passes(name: str) -> None:
    tx = SERVED[name]
    check_restartable(tx.init, tx.init(PARAMS), PARAMS, {"w": MASK, "b": NOT_PRUNED})


@pytest.mark.parametrize("name", REFUSED)
def test_state_that_cannot_be_restarted_is_named(name: str) -> None:
    tx, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        check_restartable(tx.init, tx.init(PARAMS), PARAMS, {"w": MASK, "b": NOT_PRUNED})
    check_restartable(tx.init, tx.init(PARAMS), PARAMS, {"w": NOT_PRUNED, "b": NOT_PRUNED})
