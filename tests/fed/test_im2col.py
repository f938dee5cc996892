import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from sparse_plugins.fed.fedjax.backends import im2col
from sparse_plugins.fed.fedjax.backends.rewrite import replace_equations
from tests.quick import quick_jit

# Compiled as a whole, without optimizations: compiling is what takes the time here.
LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("CHWN", "IHWO", "HWNC")]


def primitives(function, *args) -> str:
    return str(jax.make_jaxpr(function)(*args))


def normal(seed: int, shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@st.composite
def convolutions(draw) -> tuple:
    layout = draw(st.sampled_from(LAYOUTS))
    pairs = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    groups, grouped = draw(st.integers(1, 3)), draw(st.sampled_from(["feature", "batch"]))
    batch, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    window, space = pairs(1, 4), pairs(4, 7)
    options = {
        "window_strides": pairs(1, 3),
        "padding": [pairs(-1, 3), pairs(0, 2)],
        "lhs_dilation": pairs(1, 2),
        "rhs_dilation": pairs(1, 2),
        f"{grouped}_group_count": groups,
    }
    sizes = {
        "N": batch * groups if grouped == "batch" else batch,
        "C": inputs * groups if grouped == "feature" else inputs,
    }
    sizes |= {"H": space[0], "W": space[1]}
    kernel_sizes = {"O": outputs * groups, "I": inputs, "H": window[0], "W": window[1]}
    x, kernel = normal(0, [sizes[axis] for axis in layout[0]]), normal(1, [kernel_sizes[axis] for axis in layout[1]])
    return x, kernel, {**options, "dimension_numbers": layout}


@settings(max_examples=40)
@given(convolutions())
def test_any_convolution_equals_that_of_xla(convolution):
    x, kernel, options = convolution
    convolve = lambda x, kernel: lax.conv_general_dilated(x, kernel, **options)  # noqa: E731
    expected = quick_jit(convolve)(x, kernel)
    ours = im2col.as_matmuls(convolve)
    assert "conv_general_dilated" not in primitives(ours, x, kernel)
    npt.assert_allclose(quick_jit(ours)(x, kernel), expected, rtol=1e-5, atol=1e-5)


def convolution_by_hand(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    height, width = x.shape[1] - kernel.shape[0] + 1, x.shape[2] - kernel.shape[1] + 1
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            seen = x[:, row : row + kernel.shape[0], column : column + kernel.shape[1]]
            out[:, row, column] = np.tensordot(seen, kernel, axes=3)
    return out


@pytest.mark.parametrize("outputs", [2, 5])
def test_a_plain_convolution_equals_loops(outputs):
    x, kernel = normal(0, (2, 6, 7, 3)), normal(1, (3, 2, 3, outputs))
    layout = ("NHWC", "HWIO", "NHWC")
    ours = im2col.as_matmuls(lambda *args: lax.conv_general_dilated(*args, (1, 1), "VALID", dimension_numbers=layout))
    npt.assert_allclose(ours(x, kernel), convolution_by_hand(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strides", [(1, 2, 2, 1), (1, 1, 2, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(("start", "pick"), [(-np.inf, lax.max), (np.inf, lax.min)])
def test_the_gradient_of_pooling_goes_to_the_first_of_equals(strides, padding, start, pick):
    x = np.random.default_rng(0).integers(-2, 3, (2, 7, 6, 3)).astype(np.float32)  # many ties
    pool = lambda x: lax.reduce_window(x, start, pick, (1, 2, 3, 1), strides, padding)  # noqa: E731
    gradient = lambda x, g: jax.vjp(pool, x)[1](g)[0]  # noqa: E731
    g = normal(1, pool(x).shape)
    assert "select_and_scatter_add" in primitives(gradient, x, g)
    assert "select_and_scatter_add" not in primitives(im2col.as_matmuls(gradient), x, g)
    ours, expected = (quick_jit(function)(x, g) for function in (im2col.as_matmuls(gradient), gradient))
    npt.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def network(params, x):
    """Strides, dilation, groups, pooling, a custom derivative, a branch, a loop, rematerialisation."""
    layout = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, w, **options: lax.conv_general_dilated(x, w, dimension_numbers=layout, padding="SAME", **options)  # noqa: E731
    x = jax.nn.relu(conv(x, params["a"], window_strides=(2, 2)))
    x = jax.checkpoint(lambda x: jnp.sin(conv(x, params["b"], window_strides=(1, 1), rhs_dilation=(2, 2))))(x)
    x = lax.cond(x.sum() > 0, lambda x: conv(x, params["c"], window_strides=(1, 1), feature_group_count=4), jnp.cos, x)
    x, _ = lax.scan(
        lambda x, w: (jax.jit(conv, static_argnames="window_strides")(x, w, window_strides=(1, 1)), ()), x, params["d"]
    )
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jax.nn.logsumexp(x)


def test_derivatives_of_a_network_equal_to_1e_6():
    shapes = {"a": (3, 3, 2, 4), "b": (3, 3, 4, 4), "c": (3, 3, 1, 4), "d": (2, 3, 3, 4, 4)}
    params = {name: 0.3 * normal(seed, shape) for seed, (name, shape) in enumerate(shapes.items())}
    gradient = jax.grad(network)
    x = normal(9, (3, 12, 12, 2))
    ours, expected = (quick_jit(function)(params, x) for function in (im2col.as_matmuls(gradient), gradient))
    program = primitives(im2col.as_matmuls(gradient), params, x)
    assert "conv_general_dilated" not in program
    assert "select_and_scatter_add" not in program
    jax.tree.map(lambda a, b: npt.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected)


def test_a_window_too_large_to_unroll_is_left_alone():
    x = normal(0, (1, 400, 2))
    layout, kernel = ("NWC", "WIO", "NWC"), normal(1, (200, 2, 2))
    wide = lambda x: lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=layout)  # noqa: E731
    assert "conv_general_dilated" in primitives(im2col.as_matmuls(wide), x)
    npt.assert_array_equal(im2col.as_matmuls(wide)(x), wide(x))


def pooled_loss(x, kernel):
    features = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=LAYOUTS[0])
    return lax.reduce_window(features, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()


def test_pooling_by_shifts_leaves_convolutions_and_is_the_same_to_the_bit():
    inputs = normal(0, (2, 7, 7, 3)), normal(1, (2, 2, 3, 4))
    gradient = jax.grad(pooled_loss)
    fast = replace_equations(gradient, im2col.pooling_by_shifts)
    assert primitives(fast, *inputs).count("conv_general_dilated") == primitives(gradient, *inputs).count(
        "conv_general_dilated"
    )
    assert "select_and_scatter_add" not in primitives(fast, *inputs)
    npt.assert_array_equal(quick_jit(fast)(*inputs), quick_jit(gradient)(*inputs))
