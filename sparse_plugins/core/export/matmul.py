"""Inputs times a kernel in whatever form it is stored, each by the way that is fastest for it on CPUs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.export.array_formats import ByOutput, with_data
from sparse_plugins.core.export.nm_array import NByMArray
from sparse_plugins.core.trees import common_dtype

__all__ = ["matmul"]

FAST_ROWS = 8  # measured on an x86 CPU, jaxlib 0.10.2: CSR times 8 rows takes a quarter of the time of CSR times 1 to 6


def matmul(inputs: Any, kernel: Any) -> jax.Array:
    """Inputs times a kernel, dense or in any sparse form; works under jit.

    Args:
        inputs: [..., in].
        kernel: [in, out]: an array, BCOO, BCSR, `ByOutput` or `NByMArray`.

    Returns:
        [..., out], as the dense product up to rounding, in its dtype. BCOO, BCSR and `ByOutput` add half precision up
        in float32.

    Raises:
        ValueError: If the kernel has not two axes, or the shapes do not fit.

    Example:
        >>> from sparse_plugins.core.export.array_formats import as_bcoo
        >>> kernel = as_bcoo(np.array([[0.0], [2.0]]), np.array([[False], [True]]))
        >>> matmul(jnp.array([7.0, 3.0]), kernel).tolist()
        [6.0]
    """
    shape, leading = tuple(kernel.shape), jnp.shape(inputs)
    if len(shape) != 2 or leading[-1:] != shape[:1]:
        raise ValueError(
            f"inputs of shape {leading} times a kernel of shape {shape}; matmul takes [..., in] times [in, out]. "
            "Reshape the inputs, or use to_dense for kernels of other ranks."
        )
    rows = jnp.asarray(inputs).reshape(math.prod(leading[:-1]), shape[0])
    dtype = jnp.result_type(rows.dtype, kernel.dtype)
    return _product(rows, kernel, dtype).astype(dtype).reshape(*leading[:-1], shape[1])


def _product(rows: jax.Array, kernel: Any, dtype: np.dtype) -> jax.Array:
    from jax.experimental import sparse

    wide = common_dtype(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
    if isinstance(kernel, NByMArray):
        if len(rows) * kernel.structure.n * 8 > kernel.structure.m or kernel.structure.place % 2:
            return rows @ kernel.expand()
        return _gathered(rows.astype(wide), kernel)
    if isinstance(kernel, ByOutput):
        filled = jnp.pad(rows.astype(wide), ((0, max(0, FAST_ROWS - len(rows))), (0, 0)))
        return (with_data(kernel.matrix, kernel.matrix.data.astype(wide)) @ filled.T).T[: len(rows)]
    if isinstance(kernel, sparse.BCSR):
        kernel = kernel.to_bcoo()  # JAX multiplies BCSR from the left only
    if isinstance(kernel, sparse.BCOO):
        return rows.astype(wide) @ with_data(kernel, kernel.data.astype(wide))
    return rows @ jnp.asarray(kernel)


def _gathered(rows: jax.Array, kernel: NByMArray) -> jax.Array:
    """Picks the inputs of every kept weight: less work than expanding where kept weights times rows are few."""
    groups, n, outputs = kernel.values.shape
    first = lax.broadcasted_iota(jnp.int32, kernel.places.shape, 0) * kernel.structure.m
    index = (first + kernel.places.astype(jnp.int32)).reshape(groups * n, outputs)
    picked = rows.at[:, index].get(mode="clip")  # the place of a filler may lie beyond the end; its value is 0
    return jnp.einsum("bio,io->bo", picked, kernel.values.reshape(groups * n, outputs).astype(rows.dtype))
