"""Flower: federated averaging on handwritten digits, SET at 90%, and a client that needs NumPy only.

Install and run, here with clients in this process; on a federation `flwr run` starts `server` and `client`:

    pip install "sparse-plugins[flower]" scikit-learn
    python examples/flower_fedavg.py
"""

import argparse

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_digits

from sparse_plugins import core
from sparse_plugins.fed.flower import LocalGrid, SparseStrategy, sparse_mod, training_masks

images, labels = load_digits(return_X_y=True)
client = ClientApp(mods=[sparse_mod])  # the line that changes; was: ClientApp()
server = ServerApp()


def logits(model, x):
    """Hidden units, float32[n, 128], and class scores, float32[n, 10], of images, float[n, 64]."""
    hidden = np.maximum(x @ model["hidden/w"] + model["hidden/b"], 0)
    return hidden, hidden @ model["head/w"] + model["head/b"]


@client.train()
def train(message, context):
    """Two epochs on the digits of one node; gradients are confined to the mask, so that every step is sparse."""
    model = {name: array.numpy().copy() for name, array in message.content["arrays"].items()}
    mine = np.arange(context.node_config["partition-id"], 1500, context.node_config["num-partitions"])
    masks = training_masks(context)
    for rows in np.array_split(np.tile(mine, 2), 2 * len(mine) // 32):
        hidden, scores = logits(model, x := images[rows] / 16)
        odds = np.exp(scores - scores.max(1, keepdims=True))
        error = (odds / odds.sum(1, keepdims=True) - np.eye(10)[labels[rows]]) / len(rows)
        back = error @ model["head/w"].T * (hidden > 0)
        grads = {"head/w": hidden.T @ error, "head/b": error.sum(0), "hidden/w": x.T @ back, "hidden/b": back.sum(0)}
        for name, grad in grads.items():
            model[name] -= np.float32(0.3) * (grad * masks.get(name, 1)).astype(np.float32)
    arrays = ArrayRecord({name: Array(array) for name, array in model.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": len(mine)})})
    return Message(content, reply_to=message)


def serve(grid, rounds):
    """Trains, prints accuracy and bytes, and returns the sparse model."""
    rng, bias = np.random.default_rng(0), {"hidden/b": np.zeros(128), "head/b": np.zeros(10)}
    first = {"hidden/w": rng.normal(size=(64, 128)) / 3, "head/w": rng.normal(size=(128, 10)) / 4, **bias}
    arrays = ArrayRecord({name: Array(array.astype(np.float32)) for name, array in first.items()})
    fedavg = FedAvg(fraction_evaluate=0.0)
    strategy = SparseStrategy(fedavg, "set", sparsity=0.9, rounds=rounds)  # the line that changes
    result = strategy.start(grid, arrays, num_rounds=rounds)
    model = {name: array.numpy() for name, array in result.arrays.items()}
    accuracy = (logits(model, images[1500:] / 16)[1].argmax(1) == labels[1500:]).mean()
    zeros, total = core.summarize_sparsity(model)["_total_sparsity"], strategy.ledger.total()
    print(f"{accuracy:.1%} of held-out digits read, {float(zeros):.1%} zeros, {total.down:,} B down, {total.up:,} up")
    return model


@server.main()
def on_a_federation(grid, context):
    """What `flwr run` calls."""
    serve(grid, context.run_config["num-server-rounds"])


def main(steps=40):
    """Trains with four clients in this process, and returns the sparse model."""
    return serve(LocalGrid(client, nodes=4), steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="rounds")
    main(parser.parse_args().steps)
