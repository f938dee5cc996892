"""What a study is: a row of the registry, and what its task makes of settings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.harness.cells import Cell, Run
from experiments.harness.layout import Layout, Record
from experiments.harness.recorder import Recorder
from experiments.harness.settings import Settings
from sparse_plugins import core

# Trains runs together, handing their rows over; False if it was told to stop, so that they will go on later.
Train = Callable[[Sequence[Recorder]], bool]
Variants = dict[str, Mapping[str, Any]]  # by the name of a cell what sets it apart, such as keywords of its updater


def first_plan(cells: Iterable[Cell], updater_and_shapes: Callable[[Cell], tuple[core.BaseUpdater, Any]]) -> str:
    """How sparse every layer of the first sparse cell gets; nothing if all are dense.

    Args:
        cells: Cells of the study.
        updater_and_shapes: From a cell to its updater and the shapes of its parameters.
    """
    for cell in cells:
        if not cell.is_dense:
            return f"Plan of {cell}:\n{core.describe_plan(*updater_and_shapes(cell))}"
    return ""


class Question(NamedTuple):
    """What a study asks, where settings serve several of them.

    Attributes:
        title: Title of the report.
        prediction: What was expected before it was run.
        cells: Lines of the table, or a function from settings and the parameters' shapes to them.
        presets: Defaults of settings by the preset's name; the first is the default one.
        probe: What else is measured of a trained model; None for nothing.
    """

    title: str
    prediction: str
    cells: Variants | Callable[[Any, Any], Variants]
    presets: Mapping[str, Mapping[str, Any]]
    probe: Callable[..., Any] | None = None

    def variants(self, settings: Any, shapes: Any = None) -> Variants:
        """Lines of the table, for these settings and shapes."""
        return self.cells(settings, shapes) if callable(self.cells) else self.cells


class Study(NamedTuple):
    """A row of the registry: all that is known of a study without its task.

    Attributes:
        name: Its module: `python -m experiments.<name>`.
        about: What it does, for `--help`.
        layout: From what `config.json` holds to how its rows are read.
        packages: Whose versions matter.
        questions: By the word that chooses one; empty if there is one question only.
    """

    name: str
    about: str
    layout: Callable[[Record], Layout]
    packages: Sequence[str]
    questions: Mapping[str, Question] = {}


class Plan(NamedTuple):
    """What a task makes of the settings of a study.

    Attributes:
        settings: All of them, completed.
        cells: Each is trained once with every seed.
        train: Trains a batch of runs; for several processes it has to be picklable.
        text: What is about to happen, to print before.
        record: What else `config.json` says, such as `about`, for reports.
        together: All runs, in groups that are trained together; empty for each alone, seed by seed.
        passes: Errors that are no run's own, besides those of the system: they end the study, which can go on later.
        jobs: Batches that are trained at once, each in a process of its own.
    """

    settings: Settings
    cells: Sequence[Cell]
    train: Train
    text: str
    record: Mapping[str, Any] = {}
    together: Sequence[Sequence[Run]] = ()
    passes: tuple[type[Exception], ...] = ()
    jobs: int = 1

    @property
    def batches(self) -> list[Sequence[Run]]:
        """All runs, in groups that are trained together."""
        return list(self.together) or [[Run(cell, seed)] for cell in self.cells for seed in self.settings.seeds]

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for batch in self.batches for run in batch]
