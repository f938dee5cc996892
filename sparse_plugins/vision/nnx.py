"""Flax NNX: optimizers that make a model sparse in place and keep it so."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import optax
from flax import nnx

from sparse_plugins.core.layers.describe import describe_layers
from sparse_plugins.core.layers.roles import trace_layers
from sparse_plugins.core.trees import PyTree
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_and_rest

__all__ = ["ModelAndOptimizer", "Optimizer", "in_variables"]

M = TypeVar("M")


class Optimizer(nnx.Optimizer[M]):
    """NNX's optimizer, with parameters that are exactly 0 outside the masks at every step.

    The model holds the sparse weights from the moment the optimizer is built, for every updater: straight-through ones
    keep their dense weights in `opt_state`, next to the masks. Variables that `wrt` does not select are left alone.
    Paths, as filters and rules of the updater see them, are those of the modules: 'conv/kernel'.

    A compiled step has no place from which to look at parameters: after the first mask update write once
    `core.check_sparse(nnx.state(model, nnx.Param), optimizer.opt_state)`.

    Attributes:
        step: Steps so far.
        tx: The sparse optimizer.
        opt_state: A `core.SparseState` of Variables; `flax.nnx.as_pure` gives it as one of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import vision
        >>> model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        >>> optimizer = vision.Optimizer(model, optax.adam(1e-3), "static_sparse", sparsity=0.75)
        >>> int(jnp.count_nonzero(model.kernel[...]))
        8
        >>> grads = nnx.grad(lambda model: model(jnp.ones((1, 8))).sum())(model)
        >>> _ = optimizer.update(model, grads)
        >>> int(jnp.count_nonzero(model.kernel[...]))
        8
    """

    def __init__(
        self,
        model: M,
        tx: optax.GradientTransformation,
        updater: AnyUpdater,
        *,
        wrt: Any = nnx.Param,
        inputs: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        """Makes the parameters of a model sparse, and an optimizer for them.

        Which axes stack layers, and which are inputs and outputs, is read from `inputs` if they are given, else from
        the sharding metadata of the Variables, unless the updater knows its `layers` already.

        Args:
            model: The model; what `wrt` selects in it is changed in place.
            tx: The dense optimizer.
            updater: Which weights to keep, how many and when; or an algorithm, by name or class.
            wrt: Filter for the Variables to train, as for `flax.nnx.grad`.
            inputs: What the model is called with, or shapes of it; it is traced once.
            **options: What else NNX's own optimizer takes; with an algorithm also what `core.sparsify` takes beside it:
                `sparsity`, `total_steps`, `rules`, ...

        Raises:
            TypeError: If `updater` is none, or `tx` no optax transformation or sparse already.
            ValueError: If `wrt` selects nothing, or the updater finds nothing to prune in what it selects.
        """
        updater, options = updater_and_rest(updater, options, nnx.Optimizer)
        params = nnx.state(model, wrt)
        if not jax.tree.leaves(params):
            raise ValueError(
                f"wrt={wrt} selects no Variable of this {type(model).__name__}, so there is nothing to train."
            )
        if inputs:
            graph, trained, *rest = nnx.split(model, wrt, ...)

            def called(trained: nnx.State, *inputs: Any) -> Any:
                model: Any = nnx.merge(graph, trained, *rest)
                return model(*inputs)

            updater = updater.knowing(trace_layers(called, trained, *inputs))
        elif any("out_sharding" in variable.get_metadata() for variable in _variables(params)):
            updater = updater.knowing(describe_layers(params))
        sparse = updater.wrap_optax(tx)

        def init(variables: nnx.State) -> PyTree:
            return in_variables(variables, sparse.init(nnx.as_pure(variables)))

        super().__init__(model, sparse._replace(init=init), wrt=wrt, **options)
        self.tx = sparse
        nnx.update(model, updater.first_params(nnx.as_pure(params), nnx.as_pure(self.opt_state)))


class ModelAndOptimizer(Optimizer[M], nnx.ModelAndOptimizer[M]):
    """The same with the model in it, so that `update` takes gradients alone.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core, vision
        >>> updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75))
        >>> both = vision.ModelAndOptimizer(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), optax.sgd(0.1), updater)
        >>> _ = both.update(nnx.grad(lambda model: model(jnp.ones((1, 8))).sum())(both.model))
        >>> int(jnp.count_nonzero(both.model.kernel[...]))
        8
    """


def _variables(params: nnx.State) -> list[nnx.Variable]:
    return jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, nnx.Variable))


def in_variables(variables: nnx.State, opt_state: PyTree) -> PyTree:
    """An optimizer state whose arrays are Variables like those of the parameters, where they have their shapes.

    A Variable says how it is sharded, which fits a moment but neither a packed mask nor a target sparsity.
    """
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    is_tree = lambda node: isinstance(node, nnx.State)  # noqa: E731

    def dressed(variable: nnx.Variable, node: Any) -> Any:
        return variable.replace(node) if getattr(node, "shape", None) == variable.shape else node

    def tree_dressed(node: Any) -> Any:
        return jax.tree.map(dressed, variables, node, is_leaf=is_variable) if is_tree(node) else node

    return jax.tree.map(tree_dressed, opt_state, is_leaf=is_tree)
