"""Rounds shared by several processes, such as the machines of a cluster.

Every process runs the same program with the same clients, as JAX asks anyway:

    jax.distributed.initialize()
    with fedjax.for_each_client_backend(fed.DistributedBackend()):
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(...)

Each computes its share of a round's clients and is sent the outputs of the others, so all go on with the same state.
"""

import itertools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sparse_plugins.fed.backends import ForEachClient, Results, ScanBackend
from sparse_plugins.fed.backends.client_batches import Clients


class DistributedBackend(fedjax.ForEachClientBackend):
    """Runs each client in one of the processes of `jax.distributed` and yields all of them in all processes.

    The processes must be given the same clients in the same order and use the same `with_step_result`. A process
    iterates over the batches of its own clients only; no process waits for another but to exchange outputs. What is
    sent is the output of every client to every process: one set of parameters a client for `fed_avg`.

    Args:
        backend: Runs the clients of a process; None: `ScanBackend()`.
        clients_per_exchange: Clients that a process runs between two exchanges. Their outputs, from all processes, are
            held in memory at once.

    Raises:
        TypeError: If `backend` is no backend.
        ValueError: If `clients_per_exchange` is less than 1.

    Example:
        >>> from sparse_plugins import fed
        >>> fedjax = fed.import_fedjax()
        >>> with fedjax.for_each_client_backend(fed.DistributedBackend()):
        ...     count = fedjax.for_each_client(lambda shared, _: shared, lambda state, batch: state + batch.size)
        >>> [(name, int(size)) for name, size in count(0, [("anna", [np.zeros(3)] * 2, ())])]
        [('anna', 6)]
    """

    def __init__(self, backend: fedjax.ForEachClientBackend | None = None, *, clients_per_exchange: int = 1) -> None:
        backend = ScanBackend() if backend is None else backend
        if not isinstance(backend, fedjax.ForEachClientBackend):
            raise TypeError(f"backend must be a backend such as fed.ScanBackend(), got a {type(backend).__name__}")
        if clients_per_exchange < 1:
            raise ValueError(f"clients_per_exchange must be at least 1, got {clients_per_exchange}")
        self._backend = backend
        self._clients_per_exchange = clients_per_exchange

    def __call__(self, client_init: Callable, client_step: Callable, client_final: Callable) -> ForEachClient:
        """Creates a `for_each_client` function; FedJAX calls this."""
        run_here = self._backend(client_init, client_step, client_final)

        def run(shared_input: Any, clients: Clients) -> Results:
            rank, processes = jax.process_index(), jax.process_count()
            clients = iter(clients)
            while ahead := list(itertools.islice(clients, processes * self._clients_per_exchange)):
                each = -(-len(ahead) // processes)
                # The last processes repeat clients where there are too few, so that all have something to send.
                mine = [(place, *ahead[(rank * each + place) % len(ahead)][1:]) for place in range(each)]
                done = {place: results for place, *results in run_here(shared_input, mine)}
                everywhere = _exchange([done.pop(place) for place in range(each)])
                everywhere.reverse()  # and popped, so that no output outlives its use
                for client_id, _, _ in ahead:
                    yield client_id, *everywhere.pop()

        return run


def _exchange(results: list[list]) -> list[list]:
    """What every process has, in the order of the processes."""
    if jax.process_count() == 1:
        return results
    # Pickled, as the number of step results differs by client, and one without batches knows nothing of their shapes.
    message = np.frombuffer(pickle.dumps(jax.tree.map(_on_host, results)), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(message), np.int32))
    messages = multihost_utils.process_allgather(np.pad(message, (0, lengths.max() - len(message))))
    received = [pickle.loads(sent[:length].tobytes()) for sent, length in zip(messages, lengths, strict=True)]
    return jax.tree.map(_on_device, list(itertools.chain.from_iterable(received)), is_leaf=_is_sent_key)


class _SentKey(NamedTuple):
    implementation: str
    data: np.ndarray


def _on_host(array: Any) -> Any:
    if jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
        return _SentKey(str(jax.random.key_impl(array)), np.asarray(jax.random.key_data(array)))
    return np.asarray(array)


def _on_device(sent: Any) -> jax.Array:
    if isinstance(sent, _SentKey):
        return jax.random.wrap_key_data(jnp.asarray(sent.data), impl=sent.implementation)
    return jnp.asarray(sent)


def _is_sent_key(node: Any) -> bool:
    return isinstance(node, _SentKey)
