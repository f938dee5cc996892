"""How many entries a sparsity keeps, in exact arithmetic.

Counts never pass through a float32 product: n * (1 - sparsity) in float32 is off by one or more for a tenth of all
sparsities at 10 million entries. A Python number is rounded in double precision; a number that depends on a traced
step is looked up in a table made on the host (`StepTable`); any other traced number goes through integer arithmetic.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Count",
    "Fraction",
    "StepTable",
    "as_number",
    "by_layer",
    "check_fraction",
    "check_positive",
    "keep_count",
    "part_count",
    "survivor_count",
]

Fraction = Any  # float | StepTable | scalar jax.Array | float64[steps] on the host
Count = Any  # int | int32[] | float64[steps]


def check_fraction(name: str, value: Any) -> float:
    """Returns `value` as a float if it is a number in [0, 1].

    Args:
        name: What the value is, for the message.
        value: The candidate.

    Returns:
        The value as a Python float.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is NaN or outside [0, 1].

    Example:
        >>> check_fraction("sparsity", 0.8)
        0.8
    """
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0:
        value = value.item()
    hint = " (the fraction of zeros, e.g. 0.8)" if "sparsity" in name else ""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; give a number in [0, 1]{hint}.")
    number = float(value)
    if math.isnan(number) or not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} is {number}; give a number in [0, 1]{hint}.")
    return number


def check_positive(name: str, value: Any, or_zero: bool = False) -> float:
    """Returns `value` as a float if it is a finite positive number.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_positive("temperature", 1)
        1.0
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf or (value == 0 and not or_zero):
        raise ValueError(f"{name} is {value!r}; give a {'number of at least 0' if or_zero else 'positive number'}.")
    return float(value)


@dataclasses.dataclass(frozen=True)
class StepTable:
    """A fraction that is known on the host for each of a fixed list of steps, one of them chosen by a traced index.

    Attributes:
        values: float64[steps], the fraction at each step.
        index: int32[], which of them applies.
    """

    values: np.ndarray
    index: jax.Array

    def __jax_array__(self) -> jax.Array:
        """The chosen fraction as float32[]."""
        return jnp.asarray(self.values, jnp.float32)[self.index]

    def count(self, counts: np.ndarray) -> jax.Array:
        """The chosen entry of `counts`, int32[]."""
        return jnp.asarray(counts, jnp.int32)[self.index]


def as_number(fraction: Fraction) -> float | jax.Array:
    """A fraction that may be calculated with: a float, or float32[]."""
    return fraction.__jax_array__() if isinstance(fraction, StepTable) else fraction


def keep_count(n: int | jax.Array, sparsity: Fraction) -> Count:
    """How many of `n` entries a sparsity keeps: `round((1 - sparsity) * n)`, but one at least if it is below 1.

    Rounding must not cut a small layer out of the network: 16 weights at 98% keep one. A sparsity of 1 keeps none.

    Args:
        n: Number of entries, below 2**31; int or int32[].
        sparsity: Fraction of zeros in [0, 1]: a number, a `StepTable`, a traced float32 scalar, or one number for each
            of several steps on the host.

    Returns:
        An int if both are known on the host, whole float64[steps] for several steps, else int32[].

    Example:
        >>> keep_count(10, 0.8), keep_count(16, 0.98), keep_count(16, 1.0)
        (2, 1, 0)
        >>> int(keep_count(25_000_001, jnp.float32(0.5)))
        12500000
    """
    if isinstance(sparsity, StepTable) and not isinstance(n, jax.Array):
        return sparsity.count(keep_count(n, sparsity.values))
    # What is just below 1 in a table is 1 as a float32.
    is_wanted = sparsity.count(sparsity.values < 1) > 0 if isinstance(sparsity, StepTable) else sparsity < 1
    kept = survivor_count(n, sparsity)
    if isinstance(kept, int):
        return max(kept, int(n > 0 and is_wanted))
    xp = np if isinstance(kept, np.ndarray) else jnp
    return xp.where((n > 0) & is_wanted, xp.maximum(kept, 1), kept)


def survivor_count(n: int | jax.Array, drop_fraction: Fraction) -> Count:
    """`round((1 - drop_fraction) * n)`: how many of `n` entries are left when a fraction is dropped, which may be all.

    Args:
        n: As in `keep_count`.
        drop_fraction: In [0, 1], in the forms that `keep_count` takes.

    Returns:
        As `keep_count`.

    Example:
        >>> survivor_count(10, 0.3), survivor_count(10, 1.0)
        (7, 0)
    """
    if isinstance(n, jax.Array) or isinstance(drop_fraction, jax.Array):
        return _round_product(n, _density(drop_fraction))
    if isinstance(drop_fraction, StepTable):
        return drop_fraction.count(survivor_count(n, drop_fraction.values))
    if np.ndim(drop_fraction):
        return np.rint((1.0 - drop_fraction) * n)
    return round((1.0 - float(drop_fraction)) * n)


def part_count(n: int, fraction: Fraction) -> int | jax.Array:
    """`round(fraction * n)`: how many of `n` entries a fraction is.

    Args:
        n: Number of entries, below 2**31.
        fraction: In [0, 1]: a number, a `StepTable`, or a traced float32 scalar.

    Returns:
        An int if the fraction is known on the host, else int32[].

    Example:
        >>> part_count(10, 0.25)
        2
    """
    if isinstance(fraction, StepTable):
        return fraction.count(np.rint(fraction.values * n))
    if isinstance(fraction, jax.Array):
        return _round_product(n, _fixed_point(fraction))
    return round(float(fraction) * n)


def _fixed_point(fraction: jax.Array) -> jax.Array:
    """Fraction * 2**31 as uint32; exact for float32 fractions of at least 2**-8."""
    bounded = jnp.clip(jnp.nan_to_num(fraction.astype(jnp.float32)), 0.0, 1.0)
    return jnp.rint(bounded * jnp.float32(1 << 31)).astype(jnp.uint32)


def _density(sparsity: Fraction) -> jax.Array:
    """(1 - sparsity) * 2**31 as uint32[]."""
    if isinstance(sparsity, jax.Array):
        return jnp.uint32(1 << 31) - _fixed_point(sparsity)
    on_host = lambda fraction: np.rint((1.0 - fraction) * (1 << 31)).astype(np.uint32)  # noqa: E731
    if isinstance(sparsity, StepTable):
        return jnp.asarray(on_host(sparsity.values))[sparsity.index]
    return jnp.asarray(on_host(np.float64(sparsity)))


def _round_product(n: int | jax.Array, part: jax.Array) -> jax.Array:
    """round_half_even(n * part / 2**31) in 32-bit arithmetic: a 16-bit long multiplication, then a shift."""
    low_half = jnp.uint32(0xFFFF)
    n_high, n_low = jnp.asarray(n >> 16, jnp.uint32), jnp.asarray(n & 0xFFFF, jnp.uint32)
    p_high, p_low = part >> 16, part & low_half
    cross_a, cross_b = n_high * p_low, n_low * p_high
    low = n_low * p_low
    middle = (low >> 16) + (cross_a & low_half) + (cross_b & low_half)
    word_low = (middle << 16) | (low & low_half)
    word_high = n_high * p_high + (cross_a >> 16) + (cross_b >> 16) + (middle >> 16)
    quotient = (word_high << 1) | (word_low >> 31)
    rest, half = word_low & jnp.uint32(0x7FFFFFFF), jnp.uint32(1 << 30)
    round_up = (rest > half) | ((rest == half) & (quotient & 1 == 1))
    return (quotient + round_up.astype(jnp.uint32)).astype(jnp.int32)


def by_layer(function: Callable[[Any], Any], target: Any) -> Any:
    """What a function makes of a target; where layers of a stack have targets of their own, of each.

    Args:
        function: From a target to a number, or a tuple of numbers.
        target: One target, or a tuple with one per layer.

    Returns:
        What the function returns, with arrays [layers] in place of numbers if there are several targets.

    Example:
        >>> by_layer(lambda target: 10 - target, 4), by_layer(lambda target: 10 - target, (4, 2)).tolist()
        (6, [6, 8])
    """
    if not isinstance(target, tuple):
        return function(target)
    # Layers with one target share a result. By identity, for a target may be an array, which has no hash.
    distinct = {id(layer_target): layer_target for layer_target in target}
    made = {key: function(layer_target) for key, layer_target in distinct.items()}
    return jax.tree.map(_stacked, *[made[id(layer_target)] for layer_target in target])


def _stacked(*numbers: Any) -> Any:
    if all(isinstance(number, int) for number in numbers):
        return np.array(numbers, np.int32)
    return jnp.stack([*map(jnp.asarray, numbers)])
