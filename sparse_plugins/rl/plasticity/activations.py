"""What flows through a Flax network: activations of its hidden layers, features, and which layer feeds which.

A layer is a module that owns a 'kernel' or 'kernel_mu'; it is called by the path of its parameters, as
`core.leaf_names` writes it: 'params/Conv_0'. Which layers are hidden is read from the computation, not from names, so
residual blocks, dueling heads and quantile embeddings need no list.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.trees import PyTree, leaf_names

if TYPE_CHECKING:  # loaded by whoever builds the network
    from flax import linen as nn

__all__ = ["hidden_activations", "layer_graph", "penultimate_features", "recyclable"]

KERNELS = ("kernel", "kernel_mu")

Calls = list[tuple[str, list[jax.Array], jax.Array]]  # layer, arrays it reads, what it returns


def hidden_activations(
    network_def: "nn.Module",
    variables: PyTree,
    states: jax.Array,
    *inputs: Any,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    **options: Any,
) -> dict[str, jax.Array]:
    """Activations of all hidden layers.

    Args:
        network_def: Flax (Linen) module that maps one state to its outputs, as Dopamine's networks do.
        variables: Its variables: `{'params': ...}`.
        states: [batch, ...] states, preprocessed as for the network.
        *inputs: Further inputs that all states share: the support of Rainbow; the number of quantiles and a key of an
            implicit quantile network.
        activation: Nonlinearity behind the hidden layers.
        **options: Keywords of `network_def.apply`, such as `method`, or `eval_mode` and `key` of full Rainbow.

    Returns:
        By layer, in the order of the calls, [batch, ..., units]. Layers whose output no other layer reads are left
        out; a layer that is called n times has an axis [batch, n, ...].

    Raises:
        ValueError: If the network has no layers.

    Example:
        >>> import flax.linen as nn
        >>> network = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
        >>> states = jnp.ones((5, 4))
        >>> variables = network.init(jax.random.key(0), states[0])
        >>> {name: layer.shape for name, layer in hidden_activations(network, variables, states).items()}
        {'params/layers_0': (5, 3)}
    """
    graph = layer_graph(network_def, variables, states[0], *inputs, **options)

    def outputs(state: jax.Array) -> dict[str, jax.Array]:
        by_layer: dict[str, list[jax.Array]] = {}
        for name, _, output in _record(network_def, variables, state, *inputs, **options):
            by_layer.setdefault(name, []).append(output)
        hidden = {name: by_layer[name] for name, readers in graph.items() if readers}
        return {name: activation(calls[0] if len(calls) == 1 else jnp.stack(calls)) for name, calls in hidden.items()}

    found = jax.vmap(outputs)(states)
    return {name: found[name] for name in graph if name in found}  # JAX sorts dicts


def penultimate_features(
    network_def: "nn.Module", variables: PyTree, states: jax.Array, *inputs: Any, **options: Any
) -> jax.Array:
    """What the output layer reads, for `srank`.

    Args:
        network_def: Flax (Linen) module that maps one state to its outputs.
        variables: Its variables.
        states: [batch, ...] states.
        *inputs: Further inputs that all states share.
        **options: Keywords of `network_def.apply`.

    Returns:
        [rows, features]: one row per state, or per state and quantile. Of several output layers the first called
        counts; the heads of dueling networks read the same.

    Raises:
        ValueError: If the network has no layers.

    Example:
        >>> import flax.linen as nn
        >>> network = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
        >>> variables = network.init(jax.random.key(0), jnp.ones(4))
        >>> penultimate_features(network, variables, jnp.ones((5, 4))).shape
        (5, 3)
    """
    graph = layer_graph(network_def, variables, states[0], *inputs, **options)
    first = next(name for name, readers in graph.items() if not readers)

    def read(state: jax.Array) -> jax.Array:
        calls = _record(network_def, variables, state, *inputs, **options)
        return next(arrays[0] for name, arrays, _ in calls if name == first)

    features = jax.vmap(read)(states)
    return features.reshape(-1, features.shape[-1])


def layer_graph(
    network_def: "nn.Module", variables: PyTree, state: jax.Array, *inputs: Any, **options: Any
) -> dict[str, tuple[str, ...]]:
    """Which layers read the output of which, with nothing but other operations in between.

    Args:
        network_def: Flax (Linen) module that maps one state to its outputs.
        variables: Its variables.
        state: One state.
        *inputs: Further inputs.
        **options: Keywords of `network_def.apply`.

    Returns:
        By layer, in the order of the calls, the layers that read its output; () for output layers.

    Raises:
        ValueError: If the network has no layers.

    Example:
        >>> import flax.linen as nn
        >>> network = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
        >>> layer_graph(network, network.init(jax.random.key(0), jnp.ones(4)), jnp.ones(4))
        {'params/layers_0': ('params/layers_2',), 'params/layers_2': ()}
    """
    called: list[str] = []
    sizes = jax.eval_shape(lambda: _outputs(_record(network_def, variables, state, *inputs, **options), called))
    if not called:
        raise ValueError(
            f"{type(network_def).__name__} calls no module that owns a parameter named {' or '.join(KERNELS)}; its "
            f"parameters are {leaf_names(variables)}."
        )

    def arrays_read(cuts: list[jax.Array]) -> list[list[jax.Array]]:
        # Behind each layer the computation goes on from an array of its own, which shows who reads it.
        calls = _record(network_def, variables, state, *inputs, replaced=iter(cuts), **options)
        return [arrays for _, arrays, _ in calls]

    jaxpr, read = jax.make_jaxpr(arrays_read, return_shape=True)(sizes)
    sources = _sources(jaxpr.jaxpr)
    readers: dict[str, list[str]] = {name: [] for name in called}
    for reader, arrays in zip(called, read, strict=True):
        for _ in arrays:
            for source in sorted(next(sources)):
                if reader not in readers[called[source]]:
                    readers[called[source]].append(reader)
    return {name: tuple(found) for name, found in readers.items()}


def recyclable(graph: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The layers whose units can be recycled: those that alone feed the layers that read them.

    What a unit sends into a sum with another layer (a residual block's end) or a product (a quantile embedding) can't
    be taken back without changing the other, and what a layer reads of itself is both its input and its output.

    Args:
        graph: By layer the layers that read it, as `layer_graph` gives it.

    Returns:
        The part of `graph` with such layers.

    Example:
        >>> recyclable({"stem": ("block", "head"), "block": ("last",), "last": ("head",), "head": ()})
        {'block': ('last',)}
    """
    fed_by = {name: [source for source, readers in graph.items() if name in readers] for name in graph}
    return {
        name: tuple(readers)
        for name, readers in graph.items()
        if readers and name not in readers and all(fed_by[reader] == [name] for reader in readers)
    }


def _record(
    network_def: "nn.Module",
    variables: PyTree,
    state: jax.Array,
    *inputs: Any,
    replaced: Iterator[jax.Array] | None = None,
    **options: Any,
) -> Calls:
    """All calls of layers, in order; the computation goes on with `replaced` in place of what they return."""
    import flax.linen as nn

    layers = {name.rpartition("/")[0] for name in leaf_names(variables) if name.rpartition("/")[2] in KERNELS}
    calls: Calls = []

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        output = call(*args, **kwargs)
        name = "/".join(("params", *context.module.path))
        if context.method_name != "__call__" or name not in layers:
            return output
        arrays = [leaf for leaf in jax.tree.leaves((args, kwargs)) if isinstance(leaf, jax.Array)]
        calls.append((name, arrays, output))
        return output if replaced is None else next(replaced)

    with nn.intercept_methods(intercept):
        network_def.apply(variables, state, *inputs, **options)
    return calls


def _outputs(calls: Calls, called: list[str]) -> list[jax.Array]:
    called.extend(name for name, _, _ in calls)
    return [output for _, _, output in calls]


def _sources(jaxpr: Any) -> Iterator[set[int]]:
    """Per output of a jaxpr, the indices of the inputs it is computed from."""
    depends: dict[Any, set[int]] = {var: {i} for i, var in enumerate(jaxpr.invars)}
    is_literal = lambda var: hasattr(var, "val")  # noqa: E731
    of = lambda var: set() if is_literal(var) else depends.get(var, set())  # noqa: E731
    for equation in jaxpr.eqns:
        together = set().union(*map(of, equation.invars))
        depends.update(dict.fromkeys(equation.outvars, together))
    return map(of, jaxpr.outvars)
