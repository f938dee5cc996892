"""Outputs and inputs of layers that have no weight left when training starts."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.masks import is_pruned, kept
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["empty_channels", "first_masks"]

_MOST = 1 << 26  # entries of a model whose first masks are looked at for a plan


def first_masks(updater: BaseUpdater, params: PyTree) -> PyTree | None:
    """The masks with which training starts; None if all is kept, they need values that are not there, or all is large.

    Args:
        updater: The updater.
        params: Parameters; shapes will do where masks are drawn.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> updater = core.updater_of(core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=0.5))
        >>> first_masks(updater, {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)})["w"].dtype.name
        'uint8'
    """
    leaves = jax.tree.leaves(params)
    sparse = [part for _, part in updater.parts] or [updater]
    if all(part.starts_dense or not part.prunes for part in sparse) or sum(leaf.size for leaf in leaves) > _MOST:
        return None
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        if not all(part.draws_randomly or part.starts_dense for part in sparse):
            return None
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    return updater.init_state(params).masks


def empty_channels(params: PyTree, masks: PyTree) -> Iterator[tuple[str, int, int, int, int]]:
    """Layers in which slices along the last axis (outputs of most frameworks) or the one before it keep no weight.

    Args:
        params: Parameters; shapes will do.
        masks: Their masks, packed or not.

    Yields:
        Path, empty slices along the last axis and how many there are; the same along the axis before.

    Example:
        >>> params, masks = {"w": jnp.ones((2, 3))}, {"w": jnp.array([[1, 0, 1], [0, 0, 0]], jnp.uint8)}
        >>> list(empty_channels(params, masks))
        [('w', 1, 3, 1, 2)]
    """
    columns = zip(leaf_names(params), jax.tree.leaves(params), aligned(params, masks, "masks"), strict=True)
    for name, leaf, mask in columns:
        if not is_pruned(mask) or len(leaf.shape) < 2 or not leaf.size:
            continue
        used = np.asarray(kept(jnp.zeros(leaf.shape, leaf.dtype), mask)).astype(bool)
        outputs, inputs = _used(used, -1), _used(used, -2)
        if not (outputs.all() and inputs.all()):
            yield name, int((~outputs).sum()), outputs.size, int((~inputs).sum()), inputs.size


def _used(mask: np.ndarray, axis: int) -> np.ndarray:
    """bool[n], which slices along an axis keep anything."""
    return np.asarray(mask.any(axis=tuple(other for other in range(mask.ndim) if other != mask.ndim + axis)))
