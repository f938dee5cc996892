"""PPO in the style of PureJaxRL: `make_train(steps)` gives one pure function of a key. CartPole, RigL at 80%.

Install and run:

    pip install "sparse-plugins[gymnax]"
    python examples/ppo_gymnax.py
"""

import argparse

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax

from sparse_plugins import core

GAMES, LENGTH, EPOCHS, GAMMA, LAMBDA, CLIP = 16, 64, 4, 0.99, 0.95, 0.2


class ActorCritic(nn.Module):
    """Logits of two actions, and a value."""

    @nn.compact
    def __call__(self, x):
        actor, critic = (nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(x)))) for _ in range(2))
        return nn.Dense(2, kernel_init=nn.initializers.orthogonal(0.01))(actor), nn.Dense(1)(critic)[..., 0]


def make_train(steps):
    """A function from a key to (parameters, mean episode length by iteration); jit it, or map it over keys."""
    game, rules = gymnax.make("CartPole-v1")
    network, iterations = ActorCritic(), steps // (GAMES * LENGTH)
    adam = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3))
    tx = core.sparsify(adam, "rigl", sparsity=0.8, total_steps=iterations * EPOCHS)  # the line that changes

    def loss(params, shown, action, old, advantage, target):
        logits, value = network.apply(params, shown)
        log_probs = jax.nn.log_softmax(logits)
        ratio = jnp.exp(jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0] - old)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
        return (0.5 * (value - target) ** 2 - gain - 0.01 * entropy).mean()

    def iteration(carry, key):
        params, state, games = carry

        def play(carry, key):
            games, shown = carry
            logits, value = network.apply(params, shown)
            action, keys = jax.random.categorical(key, logits), jax.random.split(key, GAMES)
            old = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
            after, games, reward, ended, *_ = jax.vmap(game.step, (0, 0, 0, None))(keys, games, action, rules)
            return (games, after), (shown, action, old, value, reward, 1.0 - ended)

        def accumulate(carry, now):  # generalized advantages, from the last step to the first
            (advantage, after), (value, reward, goes_on) = carry, now
            advantage = reward + GAMMA * goes_on * (after + LAMBDA * advantage) - value
            return (advantage, value), advantage

        games, (shown, action, old, value, reward, goes_on) = jax.lax.scan(play, games, jax.random.split(key, LENGTH))
        start = jnp.zeros(GAMES), network.apply(params, games[1])[1]
        _, advantage = jax.lax.scan(accumulate, start, (value, reward, goes_on), reverse=True)

        def learn(carry, _):
            params, state = carry
            grads = jax.grad(loss)(params, shown, action, old, advantage, advantage + value)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(learn, (params, state), length=EPOCHS)
        return (params, state, games), GAMES * LENGTH / jnp.maximum((1 - goes_on).sum(), 1)

    def train(key):
        init_key, game_key, run_key = jax.random.split(key, 3)
        shown, games = jax.vmap(game.reset, (0, None))(jax.random.split(game_key, GAMES), rules)
        params, state = core.start(tx, network.init(init_key, shown))
        carry = params, state, (games, shown)
        (params, _, _), lengths = jax.lax.scan(iteration, carry, jax.random.split(run_key, iterations))
        return params, lengths

    return train


def main(steps=200_000):
    """Trains, prints the result, and returns the sparse parameters."""
    params, lengths = jax.jit(make_train(steps))(jax.random.key(0))
    zeros = core.summarize_sparsity(params)["_total_sparsity"]
    print(f"episodes last {float(lengths[-5:].mean()):.0f} steps, {float(zeros):.1%} of the weights are zero")
    return params


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps")
    main(parser.parse_args().steps)
