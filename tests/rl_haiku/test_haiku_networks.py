"""Torsos and heads: values by hand, starts, and what they refuse."""

import itertools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_plugins.rl import haiku
from sparse_plugins.rl.haiku.convolution import Convolution
from tests.quick import quick_jit

KEY = jax.random.key(0)
GRIDS = np.random.default_rng(0).random((2, 10, 10, 4)) > 0.7


def convolution(size: int, stride: int, padding: str, as_matmuls: bool) -> hk.Transformed:
    layer = lambda x: Convolution(5, size, stride, haiku.XAVIER, as_matmuls, padding, name="conv")(x)  # noqa: E731
    return hk.without_apply_rng(hk.transform(layer))


def convolution_by_hand(x: np.ndarray, kernel: np.ndarray, stride: int, padding: str) -> np.ndarray:
    size = kernel.shape[0]
    if padding == "SAME":
        total = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
        x = np.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in total), (0, 0)])
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            out[:, row, column] = np.tensordot(x[:, top : top + size, left : left + size], kernel, axes=3)
    return out


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (4, 2), (8, 4)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_both_ways_to_convolve_equal_loops(size, stride, padding):
    x = np.random.default_rng(0).normal(size=(2, 11, 10, 3)).astype(np.float32)
    layers = [convolution(size, stride, padding, as_matmuls) for as_matmuls in (False, True)]
    params = quick_jit(layers[0].init)(KEY, x)
    params["conv"]["b"] = params["conv"]["b"] + jnp.arange(5.0)
    expected = convolution_by_hand(x, np.asarray(params["conv"]["w"]), stride, padding) + np.arange(5.0)
    for layer in layers:
        np.testing.assert_allclose(quick_jit(layer.apply)(params, x), expected, rtol=1e-5, atol=1e-5)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(layers[1].apply)(params, x))


def impala_size(width: int) -> int:
    channels = [4, 16 * width, 32 * width, 32 * width]
    stacks = [9 * a * b + b + 4 * (9 * b * b + b) for a, b in itertools.pairwise(channels)]
    return sum(stacks) + (11 * 11 * channels[-1] + 1) * 512 + 513 * 6


NETWORKS = {
    "nature": (haiku.nature_torso(), (84, 84, 4), 4_046_502),
    "impala": (haiku.impala_torso(), (84, 84, 4), impala_size(1)),
    "wide impala": (haiku.impala_torso(width=4), (84, 84, 4), impala_size(4)),
    "minatar": (haiku.minatar_torso(), (10, 10, 4), 132_566),
    "minatar of dopamine": (haiku.minatar_torso(hidden=None, padding="SAME"), (10, 10, 4), 592 + 1600 * 6 + 6),
    "control": (haiku.mlp_torso(), (4,), 4 * 512 + 512 + 512 * 512 + 512 + 512 * 6 + 6),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_those_of_the_published_networks(name):
    torso, shape, size = NETWORKS[name]
    network = haiku.q_network(6, torso)
    params = jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct((1, *shape), jnp.uint8))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    out = jax.eval_shape(network.apply, params, jax.ShapeDtypeStruct((5, *shape), jnp.uint8))
    assert (out.shape, out.dtype) == ((5, 6), jnp.float32)


def test_impala_has_fifteen_convolutions_and_starts_as_dopamines():
    network = haiku.q_network(6, haiku.impala_torso())
    params = quick_jit(network.init)(KEY, np.zeros((1, 8, 8, 4), np.uint8))
    kernels = {name: layer["w"] for name, layer in params.items()}
    assert sum("conv" in name for name in kernels) == 15
    for name, kernel in kernels.items():
        inputs, outputs = (int(np.prod(kernel.shape[:-2])) * n for n in kernel.shape[-2:])
        largest = float(jnp.abs(kernel).max())
        if "block" in name:  # LeCun's: normal, cut off at two deviations
            assert float(kernel.std()) == pytest.approx(inputs**-0.5, rel=0.05)
        else:
            limit = (6 / (inputs + outputs)) ** 0.5
            assert 0.95 * limit < largest <= limit
    assert not any(np.any(layer["b"]) for layer in params.values())


def test_rainbow_starts_narrower():
    network = haiku.q_network(2, haiku.nature_torso(w_init=haiku.RAINBOW_INIT), atoms=51, w_init=haiku.RAINBOW_INIT)
    params = quick_jit(network.init)(KEY, np.zeros((1, 8, 8, 4), np.uint8))
    for kernel in (layer["w"] for layer in params.values()):
        limit = (3 / 3**0.5 / np.prod(kernel.shape[:-1])) ** 0.5
        assert 0.95 * limit < float(jnp.abs(kernel).max()) <= limit


def test_a_dueling_head_by_hand():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    network = haiku.q_network(2, haiku.mlp_torso((8,)), dueling=True, atoms=3)
    params = quick_jit(network.init)(KEY, x)
    weights = jax.tree.map(np.asarray, params)
    hidden = np.maximum(x @ weights["hidden_1"]["w"], 0)
    value = (hidden @ weights["value"]["w"]).reshape(3, 1, 3)
    advantages = (hidden @ weights["advantages"]["w"]).reshape(3, 2, 3)
    expected = value + advantages - advantages.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-5, atol=1e-5)


def test_bytes_are_scaled_and_other_observations_are_not():
    network = haiku.q_network(3, haiku.minatar_torso())
    params = quick_jit(network.init)(KEY, GRIDS)
    apply = quick_jit(network.apply)
    np.testing.assert_array_equal(apply(params, GRIDS), apply(params, GRIDS.astype(np.float32)))
    np.testing.assert_allclose(apply(params, GRIDS.astype(np.uint8) * 255), apply(params, GRIDS), rtol=1e-5, atol=1e-6)


def test_bounds_scale_vectors():
    x = np.array([[-2.0, 0.0], [2.0, 8.0], [0.0, 4.0]], np.float32)
    plain = haiku.q_network(2, haiku.mlp_torso((8,)))
    bounded = haiku.q_network(2, haiku.mlp_torso((8,), low=[-2, 0], high=[2, 8]))
    params = quick_jit(plain.init)(KEY, x)
    scaled = np.array([[-1, -1], [1, 1], [0, 0]], np.float32)
    np.testing.assert_allclose(bounded.apply(params, x), plain.apply(params, scaled), rtol=1e-6, atol=1e-6)


def test_bounds_of_bytes_are_bytes():
    x = np.array([[0, 0], [255, 100], [51, 50]], np.uint8)
    bounded = haiku.q_network(2, haiku.mlp_torso((8,), low=[0, 0], high=[255, 100]))
    params = quick_jit(bounded.init)(KEY, x)
    np.testing.assert_array_equal(bounded.apply(params, x), bounded.apply(params, x.astype(np.float32)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: haiku.impala_torso(0), "width is 0"),
        (lambda: haiku.minatar_torso(hidden=0), "hidden is 0"),
        (lambda: haiku.minatar_torso(padding="same"), "padding is 'same'; allowed are 'VALID'"),
        (lambda: haiku.mlp_torso((8, -1)), "a width is -1"),
        (lambda: haiku.mlp_torso(low=[0.0]), r"low is \[0.0\] and high is None; give both"),
        (lambda: haiku.mlp_torso(low=[0.0], high=[0.0]), "low below high"),
        (lambda: haiku.q_network(0, haiku.mlp_torso()), "num_actions is 0"),
        (lambda: haiku.q_network(2, haiku.mlp_torso(), atoms=1), "atoms is 1"),
    ],
)
def test_bad_settings_are_errors_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("torso", [haiku.nature_torso(), haiku.impala_torso(), haiku.minatar_torso()])
def test_a_single_frame_or_a_vector_is_no_batch_of_pictures(torso):
    network = haiku.q_network(2, torso)
    with pytest.raises(ValueError, match=r"observations have shape \(84, 84, 4\); this torso reads pictures \[batch"):
        jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8))
