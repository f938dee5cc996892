"""For agents that call `optimizer.update` without parameters, which sparsity needs."""

from typing import Any, NamedTuple

import jax
import optax

from sparse_plugins.core.trees import PyTree, exportable

__all__ = ["RememberedParams", "remember_params", "renew_params"]


@exportable("RememberedParams")
class RememberedParams(NamedTuple):
    """State of an optimizer that knows the parameters by itself.

    Attributes:
        params: The parameters after the last step.
        inner_state: State of the optimizer inside.
    """

    params: PyTree
    inner_state: PyTree


def remember_params(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose `update` gets along without parameters: it keeps them in its state.

    What it keeps follows the caller's parameters as long as those change by `optax.apply_updates` alone, up to the last
    bit of weights that are never pruned: XLA may round the two sums differently. `renew_params` puts the caller's
    parameters back, which makes it exact, and which whatever else changes parameters has to call.

    Args:
        optimizer: Any optax transformation, such as what `updater.wrap_optax` gives.

    Returns:
        An optax transformation whose state is a `RememberedParams`. Parameters that are handed over take precedence.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core
        >>> updater = core.MagnitudePruning(
        ...     sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5),
        ...     scheduler=core.OneShotSchedule(target_step=0))
        >>> optimizer = remember_params(updater.wrap_optax(optax.sgd(0.5)))
        >>> params = {"w": jnp.array([[3.0, 1.0]])}
        >>> updates, state = optimizer.update({"w": jnp.ones((1, 2))}, optimizer.init(params))
        >>> optax.apply_updates(params, updates)["w"].tolist()
        [[2.5, 0.0]]
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> RememberedParams:
        return RememberedParams(params, optimizer.init(params))

    def update(
        updates: PyTree, state: RememberedParams, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, RememberedParams]:
        params = state.params if params is None else params
        updates, inner_state = optimizer.update(updates, state.inner_state, params, **extra)
        return updates, RememberedParams(optax.apply_updates(params, updates), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def renew_params(opt_state: PyTree, params: PyTree) -> PyTree:
    """The optimizer state with other parameters to go on from.

    Args:
        opt_state: State of `remember_params`, or of a chain that contains it.
        params: The parameters in use.

    Returns:
        A state that shares its other leaves with the given one.

    Example:
        >>> state = remember_params(optax.sgd(0.1)).init({"w": 1.0})
        >>> renew_params(state, {"w": 2.0}).params
        {'w': 2.0}
    """
    is_memory = lambda node: isinstance(node, RememberedParams)  # noqa: E731
    renewed = lambda node: node._replace(params=params) if is_memory(node) else node  # noqa: E731
    return jax.tree.map(renewed, opt_state, is_leaf=is_memory)
