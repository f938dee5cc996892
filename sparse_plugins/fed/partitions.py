"""Which examples of one pile belong to which client, decided by a seed; NumPy only."""

from typing import Any

import numpy as np

__all__ = ["dirichlet_partition", "shard_partition"]

Array = np.ndarray[Any, Any]
MIN_EXAMPLES = 10
_DRAWS = 100


def dirichlet_partition(
    labels: Array, num_clients: int, alpha: float, seed: int, min_examples: int = MIN_EXAMPLES
) -> list[Array]:
    """Deals every class to the clients in shares that a Dirichlet distribution draws, few clients if alpha is small.

    Draws again until every client has enough examples, so that none is left out.

    Args:
        labels: int [n], the class of each example.
        num_clients: 1 or more.
        alpha: Above 0; 0.1 leaves most clients few classes, 100 deals evenly.
        seed: Seed of the shares and of who gets which example.
        min_examples: Examples that every client has at least.

    Returns:
        For every client the rows of its examples, int [its number], ascending; each row is in one of them.

    Raises:
        ValueError: An argument is out of its range, or a hundred draws left a client with too few examples.

    Example:
        >>> parts = dirichlet_partition(np.arange(1000) % 10, num_clients=5, alpha=0.3, seed=0)
        >>> len(parts), sum(map(len, parts)), min(map(len, parts)) >= 10
        (5, 1000, True)

    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks (2019).
    """
    labels = _checked(labels, num_clients)
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}; give a finite number above 0.")
    rng = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        owners = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            ends = np.round(np.cumsum(rng.dirichlet(np.full(num_clients, alpha))) * len(rows)).astype(np.int64)
            owners[rows] = np.searchsorted(ends[:-1], np.arange(len(rows)), side="right")
        counts = np.bincount(owners, minlength=num_clients)
        if counts.min() >= min_examples:
            return np.split(np.argsort(owners, kind="stable"), np.cumsum(counts)[:-1])
    raise ValueError(
        f"{len(labels)} examples can't be dealt to {num_clients} clients by alpha={alpha} so that each has"
        f" {min_examples}: give fewer clients or a larger alpha."
    )


def shard_partition(labels: Array, num_clients: int, shards: int, seed: int) -> list[Array]:
    """Sorts examples by class, cuts them into shards of equal size and gives every client some: few classes each.

    Args:
        labels: int [n], the class of each example.
        num_clients: 1 or more.
        shards: Shards of each client, 1 or more; sizes of shards differ by one example at most.
        seed: Decides who gets which shard.

    Returns:
        As of `dirichlet_partition`.

    Raises:
        ValueError: An argument is out of its range, or there are more shards than examples.

    Example:
        >>> parts = shard_partition(np.arange(100) % 10, num_clients=5, shards=2, seed=0)
        >>> sorted(map(len, parts)), max(len(set((rows % 10).tolist())) for rows in parts)
        ([20, 20, 20, 20, 20], 2)

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (2017).
    """
    labels = _checked(labels, num_clients)
    total = num_clients * shards
    if not shards >= 1 or total > len(labels):
        raise ValueError(
            f"{len(labels)} examples can't be cut into {num_clients} x {shards} shards: give 1 shard or more a client,"
            f" and {len(labels)} in all at most."
        )
    rng = np.random.default_rng(seed)
    by_class = rng.permutation(len(labels))
    by_class = by_class[np.argsort(labels[by_class], kind="stable")]
    pieces = np.array_split(by_class, total)
    dealt = rng.permutation(total).reshape(num_clients, shards)
    return [np.sort(np.concatenate([pieces[piece] for piece in shares])) for shares in dealt]


def _checked(labels: Array, num_clients: int) -> Array:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}; give the class of each example, int [n].")
    if not 1 <= num_clients <= len(labels):
        raise ValueError(f"num_clients is {num_clients}; there are {len(labels)} examples, so give 1 to {len(labels)}.")
    return labels
