"""Clients that want another model: what they compute instead of what they were asked for."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins import fed

fedjax: Any = fed.import_fedjax()


@dataclasses.dataclass(frozen=True)
class Attack:
    """What a hostile client does.

    Attributes:
        factor: By which it multiplies its update and its growth signal; below 0 their signs turn.
        relabels: The number of classes if it trains for other labels, the last class for the first and so on; else 0.
    """

    factor: float
    relabels: int = 0

    def on_batches(self, batches: Iterable[Any]) -> Iterable[Any]:
        """What it trains on."""
        return _Relabelled(batches, self.relabels) if self.relabels else batches

    def on_output(self, output: Any) -> Any:
        """What it sends; masks stay as they are."""
        is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda x: x * jnp.asarray(self.factor, x.dtype) if is_float(x) else x, output)


class HostileBackend(fedjax.ForEachClientBackend):
    """A backend in which some clients of `sparse_federated_averaging` are hostile, in all they are asked for.

    Args:
        backend: What runs the clients.
        attack: What the hostile ones do.
        count: How many of a round are: the first.
    """

    def __init__(self, backend: Any, attack: Attack, count: int) -> None:
        self._backend, self._attack, self._count = backend, attack, count

    def __call__(self, client_init: Any, client_step: Any, client_final: Any) -> Any:
        """A `for_each_client` function."""
        run_clients = self._backend(client_init, client_step, client_final)

        def run(shared_input: Any, clients: Iterable[Any]) -> Iterator[Any]:
            attacked = (
                (place, self._attack.on_batches(batches) if place < self._count else batches, client_input)
                for place, batches, client_input in clients
            )
            for place, output, results in run_clients(shared_input, attacked):
                yield place, self._attack.on_output(output) if place < self._count else output, results

        return run


class _Relabelled:
    """Batches with their classes in reverse."""

    def __init__(self, batches: Iterable[Any], classes: int) -> None:
        self._batches, self._classes = batches, classes

    def __iter__(self) -> Iterator[Any]:
        return ({**batch, "y": self._classes - 1 - batch["y"]} for batch in self._batches)
