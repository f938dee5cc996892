"""Flax NNX: a convolutional network that reads handwritten digits, magnitude pruning to 80%.

Install and run:

    pip install "sparse-plugins[vision]" scikit-learn
    python examples/flax_nnx.py
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from sparse_plugins import core

digits = load_digits()
images = jnp.asarray(digits.images[..., None] / 16, jnp.float32)
labels = jnp.asarray(digits.target)


class CNN(nnx.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(x.reshape(len(x), -1))


@nnx.jit
def step(model, optimizer, key):
    """One optimizer step on a random batch; an ordinary NNX step."""
    rows = jax.random.randint(key, (64,), 0, 1500)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images[rows]), labels[rows]).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def main(steps=400):
    """Trains, prints the result, and returns the sparse parameters."""
    model = CNN(nnx.Rngs(0))
    tx = core.sparsify(optax.adam(3e-3), "magnitude", sparsity=0.8, total_steps=steps)  # the line that changes
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    print(core.plan(tx, nnx.state(model, nnx.Param)))
    for key in jax.random.split(jax.random.key(1), steps):
        step(model, optimizer, key)
    accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).mean()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    zeros = core.summarize_sparsity(params)["_total_sparsity"]
    print(f"{float(accuracy):.1%} of held-out digits read, {float(zeros):.1%} of the weights are zero")
    return params


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps")
    main(parser.parse_args().steps)
