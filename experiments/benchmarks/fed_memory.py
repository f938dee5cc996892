"""Memory of a federated round at full size: the conv model, sparse, with more and more clients.

    python -m experiments.benchmarks.fed_memory --clients 10 50 200

Each number of clients has a process of its own, whose peak is read from the operating system. What FedJAX and JAX take
before the first round is shown apart. A round must not need memory for every client: updates are summed as they come.
"""

import argparse
import resource
import subprocess
import sys

import jax
import optax

from sparse_plugins import core, fed
from sparse_plugins.fed import datasets

ROUNDS = 2


def peak() -> float:
    """Peak resident memory of this process so far, in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)


def measure(num_clients: int, max_batches: int) -> None:
    """Trains two rounds, masks changing in the second, and prints the peaks before and after."""
    fedjax = fed.import_fedjax()
    model = fedjax.models.emnist.create_conv_model(only_digits=False)
    updater = core.create_updater_from_config(
        algorithm="rigl", sparsity=0.8, update_freq=1, update_start_step=1, update_end_step=9, step_unit="round"
    )
    batching = fedjax.ShuffleRepeatBatchHParams(batch_size=32, num_steps=max_batches, num_epochs=None)
    algorithm = fed.sparse_federated_averaging(
        fedjax.model_grad(model), fedjax.optimizers.sgd(10**-1.5), optax.adam(10**-2.5, eps=1e-4), updater, batching
    )
    train, _ = datasets.load("strokes", num_writers=max(num_clients, 10), cached_writers=0)
    sampler = datasets.SeededClientSampler(train, num_clients, seed=0)
    state = algorithm.init(model.init(jax.random.PRNGKey(0)))
    before = peak()
    for _ in range(ROUNDS):
        state, _ = algorithm.apply(state, sampler.sample())
    print(f"| {num_clients} | {before:.0f} | {peak():.0f} |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 200], help="clients of a round")
    parser.add_argument("--batches", type=int, default=1, help="batches of 32 that each client trains on")
    parser.add_argument("--single", action="store_true", help="measure in this process: one number of clients")
    options = parser.parse_args()
    if options.single:
        measure(options.clients[0], options.batches)
        return
    print(
        f"{jax.default_backend()}, jax {jax.__version__}\n\n| clients a round | MB before | MB at peak |\n|---|---|---|"
    )
    for num_clients in options.clients:
        flags = ["--single", "--clients", str(num_clients), "--batches", str(options.batches)]
        subprocess.run([sys.executable, "-m", "experiments.benchmarks.fed_memory", *flags], check=True)


if __name__ == "__main__":
    main()
