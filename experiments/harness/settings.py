"""A command line from the fields of a study's settings, each of which carries its help text."""

import argparse
import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def flag(text: str, kind: type = str, **options: Any) -> Any:
    """A field of settings that is also a flag.

    Args:
        text: Help text.
        kind: Of its value, or of each of its values.
        **options: Its `default`; `shown`, what help calls it; `read`, a function of what was typed; what
            `ArgumentParser.add_argument` takes. With `nargs="+"` the field is a tuple.
    """
    default = options.pop("default", dataclasses.MISSING)
    return dataclasses.field(default=default, metadata={"help": text, "type": kind, **options})


def flag_name(field: str) -> str:
    """The command line's name of a field."""
    return "--" + field.replace("_", "-")


def read_command_line(kind: type[T], module: str, description: str, arguments: Sequence[str] | None) -> T | Path:
    """Settings of a new study, or the folder of one to go on with; explains what is wrong and exits with 2.

    Args:
        kind: Dataclass of settings; its field `name` is that of the folder, by default the module's, date and time.
        module: What is run: `python -m experiments.<module>`.
        description: What it does.
        arguments: The process's own when None.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{module}",
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        parser.add_argument(flag_name(field.name), **_options(field))
    parser.add_argument(
        "--resume", metavar="FOLDER", help="go on with a study that was stopped, with its own settings; stands alone"
    )
    given = vars(parser.parse_args(arguments))
    if (folder := given.pop("resume", None)) is not None:
        if given:
            parser.error(
                f"--resume goes on with the settings in {folder}/config.json: leave out"
                f" {', '.join(map(flag_name, given))}, or start a new study without --resume."
            )
        return Path(folder)
    read = {field.name: field.metadata.get("read", _plain) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    settings = {name: read[name](value) for name, value in given.items()}
    try:
        return kind(**{"name": f"{module}-{datetime.datetime.now():%Y%m%d-%H%M%S}", **settings})
    except ValueError as error:
        parser.error(str(error))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _options(field: dataclasses.Field[Any]) -> dict[str, Any]:
    options = {name: value for name, value in field.metadata.items() if name not in ("read", "shown")}
    default = field.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    shown = field.metadata.get("shown", shown)
    options["help"] += f" (default: {shown})".replace("%", "%%")
    if "choices" not in options:
        options["metavar"] = options["type"].__name__.upper()
    return options
