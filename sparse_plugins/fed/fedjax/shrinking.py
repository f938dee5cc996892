"""Federated runs without the channels that masks have pruned: small parameters, small messages, the same clients."""

import fedjax

from sparse_plugins import core
from sparse_plugins.core.checks import check_settled
from sparse_plugins.core.layers.shrink import shrink
from sparse_plugins.core.transform.state import settled
from sparse_plugins.fed.fedjax.sparse_fedavg import Averaging
from sparse_plugins.fed.server import SparseServerState

__all__ = ["shrunk"]


def shrunk(
    algorithm: fedjax.FederatedAlgorithm, state: SparseServerState, graph: core.ChannelGraph
) -> tuple[fedjax.FederatedAlgorithm, SparseServerState, core.Shrunk]:
    """A run of `sparse_federated_averaging` without the channels that its masks have pruned, which goes on as it was.

    From then on the server keeps and broadcasts the small parameters, clients train them with the `grad_fn` they had,
    send back updates of their shapes, and masks stay as they are. Clients, backend, aggregation, wire, faults and
    ledger are the same, and rounds are counted on. Widths of clients are parts of the channels left.

    To go on in a new process, save the state before it was shrunk and those after it, in folders of their own: restore
    the first, shrink it again, and restore the newest of the others into what you get.

    Args:
        algorithm: What `sparse_federated_averaging` returned.
        state: Its state, after the last change of masks.
        graph: Groups of the channels: `core.channel_graph(grad_fn, params, batch, key)`, or of any other function of
            the parameters, such as that of `core.ChannelGroups`.

    Returns:
        The algorithm, the state it goes on from, and what left: `core.expand` gives parameters in the old shapes back,
        for `fedjax.evaluate_model` with the model as it is, and `narrow` another function for the small ones.

    Raises:
        TypeError: If the algorithm is another.
        ValueError: If masks are still going to change, no channels can leave, or outputs would differ; see
            `core.shrink`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from sparse_plugins import core, fed
        >>> fedjax = fed.import_fedjax()
        >>> def grad_fn(params, batch, key):
        ...     loss = lambda params: jnp.mean((jnp.tanh(batch["x"] @ params["a"]) @ params["b"] - 1) ** 2)
        ...     return jax.grad(loss)(params)
        >>> params, key = {"a": jnp.ones((16, 8)), "b": jnp.ones((8, 1))}, jax.random.key(0)
        >>> data = fedjax.ClientDataset({"x": jax.random.normal(key, (4, 16))})
        >>> graph = core.channel_graph(grad_fn, params, data.all_examples(), key)
        >>> ledger = fed.Ledger()
        >>> algorithm = fed.sparse_federated_averaging(
        ...     grad_fn, fedjax.optimizers.sgd(0.1), optax.sgd(1.0), "magnitude", sparsity=0.5, rounds=2,
        ...     structure=core.ChannelGroups(graph), ledger=ledger,
        ...     client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=2, num_epochs=1, seed=0),
        ... )
        >>> state = algorithm.init(params)
        >>> for _ in range(2):
        ...     state, _ = algorithm.apply(state, [("anna", data, key)])
        >>> algorithm, state, small = fed.shrunk(algorithm, state, graph)
        >>> state, _ = algorithm.apply(state, [("anna", data, key)])
        >>> state.params["a"].shape, core.expand(small, state.params)["a"].shape, state.round
        ((16, 4), (16, 8), 3)
    """
    averaging = getattr(getattr(algorithm, "apply", None), "__self__", None)
    if not isinstance(averaging, Averaging):
        raise TypeError(
            "algorithm is none of fed.sparse_federated_averaging. For FedJAX's own, shrink params and opt_state with "
            "core.shrink, and build it again of small.narrow(grad_fn) and sparse_server_optimizer(tx, small.updater)."
        )
    check_settled(averaging.server.updater, int(state.opt_state.count))
    small = shrink(graph, state.params, state.opt_state.masks, opt_state=state.opt_state)
    smaller = SparseServerState(small.params, settled(small.opt_state), state.round)
    return averaging.without_channels(small).algorithm, smaller, small
