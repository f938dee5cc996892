"""Residual networks: ResNet-50 v1.5 for large images, ResNet-20 and its kin for small ones."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.common.supervised.layers import dense, named

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(features: int, window: int, strides: int, name: str) -> nn.Conv:
    """A convolution without bias, padded by half its window on every side."""
    return nn.Conv(
        features,
        (window, window),
        strides,
        padding=[(window // 2, window // 2)] * 2,
        use_bias=False,
        kernel_init=named(_he_normal, ("height", "width", "conv_in", "conv_out")),
        name=name,
    )


def _norm(train: bool, name: str, scale_init: Any = nn.initializers.ones) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        scale_init=named(scale_init, ("conv_out",)),
        bias_init=named(nn.initializers.zeros, ("conv_out",)),
        name=name,
    )


class BottleneckBlock(nn.Module):
    """1x1, 3x3 with the stride (that is v1.5), 1x1 to four times the features; 1x1 where the shortcut changes shape.

    Attributes:
        features: Channels inside.
        strides: Strides of the 3x3 convolution.
    """

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float [N, H, W, C] to [N, H / strides, W / strides, 4 features]."""
        out = 4 * self.features
        y = nn.relu(_norm(train, "norm0")(_conv(self.features, 1, 1, "conv0")(x)))
        y = nn.relu(_norm(train, "norm1")(_conv(self.features, 3, self.strides, "conv1")(y)))
        y = _norm(train, "norm2", nn.initializers.zeros)(_conv(out, 1, 1, "conv2")(y))
        if x.shape != y.shape:
            x = _norm(train, "shortcut_norm")(_conv(out, 1, self.strides, "shortcut")(x))
        return nn.relu(x + y)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; a shortcut that changes shape skips pixels and gets channels of zeros (option A).

    Attributes:
        features: Channels.
        strides: Strides of the first convolution.
    """

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Float [N, H, W, C] to [N, H / strides, W / strides, features]."""
        y = nn.relu(_norm(train, "norm0")(_conv(self.features, 3, self.strides, "conv0")(x)))
        y = _norm(train, "norm1", nn.initializers.zeros)(_conv(self.features, 3, 1, "conv1")(y))
        if x.shape != y.shape:
            more = self.features - x.shape[-1]
            x = jnp.pad(x[:, :: self.strides, :: self.strides], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network; `resnet50` and `cifar_resnet` build the known ones.

    Attributes:
        block: Class of the blocks.
        stage_sizes: Blocks of each stage; each stage but the first halves the image and doubles the features.
        width: Features of the first stage.
        large_images: Begins with a 7x7 convolution of stride 2 and a pooling, instead of a 3x3 convolution.
        num_classes: Number of classes.

    Source: He et al., Deep Residual Learning for Image Recognition (2015).
    """

    block: Any
    stage_sizes: Sequence[int]
    width: int
    large_images: bool
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits of images.

        Args:
            images: float32 [N, H, W, C].
            train: Normalizes with the statistics of this batch, and renews the running ones (`batch_stats`).

        Returns:
            float32 [N, num_classes].
        """
        window, strides = (7, 2) if self.large_images else (3, 1)
        x = nn.relu(_norm(train, "stem_norm")(_conv(self.width, window, strides, "stem")(images)))
        if self.large_images:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                strides = 2 if stage > 0 and i == 0 else 1
                x = self.block(self.width << stage, strides, name=f"stage{stage}_block{i}")(x, train)
        pooled = jnp.mean(x, axis=(1, 2))
        return dense(self.num_classes, ("embed", "classes"), "head", nn.initializers.lecun_normal(), True)(pooled)


resnet50 = functools.partial(ResNet, BottleneckBlock, (3, 4, 6, 3), 64, True)


def cifar_resnet(depth: int, width: int, num_classes: int) -> ResNet:
    """The networks of the paper's section 4.2 for images of 32x32 or less; ResNet-20 has width 16.

    Args:
        depth: Weighted layers, 6 n + 2.
        width: Features of the first stage.
        num_classes: Number of classes.

    Raises:
        ValueError: If there is no such depth.

    Example:
        >>> cifar_resnet(20, 16, 10).stage_sizes
        (3, 3, 3)
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth is {depth}; these networks have 8, 14, 20, ... layers (6 n + 2).")
    return ResNet(BasicBlock, (depth // 6,) * 3, width, False, num_classes)
