"""Sparse federated learning: the core's updaters as drop-in parts of FedJAX.

Importing this package imports FedJAX through `import_fedjax`: it works on current JAX, and TensorFlow is left
alone until a function that needs it is called. A plain `import fedjax` afterwards gives the same module.
"""

from sparse_plugins.fed.fedjax.compat import import_fedjax

import_fedjax()  # before any other module of this package imports FedJAX

from sparse_plugins.checkpoints import CheckpointAccessError, CheckpointMismatchError  # noqa: E402
from sparse_plugins.fed.aggregation import Aggregation  # noqa: E402
from sparse_plugins.fed.checkpoints import Checkpoint, Checkpoints  # noqa: E402
from sparse_plugins.fed.faults import Faults  # noqa: E402
from sparse_plugins.fed.fedjax import datasets as datasets  # noqa: E402
from sparse_plugins.fed.fedjax.backends.distributed import DistributedBackend  # noqa: E402
from sparse_plugins.fed.fedjax.backends.in_one_call import ScanBackend, ShardedBackend, VmapBackend  # noqa: E402
from sparse_plugins.fed.fedjax.mask_in_params import sparse_broadcast  # noqa: E402
from sparse_plugins.fed.fedjax.metered import MeteredBackend  # noqa: E402
from sparse_plugins.fed.fedjax.optimizers import sparse_client_optimizer, sparse_server_optimizer  # noqa: E402
from sparse_plugins.fed.fedjax.quantizers import survivors_only  # noqa: E402
from sparse_plugins.fed.fedjax.sparse_fedavg import SparseServerState, sparse_federated_averaging  # noqa: E402
from sparse_plugins.fed.fedjax.sparsify import SparsifiedState, sparsify  # noqa: E402
from sparse_plugins.fed.ledger import Entry, Ledger, Total  # noqa: E402
from sparse_plugins.fed.messages import Wire  # noqa: E402
from sparse_plugins.fed.robust import FedMedian, FedTrimmedAvg, Krum  # noqa: E402
from sparse_plugins.wire import (  # noqa: E402
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

__all__ = [
    "Aggregation",
    "Binding",
    "BindingError",
    "Checkpoint",
    "CheckpointAccessError",
    "CheckpointMismatchError",
    "Checkpoints",
    "CodecError",
    "Decoded",
    "DistributedBackend",
    "Entry",
    "Faults",
    "FedMedian",
    "FedTrimmedAvg",
    "Krum",
    "Ledger",
    "MeteredBackend",
    "ScanBackend",
    "SeededMasks",
    "ShardedBackend",
    "SparseServerState",
    "SparsifiedState",
    "Total",
    "VmapBackend",
    "Wire",
    "decode",
    "encode",
    "import_fedjax",
    "masks_digest",
    "needed_base",
    "sparse_broadcast",
    "sparse_client_optimizer",
    "sparse_federated_averaging",
    "sparse_server_optimizer",
    "sparsify",
    "survivors_only",
]
