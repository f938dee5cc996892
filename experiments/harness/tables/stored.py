"""Studies as they are stored: read, checked for missing seeds, and joined where that makes sense."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.cells import Run
from experiments.harness.csv_files import read_lines, read_rows
from experiments.harness.files import read_record
from experiments.harness.layout import Layout, Layouts, Record, Row, layout_of, name_of
from experiments.harness.recorder import MEASUREMENTS, check_ends
from experiments.harness.surroundings import OF_A_PROCESS
from experiments.harness.tables.outcomes import Outcome, by_run, outcomes

# In which studies may differ that are joined in one table: what spans their grids, and what changes no number.
SPANS = ("games", "algorithms", "sparsities", "seeds")
FREE = frozenset({*SPANS, "only", "output", "name", "jobs"})
PARTS = "joined"  # in the record of a study that was joined and stored, the records of the studies that it is made of


class MissingRunsError(ValueError):
    """A run that a study promises has neither finished nor failed."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A study, or several that are read as one.

    Attributes:
        folders: Where it is stored.
        records: Of each study that it is made of, what its `config.json` holds.
        layout: Layout of its rows.
        rows: All of them.
        layers: Lines of `layers.csv`, texts by column.
        measurements: What else was measured.
        origins: By run, which of the records is its.
        layouts: Layouts of all studies.
    """

    folders: tuple[Path, ...]
    records: tuple[Record, ...]
    layout: Layout
    rows: list[Row]
    layers: list[dict[str, str]]
    measurements: list[Row]
    origins: dict[Run, Record]
    layouts: Layouts = dataclasses.field(default_factory=dict)

    def outcomes(self) -> list[Outcome]:
        """How its cells ended."""
        return outcomes(self.rows, self.layout)


def read_study(folder: Path, layouts: Layouts) -> Stored:
    """Reads a study folder, of this version or an older one.

    Args:
        folder: Folder of the study.
        layouts: Layouts of all studies, such as `registry.LAYOUTS`.

    Raises:
        FileNotFoundError: it holds no study.
        ValueError: it is not known, its rows are not those of its layout, or a file in it is damaged.
    """
    check_ends(folder)
    record = read_record(folder)
    layout = layout_of(record, layouts)
    records = tuple(record.get(PARTS, (record,)))
    rows = read_rows(folder / "results.csv", layout.columns, layout.front)
    measurements = read_rows(folder / "measurements.csv", MEASUREMENTS, MEASUREMENTS)
    origins = dict.fromkeys(by_run(rows, layout), records[0])
    lines = read_lines(folder / "layers.csv")
    study = Stored((folder,), records, layout, rows, lines, measurements, origins, layouts)
    promised = {run: part for part, runs in _promised(study) for run in runs}
    origins.update({run: promised[run] for run in origins.keys() & promised.keys()})
    return study


def _promised(study: Stored) -> list[tuple[Record, list[Run]]]:
    """Runs of each study that it is made of; an older one, whose record lists no cells, promises those it has."""
    is_joint = len(study.records) > 1
    found = []
    for record in study.records:
        layout = layout_of(record, study.layouts) if is_joint else study.layout
        of_rows = dict.fromkeys(run.cell for run, origin in study.origins.items() if origin is record)
        cells = of_rows if layout.cells is None else layout.cells
        found.append((record, [Run(cell, seed) for cell in cells for seed in layout.seeds]))
    return found


def missing(study: Stored) -> list[str]:
    """A line for each run that is promised and has neither a final row nor a recorded failure."""
    layout, runs = study.layout, by_run(study.rows, study.layout)
    promised, found = [run for _, of_part in _promised(study) for run in of_part], []
    for run in promised:
        rows = runs.get(run, [])
        if not rows:
            found.append(f"{run}: no row")
        elif not rows[-1].failure and not layout.is_last(rows[-1]):
            found.append(f"{run}: only up to {layout.step} {layout.step_of(rows[-1])}")
    return found if promised else ["no cell has a row"]


def check_complete(study: Stored) -> None:
    """Refuses a study of which runs are missing.

    Raises:
        MissingRunsError: which ones, and how to go on.
    """
    if lines := missing(study):
        folder, record = study.folders[0], study.records[0]
        command = " ".join(["python -m", f"experiments.{name_of(record)}", *filter(None, [record.get("study")])])
        is_joint = len(study.records) > 1
        remedy = (
            "Join it again, from folders that are whole."
            if is_joint
            else f"Finish it with: {command} --resume {folder}"
        )
        raise MissingRunsError(
            f"{folder} promises runs that have neither a final row nor a recorded failure, so it gets no table:\n"
            + "\n".join(f"- {line}" for line in lines)
            + f"\n{remedy}"
        )


def joined(studies: Iterable[Stored]) -> list[Stored]:
    """Studies, of which those that differ in nothing but `FREE` settings and share no run are read as one.

    Args:
        studies: Each read from one folder.
    """
    groups: list[list[Stored]] = []
    for study in studies:
        group = next((candidate for candidate in groups if all(_fit(study, other) for other in candidate)), None)
        if group is None:
            groups.append([study])
        else:
            group.append(study)
    return [_join(group) for group in groups]


def _fit(study: Stored, other: Stored) -> bool:
    mine, theirs = study.records[0], other.records[0]
    return _fixed_part(mine) == _fixed_part(theirs) and not study.origins.keys() & other.origins.keys()


def _fixed_part(record: Record) -> tuple[Any, ...]:
    fixed = {name: value for name, value in record["settings"].items() if name not in FREE}
    return name_of(record), record.get("study"), fixed


def _join(group: Sequence[Stored]) -> Stored:
    first = group[0]
    if len(group) == 1:
        return first
    cells = None
    if all(study.layout.cells is not None for study in group):
        cells = tuple(_union(study.layout.cells or () for study in group))
    records = tuple(record for study in group for record in study.records)
    layout = layout_of({**records[0], "settings": _spanning([record["settings"] for record in records])}, first.layouts)
    return Stored(
        folders=tuple(folder for study in group for folder in study.folders),
        records=records,
        layout=dataclasses.replace(layout, cells=cells),
        rows=_in_order([row for study in group for row in study.rows], layout),
        layers=[line for study in group for line in study.layers],
        measurements=[line for study in group for line in study.measurements],
        origins={run: record for study in group for run, record in study.origins.items()},
        layouts=first.layouts,
    )


def joint_record(study: Stored, command: str) -> Record:
    """What `config.json` of a joint study holds: settings that span those of its parts, and the record of each.

    Args:
        study: As `joined` gives it.
        command: Which joined it.
    """
    first, cells = study.records[0], [list(study.layout.key(outcome.cell)) for outcome in study.outcomes()]
    told = {name: value for name, value in first.items() if name not in OF_A_PROCESS}
    return {
        **told,
        "domain": name_of(first),
        "command": command,
        "settings": _spanning([record["settings"] for record in study.records]),
        "cells": cells,
        PARTS: [
            {**record, "cells": [list(study.layout.key(cell)) for cell in dict.fromkeys(run.cell for run in runs)]}
            for record, runs in _promised(study)
        ],
    }


def _spanning(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    spans = {name: _union(of_part[name] for of_part in settings) for name in SPANS if name in settings[0]}
    return {**settings[0], **spans}


def _in_order(rows: Sequence[Row], layout: Layout) -> list[Row]:
    """Rows by group, algorithm and sparsity, as if one study had written them; all else stays in place."""
    cells = [layout.run_of(row).cell for row in rows]
    groups, labels = (list(dict.fromkeys(getattr(cell, field) for cell in cells)) for field in ("group", "label"))
    places = [(groups.index(cell.group), labels.index(cell.label), cell.sparsity or 0.0) for cell in cells]
    return [row for _, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])]


def _union(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(itertools.chain.from_iterable(lists)))


def commit(record: Record) -> str:
    """Short name of the commit that a study ran, with `+` if its source was changed since; `?` if that is not known."""
    git = record.get("git")
    return "?" if not git else git["commit"][:7] + ("+" if git["changed"] else "")
