"""The command line of every study: which question, which settings, a new folder or one to go on with."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import loop
from experiments.harness.files import read_config, read_record
from experiments.harness.settings import Settings, read_command_line
from experiments.harness.study import Plan, Study


class Asked(NamedTuple):
    """What a command line asks for.

    Attributes:
        settings: Of a new study; None to go on with one.
        folder: To go on with; None for a new one.
        question: Its name; empty if the study has one only.
        command: What was typed.
    """

    settings: Any
    folder: Path | None
    question: str
    command: str


def main(
    study: Study,
    settings: type[Settings],
    task: Callable[..., Plan],
    arguments: Sequence[str] | None = None,
    explains: tuple[type[Exception], ...] = (),
) -> int:
    """Runs a study, or goes on with one.

    Args:
        study: Its row in the registry.
        settings: Dataclass of its settings.
        task: From settings to a plan; if there are several questions it gets the chosen one, too.
        arguments: Command line; None for the process's own.
        explains: Errors that are told without a traceback, besides ImportError, OSError and ValueError.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start or go on, 143 if SIGTERM
        stopped it.
    """
    asked = ask(study, settings, arguments)
    return explained(lambda: go(study, settings, task, asked), *explains)


def ask(study: Study, settings: type[Settings], arguments: Sequence[str] | None) -> Asked:
    """Reads a command line; explains a bad one and exits with 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if study.questions:
        question, preset, rest = _choose(study, arguments)
        own = study.questions[question]
        about, defaults = f"{own.title}. Predicted before: {own.prediction}", own.presets[preset]
    else:
        question, about, defaults, rest = "", study.about, {}, arguments
    found = read_command_line(settings, f"{study.name} {question}".rstrip(), about, rest, defaults)
    command = shlex.join(["python", "-m", f"experiments.{study.name}", *arguments])
    folder = found if isinstance(found, Path) else None
    return Asked(found if folder is None else None, folder, question, command)


def go(study: Study, settings: type[Settings], task: Callable[..., Plan], asked: Asked) -> int:
    """Trains what was asked for; the same as of `main`."""
    given = read_config(asked.folder, settings) if asked.folder else asked.settings
    if asked.folder and (own := read_record(asked.folder).get("study", "")) != asked.question:
        raise ValueError(
            f"{asked.folder} holds the study {own!r}, not {asked.question!r}: name it, {own} --resume {asked.folder}."
        )
    if asked.question:
        question = study.questions[asked.question]
        plan = task(given, question)
        told = {"study": asked.question, "title": question.title, "prediction": question.prediction}
        plan = plan._replace(record={**told, **plan.record})
    else:
        plan = task(given)
    return loop.run(study, plan, asked.folder or loop.new_folder(study, plan, asked.command), asked.command)


def explained(call: Callable[[], int], *kinds: type[Exception]) -> int:
    """The exit status of a call; of what could not start or go on it says why, and it is 2.

    Args:
        call: What to do.
        *kinds: Errors that are explained, besides ImportError, OSError and ValueError.
    """
    caught: tuple[type[Exception], ...] = (ImportError, OSError, ValueError, *kinds)
    try:
        return call()
    except caught as error:
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 2


def _choose(study: Study, arguments: list[str]) -> tuple[str, str, list[str]]:
    """Question, preset, and what is left; help before a question lists them, help behind one explains its flags."""
    listed = [f"  {name}: {own.title} ({', '.join(own.presets)})" for name, own in study.questions.items()]
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{study.name}",
        usage="%(prog)s STUDY [--preset PRESET] [flags; see STUDY --help]",
        description="\n".join([study.about, "", "Studies, and their presets, the first by default:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("study", choices=study.questions, metavar="STUDY")
    parser.add_argument("--preset")
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        parser.exit(0 if arguments else 2)
    chosen, rest = parser.parse_known_args(arguments)
    presets = list(study.questions[chosen.study].presets)
    preset = chosen.preset or presets[0]
    if preset not in presets:
        parser.error(f"{chosen.study} has no preset {preset!r}; it has {', '.join(presets)}.")
    return chosen.study, preset, rest
