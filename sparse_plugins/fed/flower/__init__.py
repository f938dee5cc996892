"""Sparse federated learning over Flower: real clients behind one wrapper on the server and one mod on each client.

Importing this package loads nothing. `sparse_mod` and `training_masks` need Flower and NumPy, no JAX: that is a client.
`SparseStrategy` needs JAX and optax: that is the server. `LocalGrid` plays clients in the server's process.
"""

import typing

from sparse_plugins import on_demand

if typing.TYPE_CHECKING:
    from sparse_plugins.fed.flower.client import sparse_mod, training_masks
    from sparse_plugins.fed.flower.local_grid import LocalGrid
    from sparse_plugins.fed.flower.strategy import SparseStrategy
else:
    _MODULES = {
        "client": ("training_masks", "sparse_mod"),
        "local_grid": ("LocalGrid",),
        "strategy": ("SparseStrategy",),
    }
    __getattr__, __dir__ = on_demand.loaders(
        __name__, {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
    )

__all__ = ["LocalGrid", "SparseStrategy", "sparse_mod", "training_masks"]
