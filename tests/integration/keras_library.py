"""Keras 3 on its JAX backend: a row of its own, and what its process does.

Keras reads its backend when it is imported, and looks for TensorFlow in some places, so `test_keras` starts a process
that has one and not the other. Keras's layers promote ranks, which the suite elsewhere forbids.
"""

import functools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests.contract.rows import assert_on_mask
from tests.integration.contracts import CONTRACTS, EXCHANGE, make_updater
from tests.integration.libraries import IMAGES, LABELS, Library

PAGE = Path(__file__).parents[2] / "docs" / "libraries.md"


def network() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.Conv2D(8, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.1, seed=1),
            layers.Dense(6, name="head"),
        ],
        name="net",
    )


def values(variables: Any) -> dict[str, jax.Array]:
    return {variable.path: variable.value for variable in variables}


@functools.cache
def keras_() -> Library:
    model = network()
    seen, unseen = ([v.path for v in kind] for kind in (model.trainable_variables, model.non_trainable_variables))

    def apply(params: Any, rest: Any, images: Any) -> tuple[Any, Any]:
        ordered = [params[path] for path in seen], [rest[path] for path in unseen]
        logits, changed = model.stateless_call(*ordered, images, training=True)
        return logits, dict(zip(unseen, changed, strict=True))

    return Library(
        params=values(model.trainable_variables),
        rest=values(model.non_trainable_variables),
        apply=apply,
        kernels={"net/conv/kernel": (3, 3, 4, 8), "net/head/kernel": (8, 6)},
    )


@functools.cache
def page() -> dict[str, Any]:
    """The names that Keras's code in the documentation defines."""
    blocks = PAGE.read_text().split("<!-- run by tests/integration/test_keras.py")[1:]
    code = "\n".join(block.split("```python\n")[1].split("```")[0] for block in blocks)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, f"Keras's blocks of {PAGE.name}", "exec"), names)
    return names


def compiled(updater: core.BaseUpdater, model: keras.Model | None = None) -> keras.Model:
    model = network() if model is None else model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=page()["SparseOptimizer"](updater, optax.adam(0.01)), loss=loss)
    return model


def fit(model: keras.Model, epochs: int, callbacks: Any = ()) -> None:
    model.fit(IMAGES, LABELS, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


class Watch(keras.callbacks.Callback):
    """Holds the model to its masks before each step and after, and writes down how much they keep."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[list[int]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.on_train_batch_end(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.jax_state_sync()
        optimizer, params = self.model.optimizer, values(self.model.trainable_variables)
        _, *leaves = [variable.value for variable in optimizer.variables]
        state = optimizer.structure.unflatten(leaves)
        assert_on_mask(params, state)
        masks = core.unpack_masks(params, state.masks)
        self.kept.append([int(masks[f"net/{name}/kernel"].sum()) for name in ("conv", "head")])


def the_code_of_the_page_runs_without_tensorflow() -> None:
    assert sys.modules["tensorflow"] is None
    model = page()["model"]
    assert int(np.count_nonzero(model.get_layer("head").kernel)) == 320


def fit_is_sparse_at_every_step_and_goes_on_bit_for_bit() -> None:
    updater, watch = make_updater(core.RigL, scheduler=EXCHANGE), Watch()
    models = [compiled(updater), compiled(updater)]
    for model in models:
        model.optimizer.build(model.trainable_variables)
    variables = [(*model.variables, *model.optimizer.variables) for model in models]
    fit(models[0], 4, [watch])
    assert watch.kept == [[72, 12]] * 8
    for one, other in zip(*variables, strict=True):
        other.assign(np.array(one))
    for model in models:
        fit(model, 3)
    for one, other in zip(*variables, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)
    assert int(models[1].optimizer.iterations) == 7


def expect(kind: type[Exception], message: str, act: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=message):
        act()


def mistakes_are_named() -> None:
    model, updater = network(), make_updater(core.RigL)
    tx = updater.wrap_optax(optax.adam(0.1))
    variables = model.trainable_variables
    expect(TypeError, "parameter '0' is no array of numbers but Variable.*v.value", lambda: tx.init(variables))
    named = {variable.path: variable for variable in variables}
    expect(TypeError, "parameter 'net/conv/bias' is no array of numbers but Variable", lambda: tx.init(named))
    expect(ValueError, r"none of \['0', '1'.*a list of arrays a dict", lambda: tx.init(model.get_weights()))
    twins = [keras.Variable(np.ones((2, 2)), name="kernel") for _ in range(2)]
    expect(
        ValueError,
        "two variables have one path",
        lambda: page()["SparseOptimizer"](updater, optax.sgd(0.1)).build(twins),
    )
    limited = keras.layers.Dense(4, kernel_constraint="max_norm", name="limited")
    limited.build((None, 4))
    optimizer = page()["SparseOptimizer"](updater, optax.sgd(0.1))
    expect(ValueError, "constraints of .*limited/kernel", lambda: optimizer.build(limited.trainable_variables))
    expect(TypeError, "learning rate to be settable", lambda: setattr(optimizer, "learning_rate", 0.1))


CHECKS: dict[str, Callable[[], None]] = {
    **{name: functools.partial(check, keras_()) for name, check in CONTRACTS.items()},
    **{
        check.__name__: check
        for check in (
            the_code_of_the_page_runs_without_tensorflow,
            fit_is_sparse_at_every_step_and_goes_on_bit_for_bit,
            mistakes_are_named,
        )
    },
}


def outcome(check: Callable[[], None]) -> str:
    """Nothing, or what went wrong."""
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({name: outcome(check) for name, check in CHECKS.items()}))
