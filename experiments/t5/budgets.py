"""Budgets of equal size that are spent differently: a part of a model kept denser, all else sparser."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from sparse_plugins.core.trees import leaf_names

PARTS = {
    "embeddings": r"token_embedder/embedding|logits_dense/kernel",
    "attention": r".*attention/(query|key|value|out)/kernel",
    "mlp": r".*/mlp/(wi_0|wi_1|wo)/kernel",
}


def favouring(
    shapes: Any, part: str | None, factor: float, sparsity: float, parts: Mapping[str, str] = PARTS
) -> list[tuple[str, float]]:
    """Rules for a budget in which one part has a higher density, and all parts together keep what they should.

    Args:
        shapes: Parameters, or their shapes.
        part: The one to favour; None for none, which is uniform.
        factor: By which its density is that of a uniform budget.
        sparsity: Fraction of zeros in all parts together.
        parts: Regular expressions for paths, by part.

    Returns:
        A sparsity for each part's expression; `rules` of `core.uniform`.

    Raises:
        ValueError: If the part's density would be above 1, or nothing would be left for the others.

    Example:
        >>> shapes = {name: jax.ShapeDtypeStruct((10, 10), "float32") for name in ("a", "b")}
        >>> favouring(shapes, "a", 1.5, 0.8, {"a": "a", "b": "b"})
        [('a', 0.7), ('b', 0.9)]
    """
    leaves = dict(zip(leaf_names(shapes), jax.tree.leaves(shapes), strict=True))
    sizes = {
        name: sum(math.prod(leaf.shape) for path, leaf in leaves.items() if re.fullmatch(pattern, path))
        for name, pattern in parts.items()
    }
    density = 1 - sparsity
    if part is None:
        return [(pattern, sparsity) for pattern in parts.values()]
    others = sum(size for name, size in sizes.items() if name != part)
    favoured, rest = factor * density, density * (sizes[part] * (1 - factor) + others) / others
    if not (favoured <= 1 and 0 < rest <= 1):
        raise ValueError(
            f"{part} at {favoured:.3g} of its entries leaves {rest:.3g} of the others' in a budget of {density:.3g};"
            f" choose another factor than {factor} or another sparsity."
        )
    return [(pattern, round(1 - (favoured if name == part else rest), 9)) for name, pattern in parts.items()]
