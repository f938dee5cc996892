"""The rows of supervised studies, and how they are read."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness.layout import Curve, Layout, Measure, Published, Settings, Shown, domain_of, keys, last


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `results.csv`: an evaluation, or how a run failed.

    Attributes:
        cell: Name of the cell.
        seed: Of the run.
        step: Steps so far; of a failed run those of its last row.
        training_loss: Mean since the row before; empty in the first row.
        loss: On test data; empty where there is none.
        score: On test data; empty if the run failed.
        sparsity: Fraction of zeros in what is pruned.
        is_last: Whether it is the last evaluation of its run: 1 or 0.
        failure: Empty, or why the run ended early.
    """

    cell: str
    seed: int
    step: int
    training_loss: float | None = None
    loss: float | None = None
    score: float | None = None
    sparsity: float | None = None
    is_last: int = 0
    failure: str = ""


def layout(
    record: Mapping[str, Any],
    score: Measure,
    step: str = "step",
    *,
    published: Published | None = None,
    deviations: Sequence[str] = (),
) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
        score: How its score is called and written; what it is of is filled in.
        step: What a step is.
        published: Numbers of a paper.
        deviations: What differs from its setting.
    """
    settings = record["settings"]
    title, prediction = _asked(record)
    named = keys([[name] for name in settings["only"]]) or None  # all that an older version says of its cells
    score = score._replace(of=last("score"))
    return Layout(
        title=title,
        about=record.get("about") or described(settings),
        row=Row,
        cell=("cell",),
        show=lambda key: Shown("", key[0], 0.0 if key[0] == "dense" else settings["sparsity"]),
        cells=keys(record["cells"]) if "cells" in record else named,
        seeds=tuple(settings["seeds"]),
        step="step",
        step_label=step,
        is_last=lambda row: bool(row.is_last),
        scores=(
            score,
            Measure("test loss", last("loss"), digits=4),
            Measure("training loss", last("training_loss"), digits=4),
        ),
        sparsity=Measure("zeros", last("sparsity"), digits=4),
        curve=Curve(score.label, "score", score.factor),
        changes=_changes(settings),
        published=published,
        deviations=tuple(deviations) if published else (),
        prediction=prediction,
        notes=f"Numbers are those after the last {step}; zeros is the fraction of zeros in the parameters with masks.",
    )


def described(settings: Settings) -> str:
    """How models are trained; nothing if the settings are not those of an optax loop."""
    if (changes := _changes(settings)) is None:
        return ""
    return (
        f"{settings['model']} on {settings['data']}, {settings['steps']:,} steps of {settings['optimizer']} with"
        f" batches of {settings['batch_size']}, learning rate {settings['learning_rate']:g}; masks change from step"
        f" {changes[0]:,} to {changes[1]:,}."
    )


def _asked(record: Mapping[str, Any]) -> tuple[str, str]:
    """Title and prediction, which older records leave to the code."""
    if "title" in record:
        return record["title"], record["prediction"]
    study = importlib.import_module(f"experiments.{domain_of(record)}.studies").STUDIES[record["study"]]
    return study.title, study.prediction


def _changes(settings: Settings) -> tuple[int, int] | None:
    if "change_from" not in settings:
        return None
    first, final = (round(settings[name] * settings["steps"]) for name in ("change_from", "change_until"))
    return first, final
