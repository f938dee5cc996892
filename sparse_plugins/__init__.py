"""Sparse training for JAX: one core, and front ends for optax, FedJAX and reinforcement-learning code.

Importing this package loads nothing. Its parts are ordinary subpackages, loaded when you ask for them: `from
sparse_plugins import core` needs nothing but jax, optax and numpy, `wire` numpy alone, and a front end such as `fed`
what its extra brings.
"""

import typing

from sparse_plugins import on_demand

if typing.TYPE_CHECKING:
    from sparse_plugins import core as core
    from sparse_plugins import wire as wire
else:
    _PARTS = ("core", "fed", "keras", "rl", "t5", "vision", "wire")
    __getattr__, __dir__ = on_demand.loaders(__name__, {}, {name: f"{__name__}.{name}" for name in _PARTS})

__version__ = "0.1.0"

__all__ = ["__version__", "core", "wire"]
