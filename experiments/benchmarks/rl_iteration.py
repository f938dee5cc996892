"""What an iteration of `rl.FusedTrainer` on MinAtar's Breakout is made of, and the rates at which a core multiplies.

    taskset -c 0 python -m experiments.benchmarks.rl_iteration     # one core, as large products use all

An iteration plays four environments a step and learns once from 32 transitions, here for five seeds at once. Learning
is a gradient, Adam and the target network; Adam is timed alone, too. What is left of the iteration plays and remembers.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.benchmarks.timing import Timing, carrying, interleave
from experiments.harness.tables import markdown_table
from experiments.versus_dopamine.our_side import trainer
from sparse_plugins.rl.replay.memory import Batch

SEEDS = 5
TIMES = 100  # of each part in a call, a loop on the device
# Rows, inner size, columns: of the dense layer forwards and its two gradients, and of what a cache holds.
PRODUCTS = ((32, 1024, 128), (32, 128, 1024), (1024, 32, 128), (512, 512, 512))


def parts() -> dict[str, Callable[[], Any]]:
    """The iteration and what it is made of, `TIMES` of each in a call."""
    whole = trainer("breakout", 40_000)
    state = whole.init(jax.vmap(jax.random.key)(np.arange(SEEDS, dtype=np.uint32)))
    learner, begun = whole.learner_of, jax.tree.map(jnp.copy, state.learner)
    seen, rng = (32, *whole.environment.observation_shape), np.random.default_rng(0)
    batch = Batch(
        observation=rng.integers(0, 2, seen).astype(bool),
        action=np.zeros(32, np.int32),
        reward=np.ones(32, np.float32),
        discount=np.full(32, 0.99, np.float32),
        next_observation=rng.integers(0, 2, seen).astype(bool),
        weight=np.ones(32, np.float32),
        index=np.arange(32, dtype=np.int32),
    )
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), begun.params)
    adam = optax.adam(2.5e-4, eps=3.125e-4)

    def learned(state: Any) -> Any:
        return jax.vmap(lambda one: learner.learn(one, batch)[0])(state)  # type: ignore[union-attr]

    def moved(state: Any) -> Any:
        params, moments = state
        updates, moments = jax.vmap(adam.update)(grads, moments)
        return optax.apply_updates(params, updates), moments

    def again(step: Callable[[Any], Any], state: Any) -> Callable[[], Any]:
        looped = jax.jit(lambda state: lax.fori_loop(0, TIMES, lambda _, now: step(now), state), donate_argnums=0)

        def run(state: Any) -> tuple[Any, Any]:
            state = looped(state)
            return state, jax.tree.leaves(state)[0]

        return carrying(run, state)

    return {
        "iteration": carrying(lambda state: whole.run(state, TIMES), state),
        "learning": again(learned, begun),
        "Adam": again(moved, (begun.params, jax.vmap(adam.init)(begun.params))),
    }


def product(rows: int, inner: int, columns: int) -> Callable[[], jax.Array]:
    """One product, `TIMES` in a call, each of what the one before left."""

    @jax.jit
    def run(one: jax.Array, other: jax.Array) -> jax.Array:
        step = lambda _, total: total + 1e-6 * (one + total[0, 0]) @ other  # noqa: E731
        return lax.fori_loop(0, TIMES, step, jnp.zeros((rows, columns)))

    return jax.tree_util.Partial(run, jnp.ones((rows, inner)), jnp.ones((inner, columns)))


def report(rounds: int) -> dict[str, Timing]:
    """Prints both tables.

    Args:
        rounds: Counted rounds, at least 3.

    Returns:
        Timings of `TIMES` iterations, and of its parts.
    """
    timings = interleave(parts(), "iteration", rounds)
    rows = [
        (name, f"{timing.milliseconds / TIMES / SEEDS:.2f}", f"{timing.cpu_ratio:.2f}")
        for name, timing in timings.items()
    ]
    print(markdown_table(("part", "ms a seed", "of the iteration's processor time"), rows))
    products = {"x".join(map(str, sizes)): product(*sizes) for sizes in PRODUCTS}
    paces = interleave(products, next(iter(products)), rounds)
    rates = [
        (name, f"{2e-6 * TIMES * np.prod(sizes) / paces[name].milliseconds:.0f}")
        for name, sizes in zip(products, PRODUCTS, strict=True)
    ]
    print(f"\n{markdown_table(('product', 'GFLOP/s'), rates)}")
    return timings


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds")
    options = parser.parse_args()
    print(f"{jax.default_backend()}, {len(os.sched_getaffinity(0))} CPUs, jax {jax.__version__}; {vars(options)}\n")
    report(options.rounds)


if __name__ == "__main__":
    main()
