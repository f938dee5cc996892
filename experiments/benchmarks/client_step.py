"""What a client's step costs, and its parts that `fed.ScanBackend` computes otherwise, against XLA's way.

    taskset -c 0 python -m experiments.benchmarks.client_step     # one core, as products of many images use all

A row is a program with 20 images, ours against the same one as it is, which runs twice, and with the library of
convolutions that `fed.ScanBackend` takes for large gradients: where ours leaves it, that one should be the slower.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from experiments.benchmarks.timing import interleave, told
from sparse_plugins import fed
from sparse_plugins.fed.fedjax.backends.on_cpus import EIGEN, compiler_options, suited

fedjax = fed.import_fedjax()

LAYOUT = ("NHWC", "HWIO", "NHWC")
IMAGES = 20


def _random(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def convolution(
    size: int, inputs: int, outputs: int, *, window: int = 3, groups: int = 1, dtype: Any = np.float32
) -> tuple[Callable, tuple[Any, ...]]:
    """A convolution and its two gradients, and its arguments: images, a kernel and the gradient of the outputs."""

    def all_three(images: jax.Array, kernel: jax.Array, of_outputs: jax.Array) -> Any:
        convolve = lambda images, kernel: lax.conv_general_dilated(  # noqa: E731
            images, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=groups
        )
        made, gradients = jax.vjp(convolve, images, kernel)
        return made, gradients(of_outputs)

    shapes = (IMAGES, size, size, inputs), (window, window, inputs // groups, outputs), (IMAGES, size, size, outputs)
    return all_three, tuple(_random(seed, *shape).astype(dtype) for seed, shape in enumerate(shapes))


def kernel_gradient(size: int, inputs: int, outputs: int, padding: str) -> tuple[Callable, tuple[Any, ...]]:
    """The gradient of a 3x3 kernel, and its arguments: images and the gradient of the outputs."""

    def gradient(images: jax.Array, of_outputs: jax.Array) -> jax.Array:
        convolve = lambda kernel: lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=LAYOUT)  # noqa: E731
        return jax.vjp(convolve, _random(1, 3, 3, inputs, outputs))[1](of_outputs)[0]

    left = size if padding == "SAME" else size - 2
    return gradient, (_random(0, IMAGES, size, size, inputs), _random(2, IMAGES, left, left, outputs))


def pooling_gradient(size: int, features: int) -> tuple[Callable, tuple[Any, ...]]:
    """The gradient of max pooling by two, and its arguments: images and the gradient of the outputs."""

    def gradient(images: jax.Array, of_outputs: jax.Array) -> jax.Array:
        pool = lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")  # noqa: E731
        return jax.vjp(pool, images)[1](of_outputs)[0]

    return gradient, (_random(0, IMAGES, size, size, features), _random(2, IMAGES, size // 2, size // 2, features))


def dropped_out(size: int) -> tuple[Callable, tuple[Any, ...]]:
    """What dropout keeps of the activations, as Haiku draws it, and its argument."""
    return lambda key: jax.random.bernoulli(key, 0.75, (IMAGES, size)), (jax.random.key(0),)


def whole_step() -> tuple[Callable, tuple[Any, ...]]:
    """Gradient and SGD of FedJAX's convolutional model of 1.2 million weights, and its arguments."""
    model = fedjax.models.emnist.create_conv_model(only_digits=False)
    gradient, client = fedjax.model_grad(model), fedjax.optimizers.sgd(10**-1.5)
    params = model.init(jax.random.PRNGKey(0))
    labels = np.random.default_rng(0).integers(0, 62, IMAGES, np.int32)
    batch = {"x": jax.random.uniform(jax.random.key(0), (IMAGES, 28, 28, 1)), "y": labels}

    def step(params: Any, batch: Any, rng: jax.Array) -> Any:
        return client.apply(gradient(params, batch, rng), client.init(params), params)

    return step, (params, batch, jax.random.PRNGKey(1))


PARTS = {
    "gradient of a 3x3 kernel, 26x26x32 to 64 (the second convolution)": lambda: kernel_gradient(26, 32, 64, "VALID"),
    "gradient of a 3x3 kernel, 32x32x64 to 64": lambda: kernel_gradient(32, 64, 64, "SAME"),
    "gradient of a 3x3 kernel, 32x32x16 to 16 (small: left to XLA)": lambda: kernel_gradient(32, 16, 16, "SAME"),
    "a 3x3 convolution, 26x26x32 to 64": lambda: convolution(26, 32, 64),
    "the same in bfloat16": lambda: convolution(26, 32, 64, dtype=jax.numpy.bfloat16),
    "a 1x1 convolution, 16x16x64 to 128": lambda: convolution(16, 64, 128, window=1),
    "a 5x5 convolution of one channel, 28x28x1 to 32": lambda: convolution(28, 1, 32, window=5),
    "a 5x5 convolution, 14x14x32 to 64": lambda: convolution(14, 32, 64, window=5),
    "a 3x3 convolution, 8x8x64 to 64": lambda: convolution(8, 64, 64),
    "a 3x3 convolution of single channels, 16x16x32": lambda: convolution(16, 32, 32, groups=32),
    "gradient of max pooling by two, 24x24x64": lambda: pooling_gradient(24, 64),
    "dropout of 9216 activations": lambda: dropped_out(9216),
    "a whole step of FedJAX's convolutional model": whole_step,
}


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31, help="counted rounds")
    options = parser.parse_args()
    print(f"{jax.default_backend()}, {len(os.sched_getaffinity(0))} CPUs, jax {jax.__version__}; {vars(options)}\n")
    for title, make in PARTS.items():
        function, arguments = make()
        ours = jax.jit(suited(function), compiler_options=compiler_options(function, *arguments))
        sides = {"XLA": jax.jit(function), "XLA, again": jax.jit(function), "ours": ours}
        sides["XLA by Eigen"] = jax.jit(function, compiler_options=EIGEN)
        runs = {name: jax.tree_util.Partial(side, *arguments) for name, side in sides.items()}
        timings = interleave(runs, "XLA", options.rounds)
        told(title, timings, {"ours": f"{1 / timings['ours'].cpu_ratio:.2f} × as fast by processor time"})


if __name__ == "__main__":
    main()
