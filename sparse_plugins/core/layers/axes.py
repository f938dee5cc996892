"""What each axis of a parameter is to the layer it belongs to, and layers one by one."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["LayerAxes", "LayerShape", "LayerView", "Layers", "Part", "Role"]

Role = Literal["stack", "inputs", "outputs", "space", "rows", "elementwise"]


class Part(NamedTuple):
    """An axis of a parameter, or a factor of one.

    Attributes:
        size: Entries.
        role: What it is: 'stack' (every entry is a layer of its own), 'inputs' (summed over), 'outputs', 'space' (the
            window of a convolution), 'rows' (looked up by index), 'elementwise' (a bias or a scale), or None where the
            program does not tell.
        is_heads: Whether it runs over attention heads.
    """

    size: int
    role: Role | None
    is_heads: bool = False


@dataclasses.dataclass(frozen=True)
class LayerView:
    """A parameter as layers of one shape, which a function can be mapped over.

    Attributes:
        whole: Shape of the parameter.
        parts: Sizes of its axes, or of factors of them, major to minor.
        order: Numbers of these parts: first those of the stack, then those of a layer.
        shape: Shape of a layer.
        layers: How many layers there are; None if the parameter is one.

    Example:
        >>> view = LayerView((4, 2), (4, 2), (1, 0), (4,), 2)
        >>> view.split(jnp.arange(8).reshape(4, 2)).tolist()
        [[0, 2, 4, 6], [1, 3, 5, 7]]
    """

    whole: tuple[int, ...]
    parts: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    layers: int | None = None

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> "LayerView":
        """The view of a parameter that is one layer, as it lies."""
        return cls(shape, shape, tuple(range(len(shape))), shape)

    @property
    def _split_shape(self) -> tuple[int, ...]:
        return self.shape if self.layers is None else (self.layers, *self.shape)

    @functools.cached_property
    def _moves(self) -> bool:
        return self.order != tuple(range(len(self.order)))

    @functools.cached_property
    def _is_plain(self) -> bool:
        return self.layers is None and not self._moves and self.shape == self.whole

    def split(self, array: jax.Array) -> jax.Array:
        """Array[layers, *shape] of an array of the parameter's shape; [*shape] if it is one layer."""
        if not self._moves:
            return array if self._split_shape == self.whole else jnp.reshape(array, self._split_shape)
        return jnp.reshape(jnp.transpose(jnp.reshape(array, self.parts), self.order), self._split_shape)

    def join(self, layers: jax.Array) -> jax.Array:
        """The array that `split` makes these layers of."""
        if not self._moves:
            return layers if self._split_shape == self.whole else jnp.reshape(layers, self.whole)
        parts = jnp.reshape(layers, [self.parts[place] for place in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return jnp.reshape(jnp.transpose(parts, back), self.whole)

    def mapped(self, function: Callable[..., jax.Array], *arrays: jax.Array, beside: Sequence[Any] = ()) -> jax.Array:
        """What a function makes of every layer, put together.

        Args:
            function: From arrays [*shape], and what is beside them, to an array [*shape].
            *arrays: Arrays of the parameter's shape.
            beside: Numbers: one for all layers, or an array [layers] with one for each.

        Returns:
            Array of the parameter's shape.
        """
        if self._is_plain:
            return function(*arrays, *beside)
        split = [self.split(array) for array in arrays]
        if self.layers is None:
            return self.join(function(*split, *beside))
        axes = [*[0] * len(split), *(0 if jnp.ndim(number) else None for number in beside)]
        return self.join(jax.vmap(function, in_axes=axes)(*split, *beside))

    def named(self, name: str, array: jax.Array) -> list[tuple[str, jax.Array]]:
        """The layers of an array one by one, with their names."""
        layers = [array] if self.layers is None else self.split(array)
        return list(zip(self.names(name), layers, strict=True))

    def names(self, name: str) -> list[str]:
        """Names of the layers of a parameter: 'blocks/kernel/0' and so on; its own if it is one layer."""
        return [name] if self.layers is None else [f"{name}/{layer}" for layer in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """What a distribution or a filter reads of a parameter whose layers are known.

    Attributes:
        shape: Shape of one layer: its window, inputs and outputs, or its entries if it is a bias or a scale.
        dtype: Dtype of the parameter.
        layers: How many of them the parameter holds.
    """

    shape: tuple[int, ...]
    dtype: Any
    layers: int = 1

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Entries of one layer."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class LayerAxes:
    """How one parameter is used.

    Attributes:
        path: Its name, such as 'encoder/attention/query/kernel'.
        shape: Its shape.
        axes: For each axis its parts, major to minor; most axes have one.
        tied: The axes of further uses that differ from the first, such as an embedding that is also the last layer.
        note: Why the program does not tell more; empty if it does.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[tuple[Part, ...], ...]
    tied: tuple[tuple[tuple[Part, ...], ...], ...] = ()
    note: str = ""

    @classmethod
    def unknown(cls, path: str, shape: tuple[int, ...], note: str) -> "LayerAxes":
        """Axes of which nothing is known, and why."""
        return cls(path, shape, tuple((Part(length, None),) for length in shape), note=note)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, major to minor."""
        return tuple(part for axis in self.axes for part in axis)

    @property
    def is_layer(self) -> bool:
        """Whether it maps inputs or rows to outputs; biases, scales and what is not followed do not.

        What meets a single number for each output, as a bias that is multiplied by noise, is no layer.
        """
        return any(part.role in ("inputs", "space", "rows") for part in self.parts)

    def size(self, *roles: Role) -> int:
        """Product of the sizes of all parts of some roles."""
        return math.prod(part.size for part in self.parts if part.role in roles)

    @property
    def of_layer(self) -> "LayerAxes":
        """The axes of one of its layers, if it is a stack."""
        kept = [tuple(part for part in axis if part.role != "stack") for axis in self.axes]
        return dataclasses.replace(self, shape=self.as_stored.shape, axes=tuple(axis for axis in kept if axis))

    def to_matrices(self, array: jax.Array) -> jax.Array:
        """The parameter as a stack of matrices.

        Args:
            array: Anything of the parameter's shape.

        Returns:
            Array[stack, inputs, outputs], space and rows counted with the inputs.

        Raises:
            ValueError: If the parameter is no layer, or the array has another shape.

        Example:
            >>> from sparse_plugins import core
            >>> params = {"kernel": jnp.ones((8, 2, 3))}
            >>> apply = lambda params, x: jnp.einsum("bi,ihd->bhd", x, params["kernel"])
            >>> layers = core.trace_layers(apply, params, jnp.ones((4, 8)))
            >>> layers["kernel"].to_matrices(params["kernel"]).shape
            (1, 8, 6)
        """
        self._check(array.shape, self.shape)
        return jnp.reshape(self._all_inputs().split(array), self._matrix_sizes())

    def from_matrices(self, matrices: jax.Array) -> jax.Array:
        """The array of which `to_matrices` makes these matrices."""
        self._check(matrices.shape, self._matrix_sizes())
        view = self._all_inputs()
        return view.join(matrices[0] if view.layers is None else matrices)

    def _matrix_sizes(self) -> tuple[int, int, int]:
        return self.size("stack"), self.size("space", "inputs", "rows"), self.size("outputs")

    def _all_inputs(self) -> LayerView:
        if not self.is_layer:
            raise ValueError(f"{self.path!r} is no layer, but {self}: it has no matrices.")
        return self._view([self._places("space", "inputs", "rows"), self._places("outputs")])

    @property
    def is_known(self) -> bool:
        """Whether every axis that has more than one entry has a role."""
        return all(part.role or part.size == 1 for part in self.parts)

    @property
    def is_as_by_shape(self) -> bool:
        """Whether knowing it changes nothing: it is one layer `[*space, inputs, outputs]`, or a bias of one axis."""
        by_shape = LayerView.of_shape(self.shape)
        return self.as_stored == by_shape and (not self.is_known or self.as_matrices == by_shape)

    @functools.cached_property
    def as_stored(self) -> LayerView:
        """Its layers, each with the axes that the parameter has, less those of the stack."""
        places = iter(range(len(self.parts)))
        numbered = [[(next(places), part) for part in axis] for axis in self.axes]
        kept = [[place for place, part in axis if part.role != "stack"] for axis in numbered]
        return self._view([axis for axis in kept if axis])

    @functools.cached_property
    def as_matrices(self) -> LayerView:
        """Its layers `[*space, inputs, outputs]`, inputs and outputs one axis each; `[entries]` if it is no layer."""
        return self._inputs_and(self._places("outputs"))

    @functools.cached_property
    def by_heads(self) -> LayerView:
        """As `as_matrices`, but the last axis runs over heads alone, where outputs have any."""
        heads = [place for place in self._places("outputs") if self.parts[place].is_heads]
        return self._inputs_and(heads) if heads else self.as_matrices

    def _inputs_and(self, last: list[int]) -> LayerView:
        if not self.is_layer or not self.is_known:
            return self._view([self._places("elementwise", "outputs")]) if self.is_known else self.as_stored
        within = [place for place in self._places("outputs") if place not in last]
        space = [[place] for place in self._places("space")]
        return self._view([*space, [*self._places("inputs", "rows"), *within], last])

    def _places(self, *roles: Role) -> list[int]:
        return [place for place, part in enumerate(self.parts) if part.role in roles]

    def _view(self, axes: Sequence[Sequence[int]]) -> LayerView:
        """The view of a layer that has these parts along its axes."""
        sizes = tuple(part.size for part in self.parts)
        stack = self._places("stack")
        used = [*stack, *(place for axis in axes for place in axis)]
        singles = [place for place in range(len(sizes)) if place not in used]  # of length 1
        shape = tuple(math.prod(sizes[place] for place in axis) for axis in axes)
        layers = math.prod(sizes[place] for place in stack) if stack else None
        return LayerView(self.shape, sizes, (*used, *singles), shape, layers)

    def _check(self, shape: Sequence[int], expected: Sequence[int]) -> None:
        if tuple(shape) != tuple(expected):
            raise ValueError(f"{self.path!r}: an array of shape {tuple(shape)}, where {tuple(expected)} is expected.")

    def __str__(self) -> str:
        words = []
        for axis in self.axes:
            named = [
                f"{part.role or ('unknown' if part.size > 1 else 'single')} {part.size}{' heads' * part.is_heads}"
                for part in axis
            ]
            words.append(named[0] if len(named) == 1 else f"({' × '.join(named)})")
        tied = " (tied)" if self.tied else ""
        return f"{', '.join(words) or 'scalar'}{tied}{f': {self.note}' if self.note else ''}"


class Layers(dict[str, LayerAxes]):
    """The axes of every parameter, by path; `print` shows them as a table."""

    def __str__(self) -> str:
        width = max([len(path) for path in self], default=0)
        shapes = [str(layer.shape) for layer in self.values()]
        wide = max(map(len, shapes), default=0)
        rows = zip(self.items(), shapes, strict=True)
        return "\n".join(f"{path:{width}}  {shape:{wide}}  {layer}" for (path, layer), shape in rows)

    def of(self, params: PyTree) -> list[LayerAxes]:
        """The axes of every leaf of a tree.

        Args:
            params: All parameters that were traced or described, or a part of them with the same paths.

        Raises:
            ValueError: If a path is not known, or its array has another shape.
        """
        found = []
        for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
            axes = self.known_as(name)
            if axes is None:
                raise ValueError(
                    f"the layers do not know parameter {name!r}; they know {', '.join(map(repr, self)) or 'none'}. "
                    "Trace or describe the tree that the optimizer gets, as in core.trace_layers(lambda params, x: "
                    "model.apply({'params': params}, x), params, x)."
                )
            if tuple(leaf.shape) != axes.shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tuple(leaf.shape)}, and the layers say {axes.shape}: trace "
                    "or describe them anew."
                )
            found.append(axes)
        return found

    def to_matrices(self, params: PyTree, tree: PyTree | None = None) -> dict[str, Any]:
        """Every layer as a matrix [inputs, outputs], those of a stack one by one: what `core.export` takes.

        Args:
            params: As in `of`.
            tree: Something laid out like the parameters, such as their masks as `core.unpack_masks` gives them; None
                for the parameters themselves.

        Returns:
            By name, 'blocks/kernel/0' and so on for a stack; biases, scales and what is not followed as they are.

        Raises:
            ValueError: As `of`, or if the tree is laid out otherwise.

        Example:
            >>> from sparse_plugins import core
            >>> params = {"blocks": jnp.ones((2, 3, 4)), "scale": jnp.ones(4)}
            >>> layers = core.describe_layers(params, [("blocks", core.Axes(stack=0, outputs=1, inputs=2))])
            >>> {name: leaf.shape for name, leaf in layers.to_matrices(params).items()}
            {'blocks/0': (4, 3), 'blocks/1': (4, 3), 'scale': (4,)}
        """
        nodes = aligned(params, params if tree is None else tree, "tree")
        found: dict[str, Any] = {}
        for name, axes, node in zip(leaf_names(params), self.of(params), nodes, strict=True):
            if not (axes.is_layer and axes.is_known):
                found[name] = node
                continue
            names = axes.as_matrices.names(name)
            matrices = axes.to_matrices(node) if hasattr(node, "shape") else [node] * len(names)
            found |= dict(zip(names, matrices, strict=True))
        return found

    def from_matrices(self, params: PyTree, matrices: Mapping[str, Any]) -> PyTree:
        """The tree of which `to_matrices` makes these matrices, as `core.export.to_dense` gives them back.

        Args:
            params: The parameters; only shapes are read.
            matrices: By name, all of them.

        Raises:
            KeyError: If one is missing.
        """
        leaves = []
        for name, axes in zip(leaf_names(params), self.of(params), strict=True):
            if axes.is_layer and axes.is_known:
                stacked = jnp.stack([matrices[each] for each in axes.as_matrices.names(name)])
                leaves.append(axes.from_matrices(stacked))
            else:
                leaves.append(matrices[name])
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    def check_agrees(self, others: "Layers") -> None:
        """Raises ValueError where the axes of a parameter make other layers of it than others say, and both know it."""
        for path, axes in self.items():
            other = others.known_as(path)
            if other is None or not (axes.is_known and other.is_known):
                continue
            if axes.shape != other.shape or axes.as_matrices != other.as_matrices:
                raise ValueError(
                    f"the updater's layers say of {path!r} that it is {axes}, and the model that it is {other}: leave "
                    "out what you told, or what the model is traced with."
                )

    def known_as(self, name: str) -> LayerAxes | None:
        """The axes of a leaf; boxed parameters of Linen are 'kernel/value', and without their boxes 'kernel'."""
        paths = (name, f"{name}/value", name.removesuffix("/value"))
        return next((self[path] for path in paths if path in self), None)

    def shapes(self, params: PyTree) -> PyTree:
        """A tree of `LayerShape` in place of parameters; raises as `of`."""
        leaves, treedef = jax.tree.flatten(params)
        columns = zip(self.of(params), leaves, strict=True)
        shapes = [LayerShape(axes.as_matrices.shape, leaf.dtype, axes.size("stack")) for axes, leaf in columns]
        return jax.tree.unflatten(treedef, shapes)
