"""The leaves of a model: names, shapes and dtypes, on which two sides agree before bytes mean anything."""

import dataclasses
import functools
import hashlib
import json
import math
import sys
from typing import Any

import numpy as np

from sparse_plugins.wire.seeded_masks import Key
from sparse_plugins.wire.trees import PyTree, named_leaves
from sparse_plugins.wire.value_codes import is_number

__all__ = ["Leaf", "described_leaves", "fingerprint", "on_host"]

Array = np.ndarray[Any, Any]

_PART_OF_A_BYTE = ("int2", "int4", "uint2", "uint4", "float4_", "float6_")


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """What sender and receiver both know about a leaf.

    Attributes:
        name: Path.
        shape: Shape.
        dtype: Dtype of its values.
        base: bool[n], the mask that both sides hold; None if they don't.
        key: The two words from which its random mask is drawn; None without a seed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    base: Array | None = None
    key: Key | None = None

    @functools.cached_property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def described_leaves(tree: PyTree) -> list[Leaf]:
    """Every leaf of a tree of arrays, in order.

    Args:
        tree: Arrays or `jax.ShapeDtypeStruct` leaves.

    Returns:
        One `Leaf` each, without base and key.

    Raises:
        ValueError: If something else than arrays of numbers is in it, or a leaf of 2**31 entries or more.

    Example:
        >>> [(leaf.name, leaf.size) for leaf in described_leaves({"w": np.ones((2, 3)), "b": np.ones(3)})]
        [('b', 3), ('w', 6)]
    """
    return [_described(node, name) for name, node in named_leaves(tree)]


def fingerprint(leaves: list[Leaf]) -> bytes:
    """Eight bytes that name a model: all paths, shapes and dtypes.

    Example:
        >>> one, other = ({"w": np.ones(size)} for size in (2, 3))
        >>> fingerprint(described_leaves(one)) == fingerprint(described_leaves(other))
        False
    """
    model = [(leaf.name, leaf.shape, leaf.dtype.name) for leaf in leaves]
    return hashlib.blake2b(json.dumps(model).encode(), digest_size=8).digest()


def on_host(value: Any, name: str) -> Array:
    """The values of a leaf as a NumPy array.

    Raises:
        ValueError: If the leaf is traced.
    """
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.core.Tracer):
        raise ValueError(f"leaf {name!r} is traced, but a message has its values: encode outside jit, vmap and grad.")
    return np.asarray(value)


def _described(node: Any, name: str) -> Leaf:
    if not (hasattr(node, "shape") and hasattr(node, "dtype")):
        raise ValueError(
            f"leaf {name!r} is a {type(node).__name__}; only arrays are sent, so wrap it or leave it out. If it is a "
            "container that its library registers with JAX, import that library and JAX first."
        )
    dtype = node.dtype if isinstance(node.dtype, np.dtype) else None  # random keys of JAX have one of their own
    if dtype is None or not is_number(dtype) or dtype.name.startswith(_PART_OF_A_BYTE):
        raise ValueError(f"leaf {name!r} has dtype {node.dtype}; send whole bytes of numbers, or leave it out.")
    leaf = Leaf(name, tuple(map(int, node.shape)), dtype.newbyteorder("="))
    if leaf.size >= 1 << 31:
        raise ValueError(f"leaf {name!r} has {leaf.size} entries; a message takes fewer than 2**31, so split it.")
    return leaf
