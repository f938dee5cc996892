"""Sparse federated learning: the core's updaters as drop-in parts of FedJAX.

Importing this package imports FedJAX through `import_fedjax`: it works on current JAX, and TensorFlow is left
alone until a function that needs it is called. A plain `import fedjax` afterwards gives the same module.
"""

from sparse_plugins.fed.compat import import_fedjax

import_fedjax()  # before any other module of this package imports FedJAX

from sparse_plugins.fed.optimizers import sparse_client_optimizer, sparse_server_optimizer  # noqa: E402
from sparse_plugins.fed.sparsified import SparsifiedState, sparsify  # noqa: E402

__all__ = ["SparsifiedState", "import_fedjax", "sparse_client_optimizer", "sparse_server_optimizer", "sparsify"]
