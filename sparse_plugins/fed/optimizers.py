"""Sparse server optimizers: any core updater as a drop-in `fedjax.Optimizer`."""

import dataclasses
import inspect
from typing import Any

import fedjax
import optax

from sparse_plugins import core


def sparse_server_optimizer(
    optimizer: optax.GradientTransformation | fedjax.Optimizer, updater: core.BaseUpdater
) -> fedjax.Optimizer:
    """Makes the server of a federated algorithm keep its parameters sparse.

    The result goes wherever a FedJAX algorithm asks for its server optimizer: `fed_avg`, `fed_prox`,
    `agnostic_fed_avg`, `hyp_cluster` and `apfl` run with it as they are. After each call the parameters are
    zero outside the mask, so what the next round broadcasts is sparse.

    These algorithms call their server optimizer once a round, so the steps of the updater's schedule are
    rounds (`hyp_cluster`: rounds in which a cluster had clients). A round's mean delta is applied in every
    round, also when masks change: it is the work of many clients, and `skip_gradients` would throw it away.

    Clients train densely from the sparse parameters, and personal models such as those of `apfl` stay dense.
    `mime` and `mime_lite` have no server optimizer: what they ask for runs on the clients.

    Args:
        optimizer: What turns a round's mean delta into an update: an optax transformation, or a
            `fedjax.Optimizer` made from one, such as `fedjax.optimizers.adam(0.01)`.
        updater: Which weights to keep, how many and from which round on.

    Returns:
        The optimizer, whose state is a `core.SparseState`. An updater that starts sparse prunes in the first
        call; to start from sparse parameters, too, use
        `updater.pre_forward_update(params, server_optimizer.init(params))`.

    Raises:
        TypeError: If `optimizer` is neither of the two or is sparse already, or `updater` is no updater.

    Example:
        >>> import functools
        >>> import jax, jax.numpy as jnp, optax
        >>> from sparse_plugins import core, fed
        >>> fedjax = fed.import_fedjax()
        >>> updater = core.MagnitudePruning(
        ...     sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75),
        ...     scheduler=core.OneShotSchedule(target_step=1),
        ... )
        >>> server_optimizer = fed.sparse_server_optimizer(optax.adam(0.01), updater)
        >>> algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        ...     lambda params, batch, rng: jax.grad(lambda p: jnp.mean((batch["x"] @ p["w"]) ** 2))(params),
        ...     client_optimizer=fedjax.optimizers.sgd(0.1),
        ...     server_optimizer=server_optimizer,
        ...     client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=2, num_epochs=1, seed=0),
        ... )
        >>> state = algorithm.init({"w": jnp.array([[4.0, -1.0], [-3.0, 2.0]])})
        >>> client = b"anna", fedjax.ClientDataset({"x": jnp.eye(2)}), jax.random.key(0)
        >>> for _ in range(2):
        ...     state, _ = algorithm.apply(state, [client])
        ...     print((state.params["w"] == 0).mean())
        0.0
        0.75
    """
    if not isinstance(updater, core.BaseUpdater):
        raise TypeError(f"updater must be a core updater such as core.MagnitudePruning(...), got {_described(updater)}")
    dense = _optax_transformation(optimizer)
    sparse = dataclasses.replace(updater, skip_gradients=False).wrap_optax(dense)
    return fedjax.optimizers.create_optimizer_from_optax(sparse)


def _optax_transformation(optimizer: Any) -> optax.GradientTransformation:
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    if not isinstance(optimizer, fedjax.Optimizer):
        raise TypeError(
            "optimizer must be an optax transformation such as optax.adam(0.01), or a fedjax.Optimizer made "
            f"from one, got {_described(optimizer)}"
        )
    transformation = _closed_over_transformation(optimizer)
    if transformation is None:
        raise TypeError(
            "this fedjax.Optimizer was not made by create_optimizer_from_optax, so the updates to be masked "
            "are out of reach in it; pass the optax transformation"
        )
    return transformation


def _closed_over_transformation(optimizer: fedjax.Optimizer) -> optax.GradientTransformation | None:
    """What `create_optimizer_from_optax` was given: its `apply` holds it as the variable `opt`."""
    apply = inspect.unwrap(optimizer.apply)
    if getattr(apply, "__qualname__", "") != "create_optimizer_from_optax.<locals>.apply":
        return None
    transformation = inspect.getclosurevars(apply).nonlocals.get("opt")
    return transformation if isinstance(transformation, optax.GradientTransformation) else None


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself; build an instance of it"
    if inspect.isroutine(value):
        return f"the function {value.__name__} itself; call it with its arguments"
    return f"a {type(value).__name__}"
