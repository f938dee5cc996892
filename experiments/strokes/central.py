"""How well FedJAX's convolutional network reads the handwriting when all images lie in one place."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins import fed
from sparse_plugins.fed import strokes
from sparse_plugins.fed.strokes.writers import NUM_DIGITS

fedjax = fed.import_fedjax()

_EVALUATION_BATCH = 500

Images = dict[str, np.ndarray[Any, Any]]


class Shares(NamedTuple):
    """Shares of images read right, in percent, after an epoch.

    Attributes:
        seed: of the writers, the model and the order of the images.
        epoch: passes over the training images so far.
        held_out: on test images of the writers trained on.
        unseen: on all training images of other writers.
        unseen_digits: the digits among those.
        unseen_letters: the letters among those.
    """

    seed: int
    epoch: int
    held_out: float
    unseen: float
    unseen_digits: float
    unseen_letters: float


def central(
    num_writers: int, num_unseen: int, epochs: int, seeds: Iterable[int], difficulty: float, batch_size: int
) -> str:
    """Trains once per seed with Adam at 1e-3, prints each epoch, and returns a Markdown table of all."""
    rows = [f"| {' | '.join(Shares._fields).replace('_', ' ')} |", "|" + "---|" * len(Shares._fields)]
    for seed in seeds:
        train, test = strokes.load(num_writers + num_unseen, seed=seed, difficulty=difficulty, cached_writers=0)
        border = strokes.client_id(num_writers)
        pools = [_pool(data) for data in (train.slice(stop=border), test.slice(stop=border), train.slice(border))]
        sizes = " / ".join(f"{len(pool['y']):,}" for pool in pools)
        print(f"seed {seed}: {sizes} images to train on / held out / of {num_unseen} unseen writers", flush=True)
        for outcome in _outcomes(seed, epochs, batch_size, *pools):
            rows.append(f"| {outcome.seed} | {outcome.epoch} | {' | '.join(f'{x:.1f}' for x in outcome[2:])} |")
    return "\n".join(rows)


def _pool(data: strokes.StrokesData) -> Images:
    clients = [dataset.all_examples() for _, dataset in data.clients()]
    return {name: np.concatenate([client[name] for client in clients]) for name in ("x", "y")}


def _outcomes(
    seed: int, epochs: int, batch_size: int, train: Images, held_out: Images, unseen: Images
) -> Iterator[Shares]:
    model = fedjax.models.emnist.create_conv_model(only_digits=False)
    optimizer = optax.adam(1e-3)
    params = model.init(jax.random.key(seed))
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        gradient = jax.grad(lambda p: jnp.mean(model.train_loss(batch, model.apply_for_train(p, batch, key))))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def read(params: Any, x: Any) -> Any:
        return jnp.argmax(model.apply_for_eval(params, {"x": x}), axis=-1)

    def right(images: Images) -> np.ndarray[Any, Any]:
        batches = np.split(images["x"], range(_EVALUATION_BATCH, len(images["x"]), _EVALUATION_BATCH))
        return np.concatenate([read(params, x) for x in batches]) == images["y"]

    rng = np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        started, order = time.perf_counter(), rng.permutation(len(train["y"]))
        for i in range(len(order) // batch_size):
            rows = order[i * batch_size : (i + 1) * batch_size]
            key = jax.random.fold_in(jax.random.key(seed), epoch * len(order) + i)
            params, state = step(params, state, {name: images[rows] for name, images in train.items()}, key)
        unseen_right, digits = right(unseen), unseen["y"] < NUM_DIGITS
        shares = (right(held_out), unseen_right, unseen_right[digits], unseen_right[~digits])
        outcome = Shares(seed, epoch, *(100 * float(share.mean()) for share in shares))
        print(f"{outcome} after {time.perf_counter() - started:.0f} s", flush=True)
        yield outcome
