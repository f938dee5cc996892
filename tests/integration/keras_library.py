"""Keras 3 on its JAX backend: a row of its own, and what its process does.

Keras reads its backend when it is imported, and looks for TensorFlow in some places, so `test_keras` starts a process
that has one and not the other. Keras's layers promote ranks, which the suite elsewhere forbids.
"""

import contextlib
import doctest
import functools
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax

from sparse_plugins import core
from tests.integration.contracts import CONTRACTS, make_updater
from tests.integration.keras_optimizer import CHECKS as OF_THE_OPTIMIZER
from tests.integration.keras_optimizer import expect, network, values
from tests.integration.libraries import Library

PAGE = Path(__file__).parents[2] / "docs" / "libraries.md"


@functools.cache
def keras_() -> Library:
    model = network()
    seen, unseen = (
        [v.path for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables)
    )

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
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(code, f"Keras's blocks of {PAGE.name}", "exec"), names)
    return names


def the_code_of_the_page_runs_without_tensorflow() -> None:
    assert sys.modules["tensorflow"] is None
    model = page()["model"]
    assert int(np.count_nonzero(model.get_layer("head").kernel)) == 320


def the_example_of_the_docstring_runs() -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    ran = doctest.testmod(sys.modules["sparse_plugins.keras.optimizer"], optionflags=flags)
    assert (ran.failed, ran.attempted > 5) == (0, True)


def mistakes_are_named() -> None:
    model, updater = network(), make_updater(core.RigL)
    tx = updater.wrap_optax(optax.adam(0.1))
    variables = model.trainable_variables
    expect(TypeError, "parameter '0' is no array of numbers but Variable.*v.value", lambda: tx.init(variables))
    named = {variable.path: variable for variable in variables}
    expect(TypeError, "parameter 'net/conv/bias' is no array of numbers but Variable", lambda: tx.init(named))
    expect(ValueError, r"none of \['0', '1'.*a list of arrays a dict", lambda: tx.init(model.get_weights()))


def layers_are_told_by_their_classes_as_by_the_trace() -> None:
    import keras

    inputs = keras.Input((4,), dtype="int32")
    hidden = keras.layers.Embedding(10, 16)(inputs)
    hidden = keras.layers.MultiHeadAttention(2, 3)(hidden, hidden)
    hidden = keras.layers.Reshape((2, 2, 16))(keras.layers.LayerNormalization()(hidden))
    hidden = keras.layers.Conv2DTranspose(3, 2)(hidden)
    hidden = keras.layers.DepthwiseConv2D(2)(keras.layers.Conv2D(4, 2, padding="same")(hidden))
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    told = core.describe_layers(model)

    def apply(params: Any, x: Any) -> Any:
        return model.stateless_call([params[v.path] for v in model.trainable_variables], [], x)[0]

    traced = core.trace_layers(apply, values(model.trainable_variables), np.zeros((1, 4), np.int32))
    words = {path: str(axes).removesuffix("outputs 1") for path, axes in told.items()}
    assert words == {path: str(axes).removesuffix("single 1") for path, axes in traced.items()}


def attention_is_pruned_as_its_kernels_flattened() -> None:
    import keras

    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, keras.layers.MultiHeadAttention(4, 2, name="attention")(inputs, inputs))
    params = values(model.trainable_variables)
    flatten = lambda path, leaf: leaf.reshape(  # noqa: E731
        {1: leaf.shape, 2: (leaf.size,), 3: (-1, 8) if "output" in path else (8, -1)}[leaf.ndim]
    )
    flat = {path: flatten(path, leaf) for path, leaf in params.items()}
    for settings in ({"sparsity_type": "fan_in"}, {"sparsity_type": "2:4"}):
        make_updater = functools.partial(
            core.create_updater_from_config, algorithm="magnitude", sparsity=0.5, **settings
        )
        _, masks = make_updater(layers=core.describe_layers(model)).instant_sparsify(params)
        _, expected = make_updater().instant_sparsify(flat)
        for path, mask in masks.items():
            if hasattr(mask, "shape"):
                np.testing.assert_array_equal(flatten(path, mask), expected[path])
            else:
                assert mask == expected[path] == core.NOT_PRUNED


CHECKS: dict[str, Callable[[], None]] = {
    **{name: functools.partial(check, keras_()) for name, check in CONTRACTS.items()},
    **{
        check.__name__: check
        for check in (
            the_code_of_the_page_runs_without_tensorflow,
            the_example_of_the_docstring_runs,
            mistakes_are_named,
            layers_are_told_by_their_classes_as_by_the_trace,
            attention_is_pruned_as_its_kernels_flattened,
            *OF_THE_OPTIMIZER,
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
