import jax.numpy as jnp
import optax
import pytest

from sparse_plugins.core.masks import NOT_PRUNED, pack
from sparse_plugins.core.moments import reset_pruned

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
