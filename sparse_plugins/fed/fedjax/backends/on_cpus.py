"""Steps with convolutions on CPUs: called batch by batch, each compiled with the kernels that suit it.

XLA has two libraries of convolutions for CPUs. YNNPACK, its default, is the quicker one for small and for grouped
kernels, and takes up to three times as long as Eigen for the gradient of a kernel that sums over large images.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import JaxprEqn

from sparse_plugins.fed.fedjax.backends.client_batches import Clients, ForEachClient, Results, owning, shapes_of
from sparse_plugins.fed.fedjax.backends.im2col import pooling_by_shifts
from sparse_plugins.fed.fedjax.backends.random_bits import bits_by_rows
from sparse_plugins.fed.fedjax.backends.rewrite import equations_of, replace_equations

__all__ = ["EIGEN", "by_batch", "compiler_options", "suited"]

# What is left to YNNPACK is all but convolutions, so these come from Eigen.
EIGEN = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}
# Numbers in the outputs' gradients, and channels: with more of the first and at least the second, Eigen is the quicker
# one, as experiments/benchmarks/client_step.py measures.
LARGE, ENOUGH_CHANNELS = 2**19, 8


def by_batch(client_init: Callable, client_step: Callable, client_final: Callable) -> ForEachClient:
    """A `for_each_client` function with a call for every batch, as FedJAX's own, of programs that suit a CPU.

    Args:
        client_init: As FedJAX has it.
        client_step: Likewise.
        client_final: Likewise.

    Returns:
        The function. What it yields differs from FedJAX's by rounding.
    """
    init = jax.jit(owning(client_init))
    step = _by_shapes(suited(client_step))
    final = jax.jit(client_final, donate_argnums=1)

    def run(shared_input: Any, clients: Clients) -> Results:
        for client_id, batches, client_input in clients:
            state, step_results = init(shared_input, client_input), []
            for batch in batches:
                state, result = step(state, batch)
                step_results.append(result)
            yield client_id, final(shared_input, state), step_results

    return run


def _by_shapes(step: Callable) -> Callable:
    """A step, jitted with the options that its shapes ask for: the same in every run, whoever comes first."""
    jitted = functools.cache(lambda *options: jax.jit(step, donate_argnums=0, compiler_options=dict(options)))
    of_shapes: dict[Any, Callable] = {}

    def run(state: Any, batch: Any) -> Any:
        key = shapes_of((state, batch))
        if key not in of_shapes:
            of_shapes[key] = jitted(*compiler_options(step, state, batch).items())
        return of_shapes[key](state, batch)

    return run


def suited(function: Callable) -> Callable:
    """A function with gradients of pooling by shifts and random bits by rows, which is not to be differentiated."""
    return replace_equations(function, lambda equation: pooling_by_shifts(equation) or bits_by_rows(equation))


def compiler_options(function: Callable, *args: Any) -> dict[str, str]:
    """XLA's options for a function of these arguments: those that let Eigen compute convolutions, or none.

    Example:
        >>> compiler_options(jax.numpy.sin, 0.0)
        {}
    """
    convolutions = equations_of(jax.make_jaxpr(function)(*args), "conv_general_dilated")
    suits_eigen = any(map(_is_large_gradient, convolutions)) and not any(map(_is_grouped, convolutions))
    return EIGEN if suits_eigen and _is_known() else {}


def _is_large_gradient(convolution: JaxprEqn) -> bool:
    """Whether it is the gradient of a kernel, whose images stand where features do, and a large one."""
    (channels, *_), (_, _, *window), (_, _, *space) = convolution.params["dimension_numbers"]
    x, of_outputs, kernel = (_shaped(variable) for variable in (*convolution.invars, *convolution.outvars))
    size = lambda shape, axes: math.prod(shape[axis] for axis in axes)  # noqa: E731
    is_of_kernel = size(of_outputs.shape, window) > size(kernel.shape, space)
    return is_of_kernel and of_outputs.size > LARGE and x.shape[channels] >= ENOUGH_CHANNELS


def _shaped(variable: Any) -> jax.core.ShapedArray:
    return variable.aval


def _is_grouped(convolution: JaxprEqn) -> bool:
    return convolution.params["feature_group_count"] * convolution.params["batch_group_count"] > 1


@functools.cache
def _is_known() -> bool:
    """Whether this release of XLA has the option, which it calls experimental."""
    try:
        jax.jit(lambda: 0, compiler_options=EIGEN).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
