"""Sparse training for JAX: one core, and front ends for optax, FedJAX and reinforcement-learning code.

Importing this package loads the core only, which needs nothing but jax, optax and numpy. A front end is an
ordinary subpackage and is loaded when you ask for it, for example `from sparse_plugins import fed`.
"""

from sparse_plugins import core

__version__ = "0.1.0"

__all__ = ["__version__", "core"]
