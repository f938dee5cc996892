"""Names of algorithms for readers, and the grids of studies that train each at several sparsities."""

from collections.abc import Iterator, Sequence

DENSE = "no_prune"


def label(algorithm: str) -> str:
    """An algorithm's name for readers."""
    return "dense" if algorithm == DENSE else algorithm


def grid(algorithms: Sequence[str], sparsities: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Every algorithm at every sparsity; dense training has none, so it comes once.

    Example:
        >>> list(grid([DENSE, "set"], [0.5, 0.8]))
        [('no_prune', 0.0), ('set', 0.5), ('set', 0.8)]
    """
    for algorithm in algorithms:
        for sparsity in (0.0,) if algorithm == DENSE else sparsities:
            yield algorithm, sparsity
