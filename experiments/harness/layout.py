"""What a domain says about its rows, so that one loop writes them, one report tables and one set of figures draws."""

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Key = tuple[Any, ...]
Settings = Mapping[str, Any]
_UNFIT = "config.json is damaged: it does not say what a study of {} says; copy it back from where it is whole"
DOMAINS = ("fed_emnist", "minatar", "atari", "vision", "t5", "structures", "hostile", "versus_dopamine")


class Shown(NamedTuple):
    """A cell of the grid, for readers.

    Attributes:
        group: What its numbers are compared within, such as a game; empty if there is one group only.
        name: Of the algorithm, or whatever else the cells differ in.
        sparsity: Target fraction of zeros; None if the cell has none of its own.
    """

    group: str
    name: str
    sparsity: float | None = None

    @property
    def is_dense(self) -> bool:
        """Whether it is dense training, of whatever width."""
        return self.name == "dense" or self.name.startswith("dense (")

    def __str__(self) -> str:
        at = "" if not self.sparsity or self.is_dense else f" at {100 * self.sparsity:.4g} %"
        return f"{self.name}{at}" + (f" on {self.group}" if self.group else "")


class Measure(NamedTuple):
    """A number of a finished run.

    Attributes:
        label: For readers, with its unit.
        of: From the rows of the run to the number; None where there is none.
        factor: By which it is multiplied for readers, such as 100 for percent.
        digits: Behind the point.
        has_interval: Whether a 95 % interval over seeds stands beside it.
    """

    label: str
    of: Callable[[Sequence[Any]], float | None]
    factor: float = 1.0
    digits: int = 2
    has_interval: bool = False


class Curve(NamedTuple):
    """A number by step.

    Attributes:
        label: For readers, with its unit.
        field: Of the rows.
        factor: By which it is multiplied for readers.
    """

    label: str
    field: str
    factor: float = 1.0


class Published(NamedTuple):
    """Numbers of a paper, for reference.

    Attributes:
        what: Model and measure, for the head of the column.
        source: Where they stand, with what is known of their setting.
        sparsity: Target fraction of zeros of all but dense training.
        numbers: By the name of a cell.
        digits: Behind the point.
    """

    what: str
    source: str
    sparsity: float
    numbers: Mapping[str, float]
    digits: int = 2

    def of(self, cell: Shown) -> float | None:
        """The number of the same algorithm at the same sparsity, if there is one; how weights grow is not compared."""
        is_same = cell.is_dense or cell.sparsity is None or math.isclose(cell.sparsity, self.sparsity)
        return self.numbers.get(cell.name.partition(":")[0]) if is_same else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of a study are written and read.

    Attributes:
        title: Of the report.
        about: What was trained, in sentences.
        row: Dataclass of a row of `results.csv`, with `seed` and `failure` among its fields.
        cell: Fields of a row that name its cell.
        show: From the values of these fields to the cell for readers.
        cells: Of the grid, as such values; None if a study of an older version does not say: then those of its rows.
        seeds: Of every cell.
        step: Field of a row that counts steps.
        step_label: What a step is.
        is_last: Whether a row says how its run ended.
        scores: What runs are compared by, the most important one first.
        sparsity: Fraction of zeros that was measured.
        curve: The score while training.
        traffic: Bytes so far, by step; empty if nothing is sent.
        changes: Steps of the first and last mask change, for a shade; None if they differ by cell.
        published: Numbers of a paper; None if there are none.
        deviations: What differs from the published setting, in sentences.
        prediction: What was expected before it was run.
        notes: How to read the table, in sentences.
        sections: Further Markdown about the outcomes of a study.
    """

    title: str
    about: str
    row: type
    cell: tuple[str, ...]
    show: Callable[[Key], Shown]
    cells: tuple[Key, ...] | None
    seeds: tuple[int, ...]
    step: str
    step_label: str
    is_last: Callable[[Any], bool]
    scores: tuple[Measure, ...]
    sparsity: Measure | None
    curve: Curve | None
    traffic: tuple[Curve, ...] = ()
    changes: tuple[int, int] | None = None
    published: Published | None = None
    deviations: tuple[str, ...] = ()
    prediction: str = ""
    notes: str = ""
    sections: Callable[[Sequence[Any]], Sequence[str]] = lambda found: ()

    def key(self, row: Any) -> Key:
        """The cell of a row."""
        return tuple(getattr(row, field) for field in self.cell)

    def step_of(self, row: Any) -> int:
        """The step of a row."""
        return int(getattr(row, self.step))


def last(field: str) -> Callable[[Sequence[Any]], float | None]:
    """A measure that is a field of the last row."""
    return lambda rows: getattr(rows[-1], field)


def keys(cells: Sequence[Sequence[Any]] | None) -> tuple[Key, ...] | None:
    """Cells as JSON gives them back, as keys."""
    return None if cells is None else tuple(tuple(cell) for cell in cells)


def differences(settings: Settings, paper: Mapping[str, tuple[Any, str]]) -> list[str]:
    """A sentence for every setting that is not the paper's.

    Args:
        settings: Of a study, by name.
        paper: By name the paper's value and what it is; None if the paper does without.

    Example:
        >>> differences({"rounds": 200, "batch_size": 32}, {"rounds": (1000, "rounds"), "batch_size": (32, "images")})
        ['200 rounds instead of 1,000.']
    """
    differing = ((settings.get(name), value, what) for name, (value, what) in paper.items())
    return [
        f"{_said(own)} {what} instead of {_said(value)}." for own, value, what in differing if not _same(own, value)
    ]


def _same(own: Any, value: Any) -> bool:
    are_numbers = all(isinstance(one, (int, float)) for one in (own, value))
    return math.isclose(own, value, rel_tol=1e-9) if are_numbers else own == value


def _said(value: Any) -> str:
    if value is None:
        return "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def domain_of(record: Mapping[str, Any]) -> str:
    """The domain of a study; older records name it in their command only.

    Raises:
        ValueError: it is none that can be read.
    """
    words = record.get("command", "").split()
    module = next((word for word in words if word.startswith("experiments.")), "")
    domain = record.get("domain") or module.removeprefix("experiments.")
    if domain not in DOMAINS:
        raise ValueError(
            f"{domain or record.get('command')!r} writes no study; those that do are {', '.join(DOMAINS)}."
        )
    return domain


def layout_of(record: Mapping[str, Any]) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.

    Raises:
        ValueError: its domain is not known, or the record does not say what studies of the domain say.
    """
    module = importlib.import_module(f"experiments.{domain_of(record)}.layout")
    try:
        made: Layout = module.layout(record)
        cells = made.cells or ()
        shown = [str(made.show(cell)) for cell in cells]
        is_told = all(type(seed) is int for seed in made.seeds) and len(set(cells)) == len(shown)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{_UNFIT.format(domain_of(record))} ({type(error).__name__}: {error})") from error
    if not is_told:
        raise ValueError(_UNFIT.format(domain_of(record)))
    return made
