"""FedJAX: federated averaging on handwritten digits, with a server that prunes and bytes that are counted.

Install and run:

    pip install "sparse-plugins[fed]"
    python examples/fedjax_fedavg.py
"""

import argparse

import jax
import optax

from sparse_plugins import core, fed
from sparse_plugins.fed import datasets

fedjax = fed.import_fedjax()  # FedJAX 0.0.17 on current JAX


def main(steps=40):
    """Trains, prints accuracy and bytes, and returns the server's sparse parameters.

    Args:
        steps: Rounds.
    """
    train, test = datasets.load("digits")
    model = fedjax.models.emnist.create_dense_model(only_digits=True, hidden_units=64)
    adam = optax.adam(0.01)
    server_optimizer = fed.sparse_server_optimizer(
        adam, "magnitude", sparsity=0.8, rounds=steps
    )  # the line that changes
    ledger = fed.Ledger()
    with fedjax.for_each_client_backend(fed.MeteredBackend(ledger)):
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            fedjax.model_grad(model),
            fed.sparse_client_optimizer(fedjax.optimizers.sgd(0.05)),  # clients keep the zeros that they get
            server_optimizer,
            fedjax.ShuffleRepeatBatchHParams(batch_size=20, seed=0),
        )
    state = algorithm.init(model.init(jax.random.PRNGKey(0)))
    sampler = fedjax.client_samplers.UniformGetClientSampler(train, num_clients=4, seed=0)
    for _ in range(steps):
        state, _ = algorithm.apply(state, sampler.sample())
    held_out = fedjax.padded_batch_client_datasets((data for _, data in test.clients()), batch_size=256)
    accuracy = fedjax.evaluate_model(model, state.params, held_out)["accuracy"]
    zeros = core.summarize_sparsity(state.params)["_total_sparsity"]
    print(f"{float(accuracy):.1%} of held-out digits read, {float(zeros):.1%} of the weights are zero")
    print(f"{ledger.total().down:,} bytes down, {ledger.total().up:,} bytes up")
    return state.params


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="rounds")
    main(parser.parse_args().steps)
