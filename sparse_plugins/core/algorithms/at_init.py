"""Pruning at initialisation: one ranking of all weights before the first step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.algorithms.global_pruning import GlobalPruningMixin, GlobalSaliencyPruning
from sparse_plugins.core.schedules import NoUpdateSchedule, OneShotSchedule
from sparse_plugins.core.selection.finite_scores import finite_or_magnitude
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["GraspPruning", "SnipPruning", "hessian_gradient_product"]


@dataclasses.dataclass(eq=False)
class SnipPruning(GlobalSaliencyPruning):
    """Keeps the weights to which the loss of the first batch is most sensitive, in all layers together.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "snip", sparsity=0.5)
        >>> params, state = core.start(tx, {"a": jnp.ones((1, 4)), "b": jnp.ones((1, 4))})
        >>> first = {"a": jnp.array([[1.0, 2.0, 3.0, 8.0]]), "b": jnp.array([[4.0, 5.0, 6.0, 7.0]])}
        >>> updates, state = tx.update(first, state, params)
        >>> {name: mask.tolist() for name, mask in core.unpack_masks(params, state.masks).items()}  # and so it stays
        {'a': [[0, 0, 0, 1]], 'b': [[0, 1, 1, 1]]}

    Source: Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity (2019).
    """

    scheduler: NoUpdateSchedule = OneShotSchedule(0)
    use_normalization: bool = False


@dataclasses.dataclass(eq=False)
class GraspPruning(GlobalPruningMixin):
    """Keeps the weights without which the gradient of the first batch would shrink most, in all layers together.

    It needs the product of Hessian and gradient (`hessian_gradient_product`) as the extra argument
    `hessian_gradient`, which is costly in every step: prune once, outside the training step.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.1), "grasp", sparsity=0.5)
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, -2.0]])})
        >>> grads, product = core.hessian_gradient_product(lambda p: jnp.sum(p["w"] ** 4), params)
        >>> updates, state = tx.update(grads, state, params, hessian_gradient=product)
        >>> (optax.apply_updates(params, updates)["w"] != 0).tolist()
        [[False, True]]

    Source: Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow (2020).
    """

    scheduler: NoUpdateSchedule = OneShotSchedule(0)
    use_normalization: bool = False

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        hessian_gradient: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """W * (H g): to first order what the squared norm of the gradient loses without the weight, halved.

        |w| where that is not finite in one of the layers ranked together (`finite_or_magnitude`).

        Raises:
            ValueError: Without hessian_gradient.
        """
        if hessian_gradient is None:
            raise ValueError(
                "GraspPruning ranks by weight * (Hessian @ gradient): pass hessian_gradient=, as "
                "core.hessian_gradient_product(loss, params) gives it."
            )
        aligned(params, hessian_gradient, "hessian_gradient")
        scores = jax.tree.map(lambda p, hg: p.astype(jnp.float32) * hg.astype(jnp.float32), params, hessian_gradient)
        scores = finite_or_magnitude(params, scores, self.compared(params), self.layer_views(params))
        return self.normalized_layers(scores) if self.use_normalization else scores


def hessian_gradient_product(loss: Callable[[PyTree], jax.Array], params: PyTree) -> tuple[PyTree, PyTree]:
    """The gradient g of a loss, and its Hessian times g, at the cost of about two gradients.

    Args:
        loss: From parameters to a scalar.
        params: Parameter tree of floating-point arrays.

    Returns:
        Two trees of the parameters' shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> grads, product = hessian_gradient_product(lambda w: jnp.sum(w**2), jnp.array([1.0, 3.0]))
        >>> grads.tolist(), product.tolist()
        ([2.0, 6.0], [4.0, 12.0])
    """
    gradient = jax.grad(loss)
    return jax.jvp(gradient, (params,), (gradient(params),))
