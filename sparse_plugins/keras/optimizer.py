"""An optimizer of Keras that keeps a model sparse.

Keras takes its backend when it is first imported. Where this module is imported before it, that is JAX, unless
`KERAS_BACKEND` says otherwise.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins.checkpoints.sparse_runs import with_targets
from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.layers.describe import describe_layers
from sparse_plugins.core.restored import check_identity, identity_of
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_from

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras

__all__ = ["SparseOptimizer"]

_IDENTITY = "sparse_updater"  # beside the variables in a file: bytes of text


@keras.saving.register_keras_serializable(package="sparse_plugins")
class SparseOptimizer(keras.optimizers.Optimizer):
    """An optax optimizer inside an updater, for `model.compile`.

    The model holds the sparse weights from the moment the optimizer is built, which `fit` does before its first step.
    Under `mixed_float16` Keras puts its `LossScaleOptimizer` around it, and a step whose gradients overflow changes
    neither weights nor masks. Paths, as filters and rules of the updater see them, are those of Keras's variables:
    'net/conv/kernel'. Clipping, averages, accumulation and decay are optax's to do, not options of this class.

    Masks, moments and counts are variables of the optimizer, so `model.save` and `save_weights` store them. To go on:
    make and compile the model as before, call `model.optimizer.build(model.trainable_variables)` and then
    `model.load_weights` of either file. A run resumes bit-exactly; a file of another algorithm or sparsity is refused.

    When `fit` ends or the model is saved, and masks have been updated, it looks once whether the model is on its masks
    (a callback may have moved it off), and warns if not. It can't know how long a run is to be, since `fit` does not
    tell an optimizer: `core.plan(optimizer.updater, params, steps=epochs * batches)` says what that is too few for.

    Attributes:
        updater: Which weights are kept, how many and when.
        tx: The sparse optimizer.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")], name="net")
        >>> optimizer = SparseOptimizer("static_sparse", optax.adam(1e-3), sparsity=0.75)
        >>> model.compile(optimizer=optimizer, loss="mse")
        >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0)
        >>> int(np.count_nonzero(model.get_layer("head").kernel))
        8
    """

    def __init__(
        self,
        updater: AnyUpdater,
        tx: optax.GradientTransformation,
        learning_rate: Any = 1.0,
        name: str = "sparse_optimizer",
        paths: Iterable[str] = (),
        model: keras.Model | None = None,
        keep_targets: bool = True,
        **words: Any,
    ) -> None:
        """Makes an optimizer.

        Args:
            updater: Which weights to keep, how many and when; or an algorithm, by name or class.
            tx: The dense optimizer, with a learning rate of its own.
            learning_rate: Factor on the updates of `tx`: a float, which callbacks may set, or a schedule of Keras.
                Callbacks that set absolute rates go with a `tx` that has the rate 1.
            name: Name of the optimizer.
            paths: Names of the trainable variables, in their order, in place of those that Keras gives them: a
                `Sequential` that `load_model` made calls its kernels 'conv/kernel' where it was 'net/conv/kernel', and
                rules and random masks go by names. `get_config` holds those of a built optimizer.
            model: The model, of which Keras tells an optimizer the variables alone. The classes of its layers say which
                axes of a kernel are inputs, outputs and heads, unless the updater knows its `layers` already.
            keep_targets: False loads the file of another algorithm or of other sparsities on purpose, as in
                `core.check_restored`.
            **words: For an algorithm: what `core.sparsify` takes beside it, such as `sparsity` and `total_steps`.

        Raises:
            RuntimeError: If Keras runs on another backend than JAX.
            TypeError: If `updater` is none, or `tx` no optax transformation or sparse already.
            ValueError: If the words do not make an updater.
        """
        if (backend := keras.backend.backend()) != "jax":
            raise RuntimeError(
                f"Keras runs on {backend}, and sparse_plugins.keras needs JAX: set KERAS_BACKEND=jax before Keras is "
                "imported."
            )
        made = updater_from(updater, **words)
        made.wrap_optax(tx)  # says what is wrong with tx
        super().__init__(learning_rate=learning_rate, name=name)
        self._paths = tuple(paths)
        self._layers = (lambda: None) if model is None else lambda: describe_layers(model)
        self._dense, self._keep_targets = _times_learning_rate(tx), keep_targets
        self.updater, self.tx = made, made.wrap_optax(self._dense)
        self._first_check = FirstCheck(made)

    @property
    def state(self) -> SparseState:
        """Masks, counts and the state of `tx`, as arrays."""
        return self._structure.unflatten([variable.value for variable in self._state_variables()])

    def build(self, variables: Iterable[keras.Variable]) -> None:
        """Makes the variables of the state, and those of the model sparse; does nothing a second time.

        Args:
            variables: The model's trainable variables.

        Raises:
            ValueError: If two variables have one path, one has a constraint, `paths` are not as many, or the updater
                finds nothing to prune.
        """
        if self.built:
            return
        variables = list(variables)
        paths = self._paths or tuple(variable.path for variable in variables)
        _check_variables(variables, paths)
        if (layers := self._layers()) is not None:
            names = dict(zip((variable.path for variable in variables), paths, strict=True))
            told = Layers(
                (names[path], dataclasses.replace(axes, path=names[path]))
                for path, axes in layers.items()
                if path in names
            )
            self.updater = self.updater.knowing(told)
            self.tx = self.updater.wrap_optax(self._dense)
        params = {path: variable.value for path, variable in _trained(paths, variables)}
        state = self.tx.init(params)
        super().build(variables)
        self._paths = paths
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(state)
        for number, (path, leaf) in enumerate(leaves):
            name = jax.tree_util.keystr(path, simple=True, separator="_").replace("/", "_")
            variable = self.add_variable(leaf.shape, dtype=str(leaf.dtype), name=f"{number}_{name}")
            variable.assign(jnp.copy(leaf))  # some optimizers keep an array twice, or the parameters
        self._assign(self.updater.first_params(params, state))

    def apply(self, grads: Iterable[Any], trainable_variables: Iterable[keras.Variable] | None = None) -> None:
        """A step: changes the trainable variables and the optimizer's own.

        Args:
            grads: A gradient for each trainable variable.
            trainable_variables: The variables the optimizer is built with, in their order; it is built with them where
                it is not built yet. None: those.

        Raises:
            ValueError: If the optimizer is not built, has been built with other variables, or a gradient is missing.
        """
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        if not self.built:
            if trainable_variables is None:
                raise ValueError("this optimizer is not built: call optimizer.build(model.trainable_variables).")
            self.build(variables)
        by_path = self._by_path(list(grads), variables)
        for path, variable in zip(self._paths, variables, strict=True):
            if _is_overwritten(variable):
                variable.assign(by_path[path])
        params = {path: variable.value for path, variable in _trained(self._paths, variables)}
        rate = keras.ops.convert_to_tensor(self.learning_rate)
        updates, state = self.tx.update(
            {path: by_path[path] for path in params}, self.state, params, keras_learning_rate=rate
        )
        self._assign(optax.apply_updates(params, updates))
        for variable, leaf in zip(self._state_variables(), jax.tree.leaves(state), strict=True):
            variable.assign(leaf)
        self.iterations.assign_add(1)

    def finalize_variable_values(self, var_list: Any) -> None:
        """What `fit` calls when it ends; looks whether the model is on its masks."""
        super().finalize_variable_values(var_list)
        self._look()

    def save_own_variables(self, store: Any) -> None:
        """Writes the optimizer's variables into Keras's store, by name, and what the updater is."""
        self._look()
        for variable in self.variables:
            store[variable.name] = variable.numpy()
        store[_IDENTITY] = np.frombuffer(identity_of(self.updater).encode(), np.uint8)

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote.

        Args:
            store: Keras's store.

        Raises:
            ValueError: If the optimizer is not built, or the store holds another optimizer's variables.
            CheckpointMismatchError: If they are of a run that was to be sparse in another way; see `keep_targets`.
        """
        if not self.built:
            raise ValueError(
                "masks and moments can't be loaded before there are variables for them: call "
                "model.optimizer.build(model.trainable_variables) first."
            )
        names, stored = {variable.name for variable in self.variables}, set(store.keys()) - {_IDENTITY}
        if names != stored:
            raise ValueError(
                f"the stored optimizer is another one: it lacks {sorted(names - stored)} and has "
                f"{sorted(stored - names)} instead. Make model and optimizer by the code they were saved from "
                "(load_model may name variables differently), or load into a model that is not compiled yet, to start "
                "with its weights alone."
            )
        values = {variable.name: np.asarray(store[variable.name]) for variable in self.variables}
        ours = [variable.name for variable in self._state_variables()]
        state = self._structure.unflatten([values[name] for name in ours])
        what = "the stored optimizer"
        if self._keep_targets and _IDENTITY in store:  # older files have none
            check_identity(identity_of(self.updater), bytes(np.asarray(store[_IDENTITY])).decode(), what)
        state = with_targets(state, self.state, what, self._keep_targets)
        for variable in self.variables:
            variable.assign(values[variable.name])
        for variable, leaf in zip(self._state_variables(), jax.tree.leaves(state), strict=True):
            variable.assign(leaf)

    def get_config(self) -> dict[str, Any]:
        """What a `.keras` file can hold of it: name, learning rate and the paths of its variables."""
        config = super().get_config()
        return {"name": config["name"], "learning_rate": config["learning_rate"], "paths": list(self._paths)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Makes an optimizer of a subclass that knows its updater; of this class it can't.

        Args:
            config: What `get_config` returned.
            custom_objects: Passed on to Keras.

        Returns:
            The optimizer, not built.

        Raises:
            ValueError: If the class is `SparseOptimizer` itself.
        """
        if cls is SparseOptimizer:
            raise ValueError(
                "a .keras file holds neither updaters nor optax transformations. To go on, make and compile the model "
                "as before, call model.optimizer.build(model.trainable_variables) and then model.load_weights(path); "
                "to use it, load_model(path, compile=False). Or save the model with a registered subclass whose "
                "__init__(self, **config) makes both."
            )
        return super().from_config(config, custom_objects)

    def _look(self) -> None:
        if self.built and self._first_check.is_due((state := self.state).count):
            pairs = _trained(self._paths, self._trainable_variables)
            self._first_check(state.count, {path: variable.value for path, variable in pairs}, state)

    def _state_variables(self) -> list[keras.Variable]:
        return self.variables[-self._structure.num_leaves :]

    def _assign(self, params: PyTree) -> None:
        for path, variable in _trained(self._paths, self._trainable_variables):
            variable.assign(params[path])

    def _by_path(self, grads: list[Any], variables: list[keras.Variable]) -> dict[str, Any]:
        given, known = [v.path for v in variables], [v.path for v in self._trainable_variables]
        if given != known:
            raise ValueError(f"this optimizer was built with the variables {known}, in this order, and got {given}.")
        if len(grads) != len(known):
            raise ValueError(f"got {len(grads)} gradients for {len(known)} variables; give one for each.")
        if missing := [path for path, grad in zip(known, grads, strict=True) if grad is None]:
            raise ValueError(f"{missing} have no gradient: give zeros, or make these variables not trainable.")
        return dict(zip(self._paths, grads, strict=True))


def _is_overwritten(variable: keras.Variable) -> bool:
    """Whether a variable's gradient is its new value, as for the scales of float8 layers."""
    return getattr(variable, "overwrite_with_gradient", False)


def _trained(paths: Iterable[str], variables: Iterable[keras.Variable]) -> list[tuple[str, keras.Variable]]:
    return [pair for pair in zip(paths, variables, strict=True) if not _is_overwritten(pair[1])]


def _check_variables(variables: list[keras.Variable], paths: tuple[str, ...]) -> None:
    if len(paths) != len(variables):
        raise ValueError(f"got {len(paths)} paths for {len(variables)} trainable variables; give one for each.")
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"two variables have one path in {twice}; give the layers names.")
    if constrained := [variable.path for variable in variables if variable.constraint is not None]:
        raise ValueError(f"constraints of {constrained} are not applied; use optax's transformations.")


def _times_learning_rate(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its updates times the learning rate that Keras holds."""
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, *, keras_learning_rate: jax.Array, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(updates, state, params, **extra)
        return jax.tree.map(lambda u: u * keras_learning_rate.astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)
