"""FedJAX's quantizing aggregators leave pruned weights alone and are charged for survivors only."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest

from sparse_plugins import fed

aggregators = fed.import_fedjax().aggregators.compression
KEY = jax.random.PRNGKey(0)
QUANTIZERS = {
    "uniform": lambda: aggregators.uniform_stochastic_quantizer(16, KEY),
    "arithmetic": lambda: aggregators.uniform_stochastic_quantizer(16, KEY, encode_algorithm="arithmetic"),
    "rotated": lambda: aggregators.rotated_uniform_stochastic_quantizer(256, KEY),
    "drive": lambda: aggregators.structured_drive_quantizer(KEY),
    "terngrad": lambda: aggregators.terngrad_quantizer(KEY),
}
MASK = jax.random.bernoulli(jax.random.key(9), 0.3, (6, 8)).astype(jnp.float32)


def updates(count: int = 3) -> list:
    draw = lambda i: jax.random.normal(jax.random.key(i), (6, 8))  # noqa: E731
    return [(i, {"w": draw(i) * MASK, "b": draw(i)[0]}, float(i + 1)) for i in range(count)]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_zeros_stay_zeros_which_upstream_changes(name):
    plain, _ = QUANTIZERS[name]().apply(updates(), QUANTIZERS[name]().init())
    aggregator = fed.survivors_only(QUANTIZERS[name]())
    mean, state = aggregator.apply(updates(), aggregator.init().for_broadcast({"w": MASK, "b": jnp.ones(8)}))
    npt.assert_array_equal(mean["w"][MASK == 0], 0)
    if name != "terngrad":  # the only one that keeps zeros by itself
        assert (plain["w"][MASK == 0] != 0).any()
    exact = sum(weight * np.asarray(update["w"]) for _, update, weight in updates()) / 6
    assert np.abs(np.asarray(mean["w"]) - exact).mean() < np.abs(exact).mean()
    assert state.num_bits > 0


@pytest.mark.parametrize("name", ["uniform", "rotated", "drive", "terngrad"])
def test_bits_are_those_of_the_survivors(name):
    aggregator = fed.survivors_only(QUANTIZERS[name]())
    _, sparse = aggregator.apply(updates(), aggregator.init())
    small = [(client, {"w": update["w"][MASK != 0], "b": update["b"]}, weight) for client, update, weight in updates()]
    _, dense = QUANTIZERS[name]().apply(small, QUANTIZERS[name]().init())
    assert float(sparse.num_bits) == pytest.approx(float(dense.num_bits))
    _, again = aggregator.apply(updates(), sparse)
    assert float(again.num_bits) == pytest.approx(2 * float(dense.num_bits))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_an_update_of_zeros_stays_zero_where_upstream_gives_nan(name):
    nothing = {"w": jnp.zeros((6, 8)), "b": jnp.zeros(8)}
    aggregator = fed.survivors_only(QUANTIZERS[name]())
    for state in (aggregator.init(), aggregator.init().for_broadcast({"w": MASK, "b": jnp.ones(8)})):
        mean, _ = aggregator.apply([(0, nothing, 1.0)], state)
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(mean)) < 1e-25


def test_quantization_is_unbiased_over_many_draws():
    aggregator = fed.survivors_only(QUANTIZERS["uniform"]())
    state, total = aggregator.init(), 0.0
    for _ in range(200):
        mean, state = aggregator.apply(updates(1), state)
        total = total + mean["w"]
    npt.assert_allclose(total / 200, updates(1)[0][1]["w"], atol=0.05)


def test_a_round_without_clients_is_an_error():
    aggregator = fed.survivors_only(QUANTIZERS["uniform"]())
    with pytest.raises(ValueError, match="no client to aggregate"):
        aggregator.apply([], aggregator.init())
