"""A T5X optimizer definition that keeps masks beside the state of another one."""

from typing import Any

import jax
import numpy as np
import optax
from flax.core import unfreeze
from flax.serialization import from_state_dict, to_state_dict
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from sparse_plugins.core.layers.describe import describe_layers
from sparse_plugins.core.restored import check_restored
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_from
from sparse_plugins.t5.axes import state_axes
from sparse_plugins.t5.upstream import import_t5x

__all__ = ["SparseOptimizer"]

_PROTOCOL = ("init_state", "apply_gradient", "update_hyper_params", "create")


class SparseOptimizer:
    """Confines an optimizer of T5X to masks; goes wherever T5X asks for an `OptimizerDef`.

    Trainer, partitioner, checkpoints, evaluation and export stay T5X's own. Parameters are sparse from the train state
    that T5X creates and after every step, for straight-through updaters, too: their dense weights are in the state.
    Which axes stack layers, and which are inputs and outputs, is read from the names that the model gives its axes.

    Args:
        optimizer: An `OptimizerDef` such as T5X's Adafactor, or an optax transformation.
        updater: Which weights to keep, how many and from which step on; or an algorithm, by name or class.
        keep_targets: False restores a checkpoint of other target sparsities on purpose, as in `core.check_restored`.
        **words: For an algorithm: what `core.sparsify` takes beside it, such as `sparsity` and `total_steps`.

    Attributes:
        dense: The `OptimizerDef` inside.
        updater: The updater; once there are parameters, with its `layers`, unless it knew them already.

    Raises:
        TypeError: If `optimizer` is neither of the two or is sparse already, or `updater` is no updater.
        ValueError: If the words do not make an updater.
        ModuleNotFoundError: If `optimizer` is an optax transformation, which T5X has to wrap, and T5X is missing.

    Example:
        >>> SparseOptimizer("adafactor", "static_sparse", sparsity=0.8)
        Traceback (most recent call last):
        TypeError: optimizer is 'adafactor'; give an OptimizerDef of T5X such as adafactor.Adafactor(), or ...
    """

    def __init__(self, optimizer: Any, updater: AnyUpdater, *, keep_targets: bool = True, **words: Any) -> None:
        self.updater = updater_from(updater, **words)
        self._keep_targets = keep_targets
        self._first_check = FirstCheck(self.updater)
        self.dense = _definition(optimizer)
        self._axis_names: PyTree = None

    def set_param_axes(self, param_logical_axes: PyTree) -> None:
        """Takes the names of the parameters' axes; T5X calls it before there is a state, and so with every model."""
        self._axis_names = to_state_dict(param_logical_axes)
        if hasattr(self.dense, "set_param_axes"):
            self.dense.set_param_axes(param_logical_axes)

    @property
    def hyper_params(self) -> Any:
        """Those of the optimizer inside."""
        return self.dense.hyper_params

    def update_hyper_params(self, **overrides: Any) -> Any:
        """Those of the optimizer inside, some of them replaced; how T5X hands over its learning rate."""
        return self.dense.update_hyper_params(**overrides)

    def create(self, target: PyTree) -> Any:
        """T5X's `Optimizer` with sparse parameters.

        Args:
            target: Fresh parameters.

        Returns:
            `Optimizer` whose target is the forward view of `target`.
        """
        state = self.init_state(target)
        forward = self.updater.first_params(target, state.param_states)
        return self.dense.create(target).replace(optimizer_def=self, state=state, target=forward)

    def init_state(self, params: PyTree) -> Any:
        """T5X's `OptimizerState` of fresh parameters, with a `SparseState` around the state of the optimizer inside.

        Raises:
            ValueError: If nothing is pruned, or a rule matches no parameter.
        """
        if self._axis_names is not None:
            layers = describe_layers(to_state_dict(params), axis_names=self._axis_names)
            self.updater = self.updater.knowing(layers)
        state = self.dense.init_state(params)
        return state.replace(param_states=self._transformation(None, state).init(params))

    def apply_gradient(self, hyper_params: Any, params: PyTree, state: Any, grads: PyTree) -> tuple[PyTree, Any]:
        """One step.

        Args:
            hyper_params: What `update_hyper_params` gave.
            params: Parameters on the masks.
            state: State as `init_state` gives it.
            grads: Gradients of the structure of `params`.

        Returns:
            Parameters on the masks, and the new state.
        """
        transformation = self._transformation(hyper_params, state)
        updates, sparse_state = transformation.update(grads, state.param_states, params)
        return optax.apply_updates(params, updates), state.replace(step=state.step + 1, param_states=sparse_state)

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: PyTree) -> Any:
        """The `Optimizer` with logical axes in place of arrays; see `state_axes`."""
        axes = from_state_dict(optimizer.target, to_state_dict(param_logical_axes))
        followed = state_axes(optimizer.state.param_states, optimizer.target, axes)
        return optimizer.replace(state=optimizer.state.replace(step=None, param_states=followed), target=axes)

    def state_dict(self, target: PyTree, state: Any) -> dict[str, Any]:
        """Nested dict of parameters and state, without empty parts, which T5X can't write.

        T5X asks for it when it saves: then, once masks have been updated, it looks once whether parameters are on them.
        """
        sparse_state = getattr(state, "param_states", None)
        if isinstance(sparse_state, SparseState) and isinstance(sparse_state.count, jax.Array):
            self._first_check(sparse_state.count, target, sparse_state)
        return {"target": to_state_dict(target), "state": unflatten_dict(flatten_dict(to_state_dict(state)))}

    def restore_state(self, opt_target: PyTree, opt_state: Any, state_dict: Any) -> tuple[PyTree, Any]:
        """Parameters and state from what `state_dict` gave.

        Args:
            opt_target: Parameters of the structure to fill.
            opt_state: State of the structure to fill.
            state_dict: Nested dict.

        Returns:
            Parameters and state.

        Raises:
            ValueError: If a part of the state is missing, as in a checkpoint of a dense run.
            CheckpointMismatchError: If layers are to end at other sparsities than in the run that wrote it.
        """
        given = flatten_dict(unfreeze(state_dict["state"]))
        wanted = flatten_dict(to_state_dict(opt_state), keep_empty_nodes=True)
        empty = {path: value for path, value in wanted.items() if value is empty_node}
        if missing := sorted("/".join(path) for path in wanted.keys() - empty.keys() - given.keys()):
            raise ValueError(
                f"the checkpoint lacks {len(missing)} parts of the sparse optimizer's state, for example "
                f"{missing[0]!r}: it was written by a dense run, or by another optimizer or updater. To start from a "
                "dense checkpoint include 'sparse_plugins/t5/configs/from_dense.gin'."
            )
        state = from_state_dict(opt_state, unflatten_dict({**empty, **given}))
        if all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(state.param_states)):
            sparse_state = check_restored(self.updater, opt_target, state.param_states, keep_targets=self._keep_targets)
            state = state.replace(param_states=sparse_state)
        return from_state_dict(opt_target, state_dict["target"]), state

    def _transformation(self, hyper_params: Any, state: Any) -> optax.GradientTransformation:
        """The wrapped optimizer at one step; what T5X hands over at each step, optax takes when it is built."""
        dense = self.dense
        if isinstance(transformation := getattr(dense, "optax_optimizer", None), optax.GradientTransformation):
            return self.updater.wrap_optax(transformation)

        def init(params: PyTree) -> PyTree:
            return dense.init_state(params).param_states

        def update(grads: PyTree, param_states: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
            moved, new = dense.apply_gradient(hyper_params, params, state.replace(param_states=param_states), grads)
            return jax.tree.map(lambda there, here: there - here, moved, params), new.param_states

        return self.updater.wrap_optax(optax.GradientTransformation(init, update))


def _definition(optimizer: Any) -> Any:
    """The dense `OptimizerDef` that is meant."""
    if isinstance(optimizer, SparseOptimizer):
        raise TypeError("optimizer is a SparseOptimizer, sparse already; give the dense one.")
    if isinstance(optimizer, optax.GradientTransformation):
        return import_t5x("optimizers").OptaxWrapper(optimizer)
    if isinstance(optimizer, type) or not all(hasattr(optimizer, name) for name in _PROTOCOL):
        raise TypeError(
            f"optimizer is {optimizer!r}; give an OptimizerDef of T5X such as adafactor.Adafactor(), or an optax "
            "transformation such as optax.adam(1e-3), an instance and not the class or function."
        )
    return optimizer
