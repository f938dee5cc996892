"""`python -m experiments.demos.fused_cartpole`: solves CartPole with ten seeds, dense and sparse, and times steps."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.common.agents.cartpole import CONFIG, DENSE, NEVER_AGAIN, STEPS, pruned, trainer
from experiments.harness.settings import add_seeds
from experiments.harness.tables import markdown_table
from sparse_plugins import core

SOLVED = 475.0  # gymnasium's own threshold
EPISODES = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints two tables."""
    options = parser().parse_args(arguments)
    keys = jax.random.split(jax.random.key(options.key), max(options.seeds) + 1)[np.array(options.seeds)]
    rows = [solve(name, updater, keys, options.steps) for name, updater in (("dense", DENSE), ("90 %", pruned()))]
    header = ("", "solved", "mean return of each seed, 100 greedy episodes", "sparsity", "cpu-seconds")
    print(f"{jax.default_backend()}, jax {jax.__version__}, {options.steps:,} environment steps a seed\n")
    print(markdown_table(header, rows), flush=True)
    columns = ("seeds", "sparse step / dense step", "agent steps per cpu-second, dense", "sparse")
    print(f"\nBetween two mask changes:\n\n{markdown_table(columns, [pace(n, options.rounds) for n in (1, 8)])}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.demos.fused_cartpole",
        description=__doc__.partition(": ")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_seeds(made, default=tuple(range(10)), help="trained at once; one number says how many, from 0 on")
    made.add_argument("--key", type=int, default=0, help="number of the key from which all seeds are split")
    made.add_argument("--steps", type=int, default=STEPS, help="environment steps of each seed")
    made.add_argument("--rounds", type=int, default=21, help="rounds of which the ratio is the median")
    return made


def solve(name: str, updater: core.BaseUpdater, keys: jax.Array, steps: int) -> tuple[str, ...]:
    """Trains all seeds and lets each play greedily: a row of the table."""
    began, trained = time.process_time(), trainer(updater)
    state, _ = trained.run(trained.init(keys), CONFIG.iterations(steps))
    jax.block_until_ready(state)
    seconds = time.process_time() - began
    returns = trained.evaluate(state, EPISODES, jax.random.key(1)).mean(axis=1)
    weights = [np.asarray(leaf) for leaf in jax.tree.leaves(state.learner.params) if leaf.ndim > 2]
    zeros = 1 - sum(map(np.count_nonzero, weights)) / sum(leaf.size for leaf in weights)
    solved = f"{np.count_nonzero(returns >= SOLVED)} of {len(returns)}"
    return name, solved, " ".join(f"{mean:.0f}" for mean in returns), f"{zeros:.1%}", f"{seconds:.0f}"


def pace(seeds: int, rounds: int, iterations: int = 250) -> tuple[str, ...]:
    """Times dense and sparse stretches of training in turns: a row of the table.

    Args:
        seeds: Trained at once.
        rounds: Rounds of which medians are taken.
        iterations: Iterations of a stretch.
    """
    once = pruned(every=NEVER_AGAIN, start=0, end=0)  # before the first stretch that counts
    sides = [_stretch(trainer(updater), seeds, iterations) for updater in (DENSE, once)]
    for run in sides:
        run()  # compiles
    times = np.array([[run() for run in sides] for _ in range(rounds)])
    steps = seeds * iterations * CONFIG.vector_steps * CONFIG.num_envs
    paces = [f"{steps / statistics.median(column):,.0f}" for column in times.T]
    return str(seeds), f"{statistics.median(times[:, 1] / times[:, 0]):.3f}", *paces


def _stretch(trained: Any, seeds: int, iterations: int) -> Callable[[], float]:
    """A function that trains on and returns the cpu-seconds it took."""
    states = [trained.init(jax.random.split(jax.random.key(0), seeds))]

    def run() -> float:
        began = time.process_time()
        states[0], _ = trained.run(states[0], iterations)
        jax.block_until_ready(states[0])
        return time.process_time() - began

    return run


if __name__ == "__main__":
    main()
