"""What backends run clients with: types, and their batches put together for programs that take many at once."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Clients",
    "ForEachClient",
    "Results",
    "bucket",
    "owning",
    "runs",
    "runs_of_group",
    "shapes_of",
    "similar_groups",
    "stack",
    "stack_full",
    "stack_group",
]

Clients = Iterable[tuple[Any, Iterable[Any], Any]]
Results = Iterator[tuple[Any, Any, list[Any]]]
ForEachClient = Callable[[Any, Clients], Results]

LOOKAHEAD = 4  # groups among whose clients those of similar size are put together


def owning(client_init: Callable) -> Callable:
    """Copies the state that a step will take over, as it may be the shared input's memory."""
    return lambda *inputs: jax.tree.map(jnp.copy, client_init(*inputs))


def runs(batches: Iterable[Any], longest: int) -> Iterator[list[Any]]:
    """Consecutive batches of the same shapes, at most `longest` at a time."""
    for _, alike in itertools.groupby(batches, shapes_of):
        while run := list(itertools.islice(alike, longest)):
            yield run


def runs_of_group(clients: Sequence[Iterable[Any]], longest: int) -> Iterator[list[list[Any]]]:
    """Runs of several clients, of the same shapes at a time; a client whose next batches have others waits: []."""
    rest = [runs(batches, longest) for batches in clients]
    heads = [next(client_runs, []) for client_runs in rest]
    while any(heads):
        shapes = next(shapes_of(head[0]) for head in heads if head)
        turn = [bool(head) and shapes_of(head[0]) == shapes for head in heads]
        yield [head if now else [] for head, now in zip(heads, turn, strict=True)]
        heads = [
            next(client_runs, []) if now else head for client_runs, head, now in zip(rest, heads, turn, strict=True)
        ]


def similar_groups(clients: Clients, size: int) -> Iterator[list[tuple[Any, list[Any], Any]]]:
    """Clients in groups, the largest of those ahead first; their batches as lists."""
    clients = iter(clients)
    while ahead := [
        (name, list(batches), client_input)
        for name, batches, client_input in itertools.islice(clients, size * LOOKAHEAD)
    ]:
        ahead.sort(key=lambda client: len(client[1]), reverse=True)
        for start in range(0, len(ahead), size):
            yield ahead[start : start + size]


def shapes_of(batch: Any) -> Hashable:
    """What tells whether batches can be stacked: structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(batch)
    # The types of scalars that are no arrays; `jnp.result_type` takes as long as a step of a small model.
    known = lambda leaf: hasattr(leaf, "shape") and hasattr(leaf, "dtype")  # noqa: E731
    of_leaf = lambda leaf: (leaf.shape, leaf.dtype) if known(leaf) else (np.shape(leaf), type(leaf))  # noqa: E731
    return structure, tuple(map(of_leaf, leaves))


def bucket(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def stack(trees: Sequence[Any], size: int) -> Any:
    """Trees of arrays as one with a leading axis of the given size; what is left of it holds anything."""

    def stacked(*leaves: Any) -> Any:
        if any(isinstance(leaf, jax.Array) for leaf in leaves):
            return jnp.stack([*leaves, *[leaves[-1]] * (size - len(leaves))])
        whole = _aligned((size, *np.shape(leaves[0])), np.result_type(*leaves))
        np.stack(leaves, out=whole[: len(leaves)])
        return whole

    return jax.tree.map(stacked, *trees)


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX uses on a CPU without copying it, since it starts at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def stack_group(runs: Sequence[list[Any]], size: int) -> Any:
    """Runs of clients as one tree with leading axes of clients and of batches.

    A vectorized loop also computes with what a client does not run, so that repeats its last batch.
    """
    filler = next(run for run in runs if run)[0]
    length = bucket(max(map(len, runs)))
    full = [[*run, *[run[-1] if run else filler] * (length - len(run))] for run in runs]
    return stack_full([stack(run, length) for run in full], size)


def stack_full(trees: Sequence[Any], size: int) -> Any:
    """Trees of arrays as one with a leading axis of the given size, which the last fills up."""
    return stack([*trees, *[trees[-1]] * (size - len(trees))], size)
