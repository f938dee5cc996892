"""Sparse federated learning: the core's updaters as drop-in parts of FedJAX, and what belongs to no framework.

Importing this package loads nothing. Its names are loaded when they are asked for: the codec needs NumPy, the ledger
not even that, and what stands in `fed.fedjax` imports FedJAX through `import_fedjax`, so that it works on current JAX
and leaves TensorFlow alone until a function that needs it is called. A plain `import fedjax` after that, for which
`fed.import_fedjax()` always will do, gives the same module.
"""

import typing

from sparse_plugins import on_demand

if typing.TYPE_CHECKING:
    from sparse_plugins.checkpoints import CheckpointAccessError, CheckpointMismatchError
    from sparse_plugins.fed import flower as flower
    from sparse_plugins.fed import strokes as strokes
    from sparse_plugins.fed.aggregation import Aggregation
    from sparse_plugins.fed.checkpoints import Checkpoint, Checkpoints
    from sparse_plugins.fed.client_widths import ClientWidths
    from sparse_plugins.fed.faults import Faults
    from sparse_plugins.fed.fedjax import datasets as datasets
    from sparse_plugins.fed.fedjax.backends.batched import ScanBackend, ShardedBackend
    from sparse_plugins.fed.fedjax.backends.distributed import DistributedBackend
    from sparse_plugins.fed.fedjax.compat import import_fedjax
    from sparse_plugins.fed.fedjax.metered import MeteredBackend
    from sparse_plugins.fed.fedjax.optimizers import first_params, sparse_client_optimizer, sparse_server_optimizer
    from sparse_plugins.fed.fedjax.quantizers import survivors_only
    from sparse_plugins.fed.fedjax.shrinking import shrunk
    from sparse_plugins.fed.fedjax.sparse_fedavg import sparse_federated_averaging
    from sparse_plugins.fed.fedjax.sparsify import SparsifiedState, sparsify
    from sparse_plugins.fed.growth import GrowthProtocol
    from sparse_plugins.fed.ledger import Entry, Ledger, Total
    from sparse_plugins.fed.mask_in_params import sparse_broadcast
    from sparse_plugins.fed.messages import Wire
    from sparse_plugins.fed.robust_aggregation import FedMedian, FedTrimmedAvg, Krum
    from sparse_plugins.fed.server import SparseServerState
    from sparse_plugins.wire import (
        Binding,
        BindingError,
        CodecError,
        Decoded,
        SeededMasks,
        decode,
        encode,
        masks_digest,
        needed_base,
    )
else:
    _MODULES = {
        "fed.aggregation": ("Aggregation",),
        "checkpoints": ("CheckpointAccessError", "CheckpointMismatchError"),
        "fed.checkpoints": ("Checkpoint", "Checkpoints"),
        "fed.client_widths": ("ClientWidths",),
        "fed.faults": ("Faults",),
        "fed.fedjax.backends.distributed": ("DistributedBackend",),
        "fed.fedjax.backends.batched": ("ScanBackend", "ShardedBackend"),
        "fed.fedjax.compat": ("import_fedjax",),
        "fed.mask_in_params": ("sparse_broadcast",),
        "fed.fedjax.metered": ("MeteredBackend",),
        "fed.fedjax.optimizers": ("first_params", "sparse_client_optimizer", "sparse_server_optimizer"),
        "fed.fedjax.quantizers": ("survivors_only",),
        "fed.fedjax.shrinking": ("shrunk",),
        "fed.fedjax.sparse_fedavg": ("sparse_federated_averaging",),
        "fed.fedjax.sparsify": ("SparsifiedState", "sparsify"),
        "fed.growth": ("GrowthProtocol",),
        "fed.ledger": ("Entry", "Ledger", "Total"),
        "fed.messages": ("Wire",),
        "fed.robust_aggregation": ("FedMedian", "FedTrimmedAvg", "Krum"),
        "fed.server": ("SparseServerState",),
        "wire": (
            "Binding",
            "BindingError",
            "CodecError",
            "Decoded",
            "SeededMasks",
            "decode",
            "encode",
            "masks_digest",
            "needed_base",
        ),
    }
    __getattr__, __dir__ = on_demand.loaders(
        __name__,
        {name: f"sparse_plugins.{module}" for module, names in _MODULES.items() for name in names},
        {
            "datasets": "sparse_plugins.fed.fedjax.datasets",
            "flower": "sparse_plugins.fed.flower",
            "strokes": "sparse_plugins.fed.strokes",
        },
    )

__all__ = [
    "Aggregation",
    "Binding",
    "BindingError",
    "Checkpoint",
    "CheckpointAccessError",
    "CheckpointMismatchError",
    "Checkpoints",
    "ClientWidths",
    "CodecError",
    "Decoded",
    "DistributedBackend",
    "Entry",
    "Faults",
    "FedMedian",
    "FedTrimmedAvg",
    "GrowthProtocol",
    "Krum",
    "Ledger",
    "MeteredBackend",
    "ScanBackend",
    "SeededMasks",
    "ShardedBackend",
    "SparseServerState",
    "SparsifiedState",
    "Total",
    "Wire",
    "decode",
    "encode",
    "first_params",
    "import_fedjax",
    "masks_digest",
    "needed_base",
    "shrunk",
    "sparse_broadcast",
    "sparse_client_optimizer",
    "sparse_federated_averaging",
    "sparse_server_optimizer",
    "sparsify",
    "survivors_only",
]
