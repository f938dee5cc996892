"""What each primitive of JAX does to the axes of its operands, written as an einsum would be.

Every axis of every operand and result is a tuple of symbols, major to minor. Axes that share a symbol hold the same
entries. A contraction is a symbol of two operands that no result has; a transposed convolution, a gather and a reshape
are said in the same words.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sparse_plugins.core.layers.factors import common_division

__all__ = ["Axes", "Flow", "flow_of"]

Symbols = tuple[int, ...]
Shape = tuple[int, ...]
Axes = tuple[Symbols, ...]


class Flow(NamedTuple):
    """What one equation does to axes.

    Attributes:
        sizes: Size of every symbol.
        operands: For each operand the symbols of its axes.
        results: The same for each result.
        is_product: Whether operands are multiplied and summed over, as layers do with their weights.
        window: Symbols of a kernel that slides over positions.
        indexed: Symbols whose entries other operands choose, as rows of a table.
        mixed: Symbols whose positions matter, and why.
        parts: Pairs of symbols: the entries of the first are some of those of the second.
        joined: For symbols that are a concatenation, those of its segments.
        left_out: Segments that none of the values here has.
    """

    sizes: dict[int, int]
    operands: tuple[Axes, ...]
    results: tuple[Axes, ...]
    is_product: bool = False
    window: frozenset[int] = frozenset()
    indexed: frozenset[int] = frozenset()
    mixed: Mapping[int, str] = MappingProxyType({})
    parts: tuple[tuple[int, int], ...] = ()
    joined: Mapping[int, tuple[int, ...]] = MappingProxyType({})
    left_out: frozenset[int] = frozenset()


class _Symbols:
    """New symbols, with their sizes."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def new(self, size: int) -> int:
        self.sizes[len(self.sizes)] = size
        return len(self.sizes) - 1

    def axes(self, shape: Iterable[int]) -> Axes:
        return tuple((self.new(size),) for size in shape)


def _shapes(variables: Sequence[Any]) -> list[Shape]:
    return [tuple(getattr(v.aval, "shape", ())) for v in variables]


def flow_of(equation: Any) -> Flow | None:
    """What an equation does to axes.

    Args:
        equation: An equation of a jaxpr that holds no other jaxpr.

    Returns:
        The flow, or None where the primitive is not known.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> flow = flow_of(program.eqns[0])
        >>> flow.operands, flow.results
        ((((0,), (1,)), ((1,), (2,))), (((0,), (2,)),))
    """
    name = equation.primitive.name
    rule = _RULES.get(name, _elementwise if name in _ELEMENTWISE else None)
    return rule(equation, _shapes(equation.invars), _shapes(equation.outvars)) if rule else None


# Of one shape in and out, entry by entry.
_ELEMENTWISE = frozenset(
    {"abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil"}
    | {"bessel_i0e", "bessel_i1e", "clz", "igamma", "igammac", "polygamma", "zeros_like", "zeta"}
    | {"clamp", "complex", "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq"}
    | {"erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow", "is_finite", "le"}
    | {"lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "name", "ne", "neg", "nextafter", "not", "or"}
    | {"population_count", "pow", "real", "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left"}
    | {"shift_right_arithmetic", "shift_right_logical", "sharding_constraint", "sign", "sin", "sinh", "sqrt", "square"}
    | {"one_minus_square", "stop_gradient", "sub", "tan", "tanh", "xor"}
)


def _elementwise(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    axes = symbols.axes(results[0])

    def spread(shape: Shape) -> Axes:
        """A scalar, or an array with lengths of 1 where the result is longer."""
        return tuple(
            axis if size == length else (symbols.new(size),)
            for axis, size, length in zip(axes, shape, results[0], strict=False)
        )

    return Flow(symbols.sizes, tuple(map(spread, operands)), (axes,) * len(results))


def _each_as_it_is(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    axes = tuple(symbols.axes(shape) for shape in operands)
    return Flow(symbols.sizes, axes, axes)


def _broadcast(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    result = symbols.axes(results[0])
    places = equation.params["broadcast_dimensions"]
    kept = [
        result[place] if results[0][place] == size else None for size, place in zip(operands[0], places, strict=True)
    ]
    first = tuple(axis or (symbols.new(size),) for axis, size in zip(kept, operands[0], strict=True))
    return Flow(symbols.sizes, (first, *((),) * (len(operands) - 1)), (result,))


def _tile(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    """Every axis as often as it is repeated: copies, and what is copied."""
    symbols = _Symbols()
    axes = symbols.axes(operands[0])
    copies = [(symbols.new(count),) if count > 1 else () for count in equation.params["reps"]]
    result = tuple((*copy, *axis) for copy, axis in zip(copies, axes, strict=True))
    mixed = dict.fromkeys((symbol for copy in copies for symbol in copy), "copies of an array")
    return Flow(symbols.sizes, (axes,), (result,), mixed=mixed)


def _reshape(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow | None:
    """The common division of both shapes; entries of what has none are mixed."""
    symbols = _Symbols()
    order = equation.params.get("dimensions") or range(len(operands[0]))
    before, after = [operands[0][axis] for axis in order], list(results[0])
    pieces = common_division(before, after)
    if pieces is None:
        taken, given = symbols.axes(before), symbols.axes(after)
        mixed = dict.fromkeys(symbols.sizes, "a reshape of sizes without a common division")
    else:
        taken, given = _grouped(symbols, pieces, before, after)
        mixed = {}
    first: list[Symbols] = [()] * len(before)
    for axis, its in zip(order, taken, strict=True):
        first[axis] = its
    return Flow(symbols.sizes, (tuple(first), *((),) * (len(operands) - 1)), (given,), mixed=mixed)


def _grouped(symbols: _Symbols, pieces: list[int], before: list[int], after: list[int]) -> tuple[Axes, Axes]:
    shared = [symbols.new(piece) for piece in pieces]

    def dealt(shape: list[int]) -> Axes:
        axes, rest = [], iter(shared)
        for size in shape:
            its: list[int] = [symbols.new(1)] if size == 1 else []
            while math.prod(symbols.sizes[symbol] for symbol in its) < size:
                its.append(next(rest))
            axes.append(tuple(its))
        return tuple(axes)

    return dealt(before), dealt(after)


def _transpose(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    axes = symbols.axes(operands[0])
    return Flow(symbols.sizes, (axes,), (tuple(axes[place] for place in equation.params["permutation"]),))


def _without(parameter: str, reason: str = "") -> Callable[[Any, list[Shape], list[Shape]], Flow]:
    """A rule for primitives that take axes away: sums, squeezes; with a reason, positions along these matter."""

    def rule(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
        symbols = _Symbols()
        axes = symbols.axes(operands[0])
        gone = {axis % len(axes) for axis in equation.params[parameter]}
        kept = tuple(axis for place, axis in enumerate(axes) if place not in gone)
        mixed = {axes[place][0]: reason for place in gone} if reason else {}
        return Flow(symbols.sizes, (axes,) * len(operands), (kept,) * len(results), mixed=mixed)

    return rule


def _along(parameter: str, reason: str) -> Callable[[Any, list[Shape], list[Shape]], Flow]:
    """A rule for primitives that keep the shape and mix the positions of some axes: sorts, running sums, flips."""

    def rule(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
        symbols = _Symbols()
        axes = symbols.axes(operands[0])
        named = equation.params[parameter]
        places = [named] if isinstance(named, int) else named
        mixed = {axes[place][0]: reason for place in places}
        return Flow(symbols.sizes, (axes,) * len(operands), (axes,) * len(results), mixed=mixed)

    return rule


def _dot(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    (contracted, over), (batch, along) = equation.params["dimension_numbers"]
    left = symbols.axes(operands[0])
    shared = {
        right: left[place] for place, right in (*zip(contracted, over, strict=True), *zip(batch, along, strict=True))
    }
    right = tuple(shared[place] if place in shared else (symbols.new(size),) for place, size in enumerate(operands[1]))
    free = (
        *(left[place] for place in batch),
        *(axis for place, axis in enumerate(left) if place not in {*contracted, *batch}),
        *(axis for place, axis in enumerate(right) if place not in {*over, *along}),
    )
    return Flow(symbols.sizes, (left, right), (free,), is_product=True)


def _convolution(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols, numbers = _Symbols(), equation.params["dimension_numbers"]
    groups, batches = equation.params["feature_group_count"], equation.params["batch_group_count"]
    (lhs, rhs), (out,) = operands, results
    split, examples = symbols.new(groups), symbols.new(lhs[numbers.lhs_spec[0]] // batches)
    many, inputs = symbols.new(batches), symbols.new(rhs[numbers.rhs_spec[1]])
    outputs = symbols.new(rhs[numbers.rhs_spec[0]] // (groups * batches))
    blank: list[Symbols] = [()] * len(lhs)
    image, kernel, result = blank[:], blank[:], blank[:]
    image[numbers.lhs_spec[0]], image[numbers.lhs_spec[1]] = (many, examples), (split, inputs)
    kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]] = (many, split, outputs), (inputs,)
    result[numbers.out_spec[0]], result[numbers.out_spec[1]] = (examples,), (many, split, outputs)
    mixed, window = {}, set()
    for shape, axes, places in (
        (lhs, image, numbers.lhs_spec[2:]),
        (rhs, kernel, numbers.rhs_spec[2:]),
        (out, result, numbers.out_spec[2:]),
    ):
        for place in places:
            axes[place] = (symbols.new(shape[place]),)
            mixed[axes[place][0]] = "positions of a convolution"
            if axes is kernel:
                window.add(axes[place][0])
    return Flow(
        symbols.sizes,
        (tuple(image), tuple(kernel)),
        (tuple(result),),
        is_product=True,
        window=frozenset(window),
        mixed=mixed,
    )


def _beside_windows(symbols: _Symbols, equation: Any, axes: Axes, shape: Shape) -> tuple[Axes, dict[int, str]]:
    """Axes of what windows slide over, or of what comes out of them, beside those of the other; which of both slide."""
    pairs = list(zip(equation.params["window_dimensions"], axes, shape, strict=True))
    others = tuple(axis if size == 1 else (symbols.new(length),) for size, axis, length in pairs)
    slides = [its for (size, axis, _), other in zip(pairs, others, strict=True) if size != 1 for its in (*axis, *other)]
    return others, dict.fromkeys(slides, "positions of a pooling window")


def _window(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    result = symbols.axes(results[0])
    operand, mixed = _beside_windows(symbols, equation, result, operands[0])
    first = tuple(operand if len(shape) == len(result) else () for shape in operands)
    return Flow(symbols.sizes, first, (result,) * len(results), mixed=mixed)


def _window_back(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    """The derivative of a pooling by the largest: what came out of a window goes to where it came from."""
    symbols = _Symbols()
    whole = symbols.axes(results[0])
    pooled, mixed = _beside_windows(symbols, equation, whole, operands[0])
    return Flow(symbols.sizes, (pooled, whole), (whole,), mixed=mixed)


def _partly(
    symbols: _Symbols, whole: Shape, part: Shape, reason: str
) -> tuple[Axes, Axes, dict[int, str], list[tuple[int, int]]]:
    """Axes of an array and of a part of it: shared where the part is all."""
    mixed: dict[int, str] = {}
    parts = []
    axes, some = symbols.axes(whole), []
    for (symbol,), size, length in zip(axes, whole, part, strict=True):
        if size == length:
            some.append((symbol,))
            continue
        few = symbols.new(length)
        some.append((few,))
        parts.append((few, symbol))
        mixed |= {symbol: reason, few: reason}
    return axes, tuple(some), mixed, parts


def _slice(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    starts, strides = equation.params.get("start_indices"), equation.params.get("strides")
    cut = [axis for axis, (size, length) in enumerate(zip(operands[0], results[0], strict=True)) if size != length]
    if starts is not None and not strides and len(cut) == 1 and results[0][cut[0]] > 1:
        (along,) = cut
        start, end = starts[along], starts[along] + results[0][along]
        whole, some, within = _section(symbols, operands[0], along, (start, operands[0][along] - end))
        return within._replace(operands=(whole,), results=(some,))
    whole, some, mixed, parts = _partly(symbols, operands[0], results[0], "a slice of a part")
    rest: tuple[Axes, ...] = tuple(symbols.axes(shape) for shape in operands[1:])
    return Flow(symbols.sizes, (whole, *rest), (some,), mixed=mixed, parts=tuple(parts))


def _dynamic_slice(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    flow = _slice(equation, operands, results)
    return flow._replace(indexed=frozenset(whole for _, whole in flow.parts))


def _dynamic_update_slice(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    whole, some, mixed, parts = _partly(symbols, operands[0], operands[1], "an update of a part")
    rest = ((),) * (len(operands) - 2)
    return Flow(symbols.sizes, (whole, some, *rest), (whole,), mixed=mixed, parts=tuple(parts))


def _pad(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols, padding = _Symbols(), equation.params["padding_config"]
    padded = [axis for axis, widths in enumerate(padding) if any(widths)]
    if len(padded) == 1 and min(padding[padded[0]]) >= 0 == padding[padded[0]][2]:
        whole, some, within = _section(symbols, results[0], padded[0], padding[padded[0]][:2])
        return within._replace(operands=(some, ()), results=(whole,))
    whole, some, mixed, parts = _partly(symbols, results[0], operands[0], "padding")
    return Flow(symbols.sizes, (some, ()), (whole,), mixed=mixed, parts=tuple(parts))


def _section(symbols: _Symbols, shape: Shape, along: int, around: Sequence[int]) -> tuple[Axes, Axes, Flow]:
    """Axes of an array and of a section of it, with how much is before and behind, and a flow between the two."""
    whole = symbols.axes(shape)
    ((total,),) = whole[along : along + 1]
    inside = symbols.new(shape[along] - sum(around))
    before, behind = (symbols.new(width) if width else None for width in around)
    some = (*whole[:along], (inside,), *whole[along + 1 :])
    joined = tuple(segment for segment in (before, inside, behind) if segment is not None)
    left_out = frozenset(joined) - {inside}
    return whole, some, Flow(symbols.sizes, (), (), parts=((inside, total),), joined={total: joined}, left_out=left_out)


def _concatenate(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols, along = _Symbols(), equation.params["dimension"]
    whole = symbols.axes(results[0])
    ones = [(*whole[:along], (symbols.new(shape[along]),), *whole[along + 1 :]) for shape in operands]
    segments = tuple(axes[along][0] for axes in ones)
    ((total,),) = whole[along : along + 1]
    parts = tuple((segment, total) for segment in segments)
    return Flow(symbols.sizes, tuple(ones), (whole,), parts=parts, joined={total: segments})


def _stack(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols = _Symbols()
    axes = symbols.axes(operands[0])
    return _beside(symbols, equation.params["axis"], axes, (axes,) * len(operands), len(operands))


def _unstack(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols, along = _Symbols(), equation.params["axis"]
    axes = symbols.axes(results[0]) if results else ()
    flow = _beside(symbols, along, axes, (axes,) * len(results), operands[0][along])
    return flow._replace(operands=flow.results, results=flow.operands)


def _beside(symbols: _Symbols, along: int, axes: Axes, each: tuple[Axes, ...], count: int) -> Flow:
    """Arrays to the array in which they lie beside each other, along an axis that they do not have."""
    which = symbols.new(count)
    whole = (*axes[:along], (which,), *axes[along:])
    return Flow(symbols.sizes, each, (whole,), mixed={which: "parts that are told apart"})


def _split(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols, along = _Symbols(), equation.params["axis"]
    whole = symbols.axes(operands[0])
    if len({shape[along] for shape in results}) == 1:
        return _chunks(symbols, whole, along, results)
    ones = [(*whole[:along], (symbols.new(shape[along]),), *whole[along + 1 :]) for shape in results]
    segments = tuple(axes[along][0] for axes in ones)
    ((total,),) = whole[along : along + 1]
    parts = tuple((segment, total) for segment in segments)
    return Flow(symbols.sizes, (whole,), tuple(ones), parts=parts, joined={total: segments})


def _chunks(symbols: _Symbols, whole: Axes, along: int, results: list[Shape]) -> Flow:
    """Parts of one length: the axis is which part, times where in it."""
    which, where = symbols.new(symbols.sizes[whole[along][0]] // results[0][along]), symbols.new(results[0][along])
    divided = (*whole[:along], (which, where), *whole[along + 1 :])
    part = (*whole[:along], (where,), *whole[along + 1 :])
    return Flow(symbols.sizes, (divided,), (part,) * len(results), mixed={which: "parts that are told apart"})


def _gather(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow | None:
    symbols, numbers = _Symbols(), equation.params["dimension_numbers"]
    (table, indices), taken = operands[:2], equation.params["slice_sizes"]
    rows, places = symbols.axes(table), symbols.axes(indices[:-1])
    vector = (symbols.new(indices[-1]),) if indices else ()
    along = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    rows = tuple(places[along[axis]] if axis in along else its for axis, its in enumerate(rows))
    mixed: dict[int, str] = {}
    parts = []
    offsets = []
    for axis, its in enumerate(rows):
        if axis in numbers.collapsed_slice_dims or axis in along:
            continue
        if taken[axis] == table[axis]:
            offsets.append(its)
        else:
            few = symbols.new(taken[axis])
            parts.append((few, its[0]))
            mixed[few] = "a gathered part"
            offsets.append((few,))
    indexed = {rows[axis][0] for axis in numbers.start_index_map if taken[axis] != table[axis]}
    mixed |= dict.fromkeys(indexed, "rows that are looked up")
    rest, offset = iter(places), iter(offsets)
    result = tuple(next(offset) if axis in numbers.offset_dims else next(rest) for axis in range(len(results[0])))
    spoken = (*places, vector) if indices else ()
    return Flow(symbols.sizes, (rows, spoken), (result,), indexed=frozenset(indexed), mixed=mixed, parts=tuple(parts))


def _top_k(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    symbols, along = _Symbols(), equation.params.get("axis", -1) % len(operands[0])
    whole = symbols.axes(operands[0])
    few = symbols.new(results[0][along])
    some = (*whole[:along], (few,), *whole[along + 1 :])
    mixed = dict.fromkeys([whole[along][0], few], "a choice of the largest")
    return Flow(symbols.sizes, (whole,), (some,) * len(results), mixed=mixed)


def _scatter(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow | None:
    """What a gather's derivative is: rows are added to a table, or written into it."""
    symbols, numbers = _Symbols(), equation.params["dimension_numbers"]
    table, indices, updates = operands
    rows, places = symbols.axes(table), symbols.axes(indices[:-1])
    along = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    rows = tuple(places[along[axis]] if axis in along else its for axis, its in enumerate(rows))
    inside = [axis for axis in range(len(table)) if axis not in {*numbers.inserted_window_dims, *along}]
    mixed: dict[int, str] = {}
    parts, windows = [], []
    for axis, place in zip(inside, numbers.update_window_dims, strict=True):
        its = rows[axis]
        if updates[place] != table[axis]:
            few = symbols.new(updates[place])
            parts.append((few, its[0]))
            mixed[few], its = "an update of a part", (few,)
        windows.append(its)
    chosen = [rows[axis][0] for axis in numbers.scatter_dims_to_operand_dims]
    mixed |= dict.fromkeys(chosen, "rows that are looked up")
    rest, window = iter(places), iter(windows)
    given = tuple(next(window) if axis in numbers.update_window_dims else next(rest) for axis in range(len(updates)))
    spoken = (*places, (symbols.new(indices[-1]),)) if indices else ()
    return Flow(symbols.sizes, (rows, spoken, given), (rows,), mixed=mixed, parts=tuple(parts))


def _drawn(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
    """Random numbers, of each key as many."""
    symbols = _Symbols()
    keys, numbers = symbols.axes(operands[0]), symbols.axes(results[0][len(operands[0]) :])
    return Flow(symbols.sizes, (keys,), ((*keys, *numbers),))


def _same_width(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow | None:
    """Bits read as another dtype, entry by entry if it is as wide."""
    return _elementwise(equation, operands, results) if operands == results else None


def _made(reason: str) -> Callable[[Any, list[Shape], list[Shape]], Flow]:
    """A rule for primitives that make an array from nothing but its shape."""

    def rule(equation: Any, operands: list[Shape], results: list[Shape]) -> Flow:
        symbols = _Symbols()
        axes = tuple(symbols.axes(shape) for shape in results)
        mixed = {symbol: reason for result in axes for (symbol,) in result}
        return Flow(symbols.sizes, ((),) * len(operands), axes, mixed=mixed)

    return rule


# A check on inputs may miss it: of many channels one is above 0 nearly always.
_ZERO_COUNTS = "an extreme or a product over it, to which a 0 counts"

_RULES: dict[str, Callable[[Any, list[Shape], list[Shape]], Flow | None]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "tile": _tile,
    "transpose": _transpose,
    "squeeze": _without("dimensions"),
    "reduce_sum": _without("axes"),
    **{f"reduce_{name}": _without("axes", _ZERO_COUNTS) for name in ("max", "min", "and", "or", "prod", "xor")},
    **{f"arg{name}": _without("axes", "an argument of the extreme") for name in ("max", "min")},
    **{f"cum{name}": _along("axis", "a running total") for name in ("sum", "prod", "max", "min", "logsumexp")},
    "rev": _along("dimensions", "a flip"),
    "sort": _along("dimension", "a sort"),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **{f"reduce_window{name}": _window for name in ("", "_sum", "_max", "_min")},
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "gather": _gather,
    "top_k": _top_k,
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub", "scatter-mul"), _scatter),
    "select_and_scatter_add": _window_back,
    "random_bits": _drawn,
    "bitcast_convert_type": _same_width,
    "iota": _made("positions that are counted"),
    "optimization_barrier": _each_as_it_is,
}
