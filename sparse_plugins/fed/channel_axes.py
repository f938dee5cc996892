"""Groups of channels that somebody wrote down, for models of which no function can be traced."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_plugins.core.layers.channel_groups import ChannelGroup, Member

__all__ = ["ChannelAxes"]


@dataclasses.dataclass(frozen=True)
class ChannelAxes:
    """Which axes of which arrays run along the same channels, as `core.ChannelGraph` has it.

    Attributes:
        groups: The groups, by name.
        params: Arrays of their shapes and dtypes, by name, which take no memory.
    """

    groups: Mapping[str, ChannelGroup]
    params: Mapping[str, np.ndarray[Any, Any]]

    @classmethod
    def written(cls, groups: Mapping[str, Sequence[tuple[Any, ...]]], params: Mapping[str, Any]) -> "ChannelAxes":
        """From names of arrays and numbers of axes.

        Args:
            groups: By name of a group its axes, (array, number of the axis). Where an axis holds more than channels, as
                behind a flattening, a third item has the channel of every entry, int[length], -1 for none.
            params: Arrays by name.

        Raises:
            ValueError: If there is no such axis, a group is empty, or its axes have other numbers of channels.

        Example:
            >>> params = {"conv": np.ones((3, 5, 5, 1)), "dense": np.ones((2, 3 * 4))}  # as PyTorch has them
            >>> flattened = np.repeat(np.arange(3), 4)
            >>> axes = ChannelAxes.written({"filters": [("conv", 0), ("dense", 1, flattened)]}, params)
            >>> axes.groups["filters"].size
            3
        """
        if not groups:
            raise ValueError("groups are empty, so that there are no narrower clients; name axes that share channels.")
        # JAX would make float64 of other frameworks float32.
        shapes = {name: np.broadcast_to(np.zeros((), x.dtype), np.shape(x)) for name, x in params.items()}
        return cls({name: _group(name, list(axes), shapes) for name, axes in groups.items()}, shapes)


def _group(name: str, axes: list[tuple[Any, ...]], shapes: Mapping[str, Any]) -> ChannelGroup:
    members = [_member(name, axis, shapes) for axis in axes]
    counts = {f"{member.path!r}, axis {member.axis}": int(member.labels.max()) + 1 for member in members}
    size = max(counts.values(), default=0)
    if size < 1 or {*counts.values()} != {size} or any(len({*m.labels.tolist()} - {-1}) != size for m in members):
        told = "; ".join(f"{count} of {axis}" for axis, count in counts.items()) or "it has no axes"
        raise ValueError(
            f"the axes of group {name!r} have other numbers of channels ({told}). Where an axis holds more than "
            "channels, give the channel of every entry, as in ('dense', 1, np.repeat(np.arange(channels), pixels))."
        )
    return ChannelGroup(name, size, tuple(members))


def _member(group: str, written: Any, shapes: Mapping[str, Any]) -> Member:
    path, axis, *labels = written if isinstance(written, tuple | list) and len(written) in (2, 3) else (written, None)
    shape = shapes[path].shape if isinstance(path, str) and path in shapes else ()
    if not isinstance(axis, int) or not 0 <= axis < len(shape):
        known = ", ".join(f"{name} {spec.shape}" for name, spec in shapes.items())
        raise ValueError(
            f"group {group!r} of client_widths has {written!r}; give (array, number of the axis), of {known}."
        )
    its = np.asarray(labels[0]) if labels else np.arange(shape[axis])
    if its.shape != (shape[axis],) or its.dtype.kind not in "iu" or its.min(initial=0) < -1:
        raise ValueError(
            f"the channels of axis {axis} of {path!r} in group {group!r} have shape {its.shape} and dtype {its.dtype}; "
            f"give an integer from -1 up for each of its {shape[axis]} entries."
        )
    return Member(sorted(shapes).index(path), path, axis, its, makes=True)
