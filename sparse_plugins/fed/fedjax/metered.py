"""Bytes of algorithms that know nothing of bytes: what goes through `for_each_client`, as payloads of the codec."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.core.for_each_client import get_for_each_client_backend

from sparse_plugins import wire
from sparse_plugins.fed.ledger import Entry, Ledger
from sparse_plugins.fed.messages import Wire, name_of
from sparse_plugins.wire.trees import PyTree

__all__ = ["MeteredBackend"]


class MeteredBackend(fedjax.ForEachClientBackend):
    """A backend that sends everything between server and clients through the codec and writes down what it took.

    Build an algorithm of FedJAX inside `with fedjax.for_each_client_backend(MeteredBackend(ledger)):`. Each call of its
    `for_each_client` function is one pass over the clients: its shared input is the broadcast, a client's output the
    upload. Only entries that are not 0 travel; an upload like the broadcast states no positions but those where it
    differs. What is decoded is what the algorithm goes on with: with a wire of float16 or int8 down, what rounds to 0
    is pruned for the clients of `sparse_client_optimizer`, whose mask are the zeros; bfloat16 rounds nothing to 0.

    Args:
        ledger: Gets an entry for each client and pass.
        wire: Number formats and compression.
        backend: What runs the clients; FedJAX's current one when None.
        passes_per_round: 1 for most algorithms, 2 for `mime`, which asks for gradients first.
        uploaded: From a client's output to the part of it that travels; the rest stays with the client, as the
            personal models of `apfl` do.

    Raises:
        ValueError: If `passes_per_round` is below 1.

    Example:
        >>> from sparse_plugins import fed
        >>> fedjax = fed.import_fedjax()
        >>> ledger = fed.Ledger()
        >>> with fedjax.for_each_client_backend(fed.MeteredBackend(ledger)):
        ...     double = fedjax.for_each_client(lambda params, _: params, lambda p, batch: {"w": 2 * p["w"]})
        >>> outputs = dict(double({"w": jnp.array([0.0, 1.0, 0.0, 3.0])}, [("anna", [{"x": jnp.ones(1)}], None)]))
        >>> outputs["anna"]["w"].tolist(), ledger.total().down > ledger.total().up > 2 * 4
        ([0.0, 2.0, 0.0, 6.0], True)
    """

    def __init__(
        self,
        ledger: Ledger,
        wire: Wire = Wire(),
        backend: fedjax.ForEachClientBackend | None = None,
        passes_per_round: int = 1,
        uploaded: Callable[[PyTree], PyTree] = lambda output: output,
    ) -> None:
        if passes_per_round < 1:
            raise ValueError(f"passes_per_round is {passes_per_round}; give 1 or more.")
        self._ledger, self._wire, self._uploaded = ledger, wire, uploaded
        self._backend = backend or get_for_each_client_backend()
        self._passes_per_round = passes_per_round
        self._passes = 0

    def __call__(
        self, client_init: Callable[..., Any], client_step: Callable[..., Any], client_final: Callable[..., Any]
    ) -> Callable[..., Iterator[Any]]:
        """A `for_each_client` function."""
        run_clients = self._backend(client_init, client_step, client_final)

        def run(shared_input: PyTree, clients: Iterable[Any]) -> Iterator[Any]:
            number = self._passes // self._passes_per_round
            self._passes += 1
            down, shared = self._sent(shared_input, None, self._wire.down)
            masks = jax.tree.map(_says_something, shared)
            for client, output, results in run_clients(shared, clients):
                part = self._uploaded(output)
                # What is laid out like the broadcast is sent against its masks, which the server knows already.
                alike = jax.tree.structure(part) == jax.tree.structure(shared) and _shapes(part) == _shapes(shared)
                up, received = self._sent(part, masks if alike else None, self._wire.up)
                self._ledger.add(Entry(number, name_of(client), down, up, 0))
                yield client, received if part is output else _replaced(output, part, received), results

        return run

    def _sent(self, tree: PyTree, base: PyTree, dtype: str) -> tuple[int, PyTree]:
        """How many bytes a tree takes, and what arrives."""
        arrays = jax.tree.map(np.asarray, tree)
        masks = jax.tree.map(_says_something, arrays)
        payload = wire.encode(masks, arrays, dtype=dtype, base=base, zstd=self._wire.zstd)
        received = wire.decode(payload, arrays, base=base)
        values = jax.tree.map(_signed_zeros, received.values, received.masks) if dtype == "int8" else received.values
        return len(payload), jax.tree.map(jnp.asarray, values)


def _says_something(array: Any) -> np.ndarray[Any, Any]:
    """Where an array is not 0; -0.0 has to travel, too."""
    array = np.asarray(array)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    return np.asarray((array != 0) | np.signbit(array.astype(np.float32)) if is_float else array != 0)


def _signed_zeros(values: Any, mask: Any) -> Any:
    """Values sent as int8, which has no negative zero: a leaf of which nothing else was sent consists of such zeros."""
    is_float = jnp.issubdtype(values.dtype, jnp.floating)
    return np.where(mask, -values, values) if is_float and not values.any() else values


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _replaced(output: PyTree, part: PyTree, received: PyTree) -> PyTree:
    """The output with what was decoded in the place of the part that was sent."""
    is_part = lambda node: node is part  # noqa: E731
    return jax.tree.map(lambda node: received if node is part else node, output, is_leaf=is_part)
