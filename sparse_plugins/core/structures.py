"""Shapes of sparsity: what is kept or pruned together.

A structure is pure data. It says which entries of an array compete with each other and is checked when built;
`sparse_plugins.core.selection.structured_topk` turns scores into a mask of that structure.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from sparse_plugins.core.path_rules import first_match, read_rule

__all__ = [
    "MAY_COUPLE",
    "Block",
    "ByPath",
    "Channel",
    "ChannelGroups",
    "ConstantFanIn",
    "NByM",
    "Structure",
    "Unstructured",
    "all_structures",
    "structure_per_leaf",
]


def _integer(name: str, value: object, lowest: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; give an int.")
    if lowest is not None and value < lowest:
        raise ValueError(f"{name} is {value}; the smallest allowed value is {lowest}.")


def _axis(name: str, value: object) -> None:
    if value is not None:
        _integer(name, value)


def _axis_of(shape: tuple[int, ...], axis: int, owner: object, where: str) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"{owner} needs axis {axis}, which {where} of shape {shape} does not have; "
            "choose another axis or leave that layer dense with a rule."
        )
    return axis % len(shape)


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every entry of an array competes with every other.

    Example:
        >>> Unstructured().units((4, 5))
        20
    """

    def check(self, shape: tuple[int, ...], where: str = "an array") -> None:
        """Accepts any shape."""

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of entries ranked in an array of `shape`."""
        return math.prod(shape)


@dataclasses.dataclass(frozen=True)
class NByM:
    """At most `n` of every `m` consecutive entries along one axis are kept.

    A sparsity below `1 - n / m` (a gradual schedule on its way) keeps proportionally more of each group, so the
    pattern grows from m:m to n:m. A short last group of r entries keeps at most n of them.

    Attributes:
        n: Entries kept in a group, at least 1 and at most `m`.
        m: Group length, at least 1.
        axis: Axis of the array along which the groups lie. None, the default, is along the inputs, which is what sparse
            matrix units accept: all of them where an updater's `layers` tell; else the last axis but one, as in kernels
            of Flax and Haiku (`[in, out]`, `[height, width, in, out]`).

    Raises:
        ValueError: If n > m or either is below 1.

    Example:
        >>> NByM(2, 4).units((8, 3))
        6

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks (2021).
    """

    n: int
    m: int
    axis: int | None = None

    def __post_init__(self) -> None:
        _integer("NByM.n", self.n, 1)
        _integer("NByM.m", self.m, 1)
        _axis("NByM.axis", self.axis)
        if self.n > self.m:
            raise ValueError(f"NByM keeps n={self.n} of m={self.m}; n must not exceed m. Did you swap them?")

    @property
    def place(self) -> int:
        """The axis, in an array that nobody described."""
        return -2 if self.axis is None else self.axis

    def check(self, shape: tuple[int, ...], where: str = "an array") -> None:
        """Raises ValueError if `shape` lacks the axis."""
        _axis_of(shape, self.place, self, where)

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of groups in an array of `shape`."""
        length = shape[self.place]
        return math.prod(shape) // length * -(-length // self.m) if length else 0


@dataclasses.dataclass(frozen=True)
class Block:
    """Rectangular blocks over inputs and outputs are kept or pruned as one.

    The last block of an axis may be smaller when the length does not divide. Leading axes, such as the window of a
    convolution, count as more blocks.

    Attributes:
        block_shape: Block length along (inputs, outputs), or outputs alone, where an updater's `layers` tell these;
            else, and where it has more entries, along each of the last `len(block_shape)` axes.
        use_avg_pooling: True scores a block by the mean of its entries, False by their maximum.

    Raises:
        TypeError: If block_shape is not a sequence of ints.
        ValueError: If block_shape is empty or has an entry below 1.

    Example:
        >>> Block((4, 4)).units((8, 10))
        6
    """

    block_shape: tuple[int, ...]
    use_avg_pooling: bool = True

    def __post_init__(self) -> None:
        given: Any = self.block_shape
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise TypeError(f"Block.block_shape is {given!r}; give ints such as (4, 4).")
        object.__setattr__(self, "block_shape", tuple(given))
        for length in self.block_shape:
            _integer("Block.block_shape entry", length, 1)

    def check(self, shape: tuple[int, ...], where: str = "an array") -> None:
        """Raises ValueError if a block is larger than an array of `shape`."""
        trailing = shape[-len(self.block_shape) :]
        if len(shape) < len(self.block_shape) or any(
            b > d for b, d in zip(self.block_shape, trailing, strict=False) if d
        ):
            raise ValueError(
                f"{self} is larger than {where} of shape {shape}; "
                "choose a smaller block or leave that layer dense with a rule."
            )

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of blocks in an array of `shape`."""
        lead, trailing = shape[: -len(self.block_shape)], shape[-len(self.block_shape) :]
        return math.prod(lead) * math.prod(-(-d // b) for d, b in zip(trailing, self.block_shape, strict=True))


@dataclasses.dataclass(frozen=True)
class Channel:
    """Whole slices along one axis are kept or pruned, ranked by the sum of their scores.

    Attributes:
        axis: Axis of the array whose slices are the channels. None, the default, is the outputs: all of them where an
            updater's `layers` tell; else the last axis, as in kernels of Flax and Haiku.
        whole_heads: Where the outputs are those of attention heads, and `layers` tell so, a head is a channel.

    Example:
        >>> Channel().units((3, 3, 16, 32))
        32
    """

    axis: int | None = None
    whole_heads: bool = False

    def __post_init__(self) -> None:
        _axis("Channel.axis", self.axis)
        if not isinstance(self.whole_heads, bool):
            raise TypeError(f"Channel.whole_heads is {self.whole_heads!r}; give True or False.")
        if self.whole_heads and self.axis is not None:
            raise ValueError(f"Channel got axis={self.axis} and whole_heads=True, which goes by roles; give one.")

    @property
    def place(self) -> int:
        """The axis, in an array that nobody described."""
        return -1 if self.axis is None else self.axis

    def check(self, shape: tuple[int, ...], where: str = "an array") -> None:
        """Raises ValueError if `shape` lacks the axis."""
        _axis_of(shape, self.place, self, where)

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of channels in an array of `shape`."""
        return shape[self.place]


@dataclasses.dataclass(frozen=True)
class ConstantFanIn:
    """Every output keeps the same number of its incoming weights.

    Attributes:
        axis: Axis of the array along which the outputs lie; each slice along it is ranked on its own. None, the
            default, as of `Channel`.

    Example:
        >>> ConstantFanIn().units((3, 3, 16, 32))
        32

    Source: Lasby et al., Dynamic Sparse Training with Structured Sparsity (2024).
    """

    axis: int | None = None

    def __post_init__(self) -> None:
        _axis("ConstantFanIn.axis", self.axis)

    @property
    def place(self) -> int:
        """The axis, in an array that nobody described."""
        return -1 if self.axis is None else self.axis

    def check(self, shape: tuple[int, ...], where: str = "an array") -> None:
        """Raises ValueError if `shape` lacks the axis."""
        _axis_of(shape, self.place, self, where)

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of outputs of an array of `shape`."""
        return shape[self.place]


@dataclasses.dataclass(frozen=True, repr=False)
class ChannelGroups:
    """Channels are kept or pruned in all parameters that make them, so that `core.shrink` can take them out.

    What makes a channel is the outputs of layers, biases and the scales and shifts of norms; the last two are pruned
    along, whatever the filter of the distribution and rules for other structures say. A channel is ranked by the sum of
    the scores of all entries that make it. Each group keeps as many channels as the target sparsity of its layers says:
    their mean, weighted by entries, where they differ, and all if one of them is left dense. Groups whose channels one
    layer makes together, as attention heads and the entries of a head, have one target, and each of them keeps so many.
    Layers that make no channels, such as the last one, stay dense. Growth by gradients sees nothing of a pruned channel
    behind a relu, whose derivative at 0 is 0.

    Attributes:
        graph: The network's groups, from `core.channel_graph`. It may be that of all variables of a model, or of the
            part of the parameters for which a `ByPath` or `PerModule` names this structure.
        multiple_of: Every group keeps a multiple of so many channels, rounded up, or all that it has.

    Raises:
        TypeError: If the graph is none.
        ValueError: If no channels can leave it, or multiple_of is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core
        >>> params = {"a": jnp.ones((3, 8)).at[:, :4].set(2.0), "b": jnp.ones((8, 2)), "bias": jnp.zeros(8)}
        >>> apply = lambda params, x: jnp.tanh(x @ params["a"] + params["bias"][None]) @ params["b"]
        >>> groups = ChannelGroups(core.channel_graph(apply, params, jnp.ones((1, 3))))
        >>> updater = core.build_updater("magnitude", sparsity=0.75, total_steps=100, structure=groups)
        >>> masks = updater.instant_sparsify(params)[1]
        >>> masks["a"][0].tolist(), masks["bias"].tolist()
        ([1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0])

    Source: Fang et al., DepGraph: Towards Any Structural Pruning (2023).
    """

    graph: Any
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not all(hasattr(self.graph, name) for name in ("groups", "stays", "layers", "params")):
            raise TypeError(
                f"ChannelGroups.graph is a {type(self.graph).__name__}; give what core.channel_graph(apply, params, "
                "*inputs) returns."
            )
        _integer("ChannelGroups.multiple_of", self.multiple_of, 1)
        if not self.graph.groups:
            raise ValueError(f"no channels can leave this network, so none can be pruned as groups:\n{self.graph}")

    def __repr__(self) -> str:
        rounded = f", multiple_of={self.multiple_of}" if self.multiple_of > 1 else ""
        return f"ChannelGroups(graph of {len(self.graph.groups)} groups{rounded})"

    def check(self, shape: tuple[int, ...], where: str = "an array") -> None:
        """Accepts any shape."""

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of channels of a group, whose scores have `shape`."""
        return math.prod(shape)


Structure = Unstructured | NByM | Block | Channel | ConstantFanIn | ChannelGroups


@dataclasses.dataclass(frozen=True)
class ByPath:
    """A different structure for some layers.

    Attributes:
        rules: Pairs (regular expression for a whole path 'a/b/kernel', structure); the first match wins.
        default: Structure of the layers that no rule matches.

    Raises:
        TypeError: If a structure is none.
        ValueError: If a rule is no such pair.

    Example:
        >>> by_path = ByPath([("head/.*", Channel()), (".*/conv/.*", NByM(2, 4))])
        >>> structure_per_leaf(by_path, ["body/conv/kernel", "body/dense/kernel", "head/kernel"])
        [NByM(n=2, m=4, axis=None), Unstructured(), Channel(axis=None, whole_heads=False)]
    """

    rules: Sequence[tuple[str, Structure]]
    default: Structure = Unstructured()

    def __post_init__(self) -> None:
        example = "('head/.*', NByM(2, 4))"
        object.__setattr__(self, "rules", tuple(read_rule(rule, "structure", example) for rule in self.rules))
        for pattern, structure in (*self.rules, ("default", self.default)):
            if not isinstance(structure, Structure):
                raise TypeError(f"the structure of {pattern!r} is {structure!r}; give an instance such as NByM(2, 4).")


MAY_COUPLE = (ChannelGroups, ByPath)  # with others no mask is made of the scores of several parameters


def all_structures(sparsity_type: Structure | ByPath) -> list[Structure]:
    """The structures that some layers may have.

    Example:
        >>> all_structures(ByPath([("head/.*", Channel())]))
        [Channel(axis=None, whole_heads=False), Unstructured()]
    """
    if not isinstance(sparsity_type, ByPath):
        return [sparsity_type]
    return [*(structure for _, structure in sparsity_type.rules), sparsity_type.default]


def structure_per_leaf(sparsity_type: Structure | ByPath, names: Sequence[str]) -> list[Structure]:
    """The structure of every leaf.

    Args:
        sparsity_type: One structure for all, or rules.
        names: Paths of all leaves.

    Returns:
        One structure per name.

    Raises:
        ValueError: If a rule matches no leaf.

    Example:
        >>> structure_per_leaf(Unstructured(), ["a", "b"])
        [Unstructured(), Unstructured()]
    """
    if not isinstance(sparsity_type, ByPath):
        return [sparsity_type] * len(names)
    chosen = first_match([pattern for pattern, _ in sparsity_type.rules], names)
    return [sparsity_type.default if rule is None else sparsity_type.rules[rule][1] for rule in chosen]
