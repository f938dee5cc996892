"""The command line of the federated study, made from the fields of its settings."""

import argparse
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.fed_emnist.config import StudyConfig
from experiments.harness.settings import flag_name

# Defaults that depend on the dataset. EMNIST's are those of JaxPruner's federated study (Lee et al., 2023).
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "dense",
        "distribution": "erk",
        "seeds": (0, 1, 2),
        "rounds": 100,
        "clients_per_round": 13,
        "client_learning_rate": 0.1,
        "server_learning_rate": 10**-2.25,
        "server_schedule": "cosine",
        "update_every": 5,
        "evaluate_every": 4,
        "checkpoint_every": 0,
        "num_writers": None,
    },
    "strokes": {
        "model": "dense",
        "distribution": "uniform",
        "seeds": (0, 1, 2),
        "rounds": 200,
        "clients_per_round": 10,
        "client_learning_rate": 10**-1.5,
        "server_learning_rate": 10**-2.5,
        "server_schedule": "constant",
        "update_every": 5,
        "evaluate_every": 10,
        "checkpoint_every": 50,
        "num_writers": 200,
    },
    "emnist": {
        "model": "conv",
        "distribution": "uniform",
        "seeds": (0,),
        "rounds": 1000,
        "clients_per_round": 50,
        "client_learning_rate": 10**-1.5,
        "server_learning_rate": 10**-2.5,
        "server_schedule": "constant",
        "update_every": 10,
        "evaluate_every": 50,
        "checkpoint_every": 50,
        "num_writers": None,
    },
}

# Defaults that depend on other settings, in words.
DERIVED = {
    "cache_dir": "~/.cache/fedjax",
    "update_start": "a quarter of the rounds",
    "update_end": "three quarters of the rounds",
    "name": "dataset, date and time",
}


def resolve(given: Mapping[str, Any]) -> StudyConfig:
    """Completes settings: first by what was given, then by the dataset's preset, then by the other settings.

    Raises:
        ValueError: as `StudyConfig`.
    """
    dataset = given.get("dataset", "digits")
    settings = {**PRESETS[dataset], **given}
    derived = {
        "update_start": settings["rounds"] // 4,
        "update_end": 3 * settings["rounds"] // 4,
        "name": f"{dataset}-{datetime.datetime.now():%Y%m%d-%H%M%S}",
    }
    return StudyConfig(**{**derived, **settings})


def build_parser() -> argparse.ArgumentParser:
    """A flag for every field of `StudyConfig`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fed_emnist",
        description="Trains federated averaging on handwriting, dense and with sparse messages, and compares accuracy"
        " and bytes. Makes a new folder with tables, plots and config.json, and in it one for each run with its ledger"
        " and parameters.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(StudyConfig):
        options = dict(field.metadata)
        options["help"] += f" (default: {_default_text(field)})"
        if options["type"] is bool:
            del options["type"]
            options["action"] = "store_true"
        elif "choices" not in options:
            options["metavar"] = options["type"].__name__.upper()
        parser.add_argument(flag_name(field.name), **options)
    parser.add_argument(
        "--resume", metavar="FOLDER", help="go on with a study that was stopped, with its own settings; stands alone"
    )
    return parser


def folder_to_resume(arguments: Sequence[str] | None) -> Path | None:
    """The study that a command line wants to go on with, if any; explains a bad one and exits with 2."""
    parser = build_parser()
    given = vars(parser.parse_args(arguments))
    folder = given.pop("resume", None)
    if folder is not None and given:
        parser.error(
            f"--resume goes on with the settings in {folder}/config.json: leave out"
            f" {', '.join(map(flag_name, given))}, or start a new study without --resume."
        )
    return None if folder is None else Path(folder)


def parse(arguments: Sequence[str] | None) -> StudyConfig:
    """Settings from a command line, the process's own when None; explains a bad one and exits with 2."""
    parser = build_parser()
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(parser.parse_args(arguments)).items()
    }
    try:
        return resolve(given)
    except ValueError as error:
        parser.error(str(error))


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.name in DERIVED:
        return DERIVED[field.name]
    if field.default is dataclasses.MISSING:
        return ", ".join(f"{_plain(preset[field.name])} for {dataset}" for dataset, preset in PRESETS.items())
    return _plain(field.default)


def _plain(default: Any) -> str:
    if default is None:
        return "none"
    values = default if isinstance(default, tuple) else (default,)
    return " ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
