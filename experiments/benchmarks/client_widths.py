"""What narrower clients save: rounds in which all of them train half of the channels, against the whole network.

    python -m experiments.benchmarks.client_widths

Rounds of `fed.sparse_federated_averaging` with FedJAX's convolutional model for EMNIST, dense weights, all sides in one
process, interleaved in shuffled order; bytes are those of the ledger. The second whole row is a control.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import optax

from experiments.benchmarks.fed_round import random_clients
from experiments.benchmarks.timing import interleave, table
from sparse_plugins import core, fed

fedjax = fed.import_fedjax()


def contestant(model: Any, clients: list, width: float) -> tuple[Callable, dict[str, int]]:
    """A function that makes one round, and what the last one took in bytes."""
    algorithm = fed.sparse_federated_averaging(
        fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(10**-1.5),
        server_optimizer=optax.adam(10**-2.5, eps=1e-4),
        updater=core.NoPruning(),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=20, num_epochs=1, seed=0),
        client_widths=fed.ClientWidths((width,)),
    )
    carried = [algorithm.init(model.init(jax.random.key(0)))]
    took: dict[str, int] = {}

    def run() -> Any:
        carried[0], told = algorithm.apply(carried[0], clients)
        took.update({way: sum(client[way] for client in told.values()) for way in ("down", "up")})
        return carried[0].params

    return run, took


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds")
    parser.add_argument("--clients", type=int, default=5, help="clients a round")
    parser.add_argument("--images", type=int, default=200, help="images of the mean client")
    options = parser.parse_args()
    model = fedjax.models.emnist.create_conv_model(only_digits=False)
    clients = random_clients(options.clients, options.images)
    widths = {"whole": 1.0, "whole again": 1.0, "half of the channels": 0.5, "a quarter": 0.25}
    made = {name: contestant(model, clients, width) for name, width in widths.items()}
    timings = interleave({name: run for name, (run, _) in made.items()}, "whole", options.rounds)
    whole = made["whole"][1]
    notes = {
        name: f"bytes up {took['up'] / whole['up']:.3f}, down {took['down'] / whole['down']:.3f} of whole"
        for name, (_, took) in made.items()
    }
    print(table(timings, notes))


if __name__ == "__main__":
    main()
