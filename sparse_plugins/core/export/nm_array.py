"""Compressed N:M: of each group of m entries the n that may be kept, and their places."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.structures import NByM

__all__ = ["NByMArray", "as_n_by_m"]

MAX_GROUP = 255  # a place inside a group is a uint8, and one value more says that there is none


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "places"], meta_fields=["shape", "structure"]
)
@dataclasses.dataclass(frozen=True)
class NByMArray:
    """The kept entries of an N:M array and where in their groups they stand.

    Attributes:
        values: [..., groups, n, ...] in place of the axis that the groups lie along; 0 where a group keeps fewer.
        places: uint8 of the same shape: index inside the group, ascending; m where a group keeps fewer than n.
        shape: Shape of the array.
        structure: Its N:M pattern.

    Example:
        >>> kernel = np.array([[0.0], [5.0], [7.0], [0.0]], np.float32)
        >>> packed = as_n_by_m(kernel, kernel != 0, NByM(2, 4), "w")
        >>> packed.values.ravel().tolist(), packed.places.ravel().tolist()
        ([5.0, 7.0], [1, 2])

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks (2021), with a byte in place of two bits.
    """

    values: jax.Array
    places: jax.Array
    shape: tuple[int, ...]
    structure: NByM

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the values."""
        return self.values.dtype

    def expand(self) -> jax.Array:
        """The array itself, by n comparisons a group; no gather, no scatter, differentiable by `values`.

        Example:
            >>> kernel = np.array([[0.0], [5.0], [7.0]], np.float32)
            >>> as_n_by_m(kernel, kernel != 0, NByM(2, 4), "w").expand().ravel().tolist()
            [0.0, 5.0, 7.0]
        """
        axis, m = self.structure.place % len(self.shape), self.structure.m
        lead, groups, tail = self.shape[:axis], self.values.shape[axis], self.shape[axis + 1 :]
        place = jnp.arange(m, dtype=jnp.uint8).reshape(*[1] * (axis + 1), m, *[1] * len(tail))
        grouped = jnp.zeros((*lead, groups, m, *tail), self.dtype)
        for k in range(self.structure.n):
            of_group = functools.partial(lax.slice_in_dim, start_index=k, limit_index=k + 1, axis=axis + 1)
            grouped = jnp.where(of_group(self.places) == place, of_group(self.values), grouped)
        return lax.slice_in_dim(grouped.reshape(*lead, groups * m, *tail), 0, self.shape[axis], axis=axis)


jax.export.register_pytree_node_serialization(
    NByMArray,
    serialized_name="sparse_plugins.NByMArray",
    serialize_auxdata=lambda meta: json.dumps([meta[0], dataclasses.astuple(meta[1])]).encode(),
    deserialize_auxdata=lambda written: _read_meta(*json.loads(written)),
    from_children=lambda meta, children: NByMArray(*children, *meta),
)


def _read_meta(shape: list[int], pattern: list[int]) -> tuple[tuple[int, ...], NByM]:
    return tuple(shape), NByM(*pattern)


def as_n_by_m(param: np.ndarray, mask: np.ndarray, structure: NByM, name: str) -> NByMArray:
    """One array in compressed N:M form.

    Args:
        param: Array that has the structure's axis.
        mask: bool of the same shape, True = kept; at most n of each group.
        structure: The pattern.
        name: Path of the array, for the message.

    Returns:
        Values of the same dtype and their places. A short last group counts as one whose missing entries are pruned.

    Raises:
        ValueError: If some group keeps more than n entries, the axis does not exist, or m is above 255.

    Example:
        >>> kernel = np.array([[1.0], [0.0], [0.0], [0.0]])
        >>> as_n_by_m(kernel, kernel != 0, NByM(2, 4), "w").places.ravel().tolist()
        [0, 4]
    """
    structure.check(param.shape, f"leaf {name!r}")
    n, m, axis = structure.n, structure.m, structure.place % param.ndim
    if m > MAX_GROUP:
        raise ValueError(f"{structure} has groups of {m}; NByMArray takes up to {MAX_GROUP}. Use to_bcoo or to_bcsr.")
    groups = -(-param.shape[axis] // m)
    padding = [(0, -length % m if a == axis else 0) for a, length in enumerate(param.shape)]
    by_group = (*param.shape[:axis], groups, m, *param.shape[axis + 1 :])
    kept = np.pad(mask, padding).reshape(by_group)
    most = int(kept.sum(axis=axis + 1).max(initial=0))
    if most > n:
        raise ValueError(
            f"leaf {name!r} of shape {param.shape} keeps {most} entries of a group; {structure} allows {n}. Export "
            "after the schedule's end, give the structure it was pruned with, or use to_bcoo, which takes any mask."
        )
    # Kept places first, both halves ascending; then n of them, of which those beyond the kept ones say "none".
    order = np.argsort(~kept, axis=axis + 1, kind="stable").take(range(n), axis=axis + 1)
    is_kept = np.take_along_axis(kept, order, axis + 1)
    values = np.take_along_axis(np.pad(param, padding).reshape(by_group), order, axis + 1)
    values[~is_kept] = 0
    places = np.where(is_kept, order, m).astype(np.uint8)
    return NByMArray(jnp.asarray(values), jnp.asarray(places), param.shape, structure)
