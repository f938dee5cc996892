"""Any FedJAX algorithm, made sparse from outside: after each round its parameters are put onto masks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import optax

from sparse_plugins import core
from sparse_plugins.core.transform.state import find_sparse_state
from sparse_plugins.core.updater_defaults import AnyUpdater
from sparse_plugins.fed.fedjax.optimizers import sparse_server_optimizer, updater_of_server
from sparse_plugins.fed.mask_in_params import first_broadcast, mark_in_use
from sparse_plugins.wire.trees import PyTree

__all__ = ["SparsifiedState", "sparsify"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparsifiedState:
    """State of a sparsified algorithm; fields of the algorithm's own state can be read from it, too.

    Attributes:
        inner: State of the algorithm, its parameters sparse.
        opt_states: The updater's state (`core.SparseState`) of each model: one, or one a cluster.
    """

    inner: Any
    opt_states: list[core.SparseState]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("inner", "opt_states"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def sparsify(
    algorithm: fedjax.FederatedAlgorithm,
    updater: AnyUpdater,
    *,
    rounds: int | None = None,
    **words: Any,
) -> fedjax.FederatedAlgorithm:
    """Makes a FedJAX algorithm sparse that has no server optimizer to wrap.

    `mime` and `mime_lite` run their optimizer on the clients. Here the algorithm runs as it is, and what a round
    changed is taken as the round's update: it moves the parameters, then they are put onto the updater's masks. So
    they are sparse whatever the algorithm's server learning rate is. The steps of the updater's schedule are rounds.

    Clusters (`cluster_params` of `hyp_cluster`) have a mask each but one schedule; a cluster without clients puts a
    mask update that goes by gradients off, as `sparse_server_optimizer` does. Personal models of clients
    (`client_states` of `apfl`) are put onto the server's mask, so that mixing the two stays sparse.

    Args:
        algorithm: Any algorithm whose state has `params`, or a list `cluster_params`.
        updater: Which weights to keep, how many and from which round on; or the algorithm, by name or class.
        rounds: Length of the run; see `sparse_server_optimizer`.
        **words: For an `updater` that is an algorithm; see `sparse_server_optimizer`.

    Returns:
        The algorithm; its state is a `SparsifiedState` with the fields of the algorithm's own, and its `init` puts
        the initial parameters onto the updater's first masks.

    Raises:
        TypeError: If `updater` is no updater; from `init`, if the state has no parameters.
        ValueError: From `apply`, in a round that is to grow weights by gradients of which there are none.

    Example:
        >>> import functools
        >>> from sparse_plugins import core, fed
        >>> fedjax = fed.import_fedjax()
        >>> step = lambda state, clients: (state.replace(params={"w": state.params["w"] - 0.5}), {})
        >>> State = fedjax.dataclass(type("State", (), {"__annotations__": {"params": dict}}))
        >>> updater = core.MagnitudePruning(
        ...     sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5),
        ...     scheduler=core.OneShotSchedule(target_step=0))
        >>> algorithm = fed.sparsify(fedjax.FederatedAlgorithm(State, step), updater)
        >>> state, _ = algorithm.apply(algorithm.init({"w": jnp.array([[2.0, 1.0]])}), [])
        >>> state.params["w"].tolist()
        [[1.5, 0.0]]
    """
    updater = updater_of_server(updater, rounds, words)
    optimizer = sparse_server_optimizer(optax.sgd(1.0), updater)

    def init(*args: Any, **kwargs: Any) -> SparsifiedState:
        inner = algorithm.init(*args, **kwargs)
        models = _models(inner)
        opt_states = [optimizer.init(params) for params in models]
        sparse = [first_broadcast(updater, params, state) for params, state in zip(models, opt_states, strict=True)]
        return SparsifiedState(_with_models(inner, sparse), opt_states)

    def move(before: PyTree, after: PyTree, opt_state: core.SparseState) -> tuple[core.SparseState, PyTree]:
        return optimizer.apply(jax.tree.map(jnp.subtract, before, after), opt_state, before)

    def apply(state: SparsifiedState, clients: Any) -> tuple[SparsifiedState, Any]:
        inner, diagnostics = algorithm.apply(_with_copied_clients(state.inner), clients)
        steps = zip(_models(state.inner), _models(inner), state.opt_states, strict=True)
        moved = [move(*step) for step in steps]
        opt_states, models = ([pair[i] for pair in moved] for i in (0, 1))
        inner = _with_models(inner, models)
        return SparsifiedState(_with_personal_models(inner, models[0], opt_states[0]), opt_states), diagnostics

    return fedjax.FederatedAlgorithm(init, apply)


def _models(state: Any) -> list[PyTree]:
    if hasattr(state, "cluster_params"):
        return list(state.cluster_params)
    if hasattr(state, "params"):
        return [state.params]
    raise TypeError(
        f"the algorithm's state is a {type(state).__name__} without params or cluster_params: nothing to make sparse."
    )


def _with_models(state: Any, models: list[PyTree]) -> Any:
    if hasattr(state, "cluster_params"):
        return dataclasses.replace(state, cluster_params=models)
    return dataclasses.replace(state, params=models[0])


def _with_copied_clients(state: Any) -> Any:
    """A state whose clients can be changed in place, as `apfl` does, while the state before stays as it was."""
    personal = getattr(state, "client_states", None)
    return dataclasses.replace(state, client_states=dict(personal)) if isinstance(personal, Mapping) else state


def _with_personal_models(state: Any, server: PyTree, opt_state: core.SparseState) -> Any:
    personal = getattr(state, "client_states", None)
    if not isinstance(personal, Mapping):
        return state
    # Masks that are not stored are the zeros of the server's model, not of a client's.
    masks = core.unpack_masks(server, find_sparse_state(opt_state).masks)
    onto_mask = lambda params: mark_in_use(core.apply_masks(params, masks), masks)  # noqa: E731
    moved = {
        client: dataclasses.replace(client_state, params=onto_mask(client_state.params))
        for client, client_state in personal.items()
    }
    return dataclasses.replace(state, client_states=moved)
