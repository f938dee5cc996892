"""What it costs to bring a learner's weights to those who act, against other ways to send them.

    python -m experiments.benchmarks.weight_sync
    python -m experiments.benchmarks.weight_sync --parts transformer --learning-rates 1e-6 --steps 3

Three parts: a small transformer fine-tuned by policy gradient (float32 masters, bfloat16 sent) at several learning
rates; DQN and an agent like PQN on CartPole, dense and sparse; a federated server, dense and sparse. Every version goes
to somebody who has the one before, in all ways in one process, and what arrives is compared to the bit. "/ dense" is
bytes / bytes of all weights; "/ bound" is against the entropy, leaf by leaf, of positions that change at random and of
steps as they are spread: a code that knows more than that may lie below 1. Speeds are megabytes of model in a second of
one core's own time, the best of some rounds.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.weight_sync.policy_gradient import Size, trajectory
from experiments.benchmarks.weight_sync.ways import changed_share, entropy_bound, measured
from experiments.harness.tables import markdown_table
from sparse_plugins.wire.trees import named_leaves

PARTS = ("transformer", "agents", "federated")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--learning-rates", nargs="+", type=float, default=(1e-6, 3e-6, 1e-5, 3e-5, 1e-4))
    parser.add_argument("--steps", type=int, default=5, help="versions that are sent in each training")
    parser.add_argument("--warm-up", type=int, default=10, help="policy gradient steps before the first version")
    parser.add_argument("--shown", type=int, default=60, help="supervised steps before the policy gradient")
    parser.add_argument("--width", type=int, default=384, help="width of the transformer, whose heads have 64 features")
    parser.add_argument("--layers", type=int, default=6, help="layers of the transformer")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the shortest time counts")
    options = parser.parse_args(arguments)
    print(f"{jax.default_backend()}, jax {jax.__version__}, {options.steps} versions each")
    for part in options.parts:
        for title, versions in TRAININGS[part](options):
            print(f"\n### {title}\n\n{report([*versions], options.rounds)}", flush=True)


def transformer(options: argparse.Namespace) -> Iterator[tuple[str, Iterable[Any]]]:
    """By learning rate."""
    size = Size(options.layers, options.width, max(options.width // 64, 1))
    for rate in options.learning_rates:
        versions = trajectory(size, rate, options.steps, options.warm_up, options.shown)
        yield f"Transformer, policy gradient, bfloat16, learning rate {rate:g}", versions


def agents(options: argparse.Namespace) -> Iterator[tuple[str, Iterable[Any]]]:
    """DQN and one like PQN, dense and sparse, as they are and rounded."""
    learners = import_module("experiments.benchmarks.weight_sync.learners")
    dense = learners.core.NoPruning()
    for name, config, period in (("DQN", learners.DQN, 400), ("like PQN", learners.LIKE_PQN, 1)):
        for sparsity, updater in (("dense", dense), ("90 % sparse", learners.sparse(0.9))):
            for dtype in (jnp.float32, jnp.bfloat16):
                versions = learners.agent_weights(config, updater, period, dtype, options.steps, 1e-4)
                yield f"{name} on CartPole, {sparsity}, {dtype.__name__}, learning rate 1e-4", versions


def federated(options: argparse.Namespace) -> Iterator[tuple[str, Iterable[Any]]]:
    """Dense and sparse, as they are and rounded."""
    learners = import_module("experiments.benchmarks.weight_sync.learners")
    for name, sparsity in (("dense", None), ("90 % sparse", 0.9)):
        for dtype in (jnp.float32, jnp.bfloat16):
            versions = learners.server_weights(sparsity, options.steps, dtype)
            yield f"Federated server, {name}, {dtype.__name__}", versions


TRAININGS: dict[str, Callable[[argparse.Namespace], Iterator[tuple[str, Iterable[Any]]]]] = {
    "transformer": transformer,
    "agents": agents,
    "federated": federated,
}


def report(versions: Sequence[Any], rounds: int) -> str:
    """What changed, and a table of all ways."""
    pairs = list(zip(versions[1:], versions[:-1], strict=True))
    dense = sum(leaf.nbytes for _, leaf in named_leaves(versions[0]))
    bound = sum(entropy_bound(new, base) for new, base in pairs) / dense / len(pairs)
    changed = sum(changed_share(new, base) for new, base in pairs) / len(pairs)
    rows = [
        (name, f"{cost.share:.3%}", f"{cost.share / bound:.3f}", f"{cost.encode_speed:.0f}", f"{cost.apply_speed:.0f}")
        for name, cost in measured(versions, rounds).items()
    ]
    rows.append(("entropy bound", f"{bound:.3%}", "1", "", ""))
    header = ("", "/ dense", "/ bound", "encode MB/s", "apply MB/s")
    return f"{dense:,} bytes, {changed:.3%} of the entries change.\n\n{markdown_table(header, rows)}"


if __name__ == "__main__":
    main()
