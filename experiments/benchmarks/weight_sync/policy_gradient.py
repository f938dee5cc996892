"""A small transformer that learns by policy gradient: float32 masters, bfloat16 weights in every pass.

It is first shown how to sort letters, and then rewarded for the share that it puts where it belongs, with advantages
among the answers to one prompt (Shao et al., DeepSeekMath, 2024), Adam, and gradients clipped to norm 1.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Tree = dict[str, Any]

LETTERS, LENGTH = 16, 8
PROMPTS, ANSWERS = 4, 8
_BOS = LETTERS


class Size(NamedTuple):
    """Of the transformer."""

    layers: int = 6
    width: int = 384
    heads: int = 6


def init(key: jax.Array, size: Size) -> Tree:
    """Masters, float32; layers lie along the first axis."""
    layers, width, _ = size
    shapes = {
        "embed": (LETTERS + 1, width),
        "place": (2 * LENGTH, width),
        "qkv": (layers, width, 3 * width),
        "out": (layers, width, width),
        "up": (layers, width, 4 * width),
        "down": (layers, 4 * width, width),
        "head": (width, LETTERS),
    }
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    weights = {name: 0.02 * jax.random.normal(keys[name], shape) for name, shape in shapes.items()}
    return weights | {"norms": jnp.ones((layers, 2, width)), "norm": jnp.ones(width)}


def rounded(params: Tree) -> Tree:
    """What acts, and what is sent: bfloat16."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def logits(weights: Tree, letters: jax.Array, heads: int) -> jax.Array:
    """float32[B, T, letters] of int32[B, T]."""
    length = letters.shape[1]
    hidden = weights["embed"][letters] + weights["place"][:length]
    causal = jnp.tril(jnp.ones((length, length), bool))

    def layer(hidden: jax.Array, w: Tree) -> tuple[jax.Array, None]:
        q, k, v = (_split(part, heads) for part in jnp.split(_normed(hidden, w["norms"][0]) @ w["qkv"], 3, axis=-1))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        shares = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf).astype(jnp.float32)).astype(v.dtype)
        hidden += jnp.einsum("bhts,bshd->bthd", shares, v).reshape(hidden.shape) @ w["out"]
        return hidden + jax.nn.gelu(_normed(hidden, w["norms"][1]) @ w["up"]) @ w["down"], None

    hidden, _ = jax.lax.scan(layer, hidden, {name: weights[name] for name in ("qkv", "out", "up", "down", "norms")})
    return (_normed(hidden, weights["norm"]) @ weights["head"]).astype(jnp.float32)


def trajectory(size: Size, learning_rate: float, steps: int, warm_up: int, shown: int, seed: int = 0) -> Iterator[Tree]:
    """The bfloat16 weights after each step of policy gradient.

    Args:
        size: Size of the transformer.
        learning_rate: Learning rate of Adam.
        steps: Versions that are given, one more than steps.
        warm_up: Steps before the first.
        shown: Supervised steps before these.
        seed: Seed of everything that is random.

    Yields:
        Weights.
    """
    key = jax.random.key(seed)
    params = _shown(size, key, shown)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate, b2=0.999))
    state = optimizer.init(params)

    @jax.jit
    def step(params: Tree, state: Any, key: jax.Array) -> tuple[Tree, Any]:
        prompts, answers, advantages = _played(rounded(params), size, key)
        grads = jax.grad(lambda p: -jnp.mean(advantages * _log_likelihood(rounded(p), size, prompts, answers)))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    for number in range(warm_up + steps + 1):
        if number >= warm_up:
            yield jax.device_get(rounded(params))
        params, state = step(params, state, jax.random.fold_in(key, number))


def _shown(size: Size, key: jax.Array, steps: int) -> Tree:
    params = init(key, size)
    optimizer = optax.adam(3e-4)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Tree, state: Any, key: jax.Array) -> tuple[Tree, Any]:
        prompts = jax.random.randint(key, (PROMPTS * ANSWERS, LENGTH), 0, LETTERS)
        loss = lambda p: -jnp.mean(_log_likelihood(rounded(p), size, prompts, jnp.sort(prompts)))  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for number in range(steps):
        params, state = step(params, state, jax.random.fold_in(key, 1_000_000 + number))
    return params


def _played(weights: Tree, size: Size, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prompts, answers and advantages [B, 1]."""
    prompts_key, answers_key = jax.random.split(key)
    prompts = jnp.repeat(jax.random.randint(prompts_key, (PROMPTS, LENGTH), 0, LETTERS), ANSWERS, axis=0)

    def letter(row: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        chosen = logits(weights, row[:, :-1], size.heads)[:, place - 1]
        sampled = jax.random.categorical(jax.random.fold_in(answers_key, place), chosen)
        return row.at[:, place].set(sampled), None

    blank = jnp.full((len(prompts), LENGTH), _BOS)
    row, _ = jax.lax.scan(letter, jnp.concatenate([prompts, blank], axis=1), jnp.arange(LENGTH, 2 * LENGTH))
    answers = row[:, LENGTH:]
    rewards = jnp.mean(answers == jnp.sort(prompts), axis=1).reshape(PROMPTS, ANSWERS)
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / (rewards.std(axis=1, keepdims=True) + 1e-4)
    return prompts, answers, advantages.reshape(-1, 1)


def _log_likelihood(weights: Tree, size: Size, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    """float32[B, LENGTH] of the answers' letters."""
    row = jnp.concatenate([prompts, answers], axis=1)
    of_letters = jax.nn.log_softmax(logits(weights, row[:, :-1], size.heads)[:, LENGTH - 1 :])
    return jnp.take_along_axis(of_letters, answers[..., None], axis=-1)[..., 0]


def _normed(hidden: jax.Array, scale: jax.Array) -> jax.Array:
    exact = hidden.astype(jnp.float32)
    return (exact * jax.lax.rsqrt(jnp.mean(exact**2, axis=-1, keepdims=True) + 1e-6)).astype(hidden.dtype) * scale


def _split(hidden: jax.Array, heads: int) -> jax.Array:
    return hidden.reshape(*hidden.shape[:-1], heads, -1)
