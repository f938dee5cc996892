"""Algorithms of a file share the programs of clients and servers that do the same."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sparse_plugins import fed


def shared(make: Callable[..., Any]) -> Callable[..., Any]:
    """Makes what the same backend does with the same functions once."""
    from fedjax.core.for_each_client import get_for_each_client_backend

    made = functools.cache(lambda backend, *parts: make(*parts))
    return lambda *parts: made(get_for_each_client_backend(), *parts)


@pytest.fixture(scope="module", autouse=True)
def programs_compiled_once() -> Iterator[None]:
    """Most tests build an algorithm around the same gradient, optimizers and updaters."""
    fed.import_fedjax()
    from fedjax.algorithms import fed_avg

    from sparse_plugins.fed.fedjax import sparse_fedavg

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(fed_avg, "create_train_for_each_client", shared(fed_avg.create_train_for_each_client))
        for name in ("masked_training", "mean_gradient", "sparse_server"):
            patches.setattr(sparse_fedavg, name, shared(getattr(sparse_fedavg, name)))
        yield
