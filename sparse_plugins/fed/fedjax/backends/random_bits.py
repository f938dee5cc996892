"""Random bits, of dropout, as a CPU is quickest with them.

JAX draws them in a loop over the rounds of its hash, each over all numbers, which no cache holds.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

__all__ = ["bits_by_rows"]

LONG_ROW = 1024  # numbers, beside which an iteration of a loop takes no time

_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def bits_by_rows(equation: JaxprEqn) -> Callable | None:
    """What draws the bits of an equation row by row, the same ones, if these are many of JAX's default generator.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011); threefry2x32 with 20 rounds.
    """
    if equation.primitive.name != "random_bits" or not jax.threefry_partitionable.value:
        return None
    key, shape = _array(equation.invars[0]), equation.params["shape"]
    row = math.prod(shape[1:])
    is_default = str(key.dtype) == "key<fry>" and not key.shape and equation.params["bit_width"] == 32
    if not is_default or row < LONG_ROW or len(shape) < 2 or row * shape[0] >= 2**32:
        return None

    def draw(key: jax.Array) -> jax.Array:
        words = jax.random.key_data(key)
        bits = lambda start: _threefry(words, start + lax.iota(np.uint32, row))  # noqa: E731
        return lax.map(bits, lax.iota(np.uint32, shape[0]) * np.uint32(row)).reshape(shape)

    return draw


def _threefry(key: jax.Array, counts: jax.Array) -> jax.Array:
    """What JAX's generator makes of a key, uint32[2], and of places, uint32[n]: their bits, uint32[n]."""
    words = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    first, second = key[0], counts + key[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + second
            second = (second << rotation | second >> 32 - rotation) ^ first
        first = first + words[(group + 1) % 3]
        second = second + words[(group + 2) % 3] + np.uint32(group + 1)
    return first ^ second


def _array(variable: Any) -> Any:
    return variable.aval
