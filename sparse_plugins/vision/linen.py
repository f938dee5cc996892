"""Flax Linen: a train state whose parameters are sparse from step 0 on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import flax.core
import jax
import optax
from flax import linen as nn
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from sparse_plugins.core.checks import check_settled
from sparse_plugins.core.layers.channel_groups import ChannelGraph
from sparse_plugins.core.layers.describe import describe_layers
from sparse_plugins.core.layers.roles import trace_layers
from sparse_plugins.core.layers.shrink import Shrunk, shrink
from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.core.sparse_optimizer import updater_of
from sparse_plugins.core.transform.state import find_sparse_state, map_sparse_states, settled
from sparse_plugins.core.trees import PyTree
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_and_rest

__all__ = ["TrainState", "get_partition_spec", "shrunk"]

S = TypeVar("S", bound=train_state.TrainState)


class TrainState(train_state.TrainState):
    """Flax's train state, with parameters that are exactly 0 outside the masks at every step.

    `state.params` are the parameters to train, evaluate and export with, for every updater: straight-through ones keep
    their dense weights in `state.opt_state`, next to the masks. Other collections, such as `batch_stats`, are fields of
    a subclass as with Flax's own, and are left alone.

    A compiled step has no place from which to look at parameters: after the first mask update write once
    `core.check_sparse(state.params, state.opt_state)`, and after restoring a state `core.check_restored(state.tx,
    state.params, state.opt_state, saved)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import vision
        >>> model = nn.Dense(4)
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 8)))["params"]
        >>> state = vision.TrainState.create(
        ...     apply_fn=model.apply, params=params, tx=optax.adam(1e-3),
        ...     updater="static_sparse", sparsity=0.75)
        >>> int(jnp.count_nonzero(state.params["kernel"]))
        8
        >>> state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
        >>> int(jnp.count_nonzero(state.params["kernel"]))
        8
    """

    @classmethod
    def create(  # type: ignore[override]  # the one argument more
        cls,
        *,
        apply_fn: Callable,
        params: PyTree,
        tx: optax.GradientTransformation,
        updater: AnyUpdater,
        inputs: Sequence[Any] = (),
        **fields: Any,
    ) -> Self:
        """A state at step 0.

        Which axes stack layers, and which are inputs and outputs, is read from `inputs` if they are given, else from
        the logical names of boxed parameters, unless the updater knows its `layers` already.

        Args:
            apply_fn: Usually `model.apply`.
            params: Parameters, boxed or not. With an FP8 collection beside them, as Flax expects, only what lies under
                'params' is trained by the optimizer and made sparse.
            tx: The dense optimizer.
            updater: Which weights to keep, how many and when; or an algorithm, by name or class.
            inputs: What `apply_fn` takes after the variables, or shapes of it. The function is traced once, with the
                parameters under 'params'; one that takes keys or other collections is traced by hand:
                `core.trace_layers` gives `layers` for the updater.
            **fields: Further fields of a subclass; with an algorithm also what `core.sparsify` takes beside it:
                `sparsity`, `total_steps`, `rules`, ...

        Returns:
            The state, its parameters on the first masks.

        Raises:
            TypeError: If `updater` is none, or `tx` no optax transformation or sparse already.
            ValueError: If the updater finds nothing to prune.
        """
        updater, fields = updater_and_rest(updater, fields, cls)
        trained = params["params"] if _is_float8(params) else params
        if inputs:
            rest = {} if trained is params else {name: params[name] for name in params if name != "params"}
            called = lambda trained, *inputs: apply_fn({**rest, "params": nn.unbox(trained)}, *inputs)  # noqa: E731
            updater = updater.knowing(trace_layers(called, trained, *inputs))
        elif any(map(_is_box, jax.tree.leaves(trained, is_leaf=_is_box))):
            updater = updater.knowing(describe_layers(trained))
        state = super().create(apply_fn=apply_fn, params=params, tx=updater.wrap_optax(tx), **fields)
        on_masks = lambda trained: updater.first_params(trained, state.opt_state)  # noqa: E731
        if trained is not params:
            return state.replace(params=flax.core.copy(params, {"params": on_masks(params["params"])}))
        return state.replace(params=on_masks(params))

    def apply_gradients(self, *, grads: PyTree, extra_args: Mapping[str, Any] | None = None, **fields: Any) -> Self:
        """The state after an optimizer step.

        Args:
            grads: Gradients at `self.params`.
            extra_args: Extra arguments for the optimizer and the updater's scores, e.g. `{"value": loss}`. Apart from
                the fields, so that a misspelt field stays an error.
            **fields: Fields to replace, e.g. `batch_stats`.

        Returns:
            The next state, its parameters on the masks.
        """
        if not extra_args:
            return super().apply_gradients(grads=grads, **fields)
        update = lambda updates, state, params: self.tx.update(updates, state, params, **extra_args)  # noqa: E731
        informed = self.replace(tx=optax.GradientTransformation(self.tx.init, update))
        return super(TrainState, informed).apply_gradients(grads=grads, **fields).replace(tx=self.tx)


def shrunk(state: S, graph: ChannelGraph, tx: optax.GradientTransformation) -> tuple[S, Shrunk]:
    """A train state without the channels that its masks have pruned, to train on, save and serve.

    Masks that are left stay as they are from now on.

    Args:
        state: The state, after the last change of masks.
        graph: `core.channel_graph(apply, variables, *inputs)` of all variables of the model: 'params', and those
            collections that are fields of the state, such as 'batch_stats'.
        tx: The dense optimizer that the state was created with.

    Returns:
        The state, whose `apply_fn` is the graph's function for the smaller variables; and what left, whose `narrow`
        does the same for another function, such as one for evaluation.

    Raises:
        ValueError: As `core.shrink`, or if masks are still going to change or the graph is not of variables.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core, vision
        >>> model, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]), jnp.ones((1, 4))
        >>> variables = model.init(jax.random.key(0), x)
        >>> graph = core.channel_graph(model.apply, variables, x)
        >>> state = vision.TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optax.adam(1e-3),
        ...     updater="static_sparse", sparsity=0.5, structure=core.ChannelGroups(graph))
        >>> state, _ = vision.shrunk(state, graph, optax.adam(1e-3))
        >>> state.apply_fn({"params": state.params}, x).shape, state.params["layers_0"]["kernel"].shape
        ((1, 3), (4, 4))
    """
    collections = list(graph.params) if isinstance(graph.params, Mapping) else []
    if "params" not in collections:
        raise ValueError(
            f"the graph is of {collections or 'no mapping'}; make it of variables: core.channel_graph(model.apply, "
            "{'params': state.params, ...}, *inputs)."
        )
    sparse = find_sparse_state(state.opt_state)
    check_settled(updater_of(state.tx), int(sparse.count))
    others = {name: getattr(state, name) for name in collections if name != "params"}
    dense = {name: jax.tree.map(lambda _: NOT_PRUNED, others[name]) for name in others}
    masks = {"params": sparse.masks, **dense}
    variables = {"params": state.params, **others}
    small = shrink(graph, variables, masks, opt_state=state.opt_state, optimized="params")
    fields = {name: small.params[name] for name in collections}
    wrapped = small.updater.wrap_optax(tx)
    return state.replace(apply_fn=small.apply, tx=wrapped, opt_state=settled(small.opt_state), **fields), small


def _is_box(node: Any) -> bool:
    return isinstance(node, nn.meta.AxisMetadata)


def _is_float8(params: PyTree) -> bool:
    return not isinstance(params, jax.Array) and OVERWRITE_WITH_GRADIENT in params


def get_partition_spec(state: PyTree) -> PyTree:
    """`flax.linen.get_partition_spec` for a state with masks.

    A target sparsity is a number in its parameter's box, and Flax's own function would have it sharded like an array.
    Masks are sharded like their parameters. If eight entries to a byte leave an axis too short for that, use
    `use_packed_masks=False`.

    Args:
        state: Train state or optimizer state, of arrays or of shapes.

    Returns:
        The tree with a `PartitionSpec` for each array.

    Raises:
        ValueError: If there are no masks in it.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core
        >>> updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
        >>> params = {"kernel": nn.Partitioned(jnp.ones((8, 8)), names=(None, "model"))}
        >>> specs = get_partition_spec(updater.wrap_optax(optax.sgd(0.1)).init(params))
        >>> tuple(specs.masks["kernel"]), tuple(specs.target_sparsities["kernel"])
        ((None, 'model'), ())
    """
    unboxed = lambda sparse: sparse._replace(target_sparsities=nn.unbox(sparse.target_sparsities))  # noqa: E731
    return nn.get_partition_spec(map_sparse_states(unboxed, state))
