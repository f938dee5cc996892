"""What knows FedJAX. Importing anything here imports it first, ready for current JAX and without TensorFlow."""

from sparse_plugins.fed.fedjax.compat import import_fedjax

__all__: list[str] = []

import_fedjax()
