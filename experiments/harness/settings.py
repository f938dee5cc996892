"""Settings of studies: a field of a dataclass carries its help text, and the command line is made from the fields."""

import argparse
import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments.harness.budget import add_budget
from experiments.harness.cells import DENSE, Cell, grid
from sparse_plugins import core

T = TypeVar("T")
SEEDS = "one number: so many, from 0 on; several: exactly these"


def flag(text: str, value_type: type = str, **options: Any) -> Any:
    """A field of settings that is also a flag.

    Args:
        text: Help text.
        value_type: Type of its value, or of each of its values.
        **options: Its `default`; `shown`, what help calls it; what `ArgumentParser.add_argument` takes. With
            `nargs="+"` the field is a tuple.
    """
    default = options.pop("default", dataclasses.MISSING)
    return dataclasses.field(default=default, metadata={"help": text, "type": value_type, **options})


def seeds_flag(number: int) -> Any:
    """The field of seeds, 0 up to a number by default; `--seed` beside it asks for a single one."""
    return flag(SEEDS, int, nargs="+", default=tuple(range(number)))


def drop_fraction_flag() -> Any:
    """The field of how much set and rigl exchange."""
    text = "fraction of the weights that set and rigl drop and grow at first, 0 to 1; it falls to 0 as a cosine"
    return flag(text, float, default=0.1)


def flag_name(field: str) -> str:
    """The command line's name of a field."""
    return "--" + field.replace("_", "-")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every study lets one choose; checked when built.

    Raises:
        ValueError: a setting is out of its range; the message says what is allowed.
    """

    seeds: tuple[int, ...] = seeds_flag(3)
    output: str = flag("folder that holds the results of every study", default="runs")
    name: str = flag("folder of this study in it; must not exist yet", shown="the study, date and time")

    def __post_init__(self) -> None:
        self.each_once("seeds")
        self.at_least(0, "seeds")

    def at_least(self, least: int, *fields: str) -> None:
        """Refuses a smaller number in these fields; None is left alone."""
        for field in fields:
            value = getattr(self, field)
            if value is not None and (smallest := min(value) if isinstance(value, tuple) else value) < least:
                raise ValueError(f"{flag_name(field)} must be {least} or more, got {smallest}.")

    def positive(self, *fields: str) -> None:
        """Refuses what is not finite and above 0 in these fields."""
        for field in fields:
            if not 0 < getattr(self, field) < float("inf"):
                raise ValueError(f"{flag_name(field)} must be finite and above 0, got {getattr(self, field)}.")

    def each_once(self, *fields: str) -> None:
        """Refuses empty fields and values that come twice."""
        for field in fields:
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{flag_name(field)} takes one value or more, each once, got {list(values)}.")

    def fill_in(self, values: Mapping[str, Any]) -> None:
        """Gives fields that are None the values that follow from others; for `__post_init__` alone."""
        for field, value in values.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSettings(Settings):
    """A grid of algorithms and sparsities, each cell with the same seeds.

    Raises:
        ValueError: as `Settings`.
    """

    algorithms: tuple[str, ...] = flag(
        f"algorithms to train, of: {', '.join(core.all_algorithm_names())}",
        nargs="+",
        default=(DENSE, "magnitude", "rigl", "set", "static_sparse", "random"),
    )
    sparsities: tuple[float, ...] = flag(
        "target fraction of zeros in the weight matrices, 0 to 1; each algorithm is trained at each",
        float,
        nargs="+",
        default=(0.5, 0.8, 0.9, 0.95, 0.98),
    )
    distribution: str = flag(
        "how the sparsity is distributed over the layers", choices=("erk", "uniform"), default="erk"
    )
    drop_fraction: float = drop_fraction_flag()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.each_once("algorithms", "sparsities")

    def cells(self) -> Iterator[Cell]:
        """Every cell of the grid."""
        return grid(self.algorithms, self.sparsities)


def add_seeds(parser: argparse.ArgumentParser, **options: Any) -> None:
    """`--seeds` and `--seed`, which both give `seeds`, as a tuple.

    Args:
        parser: Gets them.
        **options: Options of `add_argument`: the `default` and the `help`.
    """
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--seeds", type=int, nargs="+", metavar="INT", action=_Seeds, **options)
    either.add_argument(
        "--seed",
        type=int,
        dest="seeds",
        metavar="INT",
        action=_Seeds,
        help="this seed alone",
        default=argparse.SUPPRESS,
    )


class _Seeds(argparse.Action):
    """Reads seeds the same way for every command."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        seeds: tuple[int, ...]
        if isinstance(values, int):
            seeds = (values,)
        elif len(values) > 1:
            seeds = tuple(values)
        elif values[0] < 1:
            parser.error(f"--seeds {values[0]} asks for no seed: one number says how many. Try --seed {values[0]}.")
        else:
            seeds = tuple(range(values[0]))
        namespace.seeds = seeds


def read_command_line(
    settings_type: type[T],
    module: str,
    about: str,
    arguments: Sequence[str] | None,
    defaults: Mapping[str, Any] = {},
) -> T | Path:
    """Settings of a new study, or the folder of one to go on with; explains what is wrong and exits with 2.

    Args:
        settings_type: Dataclass of settings; its field `name` is that of the folder, by default the module's, date and
            time.
        module: What is run: `python -m experiments.<module>`.
        about: What it does.
        arguments: The process's own when None.
        defaults: By field, over those of the dataclass.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{module}",
        description=about,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(settings_type):  # type: ignore[arg-type]
        options = _options(field, defaults.get(field.name, field.default))
        if field.name == "seeds":
            add_seeds(parser, help=options["help"])
        else:
            parser.add_argument(flag_name(field.name), **options)
    add_budget(parser)  # for --help: what it says was taken off before
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
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    title = f"{module.replace(' ', '-')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    try:
        return settings_type(**{"name": title, **defaults, **settings})
    except ValueError as error:
        parser.error(str(error))


def _options(field: dataclasses.Field[Any], default: Any) -> dict[str, Any]:
    options = {name: value for name, value in field.metadata.items() if name != "shown"}
    values = default if isinstance(default, tuple) else (default,)
    shown = " ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values) or "all"
    if default is field.default:
        shown = field.metadata.get("shown", "none" if default is None else shown)
    told = "" if default is dataclasses.MISSING and "shown" not in field.metadata else f" (default: {shown})"
    options["help"] = f"{options['help']}{told}".replace("%", "%%")
    if options["type"] is bool:
        del options["type"]
        options["action"] = "store_true"
    elif "choices" not in options:
        options["metavar"] = options["type"].__name__.upper()
    return options
