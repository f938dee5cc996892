"""Rounds shared by several processes, such as the machines of a cluster.

Every process runs the same program with the same clients, as JAX asks anyway:

    jax.distributed.initialize()
    with fedjax.for_each_client_backend(fed.DistributedBackend()):
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(...)

Each computes its share of a round's clients and is sent the outputs of the others, so all go on with the same state.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sparse_plugins.fed.fedjax.backends.batched import ScanBackend
from sparse_plugins.fed.fedjax.backends.client_batches import Clients, ForEachClient, Results

__all__ = ["DistributedBackend"]

_KEY = "key "


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
    message = np.frombuffer(_packed(results), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(message), np.int32))
    messages = multihost_utils.process_allgather(np.pad(message, (0, lengths.max() - len(message))))
    received = (_unpacked(sent[:length].tobytes(), results) for sent, length in zip(messages, lengths, strict=True))
    return [*itertools.chain.from_iterable(received)]


def _packed(results: list[list]) -> bytes:
    """Dtypes and shapes as JSON, then the numbers.

    The number of step results differs by client, and a process whose clients have no batches knows nothing of them.
    """
    leaves = [jax.tree.leaves(part) for output, steps in results for part in (output, *steps)]
    described = [[[_dtype_name(leaf), np.shape(_words(leaf))] for leaf in part] for part in leaves]
    some_step = next((step for _, steps in results for step in steps), None)
    counts = [len(steps) for _, steps in results]
    head = json.dumps({"counts": counts, "parts": described, "step": _containers(some_step)}).encode()
    return b"".join(
        [len(head).to_bytes(8, "little"), head, *(_words(leaf).tobytes() for part in leaves for leaf in part)]
    )


def _unpacked(message: bytes, local: list[list]) -> Iterator[list]:
    """The results of another process, in trees like those of this one."""
    end = 8 + int.from_bytes(message[:8], "little")
    head, view = json.loads(message[8:end]), memoryview(message)[end:]
    parts: list[list[jax.Array]] = []
    for part in head["parts"]:
        parts.append([])
        for dtype, shape in part:
            array, view = _taken(view, dtype, shape)
            parts[-1].append(array)
    queue = iter(parts)
    output_tree = jax.tree.structure(local[0][0])
    step_tree = next((jax.tree.structure(step) for _, steps in local for step in steps), None)
    if step_tree is None and any(head["counts"]):
        step_tree = jax.tree.structure(_built(head["step"]))
    for count in head["counts"]:
        output = jax.tree.unflatten(output_tree, next(queue))
        yield [output, [jax.tree.unflatten(step_tree, next(queue)) for _ in range(count)]]


def _taken(view: memoryview, dtype_name: str, shape: list[int]) -> tuple[jax.Array, memoryview]:
    is_key = dtype_name.startswith(_KEY)
    dtype = np.dtype(np.uint32) if is_key else jnp.dtype(dtype_name)
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    array = jnp.asarray(np.frombuffer(view[:size], dtype).reshape(shape))
    return jax.random.wrap_key_data(array, impl=dtype_name.removeprefix(_KEY)) if is_key else array, view[size:]


def _words(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _dtype_name(leaf).startswith(_KEY) else leaf)


def _dtype_name(leaf: Any) -> str:
    dtype = jnp.result_type(leaf)
    return f"{_KEY}{jax.random.key_impl(leaf)}" if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.name


def _containers(tree: Any) -> Any:
    """The tree as JSON has it, with True for leaves; a name in place of what JSON can't describe."""
    if tree is None:
        return None
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _containers(part) for key, part in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_containers(part) for part in tree]}
    return True if jax.tree_util.all_leaves([tree]) else type(tree).__name__


def _built(described: Any) -> Any:
    """A tree of the containers that `_containers` described."""
    if isinstance(described, str):
        raise TypeError(
            f"step results are a {described}, of which a process whose clients have no batches knows nothing; return "
            "dictionaries, lists and tuples from client_step, or raise clients_per_exchange."
        )
    match described:
        case {"dict": parts}:
            return {key: _built(part) for key, part in parts.items()}
        case {"list": parts}:
            return [_built(part) for part in parts]
        case {"tuple": parts}:
            return tuple(_built(part) for part in parts)
    return described
