"""How the mask of one parameter is made: the structure of its masks, and the layers that it holds.

A stack is ranked layer by layer in one program, mapped over its layers; a layer whose inputs and outputs are known is
seen as [*window, inputs, outputs], whatever its axes are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.layers.axes import LayerAxes, LayerView
from sparse_plugins.core.selection.channel_pools import AxisOfChannels, ChannelUnits, spread
from sparse_plugins.core.selection.counts import as_number
from sparse_plugins.core.selection.structured_topk import keep_best, kept_units, rank_active_first, regrow_mask
from sparse_plugins.core.structures import (
    Block,
    Channel,
    ChannelGroups,
    ConstantFanIn,
    NByM,
    Structure,
    Unstructured,
)

__all__ = ["MaskRule", "by_layer"]

_LONGEST_WINDOW = 16


def by_layer(function: Callable[[Any], Any], target: Any) -> Any:
    """What a function makes of a target; where layers of a stack have targets of their own, of each.

    Args:
        function: From a target to a number, or a tuple of numbers.
        target: One target, or a tuple with one per layer.

    Returns:
        What the function returns, with arrays [layers] in place of numbers if there are several targets.

    Example:
        >>> by_layer(lambda target: 10 - target, 4), by_layer(lambda target: 10 - target, (4, 2)).tolist()
        (6, [6, 8])
    """
    if not isinstance(target, tuple):
        return function(target)
    # Layers with one target share a result. By identity, for a target may be an array, which has no hash.
    distinct = {id(layer_target): layer_target for layer_target in target}
    made = {key: function(layer_target) for key, layer_target in distinct.items()}
    return jax.tree.map(_stacked, *[made[id(layer_target)] for layer_target in target])


def _stacked(*numbers: Any) -> Any:
    if all(isinstance(number, int) for number in numbers):
        return np.array(numbers)
    return jnp.stack([*map(jnp.asarray, numbers)])


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
        self.of_layer.check(self.layer_shape, f"parameter {self.name!r}")

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
        structure, view = self._placed
        if isinstance(scores, ChannelUnits):
            # The same units are ranked for all leaves that make a group, so that the same channels stay in all of them.
            best = [keep_best(structure, unit, kept_units(structure, unit.shape, sparsity)) for unit in scores.units]
            return spread(self.channels, self.shape, best)
        structure.check(view.shape, f"parameter {self.name!r}")
        kept = by_layer(functools.partial(kept_units, structure, view.shape), sparsity)
        return view.mapped(functools.partial(keep_best, structure), scores, beside=[kept])

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
        """`structured_topk.regrow_mask` in every layer.

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
        return view.mapped(regrown, mask, drop_scores, grow_scores, beside=kept)

    def rank_active_first(self, scores: Any, active: Any) -> Any:
        """`structured_topk.rank_active_first` in every layer."""
        structure, view = self._placed
        if isinstance(scores, ChannelUnits):
            columns = zip(scores.units, active.units, strict=True)
            return ChannelUnits(scores.shape, tuple(rank_active_first(*column, structure) for column in columns))
        return view.mapped(functools.partial(rank_active_first, structure=structure), scores, active)

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
