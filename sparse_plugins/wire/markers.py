"""What stands in a mask tree where a leaf stays dense; the codec and the core mean the same by it."""

import sys
from typing import Any, NamedTuple

__all__ = ["NOT_PRUNED", "NotPruned", "is_masked_node", "is_pruned"]


class NotPruned(NamedTuple):
    """Stands in a mask tree for a leaf that stays dense; an empty node, so that tree maps pass over it."""


NOT_PRUNED = NotPruned()


def is_pruned(node: Any) -> bool:
    """Whether a node of a mask tree is a mask, not the marker of a leaf that stays dense.

    Example:
        >>> import numpy as np
        >>> is_pruned(NOT_PRUNED), is_pruned(None), is_pruned(np.ones(3, np.uint8))
        (False, False, True)
    """
    optax = sys.modules.get("optax")  # asked here, for a mask is asked for at every leaf of every update
    return not (
        node is None or isinstance(node, NotPruned) or (optax is not None and isinstance(node, optax.MaskedNode))
    )


def is_masked_node(node: Any) -> bool:
    """Whether this is what optax puts in the place of a part of a tree; where optax is not loaded, nothing is."""
    optax = sys.modules.get("optax")
    return optax is not None and isinstance(node, optax.MaskedNode)
