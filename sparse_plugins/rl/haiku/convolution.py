"""A convolution that can be computed as a matrix product.

On a CPU XLA computes convolutions inside a loop several times slower than outside, and those with one kernel per seed,
as `vmap` makes them, as grouped convolutions; a product of matrices has neither problem.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Convolution", "Init"]

Init = Callable[..., jax.Array]


class Convolution(hk.Module):
    """`hk.Conv2D` over NHWC pictures with square kernels.

    Args:
        channels: Outputs.
        size: Height and width of the kernel.
        stride: Steps between outputs, the same in both directions.
        w_init: Initializer of the kernel 'w' [size, size, inputs, channels]; the bias 'b' starts at 0.
        as_matmuls: Multiply patches by the kernel instead; the values are the same up to rounding.
        padding: 'SAME' or 'VALID'.
        name: Path of the parameters.

    Example:
        >>> ones = hk.initializers.Constant(1.0)
        >>> convolve = lambda x: Convolution(1, 2, 1, ones, True, "VALID", name="conv")(x)
        >>> network = hk.without_apply_rng(hk.transform(convolve))
        >>> params = network.init(None, jnp.ones((1, 2, 2, 3)))
        >>> network.apply(params, jnp.ones((1, 2, 2, 3))).ravel().tolist()
        [12.0]
    """

    def __init__(
        self,
        channels: int,
        size: int,
        stride: int,
        w_init: Init,
        as_matmuls: bool,
        padding: str = "SAME",
        *,
        name: str,
    ) -> None:
        super().__init__(name)
        self.channels, self.size, self.stride = channels, size, stride
        self.w_init, self.as_matmuls, self.padding = w_init, as_matmuls, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """float32[B, H', W', channels] of float32[B, H, W, inputs]."""
        kernel: Any = hk.get_parameter("w", (self.size, self.size, x.shape[-1], self.channels), init=self.w_init)
        bias: Any = hk.get_parameter("b", (self.channels,), init=jnp.zeros)
        pads = lax.padtype_to_pads(x.shape[1:3], (self.size,) * 2, (self.stride,) * 2, self.padding)
        if self.as_matmuls:
            out = _patches(x, self.size, self.stride, pads) @ kernel.reshape(-1, self.channels)
        else:
            layout = ("NHWC", "HWIO", "NHWC")
            out = lax.conv_general_dilated(x, kernel, (self.stride,) * 2, pads, dimension_numbers=layout)
        return out + bias[None, None, None]


def _patches(x: jax.Array, size: int, stride: int, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """[B, H', W', size * size * inputs]: what each output sees, laid out as kernels are."""
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    spans = [length - size + 1 for length in x.shape[1:3]]
    corners = itertools.product(range(size), repeat=2)
    seen = [x[:, i : i + spans[0] : stride, j : j + spans[1] : stride] for i, j in corners]
    return jnp.concatenate(seen, axis=-1)
