"""A small classification task of four writers in two groups, and FedJAX's algorithms on it."""

import functools
from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins import fed
from tests.fed.updater_in_rounds import END_ROUND as END_ROUND
from tests.fed.updater_in_rounds import updater_of as updater_of

fedjax = fed.import_fedjax()
algorithms = fedjax.algorithms

ROUNDS = 5
TRAIN = fedjax.ShuffleRepeatBatchHParams(batch_size=8, num_epochs=1, seed=0)
EVALUATE = fedjax.PaddedBatchHParams(batch_size=8)


def clients_of_a_round(num_round: int) -> list:
    """Four clients in two groups, which label the same features differently."""
    clients = []
    for number in range(4):
        x = np.random.default_rng(number).normal(size=(16, 8)).astype(np.float32)
        y = (x @ np.random.default_rng(100 + number % 2).normal(size=(8, 4))).argmax(axis=1)
        data = fedjax.ClientDataset({"x": x, "y": y, "domain_id": np.full(16, number % 2)})
        clients.append((number, data, jax.random.fold_in(jax.random.PRNGKey(num_round), number)))
    return clients


@functools.cache
def model_of(width: int) -> fedjax.Model:
    """The network with so many hidden channels."""
    return fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(lambda batch: hk.nets.MLP([width, 4], activation=jnp.tanh)(batch["x"])),
        sample_batch={"x": np.zeros((1, 8), np.float32)},
        train_loss=lambda batch, logits: optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]),
    )


@functools.cache
def gradient_of(width: int) -> Callable:
    """What `GRADIENT` is to the whole network."""
    return fedjax.model_grad(model_of(width))


MODEL = model_of(8)
GRADIENT = gradient_of(8)
LOSS = fedjax.model_per_example_loss(MODEL)
CLIENT = fedjax.optimizers.sgd(0.1)
SPARSE_CLIENT = fed.sparse_client_optimizer(CLIENT)

# FedJAX's own algorithms, each from a server optimizer and a client optimizer.
ALGORITHMS = {
    "fed_avg": lambda server, client=CLIENT: algorithms.fed_avg.federated_averaging(GRADIENT, client, server, TRAIN),
    "fed_prox": lambda server, client=CLIENT: algorithms.fed_prox.fed_prox(LOSS, client, server, TRAIN, 0.1),
    "agnostic_fed_avg": lambda server, client=CLIENT: algorithms.agnostic_fed_avg.agnostic_federated_averaging(
        LOSS, client, server, TRAIN, EVALUATE, [0.5, 0.5], 0.1
    ),
    "hyp_cluster": lambda server, client=CLIENT: algorithms.hyp_cluster.hyp_cluster(
        LOSS, client, server, EVALUATE, TRAIN
    ),
    "apfl": lambda server, client=CLIENT: algorithms.apfl.adaptive_personalized_federated_learning(
        GRADIENT, client, server, TRAIN, 0.5
    ),
}


def num_kept(params) -> dict[str, int]:
    return {name: int(jnp.count_nonzero(layer["w"])) for name, layer in params.items()}


KEPT = {"mlp/~/linear_0": 16, "mlp/~/linear_1": 8}  # a quarter of 8 × 8 and of 8 × 4
