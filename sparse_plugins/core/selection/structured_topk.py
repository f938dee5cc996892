"""From scores, a structure and a count to an exact mask: for one array, and for a parameter and the layers it holds.

The units of a structure (entries, blocks, channels; for N:M and constant fan-in the entries of each group) are
scored, ranked as integers, and spread back over the array. A stack is ranked layer by layer in one program, mapped over
its layers; a layer whose inputs and outputs are known is seen as [*window, inputs, outputs], whatever its axes are.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparse_plugins.core.layers.axes import LayerAxes, LayerView
from sparse_plugins.core.masks import unpack
from sparse_plugins.core.selection.channel_pools import AxisOfChannels, ChannelUnits, spread
from sparse_plugins.core.selection.counts import Count, Fraction, as_number, by_layer, check_fraction, keep_count
from sparse_plugins.core.selection.exact_sums import exact_sum
from sparse_plugins.core.selection.topk import check_real, count_each, exact_topk, order_keys
from sparse_plugins.core.structures import (
    Block,
    ByPath,
    Channel,
    ChannelGroups,
    ConstantFanIn,
    NByM,
    Structure,
    Unstructured,
)

__all__ = [
    "MaskRule",
    "StructureTopK",
    "competitors",
    "create_mask",
    "keep_best",
    "kept_units",
    "rank_active_first",
    "regrow_mask",
]


_LONGEST_WINDOW = 16


@dataclasses.dataclass(frozen=True)
class StructureTopK:
    """The `topk_fn` of an updater that was given none: the rule of its structure.

    Attributes:
        structure: The updater's `sparsity_type`.
        knows_layers: Whether the updater has `layers`, which go by path.

    Example:
        >>> from sparse_plugins.core.structures import Unstructured
        >>> StructureTopK(Unstructured())(jnp.array([1.0, 4.0, 3.0, 2.0]), 0.5).tolist()
        [0, 1, 1, 0]
    """

    structure: Structure | ByPath
    knows_layers: bool = False

    def __call__(self, scores: jax.Array, sparsity: Fraction) -> jax.Array:
        """The uint8 mask of one array.

        Raises:
            TypeError: If the structure or its axes depend on the path, which an array does not have.
        """
        if isinstance(self.structure, ByPath) or self.knows_layers:
            chooser = "layers" if self.knows_layers else f"sparsity_type {self.structure}"
            raise TypeError(
                f"topk_fn gets scores without a path, by which {chooser} choose what competes: call "
                "create_masks(scores, sparsities) on whole trees, or give one structure and no layers."
            )
        return create_mask(scores, self.structure, sparsity)


def create_mask(scores: jax.Array, structure: Structure, sparsity: Fraction) -> jax.Array:
    """The mask that keeps the best-scored units of one array.

    Args:
        scores: Real array; higher is kept.
        structure: What competes with what.
        sparsity: Fraction of zeros in [0, 1].

    Returns:
        uint8 mask of the shape of `scores`, 1 = kept. Exactly `kept_units` units are kept; ties go to the lower
        index, NaN loses.

    Raises:
        ValueError: If the structure does not fit the shape, or a sparsity that is no tracer is not in [0, 1].
        TypeError: For complex scores.

    Example:
        >>> from sparse_plugins.core.structures import Unstructured
        >>> create_mask(jnp.array([[1.0, 4.0], [3.0, 2.0]]), Unstructured(), 0.5).tolist()
        [[0, 1], [1, 0]]
    """
    structure.check(scores.shape, "scores")
    if isinstance(sparsity, numbers.Real | np.ndarray | jax.Array) and not isinstance(sparsity, jax.core.Tracer):
        check_fraction("sparsity", sparsity)
    return keep_best(structure, scores, kept_units(structure, scores.shape, sparsity))


def keep_best(structure: Structure, scores: jax.Array, kept: Count) -> jax.Array:
    """The mask that keeps as many units of every ranking as said; see `create_mask`."""
    return _spread(_best_units(_pool(scores, structure), structure, kept), structure, scores.shape)


def kept_units(structure: Structure, shape: tuple[int, ...], sparsity: Fraction) -> Count:
    """How many units a sparsity keeps: of all entries, blocks or channels; else of each group or output.

    One at least if the sparsity is below 1; of a group of N:M n at any sparsity; of channel groups a multiple.

    Example:
        >>> [int(kept_units(NByM(2, 4), (8, 8), sparsity)) for sparsity in (0.25, 0.9, 1.0)]
        [3, 2, 2]
        >>> [int(kept_units(Channel(), (8, 8), sparsity)) for sparsity in (0.25, 0.99, 1.0)]
        [6, 1, 0]
    """
    return _kept_of(structure, *competitors(structure, shape), sparsity)


def _kept_of(structure: Structure, size: int, least: int, sparsity: Fraction) -> Count:
    """`kept_units`, of so many that are ranked against each other, and of which so many stay."""
    kept = keep_count(size, sparsity)
    # Rounded up: for a width that hardware likes more channels stay than were asked for, never fewer.
    if isinstance(structure, ChannelGroups):
        kept = -(-kept // structure.multiple_of) * structure.multiple_of
        return min(kept, size) if isinstance(kept, int) else kept.clip(max=size)
    if isinstance(kept, int):
        return max(kept, least)
    return np.maximum(kept, least) if isinstance(kept, np.ndarray) else jnp.maximum(kept, least)


def competitors(structure: Structure, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many units are ranked against each other, and how many of them stay at any sparsity.

    Example:
        >>> competitors(NByM(2, 4), (8, 8)), competitors(ConstantFanIn(), (3, 5))
        ((4, 2), (3, 0))
    """
    if isinstance(structure, ConstantFanIn):
        return math.prod(shape) // max(shape[structure.place], 1), 0
    return (structure.m, structure.n) if isinstance(structure, NByM) else (structure.units(shape), 0)


def rank_active_first(scores: jax.Array, active: jax.Array, structure: Structure) -> jax.Array:
    """Scores in which pruned units come behind all active ones, NaN included.

    Args:
        scores: Real array; higher is kept.
        active: bool of the same shape, True where an entry is in use.
        structure: Blocks and channels are pooled later, what is in use of them alone; entries get an integer rank.

    Returns:
        Array of the same shape, ordered like `scores` where active.

    Example:
        >>> from sparse_plugins.core.structures import Unstructured
        >>> rank_active_first(jnp.array([jnp.nan, 5.0]), jnp.array([True, False]), Unstructured()).tolist()
        [1, 0]
    """
    if isinstance(structure, (Block, Channel)):
        scores = scores.astype(jnp.float32)
        pruned: jax.Array | float = -jnp.inf
        if isinstance(structure, Channel) or structure.use_avg_pooling:  # of a unit in use it adds nothing
            pruned = _spread(jnp.where(_in_use(active, structure), jnp.float32(0), -jnp.inf), structure, scores.shape)
        # An active unit whose score is NaN or -inf gets the lowest finite one, so that pruned units stay behind it.
        is_broken = _spread(~(_pool(jnp.where(active, scores, pruned), structure) > -jnp.inf), structure, scores.shape)
        lowest = jnp.finfo(jnp.float32).min / max(scores.size, 1)  # the sum over a unit stays finite
        return jnp.where(active, jnp.where(is_broken, lowest, scores), pruned)
    return _ranks(scores, active)


def regrow_mask(
    mask: jax.Array,
    drop_scores: jax.Array,
    grow_scores: jax.Array,
    structure: Structure,
    kept: Count,
    survivors: Count,
) -> jax.Array:
    """Drops the weakest active units and grows the most promising others.

    A unit whose growth score is not finite (a gradient that overflowed or is NaN, in one of its entries at least) is
    never grown. Units that are dropped have to be replaced: of a ranking with fewer finite scores than are to be kept,
    only as many are dropped as pruned units with a finite score are there; with none, all that are kept were active.

    Args:
        mask: bool of the parameter's shape; where fewer than `survivors` units are active, all of them stay.
        drop_scores: Real array; the lowest active units are dropped.
        grow_scores: Real array; the highest of all units that did not survive are grown.
        structure: What the units are.
        kept: Units active afterwards.
        survivors: Active units that are not dropped, at most `kept`.

    Returns:
        uint8 mask of the parameter's shape. Exactly `kept` units are active, of each group or output if the structure
        ranks those; fewer only if fewer were before and too few of the others have finite scores.

    Example:
        >>> from sparse_plugins.core.structures import Unstructured
        >>> mask, drop, grow = jnp.array([True, True, False]), jnp.array([1.0, 2.0, 0.0]), jnp.array([0.0, 0.0, 9.0])
        >>> regrow_mask(mask, drop, grow, Unstructured(), kept=2, survivors=1).tolist()
        [0, 1, 1]
        >>> regrow_mask(mask, drop, grow * jnp.nan, Unstructured(), kept=2, survivors=1).tolist()
        [1, 1, 0]
    """
    active = _in_use(mask, structure)
    may_break = jnp.issubdtype(grow_scores.dtype, jnp.floating)  # scores drawn at random are integers
    if may_break and isinstance(structure, (Block, Channel)):
        broken = jnp.asarray(jnp.nan, grow_scores.dtype)  # which no sum and no maximum hides
        grow_scores = jnp.where(jnp.isfinite(grow_scores), grow_scores, broken)
    grow_scores = _pool(grow_scores, structure)
    can_grow = jnp.isfinite(grow_scores) if may_break else jnp.bool_(True)
    if may_break:
        # Where as many units have a finite score as are kept, survivors and candidates together always suffice.
        sound, replaceable = _per_ranking(structure, can_grow, can_grow & ~active)
        least = jnp.where(sound >= kept, 0, kept - replaceable)
        survivors = jnp.maximum(survivors, least)
    # Where fewer are active than are to survive, the selection is filled up with pruned units.
    alive = (_best_units(_ranks(_pool(drop_scores, structure), active), structure, survivors) != 0) & active
    # One ranking for both: what survives stands above all that may grow, so that a single count is exact.
    growth = _ranks(grow_scores, can_grow & ~alive)
    # Survivors rank above all candidates, so that a single selection keeps them and grows as many as are missing.
    highest = growth.dtype.type(jnp.iinfo(growth.dtype).max)
    ranks = jnp.where(alive, highest, jnp.minimum(growth, highest - growth.dtype.type(1)))
    best = _best_units(ranks, structure, kept)
    return _spread(best * (ranks > 0).astype(best.dtype) if may_break else best, structure, mask.shape)


# As `order_keys`: one compilation for a shape where there is no program around it.
@functools.partial(jax.jit, inline=True)
def _ranks(scores: jax.Array, active: jax.Array) -> jax.Array:
    """Integer ranks from 1 where active (only the two largest of all may merge), 0 elsewhere."""
    keys = order_keys(scores)
    # Raised by 1, which leaves 0 to entries that are not active; the largest key would wrap around.
    return jnp.where(active, keys + (~keys != 0).astype(keys.dtype), keys.dtype.type(0))


def _best_units(units: jax.Array, structure: Structure, kept: Count) -> jax.Array:
    """uint8, 1 = among the `kept` best; `kept` may be laid out as `_per_ranking` gives it."""
    if isinstance(structure, NByM):
        return _best_of_groups(units, structure, kept)
    if isinstance(structure, ConstantFanIn) and units.size:
        best = lambda ranked, k: exact_topk([ranked], k)[0]  # noqa: E731
        axes = (structure.place, 0 if jnp.ndim(kept) else None)
        return jax.vmap(best, in_axes=axes, out_axes=structure.place)(units, kept)
    return exact_topk([units], kept)[0]


def _per_ranking(structure: Structure, *units: jax.Array) -> list[jax.Array]:
    """int32[], how many units are True; of each ranking where there are several: [outputs] or [..., groups, 1, ...]."""
    if isinstance(structure, NByM):
        axis = structure.place % units[0].ndim + 1
        return [jnp.sum(_groups(flags, structure), axis=axis, keepdims=True, dtype=jnp.int32) for flags in units]
    if isinstance(structure, ConstantFanIn) and units[0].size:
        axes = _other_axes(structure, units[0].ndim)
        return [jnp.sum(flags, axis=axes, dtype=jnp.int32) for flags in units]
    return count_each(*units)


def _groups(units: jax.Array, structure: NByM) -> jax.Array:
    """Entries with an axis for each group's: [..., groups, m, ...]. A short last group is filled with 0 at its end."""
    m, axis = structure.m, structure.place % units.ndim
    whole = jnp.pad(units, [(0, -length % m if a == axis else 0) for a, length in enumerate(units.shape)])
    return whole.reshape(*units.shape[:axis], whole.shape[axis] // m, m, *units.shape[axis + 1 :])


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _best_of_groups(scores: jax.Array, structure: NByM, kept: Count) -> jax.Array:
    """An entry stays if fewer than `kept` of its group beat it: m comparisons, no sort."""
    m, axis = structure.m, structure.place % scores.ndim
    groups = _groups(order_keys(scores), structure)  # what fills a short group has the lowest key and beats nothing
    place = lax.broadcasted_iota(jnp.int32, groups.shape, axis + 1)
    beaten_by = jnp.zeros(groups.shape, jnp.uint8 if m < 256 else jnp.int32)
    for j in range(m):
        rival = lax.slice_in_dim(groups, j, j + 1, axis=axis + 1)
        beats = (rival > groups) | ((rival == groups) & (j < place))
        beaten_by += beats.astype(beaten_by.dtype)
    best = (beaten_by < jnp.asarray(kept, beaten_by.dtype)).astype(jnp.uint8)
    joined = best.reshape(*scores.shape[:axis], groups.shape[axis] * m, *scores.shape[axis + 1 :])
    return lax.slice_in_dim(joined, 0, scores.shape[axis], axis=axis)


def _pool(scores: jax.Array, structure: Structure) -> jax.Array:
    """Scores of the units, float32 where several entries make one."""
    if not isinstance(structure, Block | Channel):
        return scores
    check_real(scores)
    if isinstance(structure, Channel):  # a plain sum would depend on devices and compilers, and so would the mask
        return exact_sum(scores, _other_axes(structure, scores.ndim))
    split, pooled_axes = _block_grid(structure, scores.shape)
    padding = [(0, grid * block - length) for grid, block, length in zip(*split, scores.shape, strict=True)]

    def blocks_of(values: jax.Array, filler: float) -> jax.Array:
        padded = jnp.pad(values.astype(jnp.float32), padding, constant_values=filler)
        return padded.reshape([part for pair in zip(*split, strict=True) for part in pair])

    if structure.use_avg_pooling:  # a block at an edge has fewer entries, which must not make it weaker
        entries = jnp.sum(blocks_of(jnp.ones(scores.shape), 0.0), axis=pooled_axes)
        return jnp.sum(blocks_of(scores, 0.0), axis=pooled_axes) / entries
    return jnp.max(blocks_of(scores, -math.inf), axis=pooled_axes)


def _in_use(mask: jax.Array, structure: Structure) -> jax.Array:
    """bool, of each unit: whether an entry of it is kept."""
    if isinstance(structure, Channel):
        return jnp.any(mask, _other_axes(structure, mask.ndim))
    if isinstance(structure, Block):
        return _pool(mask, dataclasses.replace(structure, use_avg_pooling=False)) > 0
    return mask


def _spread(units: jax.Array, structure: Structure, shape: tuple[int, ...]) -> jax.Array:
    """The array of `shape` whose entries carry the value of their unit."""
    if isinstance(structure, Channel):
        return jnp.broadcast_to(jnp.expand_dims(units, _other_axes(structure, len(shape))), shape)
    if not isinstance(structure, Block):
        return units
    (grid, block), pooled_axes = _block_grid(structure, shape)
    both = [part for pair in zip(grid, block, strict=True) for part in pair]
    whole = [g * b for g, b in zip(grid, block, strict=True)]
    return jnp.broadcast_to(jnp.expand_dims(units, pooled_axes), both).reshape(whole)[tuple(map(slice, shape))]


def _other_axes(structure: Channel | ConstantFanIn, ndim: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis != structure.place % ndim)


def _block_grid(structure: Block, shape: tuple[int, ...]) -> tuple[tuple[list[int], list[int]], tuple[int, ...]]:
    """Blocks along each axis, entries of a block along each axis, and the axes that entries get when split."""
    block = [1] * (len(shape) - len(structure.block_shape)) + list(structure.block_shape)
    grid = [-(-length // size) for length, size in zip(shape, block, strict=True)]
    return (grid, block), tuple(range(1, 2 * len(shape), 2))


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """How the mask of one parameter is made, from scores of its shape.

    Attributes:
        structure: The structure of its masks.
        shape: Its shape.
        axes: What its axes are; None if nobody told. It is one layer then, and a structure without an axis of its own
            reads [inputs, outputs] and [height, width, inputs, outputs], the window no longer than 16.
        name: Its path, for messages.
        channels: The channels of groups that it makes. If there are any, scores and masks of it come as `ChannelUnits`.

    Example:
        >>> scores = jnp.array([[[4.0], [3.0]], [[2.0], [1.0]]])
        >>> as_one = MaskRule(Unstructured(), (2, 2, 1))
        >>> as_one.create_mask(scores, 0.5).ravel().tolist()
        [1, 1, 0, 0]
        >>> from sparse_plugins.core.layers.described_axes import Axes
        >>> stacked = dataclasses.replace(as_one, axes=Axes(stack=0, inputs=1, outputs=2).of("w", (2, 2, 1)))
        >>> stacked.create_mask(scores, 0.5).ravel().tolist()
        [1, 0, 1, 0]
    """

    structure: Structure
    shape: tuple[int, ...]
    axes: LayerAxes | None = None
    name: str = ""
    channels: tuple[AxisOfChannels, ...] = ()

    @functools.cached_property
    def layers(self) -> LayerView:
        """The parameter as layers, with the axes that it has."""
        return LayerView.of_shape(self.shape) if self.axes is None else self.axes.as_stored

    @property
    def of_layer(self) -> Structure:
        """The structure of one layer, whose axes `layer_shape` tells."""
        return self._placed[0]

    @property
    def view(self) -> LayerView:
        """The parameter as layers, with the axes that the structure sees."""
        return self._placed[1]

    @property
    def place(self) -> int:
        """The axis of a layer that its structure runs along, counted from the front.

        Raises:
            TypeError: If the structure runs along none.
        """
        structure = self.of_layer
        if isinstance(structure, (Unstructured, Block, ChannelGroups)):
            raise TypeError(f"{structure} runs along no axis; give NByM, Channel or ConstantFanIn.")
        return structure.place % len(self.layer_shape)

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of one layer as the structure sees it."""
        return self._placed[1].shape

    @functools.cached_property
    def _placed(self) -> tuple[Structure, LayerView]:
        structure, axes = self.structure, self.axes
        if isinstance(structure, (Unstructured, ChannelGroups)):
            return structure, self.layers
        if isinstance(
            structure, Block
        ):  # two lengths lie on the matrix of inputs and outputs, more on the array itself
            names_axes = len(structure.block_shape) > 2
        elif names_axes := structure.axis is not None:
            structure = dataclasses.replace(structure, axis=self._within_layer(structure.axis))
        if names_axes:
            return structure, self.layers
        by_heads = isinstance(structure, Channel) and structure.whole_heads
        if axes is not None and axes.is_known:
            return _on_matrix(structure), axes.by_heads if by_heads else axes.as_matrices
        if by_heads or not self._is_familiar():  # a wrong guess would prune along another axis without a word
            raise ValueError(self._unknown_axes())
        return _on_matrix(structure), self.layers

    def _is_familiar(self) -> bool:
        """Whether it has the axes of a layer of Flax or Haiku, as far as a shape can tell."""
        shape = self.layers.shape
        return len(shape) <= 2 or (len(shape) == 4 and max(shape[:2]) <= _LONGEST_WINDOW)

    def _within_layer(self, axis: int) -> int:
        """The number that an axis of the parameter has in one of its layers."""
        if self.axes is None or not -len(self.shape) <= axis < len(self.shape):
            return axis
        axis %= len(self.shape)
        is_stack = [all(part.role == "stack" for part in parts) for parts in self.axes.axes]
        if is_stack[axis]:
            raise ValueError(
                f"{self.structure} runs along axis {axis} of {self.name!r}, which stacks layers ({self.axes}): leave "
                "the axis out, and it runs along inputs or outputs of each layer."
            )
        return axis - sum(is_stack[:axis])

    def _unknown_axes(self) -> str:
        note = f" ({self.axes.note})" if self.axes is not None and self.axes.note else ""
        return (
            f"{self.structure} needs to know which axes of {self.name!r} of shape {self.shape} are inputs and outputs, "
            f"and which stack layers{note}: give the updater layers=core.trace_layers(apply, params, *inputs) or "
            f"layers=core.describe_layers(params, [({self.name!r}, core.Axes(...))]), name the axis in the structure "
            f"(a block with a length for each axis), or leave that parameter dense with rules=[({self.name!r}, None)]."
        )

    @property
    def reading(self) -> str:
        """How the axes of one of its layers are read, in words."""
        if self.channels:
            return f"channels of {', '.join(axis.group for axis in self.channels)}"
        if self.axes is None:
            return self._reading_of_shape()
        if self.axes.is_known or self.layers.layers is not None:
            return str(self.axes.of_layer)
        return f"{self._reading_of_shape()} ({self.axes.note or 'axes not known'})"

    def _reading_of_shape(self) -> str:
        if isinstance(self.structure, (Unstructured, ChannelGroups)) or len(self.shape) < 2:
            return "one layer"
        if isinstance(self.structure, Block) or self.structure.axis is None:
            return ", ".join(["window"] * (len(self.shape) - 2) + ["inputs", "outputs"])
        return f"one layer, axis {self.structure.axis}"

    def check(self) -> None:
        """Raises ValueError if the structure does not fit the shape."""
        _ = self.competitors

    @functools.cached_property
    def competitors(self) -> tuple[int, int]:
        """`competitors` of one layer.

        Raises:
            ValueError: If the structure does not fit the shape.
        """
        self.of_layer.check(self.layer_shape, f"parameter {self.name!r}")
        return competitors(self.of_layer, self.layer_shape)

    def create_mask(self, scores: jax.Array, sparsity: Any) -> jax.Array:
        """The mask that keeps the best-scored units of every layer.

        Args:
            scores: Real array of the parameter's shape.
            sparsity: Fraction of zeros, or a tuple of one per layer.

        Returns:
            uint8 mask of the same shape.

        Raises:
            ValueError: If the structure does not fit the shape, or its axes are not known.
        """
        structure = self._placed[0]
        if isinstance(scores, ChannelUnits):
            # The same units are ranked for all leaves that make a group, so that the same channels stay in all of them.
            best = [keep_best(structure, unit, kept_units(structure, unit.shape, sparsity)) for unit in scores.units]
            return spread(self.channels, self.shape, best)
        kept = by_layer(functools.partial(_kept_of, structure, *self.competitors), sparsity)
        return self._mapped(functools.partial(keep_best, structure), scores, beside=[kept])

    def custom_mask(self, rule: Callable[[jax.Array, Any], jax.Array], scores: jax.Array, sparsity: Any) -> jax.Array:
        """The mask that a rule of the user's makes of the scores and the sparsity of every layer."""
        return self.layers.mapped(rule, scores, beside=[by_layer(as_number, sparsity)])

    def regrow_mask(
        self,
        mask: Any,
        drop_scores: Any,
        grow_scores: Any,
        counts: Callable[[Structure, tuple[int, ...], Any], tuple[Any, Any]],
        target: Any,
    ) -> jax.Array:
        """`regrow_mask` in every layer.

        Args:
            mask: bool of the parameter's shape.
            drop_scores: As there.
            grow_scores: As there.
            counts: From structure, shape and target of a layer to the units kept, and the survivors among them.
            target: Target sparsity, or a tuple of one per layer.
        """
        structure, view = self._placed
        regrown = lambda mask, drop, grow, *counts: regrow_mask(mask, drop, grow, structure, *counts)  # noqa: E731
        if isinstance(mask, ChannelUnits):
            columns = zip(mask.units, drop_scores.units, grow_scores.units, strict=True)
            found = [regrown(active, *scores, *counts(structure, active.shape, target)) for active, *scores in columns]
            return spread(self.channels, self.shape, found)
        kept = by_layer(functools.partial(counts, structure, view.shape), target)
        return self._mapped(regrown, mask, drop_scores, grow_scores, beside=kept)

    def rank_active_first(self, scores: Any, active: Any) -> Any:
        """`rank_active_first` in every layer; `active` is a mask, packed or not."""
        structure, _ = self._placed
        if isinstance(scores, ChannelUnits):
            columns = zip(scores.units, active.units, strict=True)
            return ChannelUnits(scores.shape, tuple(rank_active_first(*column, structure) for column in columns))
        behind = functools.partial(rank_active_first, structure=structure)
        return self._mapped(behind, scores, unpack(active, self.shape))

    def _mapped(self, function: Callable[..., jax.Array], *arrays: jax.Array, beside: Sequence[Any] = ()) -> jax.Array:
        """What a function makes of every layer; what nobody described is one, as it lies."""
        if self.axes is None:
            return function(*arrays, *beside)
        return self.view.mapped(function, *arrays, beside=beside)

    def planned_entries(self, target: float) -> tuple[int, str]:
        """Entries of a layer that a target keeps, and 'about ' if it is about so many.

        Blocks at an edge may be smaller, and channels may have more entries than others.
        """
        structure, shape = self.of_layer, self.layer_shape
        size = math.prod(shape)
        if self.channels:
            first = [np.arange(a.size) < kept_units(structure, (a.size,), target) for a in self.channels]
            mask = np.asarray(spread(self.channels, self.shape, [units.astype(np.uint8) for units in first]))
            even = all(len(set(np.bincount(a.labels[a.labels >= 0]))) == 1 for a in self.channels)
            return int(np.count_nonzero(mask)), "" if even else "about "
        kept = int(kept_units(structure, shape, target))
        if isinstance(structure, NByM):
            length = shape[structure.place]
            of_axis = length // structure.m * kept + min(length % structure.m, kept)
            return size // max(length, 1) * of_axis, ""
        if isinstance(structure, ConstantFanIn):
            return kept * structure.units(shape), ""
        units = max(structure.units(shape), 1)
        return round(kept * size / units), "about " if isinstance(structure, Block) and size % units else ""


def _on_matrix(structure: Structure) -> Structure:
    """A structure of [..., inputs, outputs]."""
    if isinstance(structure, (Block, Unstructured, ChannelGroups)):
        return structure
    if isinstance(structure, NByM):
        return dataclasses.replace(structure, axis=-2)
    return Channel(-1) if isinstance(structure, Channel) else ConstantFanIn(-1)
