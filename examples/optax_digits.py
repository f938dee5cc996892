"""optax: an MLP that reads handwritten digits, RigL at 90%.

Install and run:

    pip install sparse-plugins scikit-learn
    python examples/optax_digits.py
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from sparse_plugins import core

digits = load_digits()
images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)


def init(key):
    """Random weights of two layers, and biases of zeros."""
    hidden_key, head_key = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(hidden_key, (64, 128)) / 8, "bias": jnp.zeros(128)},
        "head": {"kernel": jax.random.normal(head_key, (128, 10)) / 11, "bias": jnp.zeros(10)},
    }


def logits(params, x):
    """Class scores, float32[n, 10], of images, float32[n, 64]."""
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params, x, y):
    """Mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def main(steps=1_000):
    """Trains, prints the plan and the result, and returns the sparse parameters."""
    params = init(jax.random.key(0))
    tx = core.sparsify(optax.adam(1e-3), "rigl", sparsity=0.9, total_steps=steps)  # the line that changes
    print(core.plan(tx, params))

    @jax.jit
    def step(params, state, key):
        rows = jax.random.randint(key, (64,), 0, 1500)
        grads = jax.grad(loss)(params, images[rows], labels[rows])
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = core.start(tx, params)  # sparse from the first step, weights rescaled to their sparse layers
    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(params, state, key)
    accuracy = (logits(params, images[1500:]).argmax(1) == labels[1500:]).mean()
    zeros = core.summarize_sparsity(params)["_total_sparsity"]
    print(f"{float(accuracy):.1%} of held-out digits read, {float(zeros):.1%} of the weights are zero")
    return params


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000, help="optimizer steps")
    main(parser.parse_args().steps)
