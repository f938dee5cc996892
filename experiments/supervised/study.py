"""A study from its command line to its report; what has ended is never trained again, what failed stays visible."""

import argparse
import dataclasses
import functools
import io
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.files import (
    changed_packages,
    create_folder,
    csv_text,
    join_timings,
    locked,
    read_config,
    read_rows,
    write_rows,
    write_whole,
)
from experiments.rl_study.flags import read_command_line
from experiments.supervised.data import DataUnavailableError
from experiments.supervised.plot import measurements_figure, scores_figure
from experiments.supervised.record import Measurement, Row
from experiments.supervised.report import Labels, outcomes, report, table
from experiments.supervised.settings import Cell, Study, StudySettings, with_defaults
from experiments.surroundings import surroundings

RUNS = "runs"
PACKAGES = ("dm-haiku", "fedjax", "flax", "gymnax", "jax", "jaxlib", "numpy", "optax", "scikit-learn", "sparse-plugins")

# From a seed to the rows of a run, and after the last one to what was measured of it.
Run = Callable[[int], Iterator[Row | Measurement]]


class Plan(NamedTuple):
    """What a domain makes of settings.

    Attributes:
        about: What is trained, in sentences.
        cells: To train.
        plan: Of the first sparse cell, to print before the study.
        prepare: From a cell to what trains it with a seed; what is compiled there serves all its seeds.
        labels: How its numbers are called.
    """

    about: str
    cells: list[Cell]
    plan: str
    prepare: Callable[[Cell], Run]
    labels: Labels


class Domain(NamedTuple):
    """A family of studies with the same settings.

    Attributes:
        module: What is run: `python -m experiments.<module> <study>`.
        description: What the studies are about.
        settings: Dataclass of their settings.
        studies: By name.
        build: From settings and a study's name to its plan.
    """

    module: str
    description: str
    settings: type[StudySettings]
    studies: Mapping[str, Study]
    build: Callable[[Any, str], Plan]


def main(domain: Domain, arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line, the process's own when None, or goes on with one.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    chosen, rest = _read_first(domain, arguments)
    study = domain.studies[chosen.study]
    kind = with_defaults(domain.settings, study.presets[chosen.preset])
    about = f"{study.title}. Predicted before: {study.prediction}"
    asked = read_command_line(kind, f"{domain.module} {chosen.study}", about, rest)
    try:
        settings = read_config(asked, kind) if isinstance(asked, Path) else asked
        plan = domain.build(settings, chosen.study)
        if isinstance(asked, Path):
            folder = asked
            _check_study(folder, chosen.study)
            for change in changed_packages(folder, PACKAGES):
                print(f"note: {change}; runs to come may differ in their last bits.")
        else:
            command = shlex.join(["python", "-m", f"experiments.{domain.module}", *arguments])
            record = surroundings(command, dataclasses.asdict(settings), PACKAGES)
            folder = create_folder(settings.folder, {"study": chosen.study, **record})
        with locked(folder):
            return run(folder, settings, study, plan)
    except (DataUnavailableError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _read_first(domain: Domain, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Study and preset, and what is left; help before a study lists them, help behind one explains its flags."""
    listed = [f"  {name}: {study.title} ({', '.join(study.presets)})" for name, study in domain.studies.items()]
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{domain.module}",
        usage="%(prog)s STUDY [--preset PRESET] [flags; see STUDY --help]",
        description="\n".join([domain.description, "", "Studies, and their presets, the first by default:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("study", choices=domain.studies, metavar="STUDY")
    parser.add_argument("--preset")
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        parser.exit(0 if arguments else 2)
    chosen, rest = parser.parse_known_args(arguments)
    presets = list(domain.studies[chosen.study].presets)
    chosen.preset = chosen.preset or presets[0]
    if chosen.preset not in presets:
        parser.error(f"{chosen.study} has no preset {chosen.preset!r}; it has {', '.join(presets)}.")
    return chosen, rest


def _check_study(folder: Path, name: str) -> None:
    own = json.loads((folder / "config.json").read_text()).get("study")
    if own != name:
        raise ValueError(f"{folder} holds the study {own!r}, not {name!r}: name it, {own} --resume {folder}.")


def run(folder: Path, settings: StudySettings, study: Study, plan: Plan) -> int:
    """Trains what is left of a study and writes its files, the report last.

    Returns:
        Exit status, as of `main`.
    """
    counts = f"{len(plan.cells)} cells of {len(settings.seeds)} seeds"
    print(f"{study.title}: {counts}. {plan.about}\n{plan.plan}", flush=True)
    places = itertools.product(plan.cells, settings.seeds)
    own = {(cell.name, seed): folder / RUNS / f"{cell.folder}-seed{seed}" for cell, seed in places}
    for cell in plan.cells:
        prepared = functools.cache(functools.partial(plan.prepare, cell))
        for seed in settings.seeds:
            if not _has_ended(own[cell.name, seed]):
                print(_execute(own[cell.name, seed], cell, seed, prepared, plan.labels), flush=True)
    rows = [row for part in own.values() for row in read_rows(part / "results.csv", Row)]
    measurements = [one for part in own.values() for one in read_rows(part / "measurements.csv", Measurement)]
    write_rows(folder / "results.csv", Row, rows)
    if measurements:
        write_rows(folder / "measurements.csv", Measurement, measurements)
        _draw(folder / "measurements.png", measurements_figure(study.title, measurements))
    join_timings(folder, own.values())
    found = outcomes(rows)
    _draw(folder / "scores.png", scores_figure(study.title, found, plan.labels))
    write_whole(
        folder / "results.md", report(study.title, plan.about, study.prediction, rows, measurements, plan.labels)
    )
    print(f"\n{table(found, plan.labels)}\n\nIn {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    return int(any(row.failure for row in rows))


def _has_ended(own: Path) -> bool:
    """Whether a run is finished or failed: its last row is the last thing that is written."""
    rows = read_rows(own / "results.csv", Row)
    return bool(rows) and bool(rows[-1].is_last)


def _execute(own: Path, cell: Cell, seed: int, prepared: Callable[[], Run], labels: Labels) -> str:
    """Trains one run and records it, whatever happens to it: one bad run must not cost the others.

    Returns:
        How it ended, in a line.
    """
    own.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    measurements: list[Measurement] = []
    started = time.perf_counter()
    try:
        for line in prepared()(seed):
            if isinstance(line, Measurement):
                measurements.append(line)
            else:
                rows.append(line)
                write_rows(own / "results.csv", Row, rows)
        rows[-1] = dataclasses.replace(rows[-1], is_last=1)
    except Exception as error:
        failure = " ".join(f"{type(error).__name__}: {error}".split())
        step = rows[-1].step if rows else 0
        rows.append(Row(cell=cell.name, seed=seed, step=step, is_last=1, failure=failure))
    timing = {"cell": cell.name, "seed": seed, "seconds": round(time.perf_counter() - started, 1)}
    write_whole(own / "timing.csv", csv_text([*timing], [timing]))
    write_rows(own / "measurements.csv", Measurement, measurements)
    write_rows(own / "results.csv", Row, rows)
    end = rows[-1]
    result = end.failure or f"{labels.score} {labels.factor * (end.score or 0):.2f}, {end.sparsity or 0:.1%} zeros"
    return f"{cell.name}, seed {seed}: {result}, {timing['seconds']} s"


def _draw(path: Path, figure: Any) -> None:
    figure.savefig(picture := io.BytesIO(), format="png")
    write_whole(path, picture.getvalue())
