"""Supervised studies in the loop of all studies: which study is meant, and its cells one by one."""

import argparse
import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.supervised.data import DataUnavailableError
from experiments.common.supervised.settings import Cell, Study, StudySettings, with_defaults
from experiments.harness import loop
from experiments.harness.files import read_config, read_record
from experiments.harness.runs import Recorder, Run
from experiments.harness.settings import read_command_line

PACKAGES = ("dm-haiku", "fedjax", "flax", "gymnax", "jax", "jaxlib", "numpy", "optax", "scikit-learn", "sparse-plugins")

# Trains a run and hands its rows over; the recorder knows the seed.
TrainRun = Callable[[Recorder], None]


class Plan(NamedTuple):
    """What a domain makes of settings.

    Attributes:
        about: What is trained, in sentences.
        cells: To train.
        plan: Of the first sparse cell, to print before the study.
        prepare: From a cell to what trains it with a seed; what is compiled there serves all its seeds.
    """

    about: str
    cells: list[Cell]
    plan: str
    prepare: Callable[[Cell], TrainRun]


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
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start or go on.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    chosen, rest = _read_first(domain, arguments)
    study = domain.studies[chosen.study]
    kind = with_defaults(domain.settings, study.presets[chosen.preset])
    about = f"{study.title}. Predicted before: {study.prediction}"
    asked = read_command_line(kind, f"{domain.module} {chosen.study}", about, rest)
    command = shlex.join(["python", "-m", f"experiments.{domain.module}", *arguments])

    def begun() -> int:
        folder = asked if isinstance(asked, Path) else None
        settings = read_config(asked, kind) if isinstance(asked, Path) else asked
        if folder is not None:
            _check_study(folder, chosen.study)
        made = study_of(domain, settings, study, domain.build(settings, chosen.study), chosen.study)
        return loop.run(made, loop.begin(made, command) if folder is None else folder, command)

    return loop.explained(begun, DataUnavailableError)


def study_of(domain: Domain, settings: StudySettings, study: Study, plan: Plan, name: str) -> loop.Study:
    """A study for the loop of all studies.

    Args:
        domain: Of the study.
        settings: Of the study.
        study: Which.
        plan: What the domain made of it.
        name: Of the study.
    """
    cells = {cell.name: cell for cell in plan.cells}
    prepare = functools.lru_cache(maxsize=1)(lambda cell: plan.prepare(cells[cell]))  # its seeds come one by one

    def train(batch: Sequence[Recorder]) -> bool:
        (recorder,) = batch
        recorder.restart()
        prepare(recorder.run.cell[0])(recorder)
        return True

    counts = f"{len(plan.cells)} cells of {len(settings.seeds)} seeds"
    return loop.Study(
        domain=domain.module,
        settings=dataclasses.asdict(settings),
        cells=[(cell.name,) for cell in plan.cells],
        batches=[[Run((cell.name,), seed)] for cell in plan.cells for seed in settings.seeds],
        train=train,
        plan=f"{study.title}: {counts}. {plan.about}\n{plan.plan}",
        packages=PACKAGES,
        record={"study": name, "title": study.title, "about": plan.about, "prediction": study.prediction},
    )


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
    if (own := read_record(folder).get("study")) != name:
        raise ValueError(f"{folder} holds the study {own!r}, not {name!r}: name it, {own} --resume {folder}.")
