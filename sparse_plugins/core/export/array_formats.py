"""How one pruned array is written down sparsely: JAX's BCOO and BCSR, and a BCSR by output.

Encoding runs on the host, for sizes depend on the mask, and copies bits. Every entry of the mask is stored, also one
whose value is 0, so that the mask can be read back.
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.masks import check_stored, kept

if TYPE_CHECKING:  # jax.experimental.sparse is loaded by the first call that needs it, not by importing the core
    from jax.experimental.sparse import BCOO, BCSR

__all__ = ["ByOutput", "as_bcoo", "as_bcsr", "as_by_output", "host_array", "host_mask", "with_data"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class ByOutput:
    """A kernel as the BCSR matrix of its transpose: one row per output, which is how CPUs multiply fastest.

    Attributes:
        matrix: BCSR of shape [outputs, all other axes of the kernel as one].
        shape: Shape of the kernel.

    Example:
        >>> kernel = np.ones((3, 3, 4, 8), np.float32)
        >>> as_by_output(kernel, kernel != 0, "w").matrix.shape
        (8, 36)
    """

    matrix: "BCSR"
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the kernel."""
        return self.matrix.dtype


def host_array(leaf: Any, name: str) -> np.ndarray:
    """A leaf as a NumPy array with the same bits.

    Args:
        leaf: Array or number.
        name: Its path, for the message.

    Returns:
        Array of the leaf's shape and dtype.

    Raises:
        ValueError: Under jit, and for what is no array of numbers.

    Example:
        >>> host_array(jnp.arange(3), "w").tolist()
        [0, 1, 2]
    """
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(f"leaf {name!r} is traced, but export needs its values: call it outside jit, vmap and grad.")
    if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        raise ValueError(f"leaf {name!r} is a random key; export arrays of numbers, e.g. jax.random.key_data(key).")
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm":
        raise ValueError(f"leaf {name!r} has dtype {array.dtype}; export takes arrays of numbers, so leave it out.")
    return array


def host_mask(param: Any, stored: Any, name: str) -> np.ndarray:
    """A stored mask as a NumPy array.

    Args:
        param: The parameter.
        stored: Its mask at rest.
        name: Its path, for the message.

    Returns:
        bool of the parameter's shape, True = kept.

    Raises:
        ValueError: If it is no mask for that parameter.

    Example:
        >>> host_mask(jnp.zeros(4), jnp.array([13], jnp.uint8), "w").tolist()
        [True, False, True, True]
    """
    check_stored(stored, param.shape, name)
    return np.asarray(_kept(param, stored))


_kept = jax.jit(kept)  # one compilation for a shape, in place of one for each operation


def as_bcoo(param: np.ndarray, mask: np.ndarray) -> "BCOO":
    """One array as BCOO: the index and value of every kept entry, sorted.

    Args:
        param: Array of any shape.
        mask: bool of the same shape, True = kept.

    Returns:
        BCOO of the same shape and dtype, int32 indices.

    Example:
        >>> as_bcoo(np.array([0.0, 3.0]), np.array([False, True])).nse
        1
    """
    from jax.experimental import sparse

    indices = np.argwhere(mask).astype(np.int32)
    buffers = (jnp.asarray(param[mask]), jnp.asarray(indices))
    return sparse.BCOO(buffers, shape=param.shape, indices_sorted=True, unique_indices=True)


def as_bcsr(param: np.ndarray, mask: np.ndarray, name: str) -> "BCSR":
    """One array as BCSR over its last two axes; leading ones are batch axes, as JAX has it.

    Batches that keep fewer entries than the fullest are padded, with a column that does not exist.

    Args:
        param: Array of two or more axes.
        mask: bool of the same shape, True = kept.
        name: Its path, for the message.

    Returns:
        BCSR of the same shape and dtype, int32 indices.

    Raises:
        ValueError: If there are fewer than two axes.

    Example:
        >>> as_bcsr(np.eye(3), np.eye(3, dtype=bool), "w").indptr.tolist()
        [0, 1, 2, 3]
    """
    from jax.experimental import sparse

    if param.ndim < 2:
        raise ValueError(
            f"leaf {name!r} has shape {param.shape}; BCSR needs two or more axes. Use to_bcoo, or NOT_PRUNED in its "
            "place in the masks."
        )
    *lead, rows, columns = param.shape
    flat = mask.reshape(math.prod(lead), rows, columns)
    batch, row, column = np.nonzero(flat)
    indptr = np.zeros((len(flat), rows + 1), np.int32)
    np.cumsum(flat.sum(axis=2), axis=1, out=indptr[:, 1:])
    kept = indptr[:, -1]
    slot = np.arange(len(batch)) - np.repeat(np.cumsum(kept) - kept, kept)
    stored = int(kept.max(initial=0))
    data, indices = np.zeros((len(flat), stored), param.dtype), np.full((len(flat), stored), columns, np.int32)
    data[batch, slot], indices[batch, slot] = param.reshape(flat.shape)[batch, row, column], column
    on_device = lambda part: jnp.asarray(part.reshape(*lead, part.shape[1]))  # noqa: E731
    buffers = (on_device(data), on_device(indices), on_device(indptr))
    return sparse.BCSR(buffers, shape=param.shape, indices_sorted=True, unique_indices=True)


def as_by_output(param: np.ndarray, mask: np.ndarray, name: str) -> ByOutput:
    """One kernel as `ByOutput`; its last axis is the outputs.

    Example:
        >>> as_by_output(np.eye(3)[:, :2], np.eye(3, dtype=bool)[:, :2], "w").matrix.shape
        (2, 3)
    """
    if param.ndim < 2:
        return ByOutput(as_bcsr(param, mask, name), param.shape)  # raises
    merged = lambda array: array.reshape(math.prod(param.shape[:-1]), param.shape[-1]).T  # noqa: E731
    return ByOutput(as_bcsr(merged(param), merged(mask), name), param.shape)


def with_data(matrix: Any, data: jax.Array) -> Any:
    """A BCOO or BCSR with other values in the same places.

    Example:
        >>> with_data(as_bcoo(np.ones(2), np.array([True, False])), jnp.array([5.0])).todense().tolist()
        [5.0, 0.0]
    """
    children, aux = matrix.tree_flatten()
    return type(matrix).tree_unflatten(aux, (data, *children[1:]))
