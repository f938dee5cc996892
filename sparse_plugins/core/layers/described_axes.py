"""What the axes of a parameter are, told by number."""

import dataclasses
from collections.abc import Sequence

from sparse_plugins.core.layers.axes import LayerAxes, Part, Role

__all__ = ["Axes"]

_ROLES: tuple[Role, ...] = ("stack", "inputs", "outputs", "space", "rows", "elementwise")


@dataclasses.dataclass(frozen=True)
class Axes:
    """What the axes of a parameter are, by number; each field takes one number or several.

    Attributes:
        stack: Every entry is a layer of its own, as `nn.scan` and `vmap` stack them.
        inputs: Summed over.
        outputs: Kept.
        space: The window of a convolution.
        rows: Looked up by index, as in an embedding.
        elementwise: Those of a bias or a scale.
        heads: Which of the inputs or outputs run over attention heads.

    Raises:
        TypeError: If a field holds something else than ints.
        ValueError: If an axis is named twice, heads are no inputs or outputs, or a bias has these.

    Example:
        >>> print(Axes(stack=0, inputs=1, outputs=(2, 3), heads=2).of("query/kernel", (12, 64, 4, 16)))
        stack 12, inputs 64, outputs 4 heads, outputs 16
    """

    stack: int | Sequence[int] = ()
    inputs: int | Sequence[int] = ()
    outputs: int | Sequence[int] = ()
    space: int | Sequence[int] = ()
    rows: int | Sequence[int] = ()
    elementwise: int | Sequence[int] = ()
    heads: int | Sequence[int] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            numbers = (given,) if isinstance(given, int) else given
            if (
                isinstance(given, bool)
                or not isinstance(numbers, (tuple, list))
                or not all(isinstance(number, int) for number in numbers)
            ):
                raise TypeError(f"Axes.{field.name} is {given!r}; give the number of an axis, or several as a tuple.")
            object.__setattr__(self, field.name, tuple(numbers))
        if self.elementwise and (self.inputs or self.outputs or self.rows or self.space):
            raise ValueError(
                f"{self} is a bias or a scale and a layer at once: give elementwise, or inputs and outputs."
            )

    def of(self, path: str, shape: tuple[int, ...]) -> LayerAxes:
        """The axes of a parameter.

        Args:
            path: Its path.
            shape: Its shape.

        Raises:
            ValueError: If the axes are not those of the shape: one that it lacks, that is named twice, or that is
                longer than 1 and not named.
        """
        roles: dict[int, Role] = {}
        for role in _ROLES:
            for number in self._numbers(role):
                axis = self._numbered(number, path, shape)
                if axis in roles:
                    raise ValueError(f"{self} names axis {number} of {path!r} twice, as {roles[axis]} and {role}.")
                roles[axis] = role
        heads = {self._numbered(number, path, shape) for number in self._numbers("heads")}
        if not heads <= {axis for axis, role in roles.items() if role in ("inputs", "outputs")}:
            raise ValueError(f"heads of {self} are no inputs or outputs of {path!r}; name the axis there as well.")
        if unnamed := [axis for axis, length in enumerate(shape) if length != 1 and axis not in roles]:
            raise ValueError(
                f"{self} does not say what axis {unnamed[0]} of {path!r}, whose shape is {shape}, is: name all axes."
            )
        parts = [(Part(length, roles.get(axis), axis in heads),) for axis, length in enumerate(shape)]
        return LayerAxes(path, shape, tuple(parts))

    def _numbers(self, field: str) -> tuple[int, ...]:
        return getattr(self, field)

    def _numbered(self, number: int, path: str, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= number < len(shape):
            raise ValueError(f"{self} names axis {number}, which {path!r} of shape {shape} does not have.")
        return number % len(shape)

    def __str__(self) -> str:
        given = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        words = [f"{name}={axes[0] if len(axes) == 1 else axes}" for name, axes in given if axes]
        return f"Axes({', '.join(words)})"
