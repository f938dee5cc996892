"""Cpu-seconds of eight seeds of the CartPole agent in one program and in a process each, compiling included."""

import argparse
import multiprocessing
import resource
from collections.abc import Sequence

import jax

from experiments.common.agents.cartpole import CONFIG, STEPS, pruned, trainer
from experiments.harness.tables import markdown_table


def train(seeds: Sequence[int], of: int, steps: int) -> None:
    """Trains some seeds at once.

    Args:
        seeds: Their numbers.
        of: How many there are in all.
        steps: Environment steps of each.
    """
    trained = trainer(pruned())
    keys = jax.random.split(jax.random.key(0), of)[list(seeds),]
    jax.block_until_ready(trained.run(trained.init(keys), CONFIG.iterations(steps)))


def cpu_seconds(batches: Sequence[Sequence[int]], of: int, steps: int) -> float:
    """What processes cost in all that train one batch of seeds each, one after the other.

    Args:
        batches: Seeds of each process.
        of: How many there are in all.
        steps: Environment steps of each seed.

    Raises:
        RuntimeError: If a process fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for batch in batches:
        process = multiprocessing.get_context("spawn").Process(target=train, args=(batch, of, steps))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the process of seeds {list(batch)} ended with {process.exitcode}; see above for why.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="of the sparse agent")
    parser.add_argument("--steps", type=int, default=STEPS, help="environment steps of each")
    options = parser.parse_args(arguments)
    seeds = range(options.seeds)
    together = cpu_seconds([seeds], options.seeds, options.steps)
    apart = cpu_seconds([[seed] for seed in seeds], options.seeds, options.steps)
    row = (str(options.seeds), f"{together:.0f}", f"{apart:.0f}", f"{together / apart:.2f}")
    print(f"jax {jax.__version__}, {options.steps:,} environment steps a seed\n")
    print(markdown_table(("seeds", "cpu-seconds in one program", "in a process each", "ratio"), [row]))


if __name__ == "__main__":
    main()
