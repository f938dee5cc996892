"""Recurrent networks and transformers, at small widths."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from experiments.real_models.traced import KEY, Traced, floats, of_linen, tokens


class DecoderCell(nn.RNNCellBase):
    """An LSTM, and the token that it predicts."""

    features: int
    vocabulary: int

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array) -> Any:
        """A step: logits and the token drawn from them."""
        state, _ = carry
        state, y = nn.LSTMCell(self.features)(state, x)
        logits = nn.Dense(self.vocabulary)(y)
        sampled = jax.random.categorical(self.make_rng("lstm"), logits)
        predicted = jax.nn.one_hot(sampled, self.vocabulary)
        return (state, predicted), (logits, predicted)

    @property
    def num_feature_axes(self) -> int:
        """Tokens have one axis."""
        return 1


class Seq2Seq(nn.Module):
    """That of Flax's example: two LSTMs over one-hot tokens.

    Source: google/flax, examples/seq2seq/models.py.
    """

    vocabulary: int = 12
    hidden: int = 16

    @nn.compact
    def __call__(self, asked: jax.Array, answer: jax.Array) -> Any:
        """Logits and tokens of one-hot questions and answers [B, T, V]."""
        lengths = jnp.argmax(jnp.argmax(asked, axis=-1) == 1, axis=-1)
        state, _ = nn.RNN(nn.LSTMCell(self.hidden), return_carry=True, name="encoder")(asked, seq_lengths=lengths)
        cell = DecoderCell(self.hidden, self.vocabulary)
        decoder = nn.RNN(cell, split_rngs={"params": False, "lstm": True}, name="decoder")
        return decoder(answer[:, :-1], initial_carry=(state, answer[:, 0]))


class GemmaBlock(nnx.Module):
    """Einsum kernels with heads first, keys and values in one array, fewer of them than queries, gated layers.

    Source: google/flax, examples/gemma/modules.py.
    """

    def __init__(self, width: int, heads: int, groups: int, head: int, hidden: int, rngs: nnx.Rngs) -> None:
        draw = lambda *shape: nnx.Param(nnx.initializers.normal()(rngs.params(), shape))  # noqa: E731
        self.before_attention, self.before_mlp = nnx.RMSNorm(width, rngs=rngs), nnx.RMSNorm(width, rngs=rngs)
        self.q_einsum, self.kv_einsum = draw(heads, width, head), draw(2, groups, width, head)
        self.attn_vec_einsum = draw(heads, head, width)
        linear = lambda *sizes: nnx.Linear(*sizes, use_bias=False, rngs=rngs)  # noqa: E731
        self.gate_proj, self.up_proj, self.down_proj = (
            linear(width, hidden),
            linear(width, hidden),
            linear(hidden, width),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [B, T, D] to tokens."""
        y = self.before_attention(x)
        queries = _rotated(jnp.einsum("BTD,NDH->BTNH", y, self.q_einsum[...]))
        keys, values = jnp.einsum("BSD,CKDH->CBSKH", y, self.kv_einsum[...])
        grouped = queries.reshape(*x.shape[:2], keys.shape[2], -1, keys.shape[3])
        logits = jnp.einsum("BTKGH,BSKH->BTKGS", grouped, _rotated(keys))
        encoded = jnp.einsum("BTKGS,BSKH->BTKGH", jax.nn.softmax(logits), values).reshape(queries.shape)
        x = x + jnp.einsum("BTNH,NHD->BTD", encoded, self.attn_vec_einsum[...])
        y = self.before_mlp(x)
        return x + self.down_proj(nnx.gelu(self.gate_proj(y)) * self.up_proj(y))


def _rotated(x: jax.Array) -> jax.Array:
    """Rotary positions."""
    angles = jnp.arange(x.shape[1])[:, None, None] / 10.0 ** jnp.arange(x.shape[-1] // 2)
    first, second = jnp.split(x, 2, axis=-1)
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


class Gemma(nnx.Module):
    """Three blocks in one array, under an embedding that is also the last layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        make = lambda rngs: GemmaBlock(16, 4, 2, 8, 32, rngs)  # noqa: E731
        self.embedder = nnx.Embed(40, 16, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(make, in_axes=0, out_axes=0))(rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of tokens int32[B, T]."""
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.embedder.attend(run(self.embedder(tokens), self.blocks))


class EquinoxBlock(eqx.Module):
    """Attention and an MLP, each behind a norm."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norms: list[eqx.nn.LayerNorm]

    def __init__(self, key: jax.Array) -> None:
        key_attention, key_mlp = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(4, 16, key=key_attention)
        self.mlp = eqx.nn.MLP(16, 16, 32, 1, jax.nn.gelu, key=key_mlp)
        self.norms = [eqx.nn.LayerNorm(16), eqx.nn.LayerNorm(16)]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [T, D] to tokens."""
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


class EquinoxTransformer(eqx.Module):
    """Blocks made by `eqx.filter_vmap` and run by a scan."""

    embedding: eqx.nn.Embedding
    blocks: EquinoxBlock
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        key_embedding, key_blocks, key_head = jax.random.split(key, 3)
        self.embedding = eqx.nn.Embedding(40, 16, key=key_embedding)
        self.blocks = eqx.filter_vmap(EquinoxBlock)(jax.random.split(key_blocks, 3))
        self.head = eqx.nn.Linear(16, 40, key=key_head)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of tokens int32[T]."""
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        step = lambda x, block: (eqx.combine(block, static)(x), None)  # noqa: E731
        x, _ = jax.lax.scan(step, jax.vmap(self.embedding)(tokens), arrays)
        return jax.vmap(self.head)(x)


class T5Layer(nn.Module):
    """Of an encoder, or of a decoder that attends to it; kernels are matrices, heads inside an axis."""

    is_decoder: bool

    @nn.compact
    def __call__(self, x: jax.Array, encoded: jax.Array | None) -> tuple[jax.Array, None]:
        """Tokens [B, T, D] to tokens; a scan's result besides."""
        x = x + self._attention("self_attention", nn.RMSNorm()(x), None)
        if self.is_decoder:
            x = x + self._attention("encoder_decoder_attention", nn.RMSNorm()(x), encoded)
        y = nn.RMSNorm()(x)
        dense = lambda features, name: nn.Dense(features, use_bias=False, name=name)  # noqa: E731
        return x + dense(16, "wo")(nn.gelu(dense(32, "wi_0")(y)) * dense(32, "wi_1")(y)), None

    def _attention(self, name: str, x: jax.Array, other: jax.Array | None) -> jax.Array:
        split = lambda part, x: nn.Dense(24, use_bias=False, name=f"{name}_{part}")(x).reshape(*x.shape[:2], 4, 6)  # noqa: E731
        seen = x if other is None else other
        logits = jnp.einsum("bthk,bshk->bhts", split("query", x), split("key", seen))
        if other is None:
            near = jnp.clip(jnp.arange(seen.shape[1])[None] - jnp.arange(x.shape[1])[:, None] + 4, 0, 7)
            bias = self.param("rel_embedding", nn.initializers.normal(), (4, 8))
            logits = logits + jnp.einsum("hb,bts->hts", bias, jax.nn.one_hot(near, 8, axis=0))
        heads = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits), split("value", seen))
        return nn.Dense(16, use_bias=False, name=f"{name}_out")(heads.reshape(*x.shape[:2], 24))


class T5(nn.Module):
    """T5X's encoder-decoder, each half one scan over layers that are stacked along axis 1.

    Source: google-research/t5x, t5x/examples/scalable_t5/network.py.
    """

    @nn.compact
    def __call__(self, asked: jax.Array, answer: jax.Array) -> jax.Array:
        """Logits of answers int32[B, T]."""
        embed = nn.Embed(40, 16, name="token_embedder")
        scan = lambda name, is_decoder: nn.scan(  # noqa: E731
            T5Layer, variable_axes={"params": 1}, split_rngs={"params": True}, length=3, in_axes=nn.broadcast
        )(is_decoder, name=name)
        encoded, _ = scan("encoder", False)(embed(asked), None)
        decoded, _ = scan("decoder", True)(embed(answer), nn.RMSNorm(name="encoder_norm")(encoded))
        return nn.Dense(40, use_bias=False, name="logits_dense")(nn.RMSNorm(name="decoder_norm")(decoded))


class ActorCritic(nn.Module):
    """PureJaxRL's: two towers.

    Source: luchris429/purejaxrl, purejaxrl/ppo.py.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """Logits and value of observations [B, D]."""
        tower = lambda x, out: nn.Dense(out)(nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(x)))))  # noqa: E731
        return tower(x, 4), tower(x, 1)


class ScannedGRU(nn.Module):
    """A cell over time that starts anew where an episode does."""

    @nn.compact
    def __call__(self, carry: jax.Array, x: Any) -> Any:
        """A step of all environments."""
        inputs, resets = x
        return nn.GRUCell(16)(jnp.where(resets[:, None], jnp.zeros_like(carry), carry), inputs)


class ActorCriticGRU(nn.Module):
    """PureJaxRL's recurrent one.

    Source: luchris429/purejaxrl, purejaxrl/ppo_rnn.py.
    """

    @nn.compact
    def __call__(self, carry: jax.Array, observations: jax.Array, dones: jax.Array) -> Any:
        """State, logits and values of observations [T, B, D]."""
        x = nn.relu(nn.Dense(16)(observations))
        scan = nn.scan(ScannedGRU, variable_broadcast="params", split_rngs={"params": False})
        carry, x = scan()(carry, (x, dones))
        return carry, nn.Dense(4)(nn.relu(nn.Dense(16)(x))), nn.Dense(1)(nn.relu(nn.Dense(16)(x)))


def models() -> list[Traced]:
    """All of them."""
    graph, gemma = nnx.split(nnx.eval_shape(lambda: Gemma(nnx.Rngs(0))))
    network = eqx.filter_eval_shape(EquinoxTransformer, KEY)
    params, static = eqx.partition(network, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    text, pair = tokens(2, 6), (floats(2, 5, 12), floats(2, 4, 12))
    dones = jax.ShapeDtypeStruct((3, 2), jnp.bool_)
    return [
        of_linen("Flax's seq2seq", Seq2Seq(), *pair, streams=("lstm",)),
        Traced("Gemma's blocks in NNX", lambda state, x: nnx.merge(graph, state)(x), gemma, (text,)),
        Traced("Equinox transformer", lambda p, x: eqx.combine(p, static)(x), params, (tokens(6),)),
        of_linen("T5X's scanned encoder-decoder", T5(), text, tokens(2, 4)),
        of_linen("PureJaxRL's actor-critic", ActorCritic(), floats(2, 8)),
        of_linen("PureJaxRL's GRU", ActorCriticGRU(), floats(2, 16), floats(3, 2, 8), dones),
    ]
