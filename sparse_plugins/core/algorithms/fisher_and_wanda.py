"""Pruning by more than weights and gradients: what the optimizer has seen, or what the layers are fed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.selection.exact_sums import exact_sum
from sparse_plugins.core.selection.finite_scores import finite_or_magnitude
from sparse_plugins.core.selection.structured_topk import MaskRule
from sparse_plugins.core.structures import ByPath, ConstantFanIn, NByM, Structure
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["FisherPruning", "WandaPruning"]


@dataclasses.dataclass(eq=False)
class FisherPruning(BaseUpdater):
    """Keeps the weights whose removal raises the loss most, to second order, with Adam's second moment as curvature.

    The first mask update must come after the first step: before it the optimizer has seen no gradient.

    Raises:
        ValueError: From `init`, if the optimizer keeps no second moment `nu` or masks are updated at step 0.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.adam(0.01), "fisher", sparsity=0.5, scheduler=core.OneShotSchedule(1))
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, -4.0, 3.0, 2.0]])})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": jnp.array([[9.0, 1.0, 0.1, 0.1]])}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> (params["w"] != 0).tolist()  # the small weight with the large curvature is kept
        [[True, True, False, False]]

    Source: Theis et al., Faster gaze prediction with dense networks and Fisher pruning (2018).
    """

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """W ** 2 * nu; |w| where that is not finite (`finite_or_magnitude`).

        Raises:
            ValueError: Without a state that holds `nu`.
        """
        if sparse_state is None:
            raise ValueError("FisherPruning ranks by the optimizer's second moment; use it through wrap_optax.")

        def cost(param: jax.Array, second_moment: Any) -> jax.Array:
            if not hasattr(second_moment, "shape"):  # a part that another optimizer looks after
                raise ValueError(_NO_NU.format("optimizer for one of the layers"))
            return jnp.square(param.astype(jnp.float32)) * second_moment.astype(jnp.float32)

        nu = aligned(params, _second_moment(sparse_state.inner_state), "second moments")
        leaves, treedef = jax.tree.flatten(params)
        costs = treedef.unflatten([cost(*pair) for pair in zip(leaves, nu, strict=True)])
        return finite_or_magnitude(params, costs, self.compared(params), self.layer_views(params))

    def check_inner_state(self, inner_state: PyTree) -> None:
        """Refuses an optimizer without a second moment, and a mask update before there is any."""
        _second_moment(inner_state)
        if self.is_refresh_due(0):
            raise ValueError(
                "FisherPruning would change masks at step 0, before the optimizer has seen a gradient: start the "
                "schedule at step 1 or later."
            )


_NO_NU = "FisherPruning reads the second moment 'nu', which the {} lacks: wrap one that keeps it, such as optax.adam."


def _second_moment(inner_state: PyTree) -> PyTree:
    found = optax.tree.get_all_with_path(inner_state, "nu")
    if len(found) != 1:
        raise ValueError(_NO_NU.format("optimizer" if not found else f"optimizer (it has {len(found)})"))
    return found[0][1]


@dataclasses.dataclass(eq=False)
class WandaPruning(BaseUpdater):
    """Keeps the weights that matter most for what their layer is fed; every output keeps as many.

    The inputs of the layers come as the extra argument `activations`: a tree of the parameters' structure that has,
    for each pruned kernel, its inputs [..., in] or their norms [in]; None for other leaves. Where `layers` are known,
    several axes of inputs may stand for [in], and those of a stack come as [layers, ..., in].

    Attributes:
        input_axis: Axis of a kernel along which its inputs lie. None, the default, is all inputs where `layers` tell;
            else the last axis but one, as in Flax and Haiku; 1 for Equinox.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "wanda", sparsity=0.5, scheduler=core.OneShotSchedule(0))
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, 2.0], [3.0, 1.0]])})
        >>> inputs = jnp.array([[10.0, 0.1], [10.0, 0.2]])  # two examples, two features
        >>> updates, state = tx.update({"w": jnp.zeros((2, 2))}, state, params, activations={"w": inputs})
        >>> optax.apply_updates(params, updates)["w"].tolist()  # the second feature is hardly used
        [[1.0, 2.0], [0.0, 0.0]]

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models (2024).
    """

    sparsity_type: Structure | ByPath = ConstantFanIn()
    input_axis: int | None = None

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        activations: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """|w| * the Euclidean norm of the weight's input; |w| where that is not finite (`finite_or_magnitude`).

        Raises:
            ValueError: If activations are missing for a pruned layer or do not fit it.
        """
        none = jax.tree.map(lambda p: None, params)
        inputs = aligned(params, none if activations is None else activations, "activations")
        plans = self.leaf_plans(params)
        columns = zip(plans.leaves, jax.tree.leaves(params), inputs, strict=True)
        scores = plans.tree(
            [
                self._score(plan.rule, leaf, leaf_inputs) if plan.is_pruned else leaf
                for plan, leaf, leaf_inputs in columns
            ]
        )
        return finite_or_magnitude(params, scores, self.compared(params), self.layer_views(params))

    def _score(self, rule: MaskRule, param: jax.Array, inputs: Any) -> jax.Array:
        along = MaskRule(NByM(1, 1, self.input_axis), rule.shape, rule.axes, rule.name)
        if rule.channels and not rule.channels[0].is_layer:
            return jnp.abs(param)  # of a bias or a scale, which is pruned with its channels
        view, axis = along.view, along.place
        norms = _norms(along, inputs)

        def of_layer(layer: jax.Array, norm: jax.Array) -> jax.Array:
            others = [place for place in range(layer.ndim) if place != axis]
            return jnp.abs(layer.astype(jnp.float32)) * jnp.expand_dims(norm, others)

        return view.mapped(of_layer, param, beside=[norms])


def _norms(along: MaskRule, inputs: Any) -> jax.Array:
    """float32[in], or [layers, in] of a stack: the Euclidean norm of each input."""
    view = along.view
    wanted, stack = view.shape[along.place], () if view.layers is None else (view.layers,)
    shape = getattr(inputs, "shape", ())
    parts = [] if along.axes is None else [p.size for p in along.axes.parts if p.role in ("inputs", "rows")]
    if len(shape) >= len(stack) + len(parts) > len(stack) and list(shape[len(shape) - len(parts) :]) == parts:
        shape = (*shape[: len(shape) - len(parts)], wanted)
    if shape[: len(stack)] != stack or shape[len(stack) :][-1:] != (wanted,):
        lead = "".join(f"{length}, " for length in stack)
        raise ValueError(
            f"WandaPruning got {getattr(inputs, 'shape', inputs)!r} as activations of {along.name!r}, whose shape is "
            f"{along.shape}: pass activations= with its inputs [{lead}..., {wanted}] or their norms [{lead}{wanted}]."
        )
    wide = inputs.reshape(shape).astype(jnp.float32)
    return jnp.sqrt(exact_sum(jnp.square(wide), tuple(range(len(stack), wide.ndim - 1))))
