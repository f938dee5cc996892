"""What a study says of its rows, so that one loop writes them, one report tables and one set of figures draws."""

import dataclasses
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.cells import Cell, Run

RUNS = "runs"
Record = Mapping[str, Any]  # what `config.json` of a study holds
Settings = Mapping[str, Any]
Key = tuple[Any, ...]
_UNFIT = "config.json is damaged: it does not say what a study of {} says; copy it back from where it is whole"
_COLUMN_TYPES = {"group": str, "name": str, "sparsity": float, "width": int}


class Row(types.SimpleNamespace):
    """A line of a study's `results.csv`, an attribute for each column of its `Layout`.

    It is an evaluation, a stretch of training or the end of a run. Numbers that it lacks are None; `failure` is empty,
    or says why the run ended early.
    """


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
        field: Field of the rows.
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

    def of(self, cell: Cell) -> float | None:
        """The number of the same algorithm at the same sparsity, if there is one; how weights grow is not compared."""
        is_same = cell.is_dense or cell.sparsity is None or math.isclose(cell.sparsity, self.sparsity)
        return self.numbers.get(cell.label.partition(":")[0]) if is_same else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What the rows of a study are, and how they are read.

    Attributes:
        title: Title of the report.
        about: What was trained, in sentences.
        cell: Columns that name the cell of a row, and by each the attribute of `Cell` that it is.
        numbers: Columns of what was measured, and the type of each.
        cells: Cells of the study; None for those of its rows, as in an older study, whose record does not list them.
        seeds: Seeds of every cell.
        step: Column that counts steps.
        step_label: What a step is.
        is_last: Whether a row says how its run ended.
        scores: What runs are compared by, the most important one first.
        sparsity: Fraction of zeros that was measured.
        curve: The score while training.
        target: Sparsity of the cells that are not dense, where no column tells it.
        groups: Names of groups for readers, where columns hold shorter ones.
        traffic: Bytes so far, by step; empty if nothing is sent.
        costs: What a finished run takes, such as time and bytes, for pictures of the score against each.
        changes: Steps of the first and last mask change, for a shade; None if they differ by cell.
        published: Numbers of a paper; None if there are none.
        deviations: What differs from the published setting, in sentences.
        prediction: What was expected before it was run.
        notes: How to read the table, in sentences.
        sections: Further Markdown about the outcomes of a study.
    """

    title: str
    about: str
    cell: Mapping[str, str]
    numbers: Mapping[str, type]
    cells: tuple[Cell, ...] | None
    seeds: tuple[int, ...]
    step: str
    step_label: str
    is_last: Callable[[Row], bool]
    scores: tuple[Measure, ...]
    sparsity: Measure | None
    curve: Curve | None
    target: float | None = None
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    traffic: tuple[Curve, ...] = ()
    costs: tuple[Measure, ...] = ()
    changes: tuple[int, int] | None = None
    published: Published | None = None
    deviations: tuple[str, ...] = ()
    prediction: str = ""
    notes: str = ""
    sections: Callable[[Sequence[Any]], Sequence[str]] = lambda found: ()

    @property
    def front(self) -> dict[str, type]:
        """Columns that say of which run and step a row is."""
        return {**{column: _COLUMN_TYPES[field] for column, field in self.cell.items()}, "seed": int, self.step: int}

    @property
    def columns(self) -> dict[str, type]:
        """All columns of `results.csv`."""
        return {**self.front, **self.numbers, "failure": str}

    def key(self, cell: Cell) -> Key:
        """What its rows say of a cell."""
        short = {title: group for group, title in self.groups.items()}
        return tuple(getattr(cell._replace(group=short.get(cell.group, cell.group)), at) for at in self.cell.values())

    def cell_of(self, key: Sequence[Any]) -> Cell:
        """The cell of which rows say this."""
        cell = Cell(**{"group": "", **dict(zip(self.cell.values(), key, strict=True))})
        target = None if self.target is None else 0.0 if cell.is_dense else self.target
        sparsity = cell.sparsity if "sparsity" in self.cell.values() else target
        return cell._replace(group=self.groups.get(cell.group, cell.group), sparsity=sparsity)

    def run_of(self, row: Row) -> Run:
        """The run of a row."""
        return Run(self.cell_of([getattr(row, column) for column in self.cell]), row.seed)

    def step_of(self, row: Row) -> int:
        """The step of a row."""
        return int(getattr(row, self.step))

    def path(self, run: Run) -> Path:
        """Folder of a run, within that of the study."""
        name = re.sub(r"[^\w.+=]+", "-", "-".join(map(str, self.key(run.cell))))
        return Path(RUNS, name, f"seed-{run.seed}")


def last(column: str) -> Callable[[Sequence[Row]], float | None]:
    """A measure that is a column of the last row."""
    return lambda rows: getattr(rows[-1], column)


def differences(settings: Settings, paper: Mapping[str, tuple[Any, str]]) -> list[str]:
    """A sentence for every setting that is not the paper's.

    Args:
        settings: Settings of a study, by name.
        paper: By name the paper's value and what it is; None if the paper does without.

    Example:
        >>> differences({"rounds": 200, "batch_size": 32}, {"rounds": (1000, "rounds"), "batch_size": (32, "images")})
        ['200 rounds instead of 1,000.']
    """
    differing = ((settings.get(name), value, what) for name, (value, what) in paper.items())
    return [
        f"{_said(ours)} {what} instead of {_said(value)}." for ours, value, what in differing if not _same(ours, value)
    ]


def _same(ours: Any, theirs: Any) -> bool:
    are_numbers = all(isinstance(number, (int, float)) for number in (ours, theirs))
    return math.isclose(ours, theirs, rel_tol=1e-9) if are_numbers else ours == theirs


def _said(value: Any) -> str:
    if value is None:
        return "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


Layouts = Mapping[str, Callable[[Record], Layout]]  # by the name of a study's module


def name_of(record: Record) -> str:
    """The module of a study, `python -m experiments.<name>`; older records name it in their command only."""
    words = record.get("command", "").split()
    module = next((word for word in words if word.startswith("experiments.")), "")
    return str(record.get("domain") or module.removeprefix("experiments."))


def layout_of(record: Record, layouts: Layouts) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
        layouts: Layouts of all studies.

    Raises:
        ValueError: the study is not known, or the record does not say what its studies say.
    """
    name = name_of(record)
    if name not in layouts:
        raise ValueError(f"{name or record.get('command')!r} writes no study; those that do are {', '.join(layouts)}.")
    try:
        made = layouts[name](record)
        if "cells" in record:
            made = dataclasses.replace(made, cells=tuple(map(made.cell_of, record["cells"])))
        keys = [made.key(cell) for cell in made.cells or ()]
        is_told = all(type(seed) is int for seed in made.seeds) and len(set(keys)) == len(keys)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{_UNFIT.format(name)} ({type(error).__name__}: {error})") from error
    if not is_told:
        raise ValueError(_UNFIT.format(name))
    return made
