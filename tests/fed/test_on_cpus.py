import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparse_plugins import fed
from sparse_plugins.fed.fedjax.backends import on_cpus

fedjax = fed.import_fedjax()

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")]


def of_kernel(images=20, size=26, channels=32, outputs=64, *, layout=LAYOUTS[0], dtype=jnp.float32, groups=1, window=3):
    """The gradient of a kernel with respect to itself, and the kernel."""
    sizes = {"N": images, "C": channels, "H": size, "W": size}
    x = jnp.ones([sizes[axis] for axis in layout[0]], dtype)
    sizes = {"O": outputs, "I": channels // groups, "H": window, "W": window}
    kernel = jnp.ones([sizes[axis] for axis in layout[1]], dtype)

    def loss(kernel):
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=groups)
        return (y.astype(jnp.float32) ** 2).sum()

    return jax.grad(loss), kernel


def suits_eigen(**sizes) -> bool:
    return on_cpus.compiler_options(*of_kernel(**sizes)) == on_cpus.EIGEN


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_large_kernels_come_from_eigen(layout):
    assert suits_eigen(layout=layout)
    assert suits_eigen(layout=layout, window=1, outputs=128)
    assert suits_eigen(layout=layout, dtype=jnp.bfloat16)
    assert not suits_eigen(layout=layout, images=10)
    assert not suits_eigen(layout=layout, size=8)
    assert not suits_eigen(layout=layout, channels=1)
    assert not suits_eigen(layout=layout, channels=64, groups=64)
    assert not suits_eigen(layout=layout, images=10, dtype=jnp.bfloat16)


def test_nothing_else_asks_for_eigen():
    gradient, kernel = of_kernel()
    x = jnp.ones((20, 26, 26, 32))
    forward = lambda kernel: lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUTS[0])  # noqa: E731
    assert on_cpus.compiler_options(forward, kernel) == {}
    assert on_cpus.compiler_options(jnp.matmul, jnp.ones((999, 999)), jnp.ones((999, 999))) == {}
    assert on_cpus.compiler_options(jax.jit(lambda kernel: lax.cond(True, gradient, jnp.sin, kernel)), kernel)


def test_the_option_takes_convolutions_from_the_other_library(full_compilation):
    """Where a release of XLA means something else by it, this fails: then measure anew."""
    gradient, kernel = of_kernel()
    called = []
    for options in ({}, on_cpus.EIGEN):
        program = jax.jit(gradient, compiler_options=options).lower(kernel).compile().as_text()
        called.append(program.partition("\nENTRY")[2].count(" convolution("))  # the other library's are in a fusion
    assert called == [0, 2]


def test_a_release_that_does_not_know_the_option_goes_without(monkeypatch):
    monkeypatch.setattr(on_cpus, "EIGEN", {"xla_cpu_of_the_past": "yes"})
    on_cpus._is_known.cache_clear()
    try:
        assert on_cpus.compiler_options(*of_kernel()) == {}
    finally:
        on_cpus._is_known.cache_clear()


def test_a_step_is_compiled_by_its_own_shapes_whoever_comes_first(monkeypatch):
    compiled = []
    options = on_cpus.compiler_options
    monkeypatch.setattr(on_cpus, "compiler_options", lambda *args: compiled.append(options(*args)) or compiled[-1])

    def step(kernel, x):
        loss = lambda kernel: lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUTS[0]).sum()  # noqa: E731
        return kernel - 1e-6 * jax.grad(loss)(kernel), x.sum()

    run = on_cpus.by_batch(lambda kernel, width: kernel[..., width], step, lambda _, kernel: kernel)
    small, large = np.ones((2, 30, 30, 8), np.float32), np.ones((80, 30, 30, 8), np.float32)
    widths = {"a": jnp.arange(8), "b": jnp.arange(8), "narrow": jnp.arange(4), "none": jnp.arange(8)}
    batches = {"a": [small, large], "b": [large, small, large], "narrow": [large, small], "none": []}
    kernel = jnp.ones((3, 3, 8, 8)) / 100
    outputs = list(run(kernel, [(name, batches[name], width) for name, width in widths.items()]))
    assert compiled == [{}, on_cpus.EIGEN, {}, {}]
    assert [(name, len(results)) for name, _, results in outputs] == [(name, len(batches[name])) for name in batches]
    np.testing.assert_array_equal(outputs[3][1], kernel)
    np.testing.assert_allclose(outputs[2][1], outputs[0][1][..., :4], rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_a_scanned_stack_in_mixed_precision_ends_as_with_fedjax_own_backend(dtype, tolerance):
    """Float32 parameters of two stacked layers, computed in `dtype`, with pooling and dropout."""

    def loss(params, batch, key):
        def layer(x, kernel):
            return jax.nn.relu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUTS[0])), ()

        x, _ = lax.scan(layer, batch["x"].astype(dtype), params["stack"].astype(dtype))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(len(x), -1)
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)
        return ((x @ params["dense"].astype(dtype)).astype(jnp.float32) ** 2).mean()

    def step(state, batch):
        params, key = state
        key, use = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(params, batch, use)
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), key), value

    generator = np.random.default_rng(0)
    normal = lambda *shape: generator.normal(0, 0.1, shape).astype(np.float32)  # noqa: E731
    params = {"stack": normal(2, 1, 1, 8, 8), "dense": normal(14 * 14 * 8, 3)}
    clients = [(name, [{"x": normal(count, 28, 28, 8)} for count in (20, 170)], jax.random.key(3)) for name in "ab"]
    options = on_cpus.compiler_options(step, (params, jax.random.key(0)), clients[0][1][1])
    assert options == on_cpus.EIGEN
    ours, theirs = [], []
    for into, backend in ((ours, fed.ScanBackend()), (theirs, "jit")):
        with fedjax.for_each_client_backend(backend):
            parts = lambda params, key: (params, key), step, lambda _, state: state[0]
            into += fedjax.for_each_client(*parts, with_step_result=True)(params, clients)
    for (name, output, results), (expected_name, expected, expected_results) in zip(ours, theirs, strict=True):
        assert name == expected_name
        for one, other in zip(
            jax.tree.leaves((output, results)), jax.tree.leaves((expected, expected_results)), strict=True
        ):
            assert one.dtype == other.dtype == np.float32
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance / 10)
