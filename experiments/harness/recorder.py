"""A run: its folder, to which rows are added as it is trained, and the summary that says how it ended."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.harness import layers
from experiments.harness.cells import Run
from experiments.harness.csv_files import append_lines, csv_text, read_lines
from experiments.harness.files import read_json, write_whole
from experiments.harness.layout import RUNS, Layout, Row

SUMMARY = "summary.json"
SCRATCH = "training"  # what a run needs to go on, and nobody after it
_TOLD_OF_PROCESSES = ("config.json", "timing.csv", SUMMARY)


MEASUREMENTS = {"cell": str, "seed": int, "item": str, "quantity": str, "value": float}  # of trained models
MASKS = {"layer": str, "size": int, "kept": int, "changed": int}


def has_ended(run: Path) -> bool:
    """Whether the run of a folder is finished or failed: its summary is the last thing that is written."""
    return (run / SUMMARY).exists()


def check_ends(study: Path) -> None:
    """Checks that all that the ended runs of a study have left is still there, as it was.

    Without the folders of the runs, as in results that are kept in a repository, there is nothing to check.

    Raises:
        ValueError: a file is damaged or missing; the message names it.
    """
    for summary in sorted((study / RUNS).glob(f"*/*/{SUMMARY}")):
        _check_end(summary.parent)


def _check_end(folder: Path) -> None:
    remedy = f"Copy it back from where it is whole, or remove {folder} and --resume the study to train that run again."
    summary = read_json(folder / SUMMARY, remedy)
    is_older = summary.keys().isdisjoint(("files", "checksum"))  # then it lists no files
    is_whole = is_older or summary.pop("checksum", None) == _checksum(summary)
    files = summary.get("files", {})
    if not is_whole or summary.get("status") not in ("finished", "failed") or not isinstance(files, dict):
        raise ValueError(f"{folder / SUMMARY} is damaged: it does not say how the run ended. {remedy}")
    for name in ("results.csv", *files):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing. {remedy}")
    for name, digest in files.items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{folder / name} is damaged: it is not as it was when the run ended. {remedy}")


def _checksum(summary: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(summary).encode())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """Of what a run leaves, but for what two trainings of it write differently."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix != ".partial")
    return {file.name: _digest(file) for file in files if file.name not in _TOLD_OF_PROCESSES}


class Recorder:
    """Writes the folder of a run that has not ended.

    Attributes:
        run: The run.
        folder: Its folder; a domain may put files of its own there.
        rows: Rows of the run so far.
        reached: Step that it is known to have come to, if that is later than its last row's.

    Args:
        study: Folder of the study.
        layout: Layout of its rows.
        run: Which run.
        record: Command, settings and surroundings of this process.
    """

    def __init__(self, study: Path, layout: Layout, run: Run, record: Mapping[str, Any]) -> None:
        self.run, self.folder = run, study / layout.path(run)
        self.rows: list[Row] = []
        self.reached = 0
        self._layout = layout
        self._before: layers.Masks | None = None
        self._cell = {**dict(zip(layout.cell, layout.key(run.cell), strict=True)), "seed": run.seed}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_config(record)

    @property
    def scratch(self) -> Path:
        """A folder for checkpoints, which is gone when the study has ended."""
        return self.folder / SCRATCH

    def restart(self, saved: Any = None) -> None:
        """Begins anew, or goes on from what `save` gave; rows of later steps are taken back, for they come again."""
        stored = saved or {"rows": [], "layers": [], "masks": None}
        self.rows = [Row(**row) for row in stored["rows"]]
        self._write_rows()
        self._before = layers.from_json(stored["masks"])
        (self.folder / "measurements.csv").unlink(missing_ok=True)
        (self.folder / "layers.csv").unlink(missing_ok=True)
        if stored["layers"]:
            write_whole(self.folder / "layers.csv", csv_text(self._layer_names, stored["layers"]))

    def save(self) -> dict[str, Any]:
        """What a checkpoint holds of it, of what JSON takes."""
        lines = read_lines(self.folder / "layers.csv")
        return {"rows": [*map(vars, self.rows)], "layers": lines, "masks": layers.to_json(self._before)}

    def row(self, step: int, **numbers: Any) -> Row:
        """A row of this run: its cell and its seed stand in it.

        Args:
            step: So far.
            **numbers: By column of the layout; those that are left out are None.

        Raises:
            TypeError: The layout has no such column.
        """
        if unknown := numbers.keys() - {*self._layout.numbers, "failure"}:
            raise TypeError(f"rows have no {', '.join(unknown)}; they have {', '.join(self._layout.columns)}.")
        empty = {**dict.fromkeys(self._layout.columns), "failure": ""}
        return Row(**{**empty, **self._cell, self._layout.step: step, **numbers})

    def rewrite(self, rows: Iterable[Row]) -> None:
        """All rows so far at once, whatever was there; for loops that keep their rows elsewhere meanwhile."""
        self.rows = list(rows)
        self._write_rows()

    def add(self, step: int, masks: layers.Masks | None = None, **numbers: Any) -> None:
        """An evaluation.

        Args:
            step: So far.
            masks: In use then, if they are known.
            **numbers: As of `row`.
        """
        self.rows.append(self.row(step, **numbers))
        append_lines(self.folder / "results.csv", list(self._layout.columns), [vars(self.rows[-1])])
        if masks:
            self.add_layers(step, masks, self._before)
            self._before = masks

    def add_layers(self, step: int, masks: layers.Masks, before: layers.Masks | None) -> None:
        """Masks at a step, and those of the evaluation before it; the same ones may come again after a stop."""
        front = {**self._cell, self._layout.step: step}
        lines = [{**front, **line} for line in layers.lines(masks, before)]
        if lines:
            append_lines(self.folder / "layers.csv", self._layer_names, lines)

    def measure(self, item: str, quantity: str, value: float) -> None:
        """Something else that was measured at the end, such as of a layer: a line of `measurements.csv`."""
        line = {"cell": self.run.cell.label, "seed": self.run.seed, "item": item, "quantity": quantity, "value": value}
        append_lines(self.folder / "measurements.csv", list(MEASUREMENTS), [line])

    def fail(self, error: BaseException) -> None:
        """The run ended early, and why."""
        reached = max(self.reached, self._layout.step_of(self.rows[-1]) if self.rows else 0)
        failure = " ".join(f"{type(error).__name__}: {error}".split())
        self.rewrite([*self.rows, self.row(reached, failure=failure)])

    def end(self, seconds: float, together: int) -> str:
        """Writes how it ended.

        Args:
            seconds: Seconds that it took.
            together: Runs that were trained in that time.

        Returns:
            A line for whoever waits.

        Raises:
            RuntimeError: it has no last row.
        """
        if not self.rows or not (self.rows[-1].failure or self._layout.is_last(self.rows[-1])):
            raise RuntimeError(f"{self.run} has ended without a last row: {self.rows[-1:]}.")
        self._drop_repeated_layers()
        timing = {**self._cell, "together": together, "seconds": round(seconds, 1)}
        write_whole(self.folder / "timing.csv", csv_text([*timing], [timing]))
        end = vars(self.rows[-1])
        status = "failed" if end["failure"] else "finished"
        summary = {"status": status, "failure": end["failure"], "evaluations": len(self.rows), "last": end}
        summary["files"] = _digests(self.folder)
        write_whole(self.folder / SUMMARY, json.dumps({**summary, "checksum": _checksum(summary)}, indent=2) + "\n")
        return f"{self.run}: {self._result()}, {seconds:.0f} s"

    @property
    def _layer_names(self) -> list[str]:
        return [*self._layout.front, *MASKS]

    def _write_rows(self) -> None:
        write_whole(self.folder / "results.csv", csv_text(list(self._layout.columns), map(vars, self.rows)))

    def _result(self) -> str:
        if self.rows[-1].failure:
            return f"failed: {self.rows[-1].failure}"
        shown = [self._layout.scores[0], *([self._layout.sparsity] if self._layout.sparsity else [])]
        values = [(measure, measure.of(self.rows)) for measure in shown]
        return ", ".join(f"{m.label} {m.factor * value:.{m.digits}f}" for m, value in values if value is not None)

    def _drop_repeated_layers(self) -> None:
        path = self.folder / "layers.csv"
        lines = read_lines(path)
        once = list({(line[self._layout.step], line["layer"]): line for line in lines}.values())
        if len(once) < len(lines):
            write_whole(path, csv_text(self._layer_names, once))

    def _write_config(self, record: Mapping[str, Any]) -> None:
        """Of the process that began it; those that went on with it are listed."""
        path = self.folder / "config.json"
        cell = {name: self._cell[name] for name in self._layout.cell}
        content: dict[str, Any] = {"cell": cell, "seed": self.run.seed}
        if path.exists():
            content = read_json(path, "Remove it: the run goes on, as one that was begun now.")
            again = {name: value for name, value in record.items() if name != "settings"}
            content = {**content, "resumed": [*content.get("resumed", []), again]}
        else:
            content.update(record)
        write_whole(path, json.dumps(content, indent=2) + "\n")
