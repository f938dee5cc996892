"""The command line of every study: which question, which settings, a new folder or one to go on with."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import loop
from experiments.harness.budget import Stopped, split_budget, stopping_after
from experiments.harness.files import read_config, read_record
from experiments.harness.settings import Settings, read_command_line
from experiments.harness.study import Plan, Study


def main(
    study: Study,
    settings: type[Settings],
    task: Callable[..., Plan],
    arguments: Sequence[str] | None = None,
    explains: tuple[type[Exception], ...] = (),
    instead: Callable[[Any], bool] = lambda settings: False,
) -> int:
    """Runs a study, or goes on with one; explains a bad command line and exits with 2.

    Args:
        study: Its row in the registry.
        settings: Dataclass of its settings.
        task: From settings to a plan; if there are several questions it gets the chosen one, too.
        arguments: Command line; None for the process's own.
        explains: Errors that are told without a traceback, besides ImportError, OSError and ValueError.
        instead: What new settings may ask for in place of training: it does it and returns True.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start or go on, 130 if Ctrl-C
        and 143 if SIGTERM stopped it.
    """
    minutes, arguments = split_budget(sys.argv[1:] if arguments is None else arguments)
    name, about, rest = "", study.about, arguments
    defaults: Mapping[str, Any] = {}
    if study.questions:
        name, preset, rest = _choose(study, arguments)
        asked = study.questions[name]
        about, defaults = f"{asked.title}. Predicted before: {asked.prediction}", asked.presets[preset]
    found = read_command_line(settings, f"{study.name} {name}".rstrip(), about, rest, defaults)
    command = shlex.join(["python", "-m", f"experiments.{study.name}", *arguments])

    folder = found if isinstance(found, Path) else None

    def run() -> int:
        if folder and (stored := read_record(folder).get("study", "")) != name:
            raise ValueError(f"{folder} holds the study {stored!r}, not {name!r}: name it, {stored} --resume {folder}.")
        if folder is None and instead(found):
            return 0
        given = read_config(folder, settings) if folder else found
        plan = task(given, study.questions[name]) if name else task(given)
        if name:
            told = {"study": name, "title": asked.title, "prediction": asked.prediction}
            plan = plan._replace(record={**told, **plan.record})
        place = folder or loop.new_folder(study, plan, command)
        try:
            return loop.run(study, plan, place, command)
        except (Stopped, KeyboardInterrupt) as stop:
            print(f"Stopped; go on with --resume {place}")
            return _status(stop)

    with stopping_after(minutes):
        try:
            return explained(run, *explains)
        except (Stopped, KeyboardInterrupt) as stop:
            print("Stopped before anything was trained; the same command begins again.")
            return _status(stop)


def _status(stop: Stopped | KeyboardInterrupt) -> int:
    return loop.STOPPED if isinstance(stop, Stopped) else loop.INTERRUPTED


def explained(call: Callable[[], int], *errors: type[Exception]) -> int:
    """The exit status of a call; of what could not start or go on it says why, and it is 2.

    Args:
        call: What to do.
        *errors: Errors that are explained, besides ImportError, OSError and ValueError.
    """
    caught: tuple[type[Exception], ...] = (ImportError, OSError, ValueError, *errors)
    try:
        return call()
    except caught as error:
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 2


def _choose(study: Study, arguments: list[str]) -> tuple[str, str, list[str]]:
    """Question, preset, and what is left; help before a question lists them, help behind one explains its flags."""
    listed = [
        f"  {name}: {question.title} ({', '.join(question.presets)})" for name, question in study.questions.items()
    ]
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
