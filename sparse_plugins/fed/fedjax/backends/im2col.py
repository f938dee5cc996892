"""Convolutions as matrix products, and gradients of pooling as shifts.

XLA on a CPU is slow where federated training spends its time: a convolution inside a loop takes tens of times as long
as outside one, and the gradients of max pooling are slow anywhere. `as_matmuls` replaces both, `pooling_by_shifts` the
gradients alone, in a function that is traced already, so neither the model nor its user has to know.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from sparse_plugins.fed.fedjax.backends.rewrite import replace_equations

__all__ = ["as_matmuls", "convolve", "pooling_by_shifts", "scatter_to_selected"]

MAX_SHIFTS = 128  # shifts are unrolled: beyond the window of the largest common kernels, programs get too long


def as_matmuls(function: Callable) -> Callable:
    """A function that computes the same without convolutions.

    Replaced are convolutions of any stride, padding, dilation and grouping, so also those that differentiation made,
    and the gradients of max and min pooling, also inside loops, branches and jitted functions. An equation stays as it
    is where its window and its output both have more than `MAX_SHIFTS` places.

    Args:
        function: Takes and returns trees of arrays. The result is not meant to be differentiated: custom derivatives
            in it are lost. Differentiate first.

    Returns:
        The function, whose values differ from the old ones by rounding.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> smooth = lambda x: jnp.convolve(x, jnp.array([0.25, 0.5, 0.25]), mode="same")
        >>> x = jnp.array([0.0, 4.0, 8.0])
        >>> as_matmuls(smooth)(x).tolist(), "conv_general" in str(jax.make_jaxpr(as_matmuls(smooth))(x))
        ([1.0, 4.0, 5.0], False)

    Source: Chellapilla et al., High Performance Convolutional Neural Networks for Document Processing (2006).
    """
    return replace_equations(function, _replacement)


def _replacement(equation: JaxprEqn) -> Callable | None:
    params = equation.params
    if equation.primitive.name == "conv_general_dilated":
        spec = params["dimension_numbers"]
        kernel, output = _shape(equation.invars[1]), _shape(equation.outvars[0])
        shifts = min(math.prod(_take(kernel, spec.rhs_spec[2:])), math.prod(_take(output, spec.out_spec[2:])))
        return functools.partial(convolve, **params) if shifts <= MAX_SHIFTS else None
    return pooling_by_shifts(equation)


def pooling_by_shifts(equation: JaxprEqn) -> Callable | None:
    """What computes an equation as shifts and comparisons, if it is the gradient of max or min pooling.

    Values are the same up to rounding; to the bit where windows do not overlap.
    """
    params = equation.params
    is_pooling = equation.primitive.name == "select_and_scatter_add"
    if is_pooling and math.prod(params["window_dimensions"]) <= MAX_SHIFTS:
        return functools.partial(scatter_to_selected, **params)
    return None


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` without a convolution.

    Args:
        x: Input, its axes as `dimension_numbers` says.
        kernel: Kernel, likewise.
        dimension_numbers: The axes of batch, features and space in input, kernel and output.
        feature_group_count: Groups into which the features are cut.
        batch_group_count: Groups into which the batch is cut.
        **options: The other parameters of the primitive `conv_general_dilated`, all of them.

    Returns:
        The convolution, its axes as `dimension_numbers` says.
    """
    convolve_group: Callable = functools.partial(_convolve_group, dimension_numbers=dimension_numbers, **options)
    groups = feature_group_count * batch_group_count
    if groups == 1:
        return convolve_group(x, kernel)
    (batch, features, *_), (kernel_out, *_), (_, out_features, *_) = dimension_numbers
    cut = features if feature_group_count > 1 else batch
    cut_up = [_cut(array, axis, groups) for array, axis in ((x, cut), (kernel, kernel_out))]
    parts = jax.vmap(convolve_group, (cut, kernel_out), out_features)(*cut_up)
    return _merge(parts, out_features)


def _convolve_group(
    x: jax.Array,
    kernel: jax.Array,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    precision: Any,
    preferred_element_type: Any,
    **_: Any,
) -> jax.Array:
    (batch, features, *space), (kernel_out, kernel_in, *kernel_space), out_spec = dimension_numbers
    window = _take(kernel.shape, kernel_space)
    size = [
        ((length - 1) * dilation + 1 + low + high - (width - 1) * spread - 1) // stride + 1
        for length, dilation, (low, high), width, spread, stride in zip(
            _take(x.shape, space), lhs_dilation, padding, window, rhs_dilation, window_strides, strict=True
        )
    ]
    contract = functools.partial(jnp.einsum, precision=precision, preferred_element_type=preferred_element_type)
    letters_x, letters_kernel = _letters("bc", dimension_numbers.lhs_spec), _letters("fc", dimension_numbers.rhs_spec)
    letters_out = _letters("bf", out_spec)
    lows = [low for low, _ in padding]

    def at(array: jax.Array, axes: Sequence[int], place: tuple[int, ...]) -> jax.Array:
        """What the kernel's weight at this place meets, for every output."""
        offsets = [index * spread - low for index, spread, low in zip(place, rhs_dilation, lows, strict=True)]
        return _shifted(array, axes, offsets, size, window_strides, lhs_dilation)

    if math.prod(size) < math.prod(window):  # the gradient of a kernel, mostly: patches for each output
        met = []
        for place in _places(size):
            offsets = [index * stride - low for index, stride, low in zip(place, window_strides, lows, strict=True)]
            met.append(_shifted(x, space, offsets, window, rhs_dilation, lhs_dilation))
        product = contract(f"{letters_kernel},{letters_x}->fb", kernel, jnp.concatenate(met, axis=batch))
        by_place = product.reshape(len(product), *size, -1)
        return jnp.einsum(f"f{_SPACE[: len(size)]}b->{letters_out}", by_place)

    by_place = kernel.transpose(*kernel_space, kernel_in, kernel_out)
    inputs, outputs = by_place.shape[-2:]
    if inputs > outputs:  # products first: fewer numbers to shift
        product = contract(
            f"{letters_x},kcf->{letters_out.replace('f', 'kf')}", x, by_place.reshape(-1, inputs, outputs)
        )
        parts = (lax.index_in_dim(product, k, out_spec[1], keepdims=False) for k in range(math.prod(window)))
        met = [at(part, out_spec[2:], place) for part, place in zip(parts, _places(window), strict=True)]
        return functools.reduce(jnp.add, met)
    patches = jnp.concatenate([at(x, space, place) for place in _places(window)], axis=features)
    return contract(f"{letters_x},cf->{letters_out}", patches, by_place.reshape(-1, outputs))


def scatter_to_selected(
    source: jax.Array,
    operand: jax.Array,
    *,
    select_prim: Any,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """The gradient of max or min pooling: adds a source to the place that its window selects.

    Args:
        source: One value for each window.
        operand: What was pooled.
        select_prim: `ge` for max, `le` for min: whether the place before is kept against the next.
        window_dimensions: Size of a window along each axis.
        window_strides: Distance of windows along each axis.
        padding: Before and after the operand along each axis; never selected.

    Returns:
        Array like the operand, 0 where no window selects. Of equal values in a window the first is selected.
    """
    never = -jnp.inf if select_prim.name == "ge" else jnp.inf
    if jnp.issubdtype(operand.dtype, jnp.integer):
        limits = jnp.iinfo(operand.dtype)
        never = limits.min if select_prim.name == "ge" else limits.max
    padded = lax.pad(operand, jnp.asarray(never, operand.dtype), [(*sides, 0) for sides in padding])
    axes = range(operand.ndim)
    places = list(_places(window_dimensions))
    parts = [_shifted(padded, axes, place, source.shape, window_strides, (1,) * operand.ndim) for place in places]
    best, selected = parts[0], jnp.zeros(source.shape, jnp.int32)
    for number, part in enumerate(parts[1:], start=1):
        keep = select_prim.bind(best, part)
        best, selected = jnp.where(keep, best, part), jnp.where(keep, selected, number)
    total = jnp.zeros_like(operand)
    for number, place in enumerate(places):
        ends = [
            (index - low, length - (index - low) - (count - 1) * stride - 1, stride - 1)
            for index, (low, _), length, count, stride in zip(
                place, padding, operand.shape, source.shape, window_strides, strict=True
            )
        ]
        zero = jnp.zeros((), source.dtype)
        total += lax.pad(jnp.where(selected == number, source, zero), zero, ends)
    return total


def _shifted(
    x: jax.Array,
    axes: Sequence[int],
    offsets: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> jax.Array:
    """Along each axis the elements offset, offset + stride, ... of the dilated array; 0 where there are none."""
    ends, steps = [(0, 0, 0)] * x.ndim, [1] * x.ndim
    for axis, offset, size, stride, dilation in zip(axes, offsets, sizes, strides, dilations, strict=True):
        length = (x.shape[axis] - 1) * dilation + 1
        ends[axis] = (-offset, offset + (size - 1) * stride + 1 - length, dilation - 1)
        steps[axis] = stride
    padded = lax.pad(x, jnp.zeros((), x.dtype), ends)
    return lax.slice(padded, (0,) * x.ndim, padded.shape, steps)


_SPACE = "stuvwxyz"


def _letters(names: str, spec: Sequence[int]) -> str:
    """Einsum letters of an array whose axes of batch or outputs, features and space are those of a spec."""
    letters = dict(zip(spec, names + _SPACE, strict=False))
    return "".join(letters[axis] for axis in range(len(spec)))


def _places(sizes: Sequence[int]) -> itertools.product:
    return itertools.product(*map(range, sizes))


def _take(values: Sequence[int], places: Sequence[int]) -> tuple[int, ...]:
    return tuple(values[place] for place in places)


def _cut(array: jax.Array, axis: int, groups: int) -> jax.Array:
    return array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])


def _merge(array: jax.Array, axis: int) -> jax.Array:
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
