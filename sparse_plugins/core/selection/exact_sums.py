"""Sums of floats that do not depend on the order of addition, and so not on how an array is sharded."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["exact_sum"]

_EXPONENT = 0x7F80_0000  # the bits of a float32 that say which power of two is just below
_UNITS = 2.0**-100, 2.0**126  # whose reciprocals are normal numbers
_PRECISION = 20


def exact_sum(values: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Adds whole numbers that float32 holds exactly: each value is cut into some, relative to the largest.

    Sums of floats differ in their last bits between one device and eight, and between compilers. Where two of them
    are close and decide about a mask, that would be another mask.

    Args:
        values: Real array.
        axes: Axes that are summed over, counted from the front; none longer than 2**21.

    Returns:
        float32 array of the other axes; an entry counts to 2**-20 of the largest it is added to, or to
        2**-120 where all are below 2**-100. NaN and infinities are as in any sum.

    Example:
        >>> exact_sum(jnp.array([[1.0, -0.25, 3.0], [jnp.inf, 1.0, 1.0]]), (1,)).tolist()
        [3.75, inf]
    """
    return functools.reduce(_sum_along, sorted(axes, reverse=True), values.astype(jnp.float32))


# Inlined into a program around it; without any, one compilation for a shape in place of one for each operation.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _sum_along(values: jax.Array, axis: int) -> jax.Array:
    finite = jnp.where(jnp.isfinite(values), values, 0.0)
    largest = jnp.max(jnp.abs(finite), axis, keepdims=True, initial=0.0)
    power = lax.bitcast_convert_type(lax.bitcast_convert_type(largest, jnp.uint32) & _EXPONENT, jnp.float32)
    unit = jnp.clip(power, *_UNITS)
    bits = max(23 - values.shape[axis].bit_length(), 1)
    rest, sums = values / unit * 2.0 ** (bits - 1), []
    for _ in range(-(-_PRECISION // bits)):
        whole = jnp.floor(rest)
        sums.append(jnp.sum(whole, axis))  # below 2**24; infinite or NaN if one is
        rest = jnp.where(jnp.isfinite(rest), rest - whole, 0.0) * 2.0**bits
    total = functools.reduce(lambda lower, higher: higher + lower * 2.0**-bits, reversed(sums))
    return total * 2.0 ** (1 - bits) * jnp.squeeze(unit, axis)
