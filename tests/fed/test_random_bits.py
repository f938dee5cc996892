import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_plugins.fed.fedjax.backends.random_bits import bits_by_rows
from sparse_plugins.fed.fedjax.backends.rewrite import replace_equations


@pytest.mark.parametrize("seed", [0, 2**40 + 3])
@pytest.mark.parametrize(
    ("shape", "by_row"),
    [((3, 1024), True), ((2, 5, 700), True), ((1, 2000), True), ((2, 1023), False), ((2000,), False)],
)
def test_random_bits_by_rows_are_those_of_jax(seed, shape, by_row):

    def draw(key):
        draws = jax.random.uniform(key, shape, jnp.float32), jax.random.normal(key, shape, jnp.float32)
        return *draws, jax.random.bits(key, dtype=jnp.uint32)

    by_rows = replace_equations(jax.jit(draw), bits_by_rows)
    with jax.enable_x64(seed > 2**32):
        keys = [jax.random.key(seed), jax.random.PRNGKey(seed)]
        program = str(jax.make_jaxpr(by_rows)(keys[0]))
        assert program.count("random_bits[") == (1 if by_row else 3)
        for key in keys:
            jax.tree.map(np.testing.assert_array_equal, jax.jit(by_rows)(key), jax.jit(draw)(key))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (lambda key: jax.random.bits(key, (4, 2000), jnp.uint8), jax.random.key(0)),
        lambda: (lambda key: jax.random.bits(key, (4, 2000)), jax.random.key(0, impl="rbg")),
        lambda: (jax.vmap(lambda key: jax.random.bits(key, (4, 2000))), jax.random.split(jax.random.key(0), 3)),
    ],
)
def test_other_generators_and_many_keys_draw_as_before(make):
    draw, key = make()
    by_rows = replace_equations(draw, bits_by_rows)
    assert str(jax.make_jaxpr(by_rows)(key)).count("random_bits") == 1
    np.testing.assert_array_equal(jax.jit(by_rows)(key), jax.jit(draw)(key))


def test_bits_that_depend_on_their_number_are_drawn_as_before():
    draw = lambda key: jax.random.bits(key, (4, 2000))  # noqa: E731
    key = jax.random.key(0)
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(replace_equations(draw, bits_by_rows)(key), draw(key))
