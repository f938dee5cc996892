"""Real handwriting, 8 by 8 pixels, shared out among nodes, and a perceptron of NumPy that learns it."""

import functools
import itertools
from typing import Any

import numpy as np

__all__ = ["accuracy", "first_model", "test_digits", "train", "training_digits"]

HIDDEN = 1024
NDArray = np.ndarray[Any, Any]
Model = dict[str, NDArray]


@functools.cache
def _digits() -> tuple[NDArray, NDArray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def training_digits(place: int, nodes: int) -> tuple[NDArray, NDArray]:
    """What a node has: the digits of other writers than the next one, in the order in which they were collected."""
    x, y = _digits()
    mine = np.array_split(np.arange(len(x) - 360), nodes)[place]
    return x[mine], y[mine]


def test_digits() -> tuple[NDArray, NDArray]:
    """360 digits of writers that no node has."""
    x, y = _digits()
    return x[-360:], y[-360:]


def first_model(density: float = 1.0) -> Model:
    """Weights of 64 pixels, twice 1,024 hidden units and 10 digits: 1.1 million, as large as so many inputs ask for."""
    rng = np.random.default_rng(0)
    sizes = (64, HIDDEN, HIDDEN, 10)
    model: Model = {}
    for number, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        model[f"layer{number}/w"] = (rng.normal(size=(rows, columns)) * np.sqrt(2 / rows / density)).astype(np.float32)
        model[f"layer{number}/b"] = np.zeros(columns, np.float32)
    return model


def _layers(model: Model, x: NDArray) -> list[NDArray]:
    values = [x]
    for number in range(3):
        x = x @ model[f"layer{number}/w"] + model[f"layer{number}/b"]
        x = np.maximum(x, 0) if number < 2 else x
        values.append(x)
    return values


def train(
    model: Model, x: NDArray, y: NDArray, masks: Model, seed: int, rate: float = 0.2, epochs: int = 2
) -> tuple[Model, float]:
    """Stochastic gradient descent on batches of 32, inside the masks of arrays that have some.

    Returns:
        The model after it, and the mean loss.
    """
    model = {name: array.copy() for name, array in model.items()}
    rng, losses = np.random.default_rng(seed), []
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for batch in np.array_split(order, max(len(x) // 32, 1)):
            values = _layers(model, x[batch])
            logits = values[-1] - values[-1].max(axis=1, keepdims=True)
            odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            losses.append(float(-np.log(odds[np.arange(len(batch)), y[batch]] + 1e-9).mean()))
            error = (odds - np.eye(10, dtype=np.float32)[y[batch]]) / np.float32(len(batch))
            for number in (2, 1, 0):
                grad = values[number].T @ error
                back = error @ model[f"layer{number}/w"].T * (values[number] > 0) if number else error
                model[f"layer{number}/b"] -= np.float32(rate) * error.sum(axis=0)
                model[f"layer{number}/w"] -= np.float32(rate) * grad * masks.get(f"layer{number}/w", 1)
                error = back
    return model, float(np.mean(losses))


def accuracy(model: Model) -> float:
    """Fraction of the test digits that it reads."""
    x, y = test_digits()
    return float((_layers(model, x)[-1].argmax(axis=1) == y).mean())
