"""How sparse the networks of several seeds are."""

from typing import Any

import jax
import numpy as np


def zeros(params: Any) -> list[float]:
    """By seed, which is the first axis, the fraction of zeros in the weight matrices."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    matrices = [leaf.reshape(len(leaf), -1) for leaf in leaves if leaf.ndim > 2]
    weights = np.concatenate(matrices, axis=1)
    return [1 - np.count_nonzero(own) / own.size for own in weights]
