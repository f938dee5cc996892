"""Faster ways to run the clients of a round, for FedJAX's algorithms as they are.

FedJAX calls a jitted function for every batch of every client. These backends run many batches in one call, and many
clients at once. An algorithm takes the backend that is chosen when it is built:

    with fedjax.for_each_client_backend(fed.ScanBackend()):
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(...)

A backend yields what FedJAX's own yields, up to rounding. Clients are read and results handed on as they come, so
memory does not grow with their number.
"""

import abc
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_plugins.core.trees import common_dtype
from sparse_plugins.fed.fedjax.backends.client_batches import (
    Clients,
    ForEachClient,
    Results,
    bucket,
    owning,
    runs,
    runs_of_group,
    similar_groups,
    stack,
    stack_full,
    stack_group,
)
from sparse_plugins.fed.fedjax.backends.im2col import as_matmuls
from sparse_plugins.fed.fedjax.backends.on_cpus import by_batch
from sparse_plugins.fed.fedjax.backends.rewrite import equations_of

__all__ = ["Programs", "ScanBackend", "ShardedBackend"]


class Programs(NamedTuple):
    """The jitted parts of a client's work, for one client or for a group along a leading axis of all arrays.

    Attributes:
        init: Maps shared input and client input to the client's state.
        advance: Maps the state, stacked batches and how many of them count to the next state and a list of step
            results, one for each stacked batch. Takes over the memory of the state.
        final: Maps shared input and state to the client's output.
    """

    init: Callable
    advance: Callable
    final: Callable


def _programs(init: Callable, step: Callable, final: Callable) -> Programs:
    # Jitted once more so that it is traced once for the shapes of its results and for the loop.
    return Programs(init, functools.partial(_advance, jax.jit(step)), final)


class _Backend(fedjax.ForEachClientBackend):
    def __init__(self, *, max_batches: int = 32, matmul_convolutions: bool | None = None) -> None:
        _check_positive(max_batches=max_batches)
        self._max_batches = max_batches
        self._matmul_convolutions = matmul_convolutions

    def __call__(self, client_init: Callable, client_step: Callable, client_final: Callable) -> ForEachClient:
        """Creates a `for_each_client` function; FedJAX calls this."""
        matmuls = self._matmul_convolutions
        if matmuls is None:
            matmuls = jax.default_backend() == "cpu"
        step = as_matmuls(client_step) if matmuls else client_step
        return self._for_each_client(_programs(client_init, step, client_final))

    @abc.abstractmethod
    def _for_each_client(self, programs: Programs) -> ForEachClient: ...


class ScanBackend(_Backend):
    """Runs one client after another, all batches of a client in one loop on the device.

    On CPUs, where a convolution in a loop takes tens of times as long as outside one, clients whose steps have some run
    batch by batch, with the gradients of max pooling by shifts and those of large kernels by Eigen: XLA's default for
    both is slow there anywhere.

    Args:
        max_batches: Most batches in one call, which bounds the memory for a client's data. Numbers of batches are
            rounded up to a power of two, and what is added is not run: a program is compiled for each power of two and
            batch shape, not for each client.
        matmul_convolutions: Whether all runs in loops, with convolutions, and gradients of max pooling, as matrix
            products (see `im2col`), or as they are. None: as they are, but for what is said of CPUs.

    Raises:
        ValueError: If `max_batches` is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import fed
        >>> fedjax = fed.import_fedjax()
        >>> with fedjax.for_each_client_backend(fed.ScanBackend()):
        ...     total = fedjax.for_each_client(
        ...         client_init=lambda shared, start: shared + start,
        ...         client_step=lambda state, batch: state + jnp.sum(batch["x"]),
        ...     )
        >>> ones = fedjax.ClientDataset({"x": jnp.ones(5)})
        >>> [(name, float(sum_)) for name, sum_ in total(10.0, [("anna", ones.batch(batch_size=2), 100.0)])]
        [('anna', 115.0)]
    """

    def __call__(self, client_init: Callable, client_step: Callable, client_final: Callable) -> ForEachClient:
        """Creates a `for_each_client` function; FedJAX calls this."""
        if self._matmul_convolutions is not None:
            return super().__call__(client_init, client_step, client_final)
        looped = self._for_each_client(_programs(client_init, client_step, client_final))
        if jax.default_backend() != "cpu":
            return looped
        called = by_batch(client_init, client_step, client_final)
        chosen: list[ForEachClient] = []

        def run(shared_input: Any, clients: Clients) -> Results:
            for name, batches, client_input in clients:
                rest = iter(batches)
                head = list(itertools.islice(rest, 1))
                if head and not chosen:
                    step = lambda *inputs: client_step(client_init(*inputs[:2]), inputs[2])  # noqa: E731
                    program = jax.make_jaxpr(step)(shared_input, client_input, head[0])
                    chosen.append(called if equations_of(program, "conv_general_dilated") else looped)
                of_client = chosen[0] if chosen else looped
                yield from of_client(shared_input, [(name, itertools.chain(head, rest), client_input)])

        return run

    def _for_each_client(self, programs: Programs) -> ForEachClient:
        init, final = jax.jit(owning(programs.init)), jax.jit(programs.final)
        advance = jax.jit(programs.advance, donate_argnums=0)

        @jax.jit
        def whole(shared_input: Any, client_input: Any, batches: Any, count: jax.Array) -> tuple[Any, list]:
            state, results = programs.advance(programs.init(shared_input, client_input), batches, count)
            return programs.final(shared_input, state), results

        def run_client(shared_input: Any, client_input: Any, batches: Iterable[Any]) -> tuple[Any, list]:
            rest = runs(batches, self._max_batches)
            first, second = next(rest, []), next(rest, [])
            if first and not second:  # most clients
                output, results = whole(shared_input, client_input, stack(first, bucket(len(first))), len(first))
                return output, results[: len(first)]
            state, step_results = init(shared_input, client_input), []
            for alike in filter(None, itertools.chain([first, second], rest)):
                state, results = advance(state, stack(alike, bucket(len(alike))), len(alike))
                step_results.extend(results[: len(alike)])
            return final(shared_input, state), step_results

        def run(shared_input: Any, clients: Clients) -> Results:
            for client_id, batches, client_input in clients:
                yield client_id, *run_client(shared_input, client_input, batches)

        return run


class ShardedBackend(_Backend):
    """Runs groups of clients at once, as one vectorized loop on each device, without any exchange between them.

    For several devices, and for those that one client leaves idle. A CPU is none: on it `ScanBackend` is as fast or
    faster, for small models, too. Accelerators have not been measured.

    A group's loop is as long as its largest client's, so clients of similar size are put together, among
    the next `LOOKAHEAD` groups. Clients are therefore yielded in another order than they come.

    Args:
        devices: Local devices; None: all of them. Outputs are handed on from the first.
        clients_per_device: Clients that a device runs at once. Memory for parameters and optimizer states grows with
            them.
        max_batches: As for `ScanBackend`, for each client.
        matmul_convolutions: As for `ScanBackend`. Worth a try on accelerators, too: a convolution with another kernel
            for each client is a grouped one, which are often slow.

    Raises:
        ValueError: If there are no devices, or a count is less than 1.

    Example:
        >>> from sparse_plugins import fed
        >>> fedjax = fed.import_fedjax()
        >>> with fedjax.for_each_client_backend(fed.ShardedBackend(clients_per_device=2)):
        ...     count = fedjax.for_each_client(lambda shared, _: shared, lambda state, batch: state + batch.size)
        >>> clients = [(name, [np.zeros(3)] * size, ()) for name, size in {"anna": 1, "bo": 0, "cleo": 5}.items()]
        >>> {name: int(size) for name, size in count(0, clients)}
        {'cleo': 15, 'anna': 3, 'bo': 0}
    """

    def __init__(
        self,
        devices: Sequence[jax.Device] | None = None,
        *,
        clients_per_device: int = 1,
        max_batches: int = 32,
        matmul_convolutions: bool | None = None,
    ) -> None:
        _check_positive(clients_per_device=clients_per_device)
        self._devices = list(jax.local_devices() if devices is None else devices)
        if not self._devices:
            raise ValueError("devices is empty; pass at least one, or None for all local devices")
        super().__init__(max_batches=max_batches, matmul_convolutions=matmul_convolutions)
        self._group_size = clients_per_device * len(self._devices)
        self._mesh = Mesh(np.asarray(self._devices), ("clients",))

    def _for_each_client(self, programs: Programs) -> ForEachClient:
        init, advance, final = self._mapped(programs)
        unstack = jax.jit(functools.partial(_unstack, size=self._group_size))

        def run(shared_input: Any, clients: Clients) -> Results:
            shared_input = self._replicated(shared_input)
            for group in similar_groups(clients, self._group_size):
                names, batches, inputs = zip(*group, strict=True)
                state = init(shared_input, self._split(stack_full(inputs, self._group_size)))
                step_results: list[list] = [[] for _ in group]
                for alike in runs_of_group(batches, self._max_batches):
                    counts = np.asarray([len(run) for run in alike] + [0] * (self._group_size - len(alike)), np.int32)
                    stacked = self._split(stack_group(alike, self._group_size))
                    state, results = advance(state, stacked, self._split(counts))
                    per_client = unstack(self._gathered(results))
                    for into, client_results, run_now in zip(step_results, per_client, alike, strict=False):
                        into.extend(client_results[: len(run_now)])
                outputs = unstack(self._gathered(final(shared_input, state)))
                del state
                # Reversed and popped, so that no output outlives its use.
                rest = list(zip(names, outputs, step_results, strict=False))[::-1]
                del outputs
                while rest:
                    yield rest.pop()

        return run

    def _mapped(self, programs: Programs) -> Programs:
        split, shared = PartitionSpec("clients"), PartitionSpec()
        # The check of what varies between devices does not know that a state made of shared input will.
        sharded = functools.partial(jax.shard_map, mesh=self._mesh, out_specs=split, check_vma=False)
        init, advance, final = _vectorized(programs, self._group_size // len(self._devices))
        init, final = (sharded(program, in_specs=(shared, split)) for program in (init, final))
        advance = sharded(advance, in_specs=split)
        return Programs(jax.jit(init), jax.jit(advance, donate_argnums=0), jax.jit(final))

    def _replicated(self, shared_input: Any) -> Any:
        return jax.device_put(shared_input, NamedSharding(self._mesh, PartitionSpec()))

    def _split(self, of_clients: Any) -> Any:
        return jax.device_put(of_clients, NamedSharding(self._mesh, PartitionSpec("clients")))

    def _gathered(self, results: Any) -> Any:
        return jax.device_put(results, self._devices[0])


def _vectorized(programs: Programs, size: int) -> Programs:
    """The programs for this many clients at once."""
    over_clients = functools.partial(jax.vmap, axis_size=size)
    init, final = (over_clients(program, (None, 0)) for program in (owning(programs.init), programs.final))
    return Programs(init, over_clients(programs.advance), final)


def _advance(step: Callable, state: Any, batches: Any, count: jax.Array) -> tuple[Any, list]:
    """Takes the first `count` steps, at least 0; returns the state and a list of results as long as the stack."""
    size = len(jax.tree.leaves(batches)[0])
    state = jax.tree.map(jnp.asarray, state)  # an initial state may hold Python numbers
    at = lambda i: jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), batches)  # noqa: E731
    next_state, result = jax.eval_shape(step, state, jax.eval_shape(at, 0))
    room = jax.tree.map(lambda leaf: lax.full((size, *leaf.shape), 0, leaf.dtype), result)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, results = carry
        state, result = step(state, at(i))
        put = functools.partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
        return state, jax.tree.map(put, results, result)

    state, results = lax.fori_loop(0, count, body, (_as_after_a_step(state, next_state), room))
    return state, _unstack(results, size)


def _as_after_a_step(state: Any, next_state: Any) -> Any:
    """The state with the types that a step gives it, such as float for a sum that starts as the integer 0."""

    def widened(path: Any, before: jax.Array, after: Any) -> jax.Array:
        if before.shape == after.shape and before.dtype == after.dtype:
            return before
        if before.shape != after.shape or common_dtype(before.dtype, after.dtype) != after.dtype:
            raise TypeError(
                f"client_step turns state{jax.tree_util.keystr(path)} from {before.dtype}{list(before.shape)} into "
                f"{after.dtype}{list(after.shape)}, but a loop on the device needs a state that stays as it is; make "
                "client_init return what client_step does, or use FedJAX's backend 'jit'"
            )
        return before.astype(after.dtype)

    if jax.tree.structure(state) != jax.tree.structure(next_state):
        raise TypeError(
            "client_step returns another tree of state than it gets, but a loop on the device needs one that stays: "
            f"got {jax.tree.structure(next_state)} from {jax.tree.structure(state)}; make client_init return what "
            "client_step does, or use FedJAX's backend 'jit'"
        )
    return jax.tree_util.tree_map_with_path(widened, state, next_state)


def _unstack(tree: Any, size: int) -> list[Any]:
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(size)]


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
