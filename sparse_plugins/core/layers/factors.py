"""Axes as products of factors, and the factors that are one and the same.

An axis is a list of factors, major to minor. A factor has a size and is shared by all axes that hold the same entries;
where a reshape merges axes or splits them, the coarser factor is refined.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Sequence

__all__ = ["Axis", "Factor", "common_division", "factors", "pin", "reasons", "root", "unify"]


class Factor:
    """A set of positions along an axis.

    Attributes:
        size: How many there are.
        pins: Why entries must stay where they are, if they must.
        is_batched: Whether a product of two activations is many products along it, as along attention heads.
        parts: The finer factors whose product it is, major to minor.
        segments: The axes that it is a concatenation of.
        is_seen: Whether a value has it; not so what a slice leaves out and nothing else takes.
    """

    __slots__ = ("is_batched", "is_seen", "parent", "parts", "pins", "segments", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.parent = self
        self.parts: list[Factor] = []
        self.segments: list[list[Factor]] = []
        self.pins: set[str] = set()
        self.is_batched = False
        self.is_seen = True


Axis = list[Factor]


def root(factor: Factor) -> Factor:
    """The factor that stands for all that were merged with this one."""
    while factor.parent is not factor:
        factor.parent = factor.parent.parent
        factor = factor.parent
    return factor


def factors(axis: Iterable[Factor]) -> Axis:
    """The finest factors of an axis, major to minor.

    Example:
        >>> x, y = [Factor(6)], [Factor(2), Factor(3)]
        >>> unify(x, y)
        >>> [factor.size for factor in factors(x)]
        [2, 3]
    """
    found: Axis = []
    for factor in map(root, axis):
        found += factors(factor.parts) if factor.parts else [factor]
    return found


def pin(axis: Iterable[Factor], reason: str) -> None:
    """Forbids entries of an axis to move or to leave."""
    for factor in factors(axis):
        factor.pins.add(reason)


def reasons(axis: Iterable[Factor]) -> set[str]:
    """Why entries of an axis must stay, those of its segments included."""
    found: set[str] = set()
    for factor in factors(axis):
        found |= factor.pins.union(*(reasons(segment) for segment in factor.segments))
    return found


def unify(x: Sequence[Factor], y: Sequence[Factor], reason: str = "sizes without a common division") -> None:
    """Says that two axes, or two lists of axes as a reshape has them, hold the same entries in the same order.

    Args:
        x: Factors, major to minor.
        y: Factors of the same total size.
        reason: Why both are pinned if no factors fit both.
    """
    left, right = factors(x), factors(y)
    if math.prod(f.size for f in left) in (0, 1) and len(left) == len(right) == 1:
        _merge(left[0], right[0])
        return
    left, right = ([f for f in axis if f.size != 1] for axis in (left, right))
    pieces = common_division([f.size for f in left], [f.size for f in right])
    if pieces is None:
        pin([*left, *right], reason)
        return
    _divide(left, pieces)
    _divide(factors(right), pieces)  # dividing one side may have divided what the other shares with it
    for a, b in zip(factors(left), factors(right), strict=True):
        _merge(a, b)


def common_division(left: Sequence[int], right: Sequence[int]) -> list[int] | None:
    """Sizes, in order, from which two shapes of the same total size can be put together.

    Returns:
        The sizes, none of them 1; None if there are none, or if the total size is 0.

    Example:
        >>> common_division((5, 12), (20, 3)), common_division((4, 6), (6, 4))
        ([5, 4, 3], None)
    """
    edges = {edge for shape in (left, right) for edge in itertools.accumulate(shape, operator.mul)}
    pieces, last = [], 1
    for edge in sorted(edges):
        if edge == 0 or edge % last:
            return None
        pieces.append(edge // last)
        last = edge
    return [piece for piece in pieces if piece != 1]


def _divide(axis: Axis, pieces: Sequence[int]) -> None:
    rest = iter(pieces)
    for factor in axis:
        parts: Axis = []
        while math.prod(part.size for part in parts) < factor.size:
            parts.append(Factor(next(rest)))
        if len(parts) > 1 and not factor.parts:
            _refine(factor, parts)


def _merge(a: Factor, b: Factor) -> None:
    a, b = root(a), root(b)
    if a is b:
        return
    b.parent = a
    a.pins |= b.pins
    a.is_batched |= b.is_batched
    a.is_seen |= b.is_seen
    if a.segments and b.segments:
        _match_segments(a, b)
    a.segments = a.segments or b.segments


def _match_segments(a: Factor, b: Factor) -> None:
    """Unifies two concatenations; where segments of one lie across those of the other, they are concatenations, too."""
    lengths = [[math.prod(f.size for f in segment) for segment in factor.segments] for factor in (a, b)]
    if lengths[0] != lengths[1]:
        roots = [{root(f) for segment in factor.segments for f in segment} for factor in (a, b)]
        if not roots[0].isdisjoint(roots[1]):  # an axis that is moved along itself
            reason = "concatenations of other lengths"
            pin([f for factor in (a, b) for segment in factor.segments for f in segment], reason)
            a.pins.add(reason)
            return
        edges = sorted({edge for its in lengths for edge in itertools.accumulate(its)})
        for factor in (a, b):
            factor.segments = _cut_at(edges, factor.segments)
    for segment, other in zip(a.segments, b.segments, strict=True):
        unify(segment, other)


def _cut_at(edges: Sequence[int], segments: Sequence[Axis]) -> list[Axis]:
    """Segments as concatenations of what lies between edges, the end of each of them among these."""
    pieces: list[Axis] = []
    start = 0
    for segment in segments:
        end = start + math.prod(f.size for f in segment)
        inside = [start, *(edge for edge in edges if start < edge <= end)]
        if len(inside) == 2:
            pieces.append(segment)
        else:
            its = [[Factor(after - before)] for before, after in itertools.pairwise(inside)]
            for (piece,) in its:
                piece.is_seen = False
            whole = Factor(end - start)
            whole.segments = its
            unify(segment, [whole])
            pieces += its
        start = end
    return pieces


def _refine(coarse: Factor, parts: Axis) -> None:
    coarse.parts = parts
    segments = coarse.segments
    if segments and [part.size for part in parts] == [len(segments), math.prod(f.size for f in segments[0])]:
        for segment in segments:  # of one length: which of them, times where in it
            unify(segment, [parts[1]])
        parts[0].pins.add("parts that are told apart")
    elif segments:
        coarse.pins.add("a division of a concatenation")
        pin([factor for segment in coarse.segments for factor in segment], "a division of a concatenation")
    for part in parts:
        part.pins |= coarse.pins
        part.is_batched |= coarse.is_batched
        part.is_seen &= coarse.is_seen
