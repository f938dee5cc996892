"""Pruning with one ranking across layers instead of one per layer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.algorithms.pruning import MagnitudePruning, SaliencyPruning
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.distributions import SHARED, FilterFn, Rules, not_dim_one, resolve
from sparse_plugins.core.masks import is_pruned
from sparse_plugins.core.selection.counts import check_fraction, keep_count
from sparse_plugins.core.selection.topk import exact_topk, in_common_dtype
from sparse_plugins.core.structures import Unstructured
from sparse_plugins.core.transform.state import SparseState, warn_of_emptied
from sparse_plugins.core.trees import PyTree, aligned, common_dtype

__all__ = ["GlobalMagnitudePruning", "GlobalPruningMixin", "GlobalSaliencyPruning"]


@dataclasses.dataclass(eq=False)
class GlobalPruningMixin(BaseUpdater):
    """One ranking for all layers that have no sparsity of their own.

    It keeps one weight in all at least, and may empty a layer. `describe_plan` names such layers where weights alone
    decide; a mask update outside of compiled code (`refresh`, `instant_sparsify`) warns of them, after a compiled one
    `core.check_state` does. A layer with a rule of its own keeps one weight at least.

    Attributes:
        sparsity: Fraction of zeros over these layers together; it takes the place of sparsity_distribution_fn.
        filter_fn: As in `uniform`.
        custom_sparsity_map: Layers with a sparsity of their own; they are ranked alone and follow the schedule too.
        rules: As in `uniform`.
        use_normalization: Divide the scores of a layer by their Euclidean norm, so that no layer is emptied because
            its weights are small.
        normalization_eps: Added to the norm.

    Raises:
        ValueError: If sparsity_distribution_fn, topk_fn or a structure is given as well.
    """

    sparsity: float = 0.0
    filter_fn: FilterFn = not_dim_one
    custom_sparsity_map: Mapping[Sequence[str] | str, float] | None = None
    rules: Rules = ()
    use_normalization: bool = True
    normalization_eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sparsity = check_fraction("sparsity", self.sparsity)
        if not isinstance(self.sparsity_type, Unstructured):
            raise ValueError(
                f"{type(self).__name__} ranks single weights across layers; sparsity_type {self.sparsity_type} "
                "needs a per-layer algorithm such as MagnitudePruning."
            )
        if self.sparsity_distribution_fn is not BaseUpdater.sparsity_distribution_fn or self.has_custom_topk:
            raise ValueError(
                f"{type(self).__name__} has one ranking for all layers: give sparsity=..., not "
                "sparsity_distribution_fn or topk_fn."
            )

    def target_sparsities(self, params: PyTree) -> PyTree:
        """The global target at every layer of the common ranking, its own at the others."""
        targets = [self.sparsity if target == SHARED else target for target in self._resolved(params)]
        return jax.tree.unflatten(jax.tree.structure(params), targets)

    def calculate_scores(
        self,
        params: PyTree,
        sparse_state: SparseState | None = None,
        grads: PyTree | None = None,
        **kwargs: Any,
    ) -> PyTree:
        """The scores of the per-layer algorithm, normalised, of one dtype where they share a ranking."""
        scores = super().calculate_scores(params, sparse_state, grads, **kwargs)
        if self.use_normalization:
            scores = self.normalized_layers(scores)
        leaves, treedef = jax.tree.flatten(scores)
        common = self._common(params)
        for i, leaf in zip(common, in_common_dtype([leaves[i] for i in common]), strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(treedef, leaves)

    def create_masks(self, scores: PyTree, sparsities: PyTree) -> PyTree:
        """Masks of the best scores of all layers together.

        Args:
            scores: Tree of real arrays, ranked as they are: it is `calculate_scores` that normalises.
            sparsities: As in `BaseUpdater`; or one number for all layers that have no sparsity of their own.
        """
        # Scores may be integer ranks by now; it is the parameters they stand for that the rules are about.
        stands_for = jax.tree.map(lambda score: jax.ShapeDtypeStruct(score.shape, jnp.float32), scores)
        leaves, treedef = jax.tree.flatten(scores)
        common = self._common(stands_for)
        if jax.tree_util.all_leaves([sparsities]) and not jax.tree_util.all_leaves([scores]):
            targets = aligned(scores, self.target_sparsities(stands_for), "sparsities")
            sparsities = treedef.unflatten([sparsities if i in common else target for i, target in enumerate(targets)])
        layer_masks = super().create_masks(scores, sparsities)
        targets = aligned(scores, sparsities, "sparsities")
        common = [i for i in common if is_pruned(targets[i])]
        masks = aligned(scores, layer_masks, "masks")
        if common:
            sparsity = targets[common[0]]
            kept = keep_count(sum(leaves[i].size for i in common), sparsity)
            for i, mask in zip(common, exact_topk([leaves[i] for i in common], kept), strict=True):
                masks[i] = mask
            if not isinstance(kept, jax.core.Tracer) and int(kept):
                rules = self.mask_rules(scores)
                warn_of_emptied([pair for i in common for pair in rules[i].layers.named(rules[i].name, masks[i])])
        return jax.tree.unflatten(treedef, masks)

    def _common(self, params: PyTree) -> list[int]:
        """Places of the leaves that share a ranking."""
        return [i for i, target in enumerate(self._resolved(params)) if target == SHARED]

    def _resolved(self, params: PyTree) -> list[Any]:
        decide = lambda: resolve(self.layer_shapes(params), self.filter_fn, self.custom_sparsity_map, self.rules)  # noqa: E731
        return self.once("resolved rules", params, decide, by_dtype=True)

    def rankings(self, params: PyTree) -> PyTree:
        """The same number at all leaves of the common ranking."""
        leaves, treedef = jax.tree.flatten(params)
        common = set(self._common(params))
        return jax.tree.unflatten(treedef, [id(self) if i in common else 0 for i in range(len(leaves))])

    def foreseen_masks(self, params: PyTree) -> PyTree:
        """Masks of concrete parameters as they are, unless scores need gradients or more."""
        ranked = jax.jit(lambda tree: self.create_masks(self.calculate_scores(tree), self.target_sparsities(tree)))
        try:
            return ranked(params)
        except ValueError:  # so says calculate_scores where it needs gradients or more
            return super().foreseen_masks(params)

    def normalized_layers(self, scores: PyTree) -> PyTree:
        """Scores, each layer's divided by their norm."""
        leaves, treedef = jax.tree.flatten(scores)
        columns = zip(self.layer_views(scores), leaves, strict=True)
        return treedef.unflatten([view.mapped(self.normalized, leaf) for view, leaf in columns])

    def normalized(self, score: jax.Array) -> jax.Array:
        """One broken entry must not cost its layer the ranking: the norm is that of the finite entries."""
        score = score.astype(common_dtype(score.dtype, jnp.float32))
        finite = jnp.where(jnp.isfinite(score), score, 0.0)
        norm = jnp.sqrt(jnp.sum(finite**2))
        # Squares may be more than a float holds; then they are taken relative to the largest score.
        largest = jnp.max(jnp.abs(finite), initial=jnp.finfo(score.dtype).tiny)
        norm = jnp.where(jnp.isfinite(norm), norm, largest * jnp.sqrt(jnp.sum((finite / largest) ** 2)))
        return score / (norm + self.normalization_eps)


@dataclasses.dataclass(eq=False)
class GlobalMagnitudePruning(GlobalPruningMixin, MagnitudePruning):
    """Magnitude pruning with one ranking across layers.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "global_magnitude", sparsity=0.5, total_steps=4, use_normalization=False)
        >>> params = {"a": jnp.array([[1.0, 2.0, 3.0, 8.0]]), "b": jnp.array([[4.0, 5.0, 6.0, 7.0]])}
        >>> params, state = core.start(tx, params)
        >>> for _ in range(4):
        ...     updates, state = tx.update(jax.tree.map(lambda w: 0.5 * w, params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> {name: int(jnp.count_nonzero(w)) for name, w in params.items()}  # half of all, not of each
        {'a': 1, 'b': 3}

    Source: Lee et al., JaxPruner (2023).
    """


@dataclasses.dataclass(eq=False)
class GlobalSaliencyPruning(GlobalPruningMixin, SaliencyPruning):
    """Saliency pruning with one ranking across layers.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.5), "global_saliency", sparsity=0.5, scheduler=core.OneShotSchedule(0))
        >>> params, state = core.start(tx, {"a": jnp.ones((1, 4)), "b": jnp.ones((1, 4))})
        >>> grads = {"a": jnp.array([[0.1, 0.1, 0.1, 9.0]]), "b": jnp.array([[4.0, 5.0, 6.0, 0.1]])}
        >>> updates, state = tx.update(grads, state, params)
        >>> {name: mask.tolist() for name, mask in core.unpack_masks(params, state.masks).items()}
        {'a': [[0, 0, 0, 1]], 'b': [[1, 1, 1, 0]]}
    """
