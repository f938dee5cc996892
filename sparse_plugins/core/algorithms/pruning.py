"""Dense, magnitude, saliency and random pruning: one score each."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.core.selection.finite_scores import finite_or_magnitude
from sparse_plugins.core.selection.random_scores import key_words, random_scores
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, common_dtype

__all__ = ["MagnitudePruning", "NoPruning", "RandomPruning", "SaliencyPruning"]


@dataclasses.dataclass(eq=False)
class NoPruning(BaseUpdater):
    """Keeps everything: the dense control, bit-exactly the wrapped optimizer.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "no_prune")
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])})
        >>> updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
        >>> optax.apply_updates(params, updates)["w"].tolist()
        [[0.5, 1.5, 2.5, 3.5]]
    """

    sparsity_distribution_fn: Callable[[PyTree], PyTree] | None = None

    prunes: ClassVar[bool] = False

    def target_sparsities(self, params: PyTree) -> PyTree:
        """No leaf has a target."""
        return jax.tree.map(lambda p: NOT_PRUNED, params)

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """The parameters themselves: nothing is ranked."""
        return params

    def is_refresh_due(self, step: Any) -> Any:
        """Never."""
        return False

    def describe_schedule(self) -> str:
        """Masks never change."""
        return "masks never change"


@dataclasses.dataclass(eq=False)
class MagnitudePruning(BaseUpdater):
    """Keeps the weights of largest absolute value.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "magnitude", sparsity=0.5, total_steps=4)
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, -4.0, 3.0, 2.0]])})
        >>> for _ in range(4):  # along a cubic to half of the weights
        ...     updates, state = tx.update({"w": 0.5 * params["w"]}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> (params["w"] != 0).tolist()
        [[False, True, True, False]]

    Source: Han et al., Learning both Weights and Connections (2015); Zhu and Gupta (2017).
    """

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """|w|."""
        return jax.tree.map(jnp.abs, params)


@dataclasses.dataclass(eq=False)
class SaliencyPruning(BaseUpdater):
    """Keeps the weights whose removal changes the loss most, to first order.

    A mask update whose gradients overflowed or are NaN ranks that layer by magnitude.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "saliency", sparsity=0.5, scheduler=core.OneShotSchedule(0))
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, -4.0, 3.0, 2.0]])})
        >>> updates, state = tx.update({"w": jnp.array([[9.0, 1.0, 1.0, 1.0]])}, state, params)
        >>> optax.apply_updates(params, updates)["w"].tolist()  # the small weight with the large gradient is kept
        [[-3.5, -4.5, 0.0, 0.0]]

    Source: Molchanov et al., Pruning Convolutional Neural Networks (2016).
    """

    scores_by_gradient: ClassVar[bool] = True

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """|w * dL/dw|; |w| where gradients are not finite (`finite_or_magnitude`).

        Raises:
            ValueError: Without gradients.
        """
        if grads is None:
            raise ValueError(f"{type(self).__name__} ranks by |weight * gradient|: pass grads.")

        def saliency(param: jax.Array, grad: jax.Array) -> jax.Array:
            wide = common_dtype(param.dtype, jnp.float32)  # in float16 products of gradients vanish or overflow
            return jnp.abs(param.astype(wide) * grad.astype(wide))

        return finite_or_magnitude(
            params, jax.tree.map(saliency, params, grads), self.compared(params), self.layer_views(params)
        )


@dataclasses.dataclass(eq=False)
class RandomPruning(BaseUpdater):
    """Keeps random weights; a pruned weight stays pruned.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "random", sparsity=0.5, total_steps=4, rng_seed=7)
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, -4.0, 3.0, 2.0]])})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": 0.5 * params["w"]}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> int(jnp.count_nonzero(params["w"]))  # whichever they are
        2
    """

    draws_randomly: ClassVar[bool] = True

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """Random integers of the run's key and step."""
        if sparse_state is None:
            return random_scores(params, key_words(self.rng_seed), 0)
        return random_scores(params, sparse_state.rng, sparse_state.count + 1)
