"""Equinox: an MLP with 2:4 sparse hidden layers, trained by straight-through estimation.

Install and run:

    pip install sparse-plugins equinox scikit-learn
    python examples/equinox_mlp.py
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from sparse_plugins import core

digits = load_digits()
images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)


def loss(model, x, y):
    """Mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def main(steps=500):
    """Trains, prints the result, and returns the sparse parameters."""
    model = eqx.nn.MLP(in_size=64, out_size=10, width_size=128, depth=2, key=jax.random.key(0))
    # Equinox's weights are (out, in), so the groups of four lie along axis 1. The last layer stays dense.
    tx = core.sparsify(
        optax.adam(1e-3),
        "magnitude_ste",
        sparsity=0.5,
        distribution="uniform",
        structure=core.NByM(2, 4, axis=1),
        rules=[("layers/2/.*", None)],
        total_steps=steps,
    )  # the line that changes
    params = eqx.filter(model, eqx.is_inexact_array)
    print(core.plan(tx, params))

    @eqx.filter_jit
    def step(model, state, key):
        rows = jax.random.randint(key, (64,), 0, 1500)
        grads = eqx.filter_grad(loss)(model, images[rows], labels[rows])
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    state = tx.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        model, state = step(model, state, key)
    accuracy = (jax.vmap(model)(images[1500:]).argmax(1) == labels[1500:]).mean()
    groups = model.layers[1].weight.reshape(128, 32, 4)
    print(
        f"{float(accuracy):.1%} of held-out digits read, kept of each four: {jnp.count_nonzero(groups, axis=2).max()}"
    )
    return eqx.filter(model, eqx.is_inexact_array)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps")
    main(parser.parse_args().steps)
