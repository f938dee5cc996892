"""Flax NNX: models and optimizers without the channels that masks have pruned."""

import dataclasses
import itertools
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sparse_plugins.core.checks import check_settled
from sparse_plugins.core.layers.channel_groups import ChannelGraph, channel_graph
from sparse_plugins.core.layers.narrow_calls import NarrowCalls, of_arrays
from sparse_plugins.core.layers.shrink import Shrunk, shrink, taken
from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.core.sparse_optimizer import updater_of
from sparse_plugins.core.transform.state import find_sparse_state, settled
from sparse_plugins.core.trees import PyTree
from sparse_plugins.vision.nnx import Optimizer, in_variables

__all__ = ["nnx_channel_graph", "nnx_narrow", "nnx_shrunk"]

M = TypeVar("M")


def nnx_channel_graph(model: Any, *inputs: Any, wrt: Any = nnx.Param, **named: Any) -> ChannelGraph:
    """The groups of channels that can leave an NNX model.

    Args:
        model: The model; it is traced, and not changed.
        *inputs: What it is called with; arrays, or their shapes, are traced.
        wrt: Filter for the Variables that are trained; the others, such as running statistics, shrink along.
        **named: What it is called with by name.

    Returns:
        The graph, for `core.ChannelGroups` and `nnx_shrunk`. Parameters have 'params/' in front of their paths in it.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
        >>> list(nnx_channel_graph(model, jnp.ones((1, 4))).groups)
        ['params/layers/0/kernel']
    """
    graphdef, parts = _split(model, wrt)
    params, rngs, others = parts
    (args, kwargs), given = _taken_apart((inputs, named))
    given_graph, states = nnx.split(given)
    apply = _function(graphdef, parts, type(model), wrt, given_graph, states)
    function, arrays, _ = of_arrays(apply, 3, args, kwargs)
    variables = {"params": nnx.as_pure(params), "others": nnx.as_pure(others)}
    return channel_graph(function, variables, nnx.as_pure(rngs), nnx.as_pure(states), *arrays)


def nnx_narrow(model: M, graph: ChannelGraph, left: Mapping[str, np.ndarray], wrt: Any = nnx.Param) -> M:
    """A copy of a model with some of its channels, such as one to read a checkpoint of a small model into.

    Args:
        model: The whole model.
        graph: Its groups, from `nnx_channel_graph`.
        left: For each group that loses channels those that are left, as in `Shrunk.kept`.
        wrt: As for the graph.

    Returns:
        A model whose Variables are smaller and have the paths that they had. It is called as the whole one is, in
        training and evaluation; its modules are not to be called by themselves.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
        >>> graph = nnx_channel_graph(model, jnp.ones((1, 4)))
        >>> small = nnx_narrow(model, graph, {"params/layers/0/kernel": np.array([0, 5])})
        >>> small(jnp.ones((2, 4))).shape, small.layers[0].kernel.shape
        ((2, 3), (4, 2))
    """
    whole, calls = type(model), NarrowCalls(graph, left)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        graphdef, parts = _split(self, wrt)
        params, rngs, others = parts
        variables = {"params": nnx.as_pure(params), "others": nnx.as_pure(others)}
        (args, kwargs), given = _taken_apart((args, kwargs))  # such as Rngs, which count the calls
        given_graph, states = nnx.split(given)
        function = _function(graphdef, parts, whole, wrt, given_graph, states)
        trees = variables, nnx.as_pure(rngs), nnx.as_pure(states)
        found = calls((graphdef, given_graph), function, trees, *args, **kwargs)
        columns = (self, rngs, found["rngs"]), (self, others, found["others"]), (given, states, found["given"])
        for node, before, after in columns:
            pairs = zip(jax.tree.leaves(nnx.as_pure(before)), jax.tree.leaves(after), strict=True)
            if any(old is not new for old, new in pairs):
                nnx.update(node, _dressed(before, after))
        return found["outputs"]

    small: Any = nnx.clone(model)
    body = lambda names: names.update(__call__=call, __doc__=whole.__doc__, __module__=whole.__module__)  # noqa: E731
    object.__setattr__(small, "__class__", types.new_class(f"Small{whole.__name__}", (whole,), exec_body=body))
    _, (params, _, others) = _split(model, wrt)
    variables = taken(graph, left, {"params": nnx.as_pure(params), "others": nnx.as_pure(others)})
    nnx.update(small, _dressed(params, variables["params"]), _dressed(others, variables["others"]))
    return small


def nnx_shrunk(
    model: M, optimizer: nnx.Optimizer[M], graph: ChannelGraph, tx: optax.GradientTransformation
) -> tuple[M, Optimizer[M], Shrunk]:
    """A model and its optimizer without the channels that masks have pruned, to train on, save and serve.

    Masks that are left stay as they are from now on.

    Args:
        model: The model; it stays as it is.
        optimizer: Its sparse optimizer, ours or NNX's own around a sparse `tx`, after the last change of masks.
        graph: `nnx_channel_graph(model, *inputs)`, with the optimizer's `wrt`.
        tx: The dense optimizer that it was built with.

    Returns:
        The small model, see `nnx_narrow`; its optimizer, with the moments and steps of before; and what left. To read
        a checkpoint of both, build the whole model, make it narrow by the `kept` that was saved along, and give it an
        optimizer by the updater of what left.

    Raises:
        ValueError: As `core.shrink`, or if masks are still going to change.

    Example:
        >>> from sparse_plugins import core, vision
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
        >>> graph = vision.nnx_channel_graph(model, jnp.ones((1, 4)))
        >>> optimizer = vision.Optimizer(
        ...     model, optax.adam(1e-3), "static_sparse", sparsity=0.5, structure=core.ChannelGroups(graph))
        >>> small, optimizer, _ = vision.nnx_shrunk(model, optimizer, graph, optax.adam(1e-3))
        >>> _ = optimizer.update(small, nnx.grad(lambda model: model(jnp.ones((1, 4))).sum())(small))
        >>> small.layers[0].kernel.shape
        (4, 4)
    """
    state = nnx.as_pure(optimizer.opt_state)
    sparse = find_sparse_state(state)
    check_settled(updater_of(optimizer.tx), int(sparse.count))
    _, (params, _, others) = _split(model, optimizer.wrt)
    variables = {"params": nnx.as_pure(params), "others": nnx.as_pure(others)}
    masks = {"params": sparse.masks, "others": jax.tree.map(lambda _: NOT_PRUNED, variables["others"])}
    small = shrink(graph, variables, masks, opt_state=state, optimized="params")
    narrow: Any = nnx_narrow(model, graph, small.kept, optimizer.wrt)
    smaller = Optimizer(narrow, tx, small.updater, wrt=optimizer.wrt)
    nnx.update(narrow, _dressed(params, small.params["params"]))  # the optimizer has put them onto masks of its own
    wrapped: Any = smaller.tx
    begun = wrapped._replace(init=lambda variables: in_variables(variables, settled(small.opt_state)))
    nnx.Optimizer.__init__(smaller, narrow, begun, wrt=optimizer.wrt)  # with the moments that there are
    smaller.tx = wrapped
    smaller.step[...] = jnp.asarray(optimizer.step[...])
    return narrow, smaller, small


def _split(model: Any, wrt: Any) -> tuple[Any, tuple[Any, Any, Any]]:
    """What a model is, and its trained, its random and its other Variables."""
    parts: Any = nnx.split(model, wrt, nnx.RngState, ...)
    return parts[0], tuple(parts[1:])


def _function(
    graphdef: Any, parts: tuple[Any, Any, Any], whole: type, wrt: Any, given_graph: Any, given: nnx.State
) -> Callable[..., Any]:
    """The model as a function of its variables, its random states, those of objects that it is given, and inputs."""
    params, rngs, others = parts

    def apply(
        variables: Mapping[str, PyTree], states: PyTree, given_states: PyTree, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        whose = _dressed(params, variables["params"]), _dressed(rngs, states), _dressed(others, variables["others"])
        model: Any = nnx.merge(graphdef, *whose)
        object.__setattr__(model, "__class__", whole)
        objects: Any = nnx.merge(given_graph, _dressed(given, given_states))
        in_place = lambda node: objects[node.number] if isinstance(node, _Given) else node  # noqa: E731
        args, kwargs = jax.tree.map(in_place, (args, kwargs))
        outputs = model(*args, **kwargs)
        _, (_, after, renewed) = _split(model, wrt)
        used = nnx.as_pure(nnx.state(objects))
        return {"outputs": outputs, "rngs": nnx.as_pure(after), "others": nnx.as_pure(renewed), "given": used}

    return apply


@dataclasses.dataclass(frozen=True)
class _Given:
    """Stands for an object of NNX among arguments."""

    number: int


def _taken_apart(arguments: PyTree) -> tuple[PyTree, list[Any]]:
    """Arguments with numbers in the place of NNX's objects, and these."""
    is_object = lambda node: isinstance(node, nnx.Pytree | nnx.Variable)  # noqa: E731
    leaves, treedef = jax.tree.flatten(arguments, is_leaf=is_object)
    given = [leaf for leaf in leaves if is_object(leaf)]
    numbers = itertools.count()
    return treedef.unflatten([_Given(next(numbers)) if is_object(leaf) else leaf for leaf in leaves]), given


def _dressed(variables: nnx.State, arrays: PyTree) -> nnx.State:
    """Arrays in the Variables that are theirs."""
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return jax.tree.map(lambda variable, array: variable.replace(array), variables, arrays, is_leaf=is_variable)
