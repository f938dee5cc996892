"""Calls of functions that have lost channels, with whatever the whole ones are called with."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sparse_plugins.core.layers.channel_groups import ChannelGraph
from sparse_plugins.core.layers.shrink import narrowed

__all__ = ["NarrowCalls", "of_arrays"]


class NarrowCalls:
    """Calls functions of smaller parameters. Arrays among the arguments are inputs, all else is part of the program.

    Args:
        graph: The network's groups.
        kept: For each group that lost channels those that are left, int[channels left].

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> def apply(params, x, scale, *, is_scaled=False):
        ...     outputs = jnp.tanh(x @ params["a"]) @ params["b"]
        ...     return outputs * scale if is_scaled else outputs
        >>> graph = core.channel_graph(apply, params, jnp.ones((1, 3)), 2.0)
        >>> small = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}
        >>> calls = NarrowCalls(graph, {"a": np.array([0, 2])})
        >>> calls("apply", apply, (small,), jnp.zeros((1, 3)), scale=jnp.ones(()), is_scaled=True).tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, graph: ChannelGraph, kept: Mapping[str, np.ndarray]) -> None:
        self._graph, self._kept = graph, kept
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self, name: Hashable, function: Callable[..., Any], first: Sequence[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """`function(*first, *args, **kwargs)`.

        Args:
            name: What tells the function from others; the first of a name is called for all.
            function: What to call.
            first: Trees of arrays, the first of them the smaller parameters.
            *args: Further arguments.
            **kwargs: The same by name.
        """
        called, arrays, static = of_arrays(function, len(first), args, kwargs)
        if (key := (name, static)) not in self._programs:
            self._programs[key] = narrowed(dataclasses.replace(self._graph, apply=called), self._kept)
        return self._programs[key](*first, *arrays)


def of_arrays(
    function: Callable[..., Any], count: int, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], list[Any], Hashable]:
    """A function of some trees and of the arrays among its other arguments.

    Args:
        function: Called as `function(*trees, *args, **kwargs)`.
        count: How many trees.
        args: The other arguments.
        kwargs: The same by name.

    Returns:
        The function of trees and arrays, these arrays, and what tells other arguments from these.

    Example:
        >>> scaled = lambda params, x, by, times=1: params * x * by * times
        >>> function, arrays, _ = of_arrays(scaled, 1, (np.array(3), 2), {"times": np.array(7)})
        >>> int(function(np.array(1), *arrays)), len(arrays)
        (42, 2)
    """
    leaves, treedef = jax.tree.flatten((args, kwargs))
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    arrays = [leaf for leaf, is_input in zip(leaves, is_array, strict=True) if is_input]
    static = [leaf for leaf, is_input in zip(leaves, is_array, strict=True) if not is_input]

    def called(*trees_and_arrays: Any) -> Any:
        both = {True: iter(trees_and_arrays[count:]), False: iter(static)}
        args, kwargs = treedef.unflatten([next(both[is_input]) for is_input in is_array])
        return function(*trees_and_arrays[:count], *args, **kwargs)

    # True equals 1 and 1.0
    return called, arrays, (treedef, tuple(is_array), tuple((type(leaf), leaf) for leaf in static))
