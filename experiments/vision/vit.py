"""Vision Transformers: B/16 and a small one with patches of 4x4."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.common.supervised.layers import Attention, dense, named

_xavier = nn.initializers.xavier_uniform()


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=1e-6,
        scale_init=named(nn.initializers.ones, ("embed",)),
        bias_init=named(nn.initializers.zeros, ("embed",)),
        name=name,
    )


class EncoderBlock(nn.Module):
    """Attention and a network of two layers, each behind a norm and beside a shortcut.

    Attributes:
        heads: Number of heads.
        mlp_dim: Width between the two layers.
        head_dim: Width of a head; None for that of the tokens, divided by the number of heads.
    """

    heads: int
    mlp_dim: int
    head_dim: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float [N, tokens, width] in and out."""
        width = x.shape[-1]
        head_dim = self.head_dim or width // self.heads
        y = _norm("attention_norm")(x)
        x = x + Attention(self.heads, head_dim, head_dim**-0.5, True, _xavier, name="attention")(y, y)
        y = dense(self.mlp_dim, ("embed", "mlp"), "mlp_in", _xavier, True)(_norm("mlp_norm")(x))
        return x + dense(width, ("mlp", "embed"), "mlp_out", _xavier, True)(nn.gelu(y, approximate=False))


class ViT(nn.Module):
    """A vision Transformer with a class token and learned positions, without dropout.

    Attributes:
        patch: Pixels of a patch's side.
        width: Features of the tokens.
        layers: Encoder blocks.
        heads: Heads of each attention.
        mlp_dim: Inner width of each block.
        num_classes: Number of classes.
        head_dim: As of `EncoderBlock`.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2020).
    """

    patch: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    num_classes: int
    head_dim: int | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits of images.

        Args:
            images: float32 [N, H, W, C], sides a multiple of the patch.
            train: Without effect; for the same call as other models.

        Returns:
            float32 [N, num_classes].

        Raises:
            ValueError: If the sides are no multiple of the patch.
        """
        count, height, width, channels = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"images are {height} x {width}; choose sides that are multiples of {self.patch}.")
        rows, columns = height // self.patch, width // self.patch
        cut = images.reshape(count, rows, self.patch, columns, self.patch, channels)
        patches = cut.transpose(0, 1, 3, 2, 4, 5).reshape(count, rows * columns, -1)
        tokens = dense(self.width, ("patch", "embed"), "embedding", nn.initializers.lecun_normal(), True)(patches)
        first = self.param("cls", named(nn.initializers.zeros, (None, None, "embed")), (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(first, (count, 1, 1)), tokens], axis=1)
        positions_init = named(nn.initializers.normal(0.02), (None, "length", "embed"))
        x = x + self.param("positions", positions_init, (1, *x.shape[1:]))
        for layer in range(self.layers):
            x = EncoderBlock(self.heads, self.mlp_dim, self.head_dim, name=f"block{layer}")(x)
        token = _norm("norm")(x)[:, 0]
        return dense(self.num_classes, ("embed", "classes"), "head", nn.initializers.lecun_normal(), True)(token)


vit_b16 = functools.partial(ViT, 16, 768, 12, 12, 3072)
vit_small = functools.partial(ViT, 4, 64, 4, 4, 128)
