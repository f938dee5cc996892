"""`SparseOptimizer` for Keras under `fit`, precision policies, callbacks and files; run by `keras_library`."""

import contextlib
import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.keras import SparseOptimizer
from tests.contract.rows import assert_on_mask
from tests.integration.contracts import EXCHANGE, make_updater
from tests.integration.libraries import IMAGES, LABELS

KEPT = [72, 12]  # a quarter of conv's and head's weights


def network(dropout: float = 0.1) -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.Conv2D(8, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(dropout, seed=1),
            layers.Dense(6, name="head"),
        ],
        name="net",
    )


def values(variables: Any) -> dict[str, jax.Array]:
    return {variable.path: variable.value for variable in variables}


def rigl() -> core.BaseUpdater:
    return make_updater(core.RigL, scheduler=EXCHANGE)


def compiled(optimizer: keras.optimizers.Optimizer, model: keras.Model | None = None) -> keras.Model:
    """A model whose optimizer is built."""
    model = model or network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model: keras.Model, epochs: int, callbacks: Any = (), start: int = 0) -> None:
    """A step of all images each epoch."""
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": list(callbacks)}
    model.fit(IMAGES, LABELS, epochs=epochs, initial_epoch=start, **options)


def sparse_part(model: keras.Model) -> SparseOptimizer:
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def all_values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(variable) for variable in (*model.variables, *model.optimizer.variables)]


def assert_same_values(model: keras.Model, other_model: keras.Model) -> None:
    variables = (*model.variables, *model.optimizer.variables)
    for variable, a, b in zip(variables, all_values(model), all_values(other_model), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=variable.path)


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class Watch(keras.callbacks.Callback):
    """Holds the model to its masks before each step and after, and writes down how much they keep."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[list[int]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.on_train_batch_end(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.jax_state_sync()
        params, state = values(self.model.trainable_variables), sparse_part(self.model).state
        assert_on_mask(params, state)
        masks = core.unpack_masks(params, state.masks)
        self.kept.append([int(masks[f"net/{name}/kernel"].sum()) for name in ("conv", "head")])


def fit_is_sparse_at_every_step_and_goes_on_bit_for_bit() -> None:
    watch = Watch()
    models = [compiled(SparseOptimizer(rigl(), optax.adam(0.01))) for _ in range(2)]
    variables = [(*model.variables, *model.optimizer.variables) for model in models]
    fit(models[0], 4, [watch])
    assert watch.kept == [KEPT] * 8
    for variable, copied in zip(*variables, strict=True):
        copied.assign(np.array(variable))
    for model in models:
        fit(model, 3)
    assert_same_values(*models)
    assert int(models[1].optimizer.iterations) == 7


def mixed_precision_is_sparse_at_every_step() -> None:
    for name, updater in {"mixed_float16": rigl(), "mixed_bfloat16": make_updater(core.SteMagnitudePruning)}.items():
        with policy(name):
            model, watch = compiled(SparseOptimizer(updater, optax.adam(0.01))), Watch()
        before = all_values(model)
        fit(model, 4, [watch])
        assert model.get_layer("conv").compute_dtype == name.removeprefix("mixed_")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (name == "mixed_float16")
        assert watch.kept == [KEPT] * 8
        assert int(sparse_part(model).iterations) == int(sparse_part(model).state.count) == 4
        assert any((a != b).any() for a, b in zip(before, all_values(model), strict=True))


def a_step_that_overflows_changes_no_weight_and_no_mask() -> None:
    with policy("mixed_float16"):
        optimizer = SparseOptimizer(rigl(), optax.adam(0.01))
        model = compiled(keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**120))
    before = [values(model.trainable_variables), optimizer.state]
    before = jax.tree.map(np.array, before)  # fit donates the arrays
    fit(model, 2)
    jax.tree.map(np.testing.assert_array_equal, [values(model.trainable_variables), optimizer.state], before)
    assert float(model.optimizer.dynamic_scale) == 2.0**118


def callbacks_set_the_learning_rate() -> None:
    updater = make_updater(core.StaticRandomSparse)
    usual = compiled(SparseOptimizer(updater, optax.sgd(0.25, momentum=0.5)))
    other = compiled(SparseOptimizer(updater, optax.sgd(1.0, momentum=0.5), learning_rate=0.125))
    for variable, copied in zip(usual.variables, other.variables, strict=True):
        copied.assign(np.array(variable))
    fit(usual, 2)
    fit(other, 2, [keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.25)])
    for variable, copied in zip(usual.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_allclose(variable, copied, rtol=1e-6, atol=1e-7, err_msg=variable.path)
    trained = [np.array(variable) for variable in other.trainable_variables]
    fit(other, 1, [keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.0)])
    for variable, before in zip(other.trainable_variables, trained, strict=True):
        np.testing.assert_array_equal(variable, before, err_msg=variable.path)


def training_goes_on_bit_for_bit_from_every_file() -> None:
    def fresh() -> keras.Model:  # files of Keras hold no seed of dropout
        return compiled(SparseOptimizer(rigl(), optax.adam(0.01)), network(dropout=0.0))

    with tempfile.TemporaryDirectory() as folder, policy("mixed_float16"):
        whole, weights = str(Path(folder) / "{epoch}.keras"), str(Path(folder) / "{epoch}.weights.h5")
        callbacks = keras.callbacks
        writing = [callbacks.ModelCheckpoint(whole), callbacks.ModelCheckpoint(weights, save_weights_only=True)]
        straight = fresh()
        before = [np.array(variable) for variable in straight.variables]
        fit(straight, 6, writing)
        for path in (whole, weights):
            resumed = fresh()
            resumed.load_weights(path.format(epoch=2))
            fit(resumed, 6, start=2)
            assert_same_values(straight, resumed)
        interrupted, restarted = fresh(), fresh()
        for variable, value in zip(interrupted.variables, before, strict=True):
            variable.assign(value)
        fit(interrupted, 2, [callbacks.BackupAndRestore(folder, delete_checkpoint=False)])
        fit(restarted, 6, [callbacks.BackupAndRestore(folder)])
        assert_same_values(straight, restarted)


@keras.saving.register_keras_serializable(package="tests")
class WithItsUpdater(SparseOptimizer):
    def __init__(self, **config: Any) -> None:
        super().__init__(rigl(), optax.adam(0.01), **config)


def a_registered_subclass_is_loaded_with_its_model() -> None:
    rate = keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.5)
    with tempfile.TemporaryDirectory() as folder, policy("mixed_float16"):
        model = compiled(WithItsUpdater(learning_rate=rate))
        model.save(path := Path(folder) / "run.keras")
        loaded = keras.models.load_model(path)
    assert isinstance(sparse_part(loaded), WithItsUpdater)
    assert "net/conv/kernel" not in values(loaded.variables)  # what Keras makes of it
    assert "net/conv/kernel" in sparse_part(loaded).state.masks
    assert sparse_part(loaded).get_config() == sparse_part(model).get_config()
    assert_same_values(model, loaded)
    for both in (model, loaded):
        fit(both, 3)
    assert_same_values(model, loaded)


def a_loop_of_its_own_takes_the_same_steps() -> None:
    layer = keras.layers.Dense(4, name="head")
    layer.build((None, 8))
    updater = core.RigL(
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75),
        scheduler=core.PeriodicSchedule(update_freq=2, update_start_step=1, update_end_step=9),
    )
    params = values(layer.trainable_variables)
    tx = updater.wrap_optax(optax.sgd(optax.exponential_decay(0.5, 1, 0.5), momentum=0.5))
    state = tx.init(params)
    params = updater.pre_forward_update(params, state)
    halving = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    optimizer = SparseOptimizer(updater, optax.sgd(1.0, momentum=0.5), learning_rate=halving)
    draws = np.random.default_rng(0)
    for _ in range(4):
        grads = {path: jnp.asarray(draws.normal(size=value.shape), jnp.float32) for path, value in params.items()}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        optimizer.apply([grads[v.path] for v in layer.trainable_variables], layer.trainable_variables)
        for variable in layer.trainable_variables:
            np.testing.assert_allclose(variable, params[variable.path], rtol=1e-6, err_msg=variable.path)
    jax.tree.map(np.testing.assert_array_equal, optimizer.state.masks, state.masks)
    assert int(optimizer.iterations) == 4


def scales_of_float8_layers_are_overwritten() -> None:
    head = keras.layers.Dense(6, dtype="float8_from_float32", name="head")
    model = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.GlobalAveragePooling2D(), head], name="net")
    compiled(SparseOptimizer(rigl(), optax.adam(0.01)), model)
    fit(model, 3)
    assert int(np.count_nonzero(head.kernel)) == round(0.25 * 4 * 6)
    assert np.array(head.inputs_amax_history).any()
    assert set(model.optimizer.state.masks) == {"net/head/kernel", "net/head/bias"}


def expect(error_type: type[Exception], message: str, act: Callable[[], Any]) -> None:
    with pytest.raises(error_type, match=message):
        act()


def axes_are_read_from_the_layers_of_a_model() -> None:
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs), name="net")
    updater = core.build_updater("static_sparse", structure="2:4", filter_fn=core.kernels_only)
    expect(ValueError, "needs to know which axes", lambda: compiled(SparseOptimizer(updater, optax.sgd(0.1)), model))
    # Files name variables otherwise: the layers follow.
    paths = [f"other/{variable.path}" for variable in model.trainable_variables]
    compiled(SparseOptimizer(updater, optax.sgd(0.1), paths=paths, model=model), model)
    for name in ("query", "attention_output"):
        kernel = np.asarray(getattr(model.get_layer("attention"), f"_{name.removeprefix('attention_')}_dense").kernel)
        matrix = kernel.reshape(8, 8)
        assert (np.count_nonzero(matrix.reshape(2, 4, 8), axis=1) == 2).all(), name
    assert str(model.optimizer.updater.layers[paths[0]]) == "inputs 8, outputs 2 heads, outputs 4"
    assert "model" not in model.optimizer.get_config()


def a_callback_that_moves_weights_off_their_masks_is_told_of_once() -> None:
    model = compiled(SparseOptimizer("static_sparse", optax.sgd(0.1), sparsity=0.75))
    kernel = model.get_layer("conv").kernel
    average = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: kernel.assign(kernel.value + 1.0))
    with pytest.warns(RuntimeWarning, match="of the .* pruned weights of 'net/conv/kernel' are not 0"):
        fit(model, 2, [average])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit(model, 1, [average])  # not again
    with tempfile.TemporaryDirectory() as folder:
        other = compiled(SparseOptimizer("static_sparse", optax.sgd(0.1), sparsity=0.75))
        fit(other, 1)  # looks, and finds nothing
        other.save_weights(str(Path(folder) / "run.weights.h5"))


def a_file_of_another_algorithm_or_sparsity_is_refused_unless_that_is_meant() -> None:
    of = lambda name, sparsity, **more: compiled(  # noqa: E731
        SparseOptimizer(name, optax.sgd(0.1), sparsity=sparsity, total_steps=100, **more)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "run.weights.h5")
        of("rigl", 0.5).save_weights(path)
        of("rigl", 0.5).load_weights(path)
        told = r"of a run of RigL.*and this is one of StaticRandomSparse.*keep_targets=False"
        expect(ValueError, told, lambda: of("static_sparse", 0.5).load_weights(path))
        told = r"erk\(sparsity=0.5\), and this is one of .*erk\(sparsity=0.75\)"
        expect(ValueError, told, lambda: of("rigl", 0.75).load_weights(path))
        model = of("static_sparse", 0.75, keep_targets=False)
        ends = jax.tree.leaves(model.optimizer.state.target_sparsities)
        model.load_weights(path)
        np.testing.assert_array_equal(jax.tree.leaves(model.optimizer.state.target_sparsities), ends)
        assert int(np.count_nonzero(model.get_layer("conv").kernel)) > 0.25 * 288  # the masks of the file


def mistakes_with_the_optimizer_are_named() -> None:
    updater = rigl()
    twins = [keras.Variable(np.ones((2, 2)), name="kernel") for _ in range(2)]
    fresh = lambda: SparseOptimizer(updater, optax.sgd(0.1))  # noqa: E731
    expect(ValueError, "two variables have one path", lambda: fresh().build(twins))
    limited = keras.layers.Dense(4, kernel_constraint="max_norm", name="limited")
    limited.build((None, 4))
    optimizer = fresh()
    expect(ValueError, "constraints of .*limited/kernel", lambda: optimizer.build(limited.trainable_variables))
    assert not optimizer.built
    expect(TypeError, "give an optax transformation", lambda: SparseOptimizer(updater, keras.optimizers.Adam()))
    expect(TypeError, "sparse already", lambda: SparseOptimizer(updater, updater.wrap_optax(optax.sgd(0.1))))
    too_few = SparseOptimizer(updater, optax.sgd(0.1), paths=["w"])
    expect(ValueError, "1 paths for 2 trainable variables", lambda: too_few.build(twins))
    with mock.patch("keras.backend.backend", return_value="torch"):
        expect(RuntimeError, "runs on torch.*KERAS_BACKEND=jax", fresh)
    layer = keras.layers.Dense(4, name="head")
    layer.build((None, 8))
    kernel, bias = layer.trainable_variables
    optimizer = fresh()
    grads = [jnp.ones(kernel.shape), jnp.ones(bias.shape)]
    expect(ValueError, "is not built: call optimizer.build", lambda: optimizer.apply(grads))
    optimizer.build([kernel, bias])
    expect(ValueError, "was built with the variables .* got", lambda: optimizer.apply(grads, [bias, kernel]))
    expect(ValueError, "1 gradients for 2 variables", lambda: optimizer.apply(grads[:1]))
    expect(ValueError, "bias'. have no gradient", lambda: optimizer.apply([grads[0], None]))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "run.keras")
        compiled(SparseOptimizer(updater, optax.adam(0.1))).save(path)
        expect(ValueError, "make and compile the model as before", lambda: keras.models.load_model(path))
        renamed = compiled(SparseOptimizer(updater, optax.adam(0.1)), keras.models.load_model(path, compile=False))
        expect(ValueError, "load_model may name variables differently", lambda: renamed.load_weights(path))
        expect(ValueError, "the stored optimizer is another one", lambda: compiled(fresh()).load_weights(path))
        unbuilt = network()
        unbuilt.compile(optimizer=SparseOptimizer(updater, optax.adam(0.1)))
        expect(ValueError, "before there are variables.*optimizer.build", lambda: unbuilt.load_weights(path))


CHECKS: tuple[Callable[[], None], ...] = (
    fit_is_sparse_at_every_step_and_goes_on_bit_for_bit,
    mixed_precision_is_sparse_at_every_step,
    a_step_that_overflows_changes_no_weight_and_no_mask,
    callbacks_set_the_learning_rate,
    training_goes_on_bit_for_bit_from_every_file,
    a_registered_subclass_is_loaded_with_its_model,
    a_loop_of_its_own_takes_the_same_steps,
    scales_of_float8_layers_are_overwritten,
    axes_are_read_from_the_layers_of_a_model,
    a_callback_that_moves_weights_off_their_masks_is_told_of_once,
    a_file_of_another_algorithm_or_sparsity_is_refused_unless_that_is_meant,
    mistakes_with_the_optimizer_are_named,
)
