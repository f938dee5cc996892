"""Studies whose cells have names: what one of them sets apart is a mapping, such as keywords of its updater."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from experiments.harness.cells import Cell
from experiments.harness.layout import Curve, Layout, Measure, Published, Record, last
from experiments.harness.layout import Settings as Stored
from experiments.harness.recorder import Recorder
from experiments.harness.settings import Settings, flag
from experiments.harness.study import Plan, Question, Variants

DENSE = "dense"
NUMBERS = {"training_loss": float, "loss": float, "score": float, "sparsity": float, "is_last": int}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantSettings(Settings):
    """Which cells, and how sparse they are; checked when built.

    Raises:
        ValueError: as `Settings`.
    """

    only: tuple[str, ...] = flag("cells of the study to train", nargs="+", default=())
    sparsity: float = flag("target fraction of zeros in what is pruned, 0 to 1", float, default=0.8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"--sparsity must be in [0, 1], got {self.sparsity}.")

    def chosen(self, variants: Variants) -> Variants:
        """The cells to train.

        Raises:
            ValueError: the study has no cell of a name that is asked for.
        """
        if unknown := [name for name in self.only if name not in variants]:
            raise ValueError(f"--only names {', '.join(unknown)}; this study has {', '.join(variants)}.")
        return {name: settings for name, settings in variants.items() if not self.only or name in self.only}


def cell_of(name: str, sparsity: float) -> Cell:
    """The cell of a name; dense training has no zeros."""
    return Cell("", name, 0.0 if name == DENSE else sparsity)


def plan_of(
    settings: VariantSettings,
    names: Sequence[str] | Variants,
    about: str,
    prepare: Callable[[str], Callable[[Recorder], None]],
    text: str = "",
) -> Plan:
    """A plan of cells that are trained one after the other, seed by seed.

    Args:
        settings: Settings of the study.
        names: Names of the cells to train.
        about: What is trained, in sentences.
        prepare: From the name of a cell to what trains the run of a recorder; what is compiled there serves all seeds.
        text: To print before, besides.
    """
    cells = [cell_of(name, settings.sparsity) for name in names]
    return plan_of_cells(settings, cells, about, lambda cell: prepare(cell.name), text)


def plan_of_cells(
    settings: Settings,
    cells: Sequence[Cell],
    about: str,
    prepare: Callable[[Cell], Callable[[Recorder], None]],
    text: str = "",
) -> Plan:
    """`plan_of`, of cells that differ in more than their names; `prepare` gets the cell."""
    prepare = functools.lru_cache(maxsize=1)(prepare)  # the seeds of a cell come one by one

    def train(batch: Sequence[Recorder]) -> bool:
        (recorder,) = batch
        recorder.restart()
        prepare(recorder.run.cell)(recorder)
        return True

    counts = f"{len(cells)} cells of {len(settings.seeds)} seeds. {about}"
    return Plan(settings, cells, train, f"{counts}\n{text}", {"about": about})


def layout(
    record: Record,
    score: Measure,
    step: str = "step",
    *,
    questions: Mapping[str, Question] = {},
    published: Published | None = None,
    deviations: Sequence[str] = (),
) -> Layout:
    """How rows of such a study are read.

    Args:
        record: What its `config.json` holds.
        score: How its score is called and written; what it is of is filled in.
        step: What a step is.
        questions: Questions of the study; older records leave title and prediction to them.
        published: Numbers of a paper.
        deviations: What differs from its setting.
    """
    settings = record["settings"]
    asked = questions.get(record.get("study", ""))
    told = {"title": asked.title, "prediction": asked.prediction} if asked else {}
    score = score._replace(of=last("score"))
    return Layout(
        title=record.get("title", told.get("title", "")),
        about=record.get("about") or described(settings),
        cell={"cell": "name"},
        numbers=NUMBERS,
        cells=tuple(cell_of(name, settings["sparsity"]) for name in settings["only"]) or None,
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
        target=settings["sparsity"],
        changes=mask_changes(settings),
        published=published,
        deviations=tuple(deviations) if published else (),
        prediction=record.get("prediction", told.get("prediction", "")),
        notes=f"Numbers are those after the last {step}; zeros is the fraction of zeros in the parameters with masks.",
    )


def described(settings: Stored) -> str:
    """How models are trained; nothing if the settings are not those of an optax loop."""
    if (changes := mask_changes(settings)) is None:
        return ""
    return (
        f"{settings['model']} on {settings['data']}, {settings['steps']:,} steps of {settings['optimizer']} with"
        f" batches of {settings['batch_size']}, learning rate {settings['learning_rate']:g}; masks change from step"
        f" {changes[0]:,} to {changes[1]:,}."
    )


def mask_changes(settings: Stored) -> tuple[int, int] | None:
    """Steps of the first and last mask change; None if the settings are not those of an optax loop."""
    if "change_from" not in settings:
        return None
    first, final = (round(settings[name] * settings["steps"]) for name in ("change_from", "change_until"))
    return first, final
