"""Flax Linen: a train state whose parameters are sparse from step 0 on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import flax.core
import jax
import optax
from flax import linen as nn
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from sparse_plugins.core.layers.describe import describe_layers
from sparse_plugins.core.layers.roles import trace_layers
from sparse_plugins.core.transform.state import map_sparse_states
from sparse_plugins.core.trees import PyTree
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_and_rest

__all__ = ["TrainState", "get_partition_spec"]


class TrainState(train_state.TrainState):
    """Flax's train state, with parameters that are exactly 0 outside the masks at every step.

    `state.params` are the parameters to train, evaluate and export with, for every updater: straight-through ones keep
    their dense weights in `state.opt_state`, next to the masks. Other collections, such as `batch_stats`, are fields of
    a subclass as with Flax's own, and are left alone.

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
