"""What Dopamine's agents call their networks with, seen where they initialize them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.layers.layers_at_hand import layers_at_hand
from sparse_plugins.core.trees import PyTree

__all__ = ["FirstCall", "first_call"]


class FirstCall:
    """The first call of a network, which every agent makes with other inputs: quantiles, keys, flags."""

    def __init__(self) -> None:
        self._call: tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]] | None = None

    def __call__(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Remembers the call, as an interceptor of Flax, and makes it."""
        if self._call is None and context.method_name == "__call__":
            self._call = context.module.clone(parent=None), args, kwargs
        return method(*args, **kwargs)

    def function(self) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
        """The network as a function of parameters and arrays, and shapes of the arrays that it was called with.

        Raises:
            ValueError: If no network was called.
        """
        network, args, kwargs = self._made
        leaves, treedef = jax.tree.flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

        def called(params: PyTree, *arrays: Any) -> Any:
            filled = dict(zip(places, arrays, strict=True))
            args, kwargs = treedef.unflatten([filled.get(place, leaf) for place, leaf in enumerate(leaves)])
            return network.apply(params, *args, **kwargs)

        arrays = [leaves[place] for place in places]
        return called, [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in arrays]

    def layers(self, params: PyTree) -> Layers:
        """What the axes of the network's parameters are, by the same call; traced, not computed.

        Args:
            params: The network's variables.

        Raises:
            ValueError: If no network was called.
        """
        network, args, kwargs = self._made
        return layers_at_hand(network.apply, params, *args, **kwargs)

    @property
    def _made(self) -> tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]]:
        if self._call is None:
            raise ValueError("the agent initialized no Flax network; wrap its optimizer with updater.wrap_optax.")
        return self._call


@contextlib.contextmanager
def first_call() -> Iterator[FirstCall]:
    """Watches which network is called first, and with what.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> with first_call() as call:
        ...     params = nn.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
        >>> print(call.layers(params))
        params/bias    (2,)    elementwise 2
        params/kernel  (3, 2)  inputs 3, outputs 2
    """
    call = FirstCall()
    with nn.intercept_methods(call):
        yield call
