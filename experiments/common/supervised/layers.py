"""Layers of Transformers that name the axes of their parameters, which sharding rules read."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., Any]


def named(init: Initializer, axes: tuple[str | None, ...]) -> Initializer:
    """An initializer whose parameters carry the names of their axes."""
    return nn.with_logical_partitioning(init, axes)


def dense(
    features: int, axes: tuple[str, str], name: str, kernel_init: Initializer, use_bias: bool = False
) -> nn.Dense:
    """A linear layer whose kernel [in, out] has named axes.

    Args:
        features: Width of the outputs.
        axes: Names of the kernel's axes; the bias has the second one.
        name: Name of the layer.
        kernel_init: Initializer of the kernel.
        use_bias: Adds a bias that starts at 0.

    Example:
        >>> layer = dense(3, ("embed", "mlp"), "wi", nn.initializers.lecun_normal())
        >>> tuple(nn.get_partition_spec(layer.init(jax.random.key(0), jnp.ones((1, 2))))["params"]["kernel"])
        ('embed', 'mlp')
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=named(kernel_init, axes),
        bias_init=named(nn.initializers.zeros, axes[-1:]),
        name=name,
    )


class Attention(nn.Module):
    """Attention of several heads; its four kernels are matrices, so that structures see inputs and outputs.

    Attributes:
        heads: Number of heads.
        head_dim: Width of each.
        scale: Factor on the products of queries and keys.
        use_bias: Whether the four layers have biases.
        kernel_init: Initializer of the kernels of keys, values and outputs.
        query_init: Initializer of the queries' kernel; None takes `kernel_init`.

    Source: Vaswani et al., Attention Is All You Need (2017).
    """

    heads: int
    head_dim: int
    scale: float
    use_bias: bool
    kernel_init: Initializer
    query_init: Initializer | None = None

    @nn.compact
    def __call__(
        self, inputs: jax.Array, memory: jax.Array, bias: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Lets every input attend to the memory.

        Args:
            inputs: float [B, T, width].
            memory: float [B, S, width]; the inputs themselves for self-attention.
            bias: float, broadcast to [B, heads, T, S], added before the softmax.
            mask: bool, broadcast to [B, heads, T, S], True = seen.

        Returns:
            float [B, T, width].
        """

        def projected(name: str, source: jax.Array, init: Initializer) -> jax.Array:
            heads = dense(self.heads * self.head_dim, ("embed", "joined_kv"), name, init, self.use_bias)(source)
            return heads.reshape(*heads.shape[:-1], self.heads, self.head_dim)

        query = projected("query", inputs, self.query_init or self.kernel_init)
        key, value = (projected(name, memory, self.kernel_init) for name in ("key", "value"))
        seen = jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, scale=self.scale)
        joined = seen.reshape(*seen.shape[:-2], self.heads * self.head_dim)
        return dense(inputs.shape[-1], ("joined_kv", "embed"), "out", self.kernel_init, self.use_bias)(joined)


class RMSNorm(nn.Module):
    """Divides by the root of the mean square over the last axis, and scales; no mean, no bias.

    Attributes:
        epsilon: Added to the mean square.

    Example:
        >>> norm = RMSNorm()
        >>> x = jnp.array([[3.0, -4.0]])
        >>> [f"{value:.3f}" for value in norm.apply(norm.init(jax.random.key(0), x), x)[0]]
        ['0.849', '-1.131']

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019).
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Float [..., width] in and out."""
        scale = self.param("scale", named(nn.initializers.ones, ("embed",)), (inputs.shape[-1],))
        power = jnp.mean(jnp.square(inputs.astype(jnp.float32)), axis=-1, keepdims=True)
        normal = (inputs * jax.lax.rsqrt(power + self.epsilon)).astype(inputs.dtype)
        return normal * jnp.expand_dims(scale, range(inputs.ndim - 1))
