"""What a federated round costs: FedJAX's own loop against a sparse server and against this library's backends.

    python -m experiments.benchmarks.fed_round
    python -m experiments.benchmarks.fed_round --models dense --batch-size 32 --images 800

A round is unmodified `fed_avg` as in Reddi et al. (2020): clients with SGD, one epoch, a server with Adam. Clients hold
random images of EMNIST's shape, from half to one and a half times `--images` each. All sides run in one process,
interleaved in shuffled order; the second FedJAX row is a control, and "as fast" is 1 / ratio. The sparse rows use
FedJAX's loop, too.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks.timing import Timing, interleave, table
from sparse_plugins import core, fed
from sparse_plugins.fed.fedjax.backends.batched import ScanBackend, ShardedBackend

fedjax = fed.import_fedjax()

MODELS = {"conv": fedjax.models.emnist.create_conv_model, "dense": fedjax.models.emnist.create_dense_model}
ADAM = optax.adam(10**-2.5, eps=1e-4)


def random_clients(count: int, images: int) -> list[tuple[int, Any, jax.Array]]:
    """Clients with random images, from half to one and a half times as many as the mean has."""
    clients = []
    for number, size in enumerate(np.linspace(images / 2, images * 3 / 2, count).round().astype(int)):
        rng = np.random.default_rng(number)
        examples = {"x": rng.random((size, 28, 28, 1), np.float32), "y": rng.integers(0, 62, size, np.int32)}
        clients.append((number, fedjax.ClientDataset(examples), jax.random.PRNGKey(number)))
    return clients


def _sparse_server(update_freq: int) -> Any:
    """A server in the middle of its schedule."""
    updater = core.create_updater_from_config(
        algorithm="magnitude",
        sparsity=0.8,
        update_freq=update_freq,
        update_start_step=0,
        update_end_step=1_000_000,
        step_unit="round",
    )
    return fed.sparse_server_optimizer(ADAM, updater)


def _contestant(model: Any, clients: list, batch_size: int, server: Any, backend: Any) -> Callable:
    """A function that makes one round."""
    with fedjax.for_each_client_backend(backend):
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            fedjax.model_grad(model),
            client_optimizer=fedjax.optimizers.sgd(10**-1.5),
            server_optimizer=server,
            client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=batch_size, num_epochs=1, seed=0),
        )
    carried = [algorithm.init(model.init(jax.random.PRNGKey(0)))]

    def run() -> Any:
        carried[0], _ = algorithm.apply(carried[0], clients)
        return carried[0].params

    return run


def measure(name: str, clients: list, batch_size: int, group_size: int, rounds: int) -> dict[str, Timing]:
    """Times of a round of one model.

    Args:
        name: A name of `MODELS`.
        clients: As `random_clients` makes them.
        batch_size: Images of a client's step.
        group_size: Clients that the last backend runs at once.
        rounds: Counted rounds, at least 3.
    """
    model, dense = MODELS[name](only_digits=False), fedjax.optimizers.create_optimizer_from_optax(ADAM)
    sides = {
        "FedJAX": (dense, "jit"),
        "FedJAX, again": (dense, "jit"),
        "sparse, masks every 10 rounds": (_sparse_server(10), "jit"),
        "sparse, masks every round": (_sparse_server(1), "jit"),
        "ScanBackend": (dense, ScanBackend()),
        f"ShardedBackend, {group_size} clients": (dense, ShardedBackend(clients_per_device=group_size)),
    }
    contestants = {
        side: _contestant(model, clients, batch_size, server, backend) for side, (server, backend) in sides.items()
    }
    return interleave(contestants, "FedJAX", rounds)


def main() -> None:
    """Prints a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds")
    parser.add_argument("--clients", type=int, default=10, help="clients of a round")
    parser.add_argument("--images", type=int, default=200, help="images of the mean client")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--group-size", type=int, default=5, help="clients that ShardedBackend runs at once")
    options = parser.parse_args()
    clients = random_clients(options.clients, options.images)
    print(f"{jax.default_backend()}, {os.cpu_count()} CPUs, jax {jax.__version__}; {vars(options)}")
    for name in options.models:
        timings = measure(name, clients, options.batch_size, options.group_size, options.rounds)
        notes = {side: f"{1 / timing.ratio:.2f} × as fast" for side, timing in timings.items()}
        print(f"\n### {name} model\n\n{table(timings, notes)}", flush=True)


if __name__ == "__main__":
    main()
