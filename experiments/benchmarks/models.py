"""Parameter trees of well-known models, by shape only, and steps of an optimizer on them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Shapes = dict[str, dict[str, tuple[int, ...]]]


def resnet50_shapes(width: int = 64) -> Shapes:
    """Convolutions, batch-norm scales and biases, and the classifier of ResNet-50 v1 (25.6 million parameters).

    Args:
        width: Channels of the first stage, 64 in the paper.

    Returns:
        Shapes by layer and parameter name; kernels are [height, width, in, out].

    Source: He et al., Deep Residual Learning for Image Recognition (2015).
    """
    layers: Shapes = {}

    def convolution(name: str, window: int, inputs: int, outputs: int) -> None:
        layers[name] = {"kernel": (window, window, inputs, outputs), "scale": (outputs,), "bias": (outputs,)}

    convolution("stem", 7, 3, width)
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            convolution(f"{name}_reduce", 1, inputs, inner)
            convolution(f"{name}_conv", 3, inner, inner)
            convolution(f"{name}_expand", 1, inner, 4 * inner)
            if block == 0:
                convolution(f"{name}_shortcut", 1, inputs, 4 * inner)
            inputs = 4 * inner
    layers["head"] = {"kernel": (inputs, 1000), "bias": (1000,)}
    return layers


def random_tree(shapes: Shapes, seed: int, scale: float) -> dict:
    """Normal float32 parameters of the given shapes."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32) * scale)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


class Stepper(NamedTuple):
    """A step of an optimizer, ready to be timed.

    Attributes:
        run: Makes one step and returns the parameters.
        compiled: Its program.
        compile_seconds: Processor time that tracing and compiling took.
    """

    run: Callable[[], dict]
    compiled: Any
    compile_seconds: float


def stepper(
    tx: optax.GradientTransformation,
    params: dict,
    grads: dict,
    hook: Callable[[dict, Any], dict] = lambda params, state: params,
) -> Stepper:
    """A step that may use the memory of the one before.

    Args:
        tx: The optimizer.
        params: Where it starts; they are copied.
        grads: The same for every step.
        hook: What is done to parameters after a step, with the optimizer's state.
    """

    def step(params: dict, state: Any, grads: dict) -> tuple[dict, Any]:
        updates, state = tx.update(grads, state, params)
        return hook(optax.apply_updates(params, updates), state), state

    carried = [jax.tree.map(jnp.copy, params), tx.init(params)]
    start = time.process_time()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carried, grads).compile()
    seconds = time.process_time() - start

    def run() -> dict:
        carried[:] = compiled(*carried, grads)
        return carried[0]

    return Stepper(run, compiled, seconds)
