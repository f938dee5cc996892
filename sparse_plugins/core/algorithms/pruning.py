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
        >>> params = {"w": jnp.ones((2, 2))}
        >>> NoPruning().instant_sparsify(params)[0]["w"].tolist()
        [[1.0, 1.0], [1.0, 1.0]]
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
        >>> import functools
        >>> from sparse_plugins import core
        >>> updater = MagnitudePruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
        >>> updater.instant_sparsify({"w": jnp.array([[1.0, -4.0], [3.0, 2.0]])})[0]["w"].tolist()
        [[0.0, -4.0], [3.0, 0.0]]

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
        >>> import functools
        >>> from sparse_plugins import core
        >>> updater = SaliencyPruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
        >>> params, grads = {"w": jnp.array([[1.0, -4.0]])}, {"w": jnp.array([[9.0, 1.0]])}
        >>> updater.instant_sparsify(params, grads)[0]["w"].tolist()
        [[1.0, 0.0]]

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
        >>> import functools
        >>> from sparse_plugins import core
        >>> updater = RandomPruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75))
        >>> int(updater.instant_sparsify({"w": jnp.ones((4, 4))})[1]["w"].sum())
        4
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
