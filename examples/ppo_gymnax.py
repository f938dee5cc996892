"""PPO in the style of PureJaxRL on CartPole: `train` is one pure function of a key. RigL at 80%.

Install and run:

    pip install "sparse-plugins[gymnax]"
    python examples/ppo_gymnax.py
"""

import sys
from functools import partial

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax

from sparse_plugins import core

GAMES, LENGTH, EPOCHS, GAMMA, LAMBDA, CLIP = 16, 64, 4, 0.99, 0.95, 0.2
ACTOR, CRITIC = (nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh, nn.Dense(n)]) for n in (2, 1))


def train(key, steps):
    """(Parameters, ...) after so many environment steps, and mean lengths of episodes; jit it, or map it over keys."""
    (game, rules), iterations = gymnax.make("CartPole-v1"), steps // (GAMES * LENGTH)
    tx = core.sparsify(optax.adam(1e-3), "rigl", sparsity=0.8, total_steps=iterations * EPOCHS)  # the line that changes

    def apply(params, shown):
        return nn.log_softmax(ACTOR.apply(params["actor"], shown)), CRITIC.apply(params["critic"], shown)[..., 0]

    def loss(params, shown, action, old, advantage, target):
        log_probs, value = apply(params, shown)
        ratio = jnp.exp((log_probs * nn.one_hot(action, 2)).sum(-1) - old)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage) / advantage.std()
        return (0.5 * (value - target) ** 2 - gain + 0.01 * (jnp.exp(log_probs) * log_probs).sum(-1)).mean()

    def play(params, carry, key):
        (games, shown), (log_probs, value) = carry, apply(params, carry[1])
        action, keys = jax.random.categorical(key, log_probs), jax.random.split(key, GAMES)
        after, games, reward, ended, *_ = jax.vmap(game.step, (0, 0, 0, None))(keys, games, action, rules)
        return (games, after), (shown, action, (log_probs * nn.one_hot(action, 2)).sum(-1), value, reward, 1.0 - ended)

    def accumulate(carry, now):  # generalized advantages, from the last step to the first
        (advantage, after), (value, reward, goes_on) = carry, now
        advantage = reward + GAMMA * goes_on * (after + LAMBDA * advantage) - value
        return (advantage, value), advantage

    def learn(batch, carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def iteration(carry, key):
        params, state, games = carry
        games, (*played, value, reward, on) = jax.lax.scan(partial(play, params), games, jax.random.split(key, LENGTH))
        last = 0 * value[0], apply(params, games[1])[1]
        _, advantage = jax.lax.scan(accumulate, last, (value, reward, on), reverse=True)
        batch = *played, advantage - advantage.mean(), advantage + value
        (params, state), _ = jax.lax.scan(partial(learn, batch), (params, state), length=EPOCHS)
        return (params, state, games), GAMES * LENGTH / jnp.maximum((1 - on).sum(), 1)

    init_key, game_key, run_key = jax.random.split(key, 3)
    shown, games = jax.vmap(game.reset, (0, None))(jax.random.split(game_key, GAMES), rules)
    params = {"actor": ACTOR.init(init_key, shown), "critic": CRITIC.init(game_key, shown)}
    carry = *core.start(tx, params), (games, shown)
    return jax.lax.scan(iteration, carry, jax.random.split(run_key, iterations))


def main(steps=200_000):
    """Trains, prints the result, and returns the sparse parameters."""
    (params, *_), lengths = jax.jit(train, static_argnums=1)(jax.random.key(0), steps)
    zeros = core.summarize_sparsity(params)["_total_sparsity"]
    print(f"episodes last {float(lengths[-5:].mean()):.0f} steps, {float(zeros):.1%} of the weights are zero")
    return params


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))  # environment steps
