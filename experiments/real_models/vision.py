"""ResNet, ViT, MLP-Mixer and Impala, at small widths."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp

from experiments.real_models.traced import Traced, floats, of_haiku, of_linen


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut."""

    filters: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, C] to smaller ones."""
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        y = nn.relu(norm()(conv(self.filters, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.filters, (3, 3), self.strides)(y)))
        y = norm()(conv(4 * self.filters, (1, 1))(y))
        if x.shape != y.shape:
            x = norm(name="norm_proj")(conv(4 * self.filters, (1, 1), self.strides, name="conv_proj")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """That of Flax's ImageNet example.

    Source: google/flax, examples/imagenet/models.py.
    """

    stages: Sequence[int] = (2, 2)
    filters: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images [B, H, W, C]."""
        x = nn.Conv(self.filters, (7, 7), (2, 2), use_bias=False, name="conv_init")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = Bottleneck(self.filters * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class ViTBlock(nn.Module):
    """Attention and two layers, each behind a norm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [B, T, D] to tokens."""
        width = x.shape[-1]
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4)(y, y)
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


class ViT(nn.Module):
    """Patches, a class token and learned positions.

    Source: google-research/vision_transformer, vit_jax/models_vit.py.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images [B, H, W, C]."""
        x = nn.Conv(16, (4, 4), (4, 4), padding="VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, 16)
        token = self.param("cls", nn.initializers.zeros, (1, 1, 16))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], 16))
        for _ in range(2):
            x = ViTBlock()(x)
        return nn.Dense(10, name="head")(nn.LayerNorm()(x)[:, 0])


def mixer(x: jax.Array) -> jax.Array:
    """MLP-Mixer: layers over patches and over channels in turn.

    Source: Tolstikhin et al., MLP-Mixer (2021).
    """
    x = hk.Conv2D(16, 4, 4)(x)
    x = x.reshape(x.shape[0], -1, 16)
    norm = lambda x: hk.LayerNorm(-1, True, True)(x)  # noqa: E731
    for _ in range(2):
        y = hk.nets.MLP([12, x.shape[1]], activation=jax.nn.gelu)(norm(x).swapaxes(1, 2))
        x = x + y.swapaxes(1, 2)
        x = x + hk.nets.MLP([32, 16], activation=jax.nn.gelu)(norm(x))
    return hk.Linear(10)(norm(x).mean(axis=1))


def haiku_resnet(x: jax.Array) -> jax.Array:
    """Haiku's own, shallow."""
    resnet = hk.nets.ResNet((1, 1, 1, 1), 10, bottleneck=True, channels_per_group=(16, 32, 32, 64))
    return resnet(x, is_training=True)


def models() -> list[Traced]:
    """All of them."""
    from sparse_plugins.rl import dopamine  # noqa: F401, I001  # repairs Dopamine before it is imported
    from dopamine.jax import networks

    impala: Any = networks.ImpalaDQNNetwork(num_actions=6)
    images = floats(2, 16, 16, 3)
    return [
        of_linen("Flax's ImageNet ResNet", ResNet(), images),
        of_linen("ViT", ViT(), images),
        of_haiku("MLP-Mixer in Haiku", mixer, images),
        of_haiku("Haiku's `hk.nets.ResNet`", haiku_resnet, floats(2, 32, 32, 3)),
        of_linen("Dopamine's Impala", impala, floats(20, 20, 4)),
    ]
