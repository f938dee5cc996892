"""Real sparsity: parameters and masks to arrays that hold only what is kept, and back, bit-exactly.

    exported = to_bcoo(updater.pre_forward_update(params, state), find_sparse_state(state).masks)

A pruned leaf becomes a sparse form (BCOO, BCSR, `ByOutput`, `NByMArray`); leaves that stay dense stay as they are.
What lies outside a mask is dropped, as `apply_masks` drops it. Whether a form is also smaller or faster depends on
sparsity, shape and machine: `python -m experiments.benchmarks.export` measures it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.distributions import FilterFn, not_dim_one, resolve
from sparse_plugins.core.export.array_formats import (
    ByOutput,
    as_bcoo,
    as_bcsr,
    as_by_output,
    host_array,
    host_mask,
    with_data,
)
from sparse_plugins.core.export.nm_array import NByMArray, as_n_by_m
from sparse_plugins.core.masks import NOT_PRUNED, is_pruned, map_pruned, pack
from sparse_plugins.core.structures import NByM
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["masks_of", "nbytes", "to_bcoo", "to_bcsr", "to_dense", "to_n_by_m"]


def to_bcoo(params: PyTree, masks: PyTree) -> PyTree:
    """Every pruned leaf as `jax.experimental.sparse.BCOO`, of any number of axes.

    Args:
        params: Parameters in use.
        masks: Their masks, as in `SparseState.masks`.

    Returns:
        The tree with sparse leaves; int32 indices, sorted, one per kept entry also where its value is 0.

    Raises:
        ValueError: Under jit, or if masks and parameters do not belong together.

    Example:
        >>> to_bcoo({"w": jnp.array([[0.0, 5.0]])}, {"w": jnp.array([[0, 1]], jnp.uint8)})["w"].indices.tolist()
        [[0, 1]]
    """
    return _encode(params, masks, lambda param, mask, name: as_bcoo(param, mask))


def to_bcsr(params: PyTree, masks: PyTree, *, by_output: bool = False) -> PyTree:
    """Every pruned leaf as `jax.experimental.sparse.BCSR`.

    Args:
        params: Parameters in use; pruned ones need two or more axes.
        masks: Their masks, as in `SparseState.masks`.
        by_output: False keeps a kernel's shape: rows are its last axis but one, and leading axes (the window of a
            convolution) are JAX's batch axes, padded to the fullest. True stores the transpose as `ByOutput`, with
            all axes but the last as one and nothing padded: the form that `matmul` is fastest with on CPUs.

    Returns:
        The tree with sparse leaves.

    Raises:
        ValueError: Under jit, for a pruned leaf of one axis, or if masks and parameters do not belong together.

    Example:
        >>> params, masks = {"w": jnp.ones((3, 3, 4, 8))}, {"w": jnp.ones((3, 3, 4, 8), jnp.uint8)}
        >>> to_bcsr(params, masks)["w"].shape, to_bcsr(params, masks, by_output=True)["w"].matrix.shape
        ((3, 3, 4, 8), (8, 36))
    """
    return _encode(params, masks, as_by_output if by_output else as_bcsr)


def to_n_by_m(params: PyTree, masks: PyTree, structure: NByM) -> PyTree:
    """Every pruned leaf as compressed N:M: n values and n bytes of places for each group of m.

    Args:
        params: Parameters in use.
        masks: Their masks, as in `SparseState.masks`; at most n kept in every group.
        structure: The pattern they were pruned with, groups of at most 255.

    Returns:
        The tree with `NByMArray` leaves.

    Raises:
        TypeError: If the structure is not an `NByM`.
        ValueError: If a leaf is not N:M; the message names it. Under jit, or if masks and parameters do not belong
            together.

    Example:
        >>> params, masks = {"w": jnp.arange(4.0)[:, None]}, {"w": jnp.array([[0], [1], [0], [1]], jnp.uint8)}
        >>> to_n_by_m(params, masks, NByM(2, 4))["w"].places.ravel().tolist()
        [1, 3]
    """
    if not isinstance(structure, NByM):
        raise TypeError(f"structure is {structure!r}; give NByM(n, m), or use to_bcoo or to_bcsr for other structures.")
    return _encode(params, masks, lambda param, mask, name: as_n_by_m(param, mask, structure, name))


def _encode(params: PyTree, masks: PyTree, encode: Callable[[np.ndarray, np.ndarray, str], Any]) -> PyTree:
    def on_host(param: Any, mask: Any, name: str) -> Any:
        array = host_array(param, name)
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(f"leaf {name!r} is {array.dtype}, which JAX would cut; set jax_enable_x64, or cast it.")
        return encode(array, host_mask(param, mask, name), name)

    names = jax.tree.unflatten(jax.tree.structure(params), leaf_names(params))
    return map_pruned(on_host, params, masks, names, otherwise=lambda param, name: param)


def to_dense(tree: PyTree) -> PyTree:
    """An exported tree as plain arrays; works under jit.

    Args:
        tree: Result of `to_bcoo`, `to_bcsr` or `to_n_by_m`.

    Returns:
        The parameters: the very bits of what was kept (NaN payloads and -0 too), +0 elsewhere.

    Example:
        >>> params, masks = {"w": jnp.array([[3.0, -0.0]])}, {"w": jnp.array([[0, 1]], jnp.uint8)}
        >>> to_dense(to_bcoo(params, masks))["w"].tolist()
        [[0.0, -0.0]]
    """
    return jax.tree.map(_dense, tree, is_leaf=_is_sparse)


def _dense(node: Any) -> Any:
    if isinstance(node, ByOutput):
        return _dense(node.matrix).T.reshape(node.shape)
    if isinstance(node, NByMArray):
        return _from_bits(dataclasses.replace(node, values=_bits(node.values)).expand(), node.dtype)
    if not _is_sparse(node):
        return node
    if not node.unique_indices:  # not ours: duplicates add up
        return node.todense()
    # JAX adds entries onto zeros, which makes 0 of -0 and may change a NaN; their bits are integers and stay.
    return _from_bits(with_data(node, _bits(node.data)).todense(), node.dtype)


def _is_sparse(node: Any) -> bool:
    from jax.experimental import sparse

    return isinstance(node, (ByOutput, NByMArray, sparse.BCOO, sparse.BCSR))


def _bits(values: jax.Array) -> jax.Array:
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return lax.bitcast_convert_type(values, f"uint{jnp.finfo(values.dtype).bits}")


def _from_bits(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)


def masks_of(tree: PyTree, filter_fn: FilterFn = not_dim_one) -> PyTree:
    """The masks of an exported tree, or of the plain parameters of a sparse checkpoint.

    Args:
        tree: With a sparse form anywhere in it: these have masks, all else is `NOT_PRUNED`. Without: parameters, of
            which a mask keeps what is not 0. Weights that happen to be 0 then read as pruned, and a leaf without
            zeros gets a mask of ones.
        filter_fn: Says which leaves of a plain tree have masks: called with the path as a tuple of names, and the leaf.
            The default takes floating-point leaves of two or more axes, so that a bias of zeros is not a pruned one.

    Returns:
        Packed masks, as a state holds them by default; read them with `unpack_masks`.

    Example:
        >>> from sparse_plugins.core.masks import unpack_masks
        >>> params = {"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.zeros(2)}
        >>> unpack_masks(params, masks_of(params))
        {'bias': NotPruned(), 'kernel': Array([[0, 1]], dtype=uint8)}
    """
    if any(map(_is_sparse, jax.tree.leaves(tree, is_leaf=_is_sparse))):
        of_form = lambda node: pack(_kept_by(node)) if _is_sparse(node) else NOT_PRUNED  # noqa: E731
        return jax.tree.map(of_form, tree, is_leaf=_is_sparse)
    leaves, treedef = jax.tree.flatten(tree)
    plan = resolve(tree, filter_fn)
    of_leaf = [pack(_not_zero(x)) if is_pruned(p) else NOT_PRUNED for x, p in zip(leaves, plan, strict=True)]
    return jax.tree.unflatten(treedef, of_leaf)


def _not_zero(leaf: Any) -> jax.Array:
    """Read from the bits, all but the sign: XLA on CPUs takes subnormal numbers for 0 when it compares them."""
    return jnp.asarray(leaf != 0) if isinstance(leaf, np.ndarray) else _bits(leaf) << 1 != 0


def _kept_by(node: Any) -> jax.Array:
    if isinstance(node, ByOutput):
        return _kept_by(node.matrix).T.reshape(node.shape)
    if isinstance(node, NByMArray):
        # A group's filler stands at place m, which expanding never reaches.
        return dataclasses.replace(node, values=jnp.ones_like(node.places)).expand()
    return with_data(node, jnp.ones(node.data.shape, jnp.int32)).todense()


def nbytes(tree: PyTree) -> int:
    """Bytes in memory of all arrays of a tree: parameters, masks, or exported.

    Args:
        tree: Any pytree of arrays or of anything with shape and dtype.

    Returns:
        Bytes; of sparse forms values, indices and padding alike.

    Example:
        >>> nbytes({"w": jnp.ones((4, 4)), "b": jnp.ones(4, jnp.bfloat16)})
        72
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
