"""Rounds of FedJAX's algorithms with a backend; run as a program, in processes of its own with many devices."""

import socket
import sys
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins import fed
from sparse_plugins.fed.fedjax.backends.batched import ScanBackend, ShardedBackend
from sparse_plugins.fed.fedjax.backends.distributed import DistributedBackend

fedjax = fed.import_fedjax()
algorithms = fedjax.algorithms

TRAIN = fedjax.ShuffleRepeatBatchHParams(batch_size=4, num_epochs=1, seed=0)
PADDED = fedjax.PaddedBatchHParams(batch_size=4, num_batch_size_buckets=2)
NUM_EXAMPLES = [9, 3, 17, 0, 8]  # batches: 3, 1, 5, none, 2


def clients_of_a_round(num_round: int) -> list:
    clients = []
    for number, size in enumerate(NUM_EXAMPLES):
        rng = np.random.default_rng(number)
        examples = {
            "x": rng.normal(size=(size, 6, 6, 2)).astype(np.float32),
            "y": rng.integers(0, 3, size, np.int32),
            "domain_id": np.full(size, number % 2, np.int32),
        }
        key = jax.random.fold_in(jax.random.PRNGKey(num_round), number)
        clients.append((number, fedjax.ClientDataset(examples), key))
    return clients


def classify(batch: dict) -> jax.Array:
    x = jnp.tanh(hk.Conv2D(4, 3, padding="VALID")(batch["x"]))
    x = hk.dropout(hk.next_rng_key(), 0.2, hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(x))
    return hk.Linear(3)(hk.Flatten()(x))


MODEL = fedjax.create_model_from_haiku(
    transformed_forward_pass=hk.transform(classify),
    sample_batch={"x": np.zeros((1, 6, 6, 2), np.float32)},
    train_loss=lambda batch, logits: optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]),
)
GRADIENT, LOSS = fedjax.model_grad(MODEL), fedjax.model_per_example_loss(MODEL)
CLIENT = fedjax.optimizers.sgd(0.1, momentum=0.9)
SERVER = fedjax.optimizers.sgd(0.5)

ALGORITHMS = {
    "fed_avg": lambda: algorithms.fed_avg.federated_averaging(GRADIENT, CLIENT, SERVER, TRAIN),
    "fed_prox": lambda: algorithms.fed_prox.fed_prox(LOSS, CLIENT, SERVER, TRAIN, 0.1),
    "mime": lambda: algorithms.mime.mime(LOSS, CLIENT, TRAIN, PADDED, 0.5),
    "mime_lite": lambda: algorithms.mime_lite.mime_lite(LOSS, CLIENT, TRAIN, PADDED, 0.5),
    "agnostic_fed_avg": lambda: algorithms.agnostic_fed_avg.agnostic_federated_averaging(
        LOSS, CLIENT, SERVER, TRAIN, PADDED, [0.5, 0.5], 0.1
    ),
    "hyp_cluster": lambda: algorithms.hyp_cluster.hyp_cluster(LOSS, CLIENT, SERVER, PADDED, TRAIN),
    "apfl": lambda: algorithms.apfl.adaptive_personalized_federated_learning(GRADIENT, CLIENT, SERVER, TRAIN, 0.5),
}


def run(algorithm: str, backend, num_rounds: int = 2):
    """The parameters after some rounds of an algorithm."""
    with fedjax.for_each_client_backend(backend):
        federated = ALGORITHMS[algorithm]()
    params = MODEL.init(jax.random.PRNGKey(0))
    clusters = [params, MODEL.init(jax.random.PRNGKey(1))]
    state = federated.init(clusters if algorithm == "hyp_cluster" else params)
    for num_round in range(num_rounds):
        state, _ = federated.apply(state, clients_of_a_round(num_round))
    return state.cluster_params if algorithm == "hyp_cluster" else state.params


def run_emnist(backend):
    """The parameters of EMNIST's convolutional model after a round."""
    model = fedjax.models.emnist.create_conv_model(only_digits=True)
    with fedjax.for_each_client_backend(backend):
        federated = algorithms.fed_avg.federated_averaging(fedjax.model_grad(model), CLIENT, SERVER, TRAIN)
    rng = np.random.default_rng(0)
    examples = {"x": rng.random((10, 28, 28, 1), np.float32), "y": rng.integers(0, 10, 10, np.int32)}
    state = federated.init(model.init(jax.random.PRNGKey(0)))
    state, _ = federated.apply(state, [(0, fedjax.ClientDataset(examples), jax.random.PRNGKey(1))])
    return state.params


def step_results(backend) -> list:
    """Outputs and step results of clients with different numbers of batches, by client."""
    step = lambda state, batch: (state + batch, {"batch": 2 * batch, "twice": [batch, batch]})  # noqa: E731
    with fedjax.for_each_client_backend(backend):
        run = fedjax.for_each_client(lambda shared, client: shared + client, step, with_step_result=True)
    clients = [
        (number, [np.full(2, i, np.float32) for i in range(number)], float(number)) for number in (0, 2, 3, 1, 5)
    ]
    return [results for _, *results in sorted(run(jnp.zeros(2), clients), key=lambda results: results[0])]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def save(folder: Path, name: str, tree) -> None:
    np.savez(folder / f"{name}.npz", *jax.tree.leaves(tree))


DISTRIBUTED = ("fed_avg", "agnostic_fed_avg")  # one, and one whose clients depend on the outputs of others


def on_devices(folder: Path) -> None:
    """What the process with eight devices does: all of them, and some with two clients on each."""
    some = ShardedBackend(jax.local_devices()[:3], clients_per_device=2)
    save(folder, "fed_avg 3", run("fed_avg", some))
    for algorithm in ALGORITHMS:
        save(folder, f"{algorithm} 8", run(algorithm, ShardedBackend()))


def in_a_process(folder: Path, port: str, rank: str) -> None:
    """What each of two processes does."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(rank))
    for algorithm in DISTRIBUTED:
        save(folder, f"{algorithm} {rank}", run(algorithm, DistributedBackend()))
    save(folder, f"steps {rank}", step_results(DistributedBackend(ScanBackend(), clients_per_exchange=2)))
    jax.distributed.shutdown()


if __name__ == "__main__":
    folder, what, *arguments = sys.argv[1:]
    {"sharded": on_devices, "distributed": in_a_process}[what](Path(folder), *arguments)
