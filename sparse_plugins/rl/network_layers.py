"""What the axes of a network's parameters are, read from its `apply`."""

import inspect
from typing import Any

import jax

from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.layers.layers_at_hand import layers_at_hand
from sparse_plugins.core.trees import PyTree

__all__ = ["layers_of_network"]


def layers_of_network(network: Any, params: PyTree, key: jax.Array, inputs: tuple[Any, ...]) -> Layers | None:
    """The axes of a network's parameters, nothing computed.

    Args:
        network: What has `init` and `apply`, such as an `hk.Transformed` or a Flax module, or a pair of both.
        params: Its parameters; shapes will do.
        key: Given to an `apply` that takes one before the inputs, as Haiku's does.
        inputs: What its `init` takes after the key.

    Returns:
        The axes; those of a network that cannot be traced say why. None if it has no `apply`.

    Example:
        >>> import haiku as hk
        >>> network = hk.transform(lambda x: hk.Linear(2)(x))
        >>> shapes = jax.eval_shape(network.init, jax.random.key(0), jax.numpy.ones((1, 3)))
        >>> print(layers_of_network(network, shapes, jax.random.key(0), (jax.numpy.ones((1, 3)),)))
        linear/b  (2,)    elementwise 2
        linear/w  (3, 2)  inputs 3, outputs 2
    """
    apply = network[1] if type(network) is tuple else getattr(network, "apply", None)
    if not callable(apply):
        return None
    takes_key = [*inspect.signature(apply).parameters][1:2] in (["rng"], ["key"])
    return layers_at_hand(apply, params, *([key] if takes_key else []), *inputs)
