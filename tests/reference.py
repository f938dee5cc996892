"""Slow, readable NumPy versions of the rules of the core; nothing here shares code with what it checks."""

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np


def keep_count(n: int, sparsity: float) -> int:
    """As many as `survivor_count`, but one of a layer that is not asked to be empty."""
    kept = survivor_count(n, sparsity)
    return 1 if kept == 0 and n > 0 and sparsity < 1 else kept


def survivor_count(n: int, drop_fraction: float) -> int:
    """Round half to even, in rational arithmetic."""
    return round((1 - Fraction(drop_fraction)) * n)


def best_first(scores: np.ndarray) -> list[int]:
    """Flat indices from best to worst: NaN last, then by value, then the lower index first."""
    values = np.asarray(scores).astype(np.float64).ravel()
    lost = np.isnan(values)
    return list(np.lexsort((np.arange(values.size), -np.where(lost, 0, values), lost)))


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    mask = np.zeros(scores.size, np.uint8)
    mask[best_first(scores)[:k]] = 1
    return mask.reshape(scores.shape)


def top_k_together(arrays: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
    """One ranking over all arrays laid end to end."""
    joined = top_k(np.concatenate([np.asarray(a).astype(np.float64).ravel() for a in arrays]), k)
    parts = np.split(joined, np.cumsum([a.size for a in arrays])[:-1])
    return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _groups(shape: tuple[int, ...], m: int, axis: int) -> Iterator[tuple]:
    """Index of every run of m entries along an axis, the last one of a line perhaps shorter."""
    axis %= len(shape)
    others = [range(length) if a != axis else [0] for a, length in enumerate(shape)]
    for place in itertools.product(*others):
        for start in range(0, shape[axis], m):
            yield (*place[:axis], slice(start, start + m), *place[axis + 1 :])


def signed_ranks(grads: np.ndarray, asked: np.ndarray, count: int, fall: float = 1.0) -> np.ndarray:
    """A client's say in growth: 1 for its strongest gradient, fall / count less for each further one up to count."""
    flat, said = grads.astype(np.float64).ravel(), np.zeros(grads.size)
    named = [i for i in range(flat.size) if asked.ravel()[i] and flat[i] != 0]
    for i in named:
        first = sum(abs(flat[j]) > abs(flat[i]) for j in named)
        alike = sum(abs(flat[j]) == abs(flat[i]) for j in named)
        mean_rank = np.mean(range(first, first + alike))
        if first + alike <= count:
            said[i] = np.sign(flat[i]) * (1 - fall * mean_rank / count)
    return said.reshape(grads.shape)


def n_by_m(scores: np.ndarray, kept: int, m: int, axis: int) -> np.ndarray:
    mask = np.zeros(scores.shape, np.uint8)
    for group in _groups(scores.shape, m, axis):
        mask[group] = top_k(scores[group], kept)
    return mask


def _tiles(shape: tuple[int, ...], block: Sequence[int]) -> Iterator[tuple]:
    """Index of every block over the last axes, those at the border perhaps smaller."""
    lengths = [1] * (len(shape) - len(block)) + list(block)
    for corner in itertools.product(*(range(0, d, b) for d, b in zip(shape, lengths, strict=True))):
        yield tuple(slice(start, start + length) for start, length in zip(corner, lengths, strict=True))


def block(scores: np.ndarray, shape: Sequence[int], kept: int, average: bool) -> np.ndarray:
    wide = scores.astype(np.float64)
    tiles = list(_tiles(scores.shape, shape))
    chosen = top_k(np.array([wide[t].mean() if average else wide[t].max() for t in tiles]), kept)
    mask = np.zeros(scores.shape, np.uint8)
    for tile, is_kept in zip(tiles, chosen, strict=True):
        mask[tile] = is_kept
    return mask


def channel(scores: np.ndarray, axis: int, kept: int) -> np.ndarray:
    slices = np.moveaxis(scores.astype(np.float64), axis, 0)
    mask = np.zeros(slices.shape, np.uint8)
    mask[top_k(np.array([piece.sum() for piece in slices]), kept) == 1] = 1
    return np.moveaxis(mask, 0, axis)


def constant_fan_in(scores: np.ndarray, axis: int, sparsity: float) -> np.ndarray:
    slices = np.moveaxis(scores, axis, 0)
    kept = keep_count(int(np.prod(slices.shape[1:])), sparsity)
    return np.moveaxis(np.stack([top_k(piece, kept) for piece in slices]), 0, axis)


def drop_and_grow(mask: np.ndarray, drop: np.ndarray, grow: np.ndarray, survivors: int) -> np.ndarray:
    """Keeps the best active entries, then fills up from all others with a finite score, the dropped ones included."""
    active = [i for i in best_first(drop) if mask.flat[i]]
    can_grow = np.isfinite(np.asarray(grow).astype(np.float64)).ravel()
    if can_grow.sum() < len(active):  # as many are dropped as pruned entries can replace
        survivors = max(survivors, len(active) - int((can_grow & (mask.ravel() == 0)).sum()))
    new = set(active[:survivors])
    for i in best_first(grow):
        if can_grow[i] and len(new) < len(active):
            new.add(i)
    return np.array([i in new for i in range(mask.size)], np.uint8).reshape(mask.shape)


def n_by_m_drop_and_grow(
    mask: np.ndarray, drop: np.ndarray, grow: np.ndarray, survivors: int, m: int, axis: int
) -> np.ndarray:
    new = np.zeros(mask.shape, np.uint8)
    for group in _groups(mask.shape, m, axis):
        new[group] = drop_and_grow(mask[group], drop[group], grow[group], survivors)
    return new


def erk_shares(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[Fraction]:
    """Kept entries per layer, not rounded: water poured by weight into vessels that cannot overflow."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    budget = Fraction(keep_count(sum(sizes), sparsity))
    share = [Fraction(0)] * len(shapes)
    open_ = set(range(len(shapes)))
    while open_ and budget:
        weight = sum(sum(shapes[i]) for i in open_)
        full = {i for i in open_ if budget * sum(shapes[i]) / weight >= sizes[i]}
        for i in full or open_:
            share[i] = Fraction(sizes[i]) if full else budget * sum(shapes[i]) / weight
        budget -= sum(share[i] for i in full or open_)
        open_ -= full or open_
    return share


def polynomial(target: float, step: int, start: int, end: int, power: float) -> float:
    if step < start:
        return 0.0
    done = 1.0 if step >= end else (step + 1 - start) / (end - start)
    return target * (1 - (1 - min(done, 1.0)) ** power)
