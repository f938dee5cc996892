"""Haiku: a DQN that plays CartPole, game and training in one compiled loop, 90% sparse.

Install and run:

    pip install "sparse-plugins[haiku,gymnax]"
    python examples/haiku_dqn.py
"""

import argparse

import jax
import optax

from sparse_plugins import core, rl
from sparse_plugins.rl import haiku


def main(steps=48_000, games=8):
    """Trains, prints the result, and returns the parameters of the online network.

    Args:
        steps: Environment steps.
        games: Games that are played side by side.
    """
    iterations, before_learning = steps // games, steps // games // 40
    config = rl.FusedConfig(
        num_envs=games, updates=4, capacity=50_000, batch_size=64, n_step=5, warm_up=before_learning * games
    )
    optimizer_steps = (iterations - before_learning) * config.updates
    game = rl.jax_environments.gymnax_environment("CartPole-v1")
    agent = haiku.SparseDQN(
        num_actions=game.num_actions,
        torso=haiku.mlp_torso((64, 64), low=(-2.4, -5.0, -0.26, -6.3), high=(2.4, 5.0, 0.26, 6.3)),
        optimizer=optax.adam(1e-3),
        updater="magnitude",  # the line that changes, with the two below
        sparsity=0.9,
        total_steps=optimizer_steps,
        target_period=400,
    )
    trainer = rl.FusedTrainer(game, agent, config)
    state = trainer.init(jax.random.split(jax.random.key(0), 1))
    state, _ = trainer.run(state, iterations=iterations)
    params = jax.tree.map(lambda leaf: leaf[0], state.learner.params)  # those of the only seed
    returns = trainer.evaluate(state, 10, jax.random.key(1))
    zeros = core.summarize_sparsity(params)["_total_sparsity"]
    print(f"mean return {float(returns.mean()):.0f} of 10 greedy games, {float(zeros):.1%} of the weights are zero")
    return params


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=48_000, help="environment steps")
    main(parser.parse_args().steps)
