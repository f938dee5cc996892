"""T5 1.1, an encoder and a decoder.

As in the paper's second release: gated GELU, no sharing of the embedding with the output layer and so no scaling of
logits, no biases, RMS norms before every part, attention without 1 / sqrt(width) (its initializer has it), and one
relative position bias for all layers of a stack. Pre-training has no dropout, and this model has none.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.common.supervised.layers import Attention, RMSNorm, dense, named
from experiments.t5.positions import RelativeBias

PAD = 0
_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5.

    Attributes:
        vocabulary: Number of tokens.
        width: Features of the residual stream.
        heads: Heads of each attention.
        head_dim: Width of each head.
        mlp_dim: Inner width of each network.
        layers: Layers of the encoder, and as many of the decoder.
    """

    vocabulary: int
    width: int
    heads: int
    head_dim: int
    mlp_dim: int
    layers: int


BASE = T5Config(vocabulary=32_128, width=768, heads=12, head_dim=64, mlp_dim=2048, layers=12)
TINY = T5Config(vocabulary=384, width=64, heads=4, head_dim=16, mlp_dim=128, layers=2)


class GatedGelu(nn.Module):
    """gelu(x A) * (x B), and back to the width.

    Attributes:
        mlp_dim: Width of A's and B's outputs.

    Source: Shazeer, GLU Variants Improve Transformer (2020).
    """

    mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float [..., width] in and out."""
        gate, value = (dense(self.mlp_dim, ("embed", "mlp"), name, _fan_in)(x) for name in ("wi_0", "wi_1"))
        return dense(x.shape[-1], ("mlp", "embed"), "wo", _fan_in)(nn.gelu(gate) * value)


def _attention(config: T5Config, name: str) -> Attention:
    normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    of_query = nn.initializers.variance_scaling(1.0 / config.head_dim, "fan_in", "normal")
    return Attention(config.heads, config.head_dim, 1.0, False, normal, of_query, name=name)


class Encoder(nn.Module):
    """Layers that see all tokens.

    Attributes:
        config: Sizes.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Float [B, S, width] in and out; mask bool [B, 1, 1, S]."""
        bias = RelativeBias(self.config.heads, bidirectional=True, name="relpos_bias")(x.shape[1], x.shape[1])
        for layer in range(self.config.layers):
            x = EncoderLayer(self.config, name=f"layers_{layer}")(x, bias, mask)
        return RMSNorm(name="encoder_norm")(x)


class EncoderLayer(nn.Module):
    """Self-attention and a gated network.

    Attributes:
        config: Sizes.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, mask: jax.Array) -> jax.Array:
        """Float [B, S, width] in and out."""
        y = RMSNorm(name="pre_attention_layer_norm")(x)
        x = x + _attention(self.config, "attention")(y, y, bias, mask)
        return x + GatedGelu(self.config.mlp_dim, name="mlp")(RMSNorm(name="pre_mlp_layer_norm")(x))


class DecoderLayer(nn.Module):
    """Self-attention to earlier tokens, attention to the encoder, and a gated network.

    Attributes:
        config: Sizes.
    """

    config: T5Config

    @nn.compact
    def __call__(
        self, x: jax.Array, encoded: jax.Array, bias: jax.Array, causal: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """Float [B, T, width] in and out."""
        y = RMSNorm(name="pre_self_attention_layer_norm")(x)
        x = x + _attention(self.config, "self_attention")(y, y, bias, causal)
        y = RMSNorm(name="pre_cross_attention_layer_norm")(x)
        x = x + _attention(self.config, "encoder_decoder_attention")(y, encoded, mask=mask)
        return x + GatedGelu(self.config.mlp_dim, name="mlp")(RMSNorm(name="pre_mlp_layer_norm")(x))


class Decoder(nn.Module):
    """Layers that see earlier tokens and the encoder's outputs.

    Attributes:
        config: Sizes.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, encoded: jax.Array, mask: jax.Array) -> jax.Array:
        """Float [B, T, width] in and out; encoded float [B, S, width], mask bool [B, 1, 1, S]."""
        length = x.shape[1]
        bias = RelativeBias(self.config.heads, bidirectional=False, name="relpos_bias")(length, length)
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        for layer in range(self.config.layers):
            x = DecoderLayer(self.config, name=f"layers_{layer}")(x, encoded, bias, causal, mask)
        return RMSNorm(name="decoder_norm")(x)


class T5(nn.Module):
    """The whole model.

    Attributes:
        config: Sizes.

    Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (2020);
    sizes and changes of 1.1 as in T5X (Roberts et al., 2022).
    """

    config: T5Config

    @nn.compact
    def __call__(self, inputs: jax.Array, decoder_inputs: jax.Array) -> jax.Array:
        """Logits of the next token.

        Args:
            inputs: int32 [B, S], `PAD` where there is none.
            decoder_inputs: int32 [B, T], the targets shifted right by one.

        Returns:
            float32 [B, T, vocabulary].
        """
        config = self.config
        embed = nn.Embed(
            config.vocabulary,
            config.width,
            embedding_init=named(nn.initializers.normal(1.0), ("vocab", "embed")),
            name="token_embedder",
        )
        mask = (inputs != PAD)[:, None, None, :]
        encoded = Encoder(config, name="encoder")(embed(inputs), mask)
        decoded = Decoder(config, name="decoder")(embed(decoder_inputs), encoded, mask)
        return dense(config.vocabulary, ("embed", "vocab"), "logits_dense", _fan_in)(decoded)
