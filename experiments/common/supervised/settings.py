"""What every supervised study lets one choose, and what a study is: cells, presets and a prediction."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import optax

from experiments.harness.settings import flag, flag_name
from sparse_plugins import core

DENSE = "dense"
T = TypeVar("T")


class Cell(NamedTuple):
    """What all seeds of one line of a study's table have in common.

    Attributes:
        name: For readers, and of its files.
        keywords: Of `core.create_updater_from_config`, over those that the settings give.
    """

    name: str
    keywords: Mapping[str, Any]


DENSE_CELL = Cell(DENSE, {"algorithm": "no_prune"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Seeds, length and folder of a study; checked when built.

    Raises:
        ValueError: a setting is out of its range; the message says what is allowed.
    """

    only: tuple[str, ...] = flag("cells of the study to train, all by default", nargs="+", default=(), shown="all")
    seeds: tuple[int, ...] = flag(
        "one number: so many, from 0 on; several: these",
        int,
        nargs="+",
        default=(0, 1, 2),
        read=lambda typed: tuple(range(typed[0])) if len(typed) == 1 else tuple(typed),
    )
    sparsity: float = flag("target fraction of zeros in what is pruned, 0 to 1", float, default=0.8)
    output: str = flag("folder that holds the results of every study", default="runs")
    name: str = flag("folder of this study in it; must not exist yet", shown="the study, date and time")

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"--seeds takes numbers of 0 or more, each once, got {list(self.seeds)}.")
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"--sparsity must be in [0, 1], got {self.sparsity}.")

    def chosen(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells to train.

        Raises:
            ValueError: the study has no cell of a name that is asked for.
        """
        names = [cell.name for cell in cells]
        if unknown := [name for name in self.only if name not in names]:
            raise ValueError(f"--only names {', '.join(unknown)}; this study has {', '.join(names)}.")
        return [cell for cell in cells if not self.only or cell.name in self.only]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedSettings(StudySettings):
    """How a model is trained with one of optax's optimizers.

    Raises:
        ValueError: as `StudySettings`.
    """

    data: str = flag("what to train on")
    model: str = flag("what to train")
    distribution: str = flag("of the sparsity over the layers", choices=("uniform", "erk"), default="uniform")
    steps: int = flag("optimizer steps of each run", int, default=400)
    batch_size: int = flag("examples of each step", int, default=64)
    optimizer: str = flag("sgd has momentum 0.9", choices=("sgd", "adamw"), default="adamw")
    learning_rate: float = flag("its peak; it falls to 0 as a cosine", float, default=2e-3)
    warmup: float = flag("fraction of the steps in which the learning rate rises from 0", float, default=0.1)
    weight_decay: float = flag("of matrices and kernels: times the learning rate with adamw", float, default=1e-4)
    clip: float = flag("largest norm of all gradients together; 0 leaves gradients as they are", float, default=1.0)
    change_from: float = flag("fraction of the steps after which masks change first", float, default=0.25)
    change_until: float = flag("fraction of the steps after which they change last", float, default=0.75)
    changes: int = flag("how often masks change", int, default=20)
    drop_fraction: float = flag(
        "fraction of the weights that set and rigl exchange at first, 0 to 1; falls to 0 as a cosine",
        float,
        default=0.1,
    )
    evaluations: int = flag("how often the model is evaluated while it is trained", int, default=8)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size", "changes", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag_name(name)} must be 1 or more, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be above 0, got {self.learning_rate}.")
        if not self.clip >= 0:
            raise ValueError(f"--clip must be above 0, or 0 to leave gradients as they are, got {self.clip}.")
        if not 0 <= self.change_from <= self.change_until < 1 or not 0 <= self.warmup < 1:
            raise ValueError(
                "masks change within training: choose 0 <= --change-from <= --change-until < 1 and 0 <= --warmup < 1,"
                f" got {self.change_from}, {self.change_until} and {self.warmup}."
            )

    @property
    def evaluate_every(self) -> int:
        """Steps from one evaluation to the next."""
        return max(self.steps // self.evaluations, 1)

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer of dense training."""
        warmup = round(self.warmup * self.steps)
        rate = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, max(self.steps, warmup + 1))
        clip = optax.clip_by_global_norm(self.clip) if self.clip else optax.identity()
        if self.optimizer == "adamw":
            return optax.chain(clip, optax.adamw(rate, weight_decay=self.weight_decay, mask=_matrices))
        decay = optax.add_decayed_weights(self.weight_decay, mask=_matrices)
        return optax.chain(clip, decay, optax.sgd(rate, momentum=0.9))

    def updater(self, cell: Cell, filter_fn: Callable[[tuple[str, ...], Any], bool]) -> core.BaseUpdater:
        """The updater of a cell.

        Args:
            cell: Of the study.
            filter_fn: Which leaves are pruned unless the cell says otherwise.

        Raises:
            ValueError: the updater refuses what it is given.
        """
        start, end = round(self.change_from * self.steps), round(self.change_until * self.steps)
        common = {
            "sparsity": self.sparsity,
            "dist_type": self.distribution,
            "filter_fn": filter_fn,
            "update_start_step": start,
            "update_end_step": end,
            "update_freq": max((end - start) // self.changes, 1),
            "drop_fraction": self.drop_fraction,
        }
        return core.create_updater_from_config(**{**common, **cell.keywords})


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


class Study(NamedTuple):
    """A question, and how it is asked.

    Attributes:
        title: Of the report.
        prediction: What was expected before it was run.
        cells: From settings and the parameters' shapes to the lines of the table.
        presets: Defaults of settings by the preset's name; the first is the default one.
        probe: What else is measured of a trained model, as `train.Probe`; None for nothing.
    """

    title: str
    prediction: str
    cells: Callable[[Any, Any], list[Cell]]
    presets: Mapping[str, Mapping[str, Any]]
    probe: Callable[..., Any] | None = None


def with_defaults(kind: type[T], defaults: Mapping[str, Any]) -> type[T]:
    """The same settings with other defaults.

    Args:
        kind: Dataclass of settings.
        defaults: By field.

    Raises:
        TypeError: There is no such field.

    Example:
        >>> with_defaults(StudySettings, {"sparsity": 0.5})(name="study").sparsity
        0.5
    """
    own = dataclasses.fields(kind)  # type: ignore[arg-type]
    if unknown := set(defaults) - {field.name for field in own}:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}.")
    fields = [
        (
            field.name,
            field.type,
            dataclasses.field(default=defaults.get(field.name, field.default), metadata=field.metadata),
        )
        for field in own
    ]
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True)
