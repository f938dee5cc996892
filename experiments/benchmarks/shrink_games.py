"""Environment steps per second of processor time of the fused MinAtar agent, dense and once half of its channels left.

    python -m experiments.benchmarks.shrink_games --game Breakout

DQN with MinAtar's network: a convolution of 16 channels and a layer of 128 units, whose rows are the positions of the
channels. Both sides train in one process, in stretches, in shuffled order; a second dense side is the control.
"""

import argparse
import dataclasses
from typing import Any

import jax

from experiments.benchmarks.timing import carrying, interleave, table
from experiments.common.agents.dqn import dqn
from experiments.minatar.config import GAMES
from experiments.minatar.train import environment
from sparse_plugins import core, rl
from sparse_plugins.rl.haiku import minatar_torso

CONFIG = rl.FusedConfig(num_envs=8, updates=2, batch_size=32, warm_up=256, capacity=4096)


def sides(game: str, sparsity: float, seeds: int) -> tuple[list[tuple[rl.FusedTrainer, Any]], str]:
    """Dense and shrunk trainers with their states, and how many parameters they have.

    Args:
        game: One of MinAtar's.
        sparsity: Fraction of each group's channels that leave.
        seeds: In one program.
    """
    played, keys = environment(game), jax.random.split(jax.random.key(0), seeds)
    agent = dqn(played.num_actions, minatar_torso(), 2.5e-4, 3.125e-4, core.NoPruning(), 250)
    dense = rl.FusedTrainer(played, agent, CONFIG)
    state = dense.init(keys)
    seen = jax.ShapeDtypeStruct((1, *played.observation_shape), played.observation_dtype)
    graph = core.channel_graph(agent.network.apply, jax.eval_shape(agent.init, jax.random.key(0), seen).params, seen)
    updater = core.build_updater("static_sparse", sparsity=sparsity, structure=core.ChannelGroups(graph))
    masked = rl.FusedTrainer(played, dataclasses.replace(agent, updater=updater), CONFIG)
    small, smaller = masked.shrunk(masked.init(keys), graph)
    count = lambda state: sum(leaf[0].size for leaf in jax.tree.leaves(state.learner.params))  # noqa: E731
    return [(dense, state), (small, smaller)], f"{count(state):,} -> {count(smaller):,} parameters\n{graph}"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", choices=GAMES, default="Breakout")
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of each group's channels that leave")
    parser.add_argument("--seeds", type=int, default=2, help="in one program")
    parser.add_argument("--iterations", type=int, default=20, help="of each stretch")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds")
    options = parser.parse_args()
    (dense, small), about = sides(options.game, options.sparsity, options.seeds)
    stretch = lambda trainer: lambda state: trainer.run(state, options.iterations)  # noqa: E731
    named = {"dense": dense, "shrunk": small, "dense again": dense}
    runs = {name: carrying(stretch(trainer), state) for name, (trainer, state) in named.items()}
    print(f"{options.game}: {about}\n")
    print(table(interleave(runs, "dense", options.rounds), {}))


if __name__ == "__main__":
    main()
