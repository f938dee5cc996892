"""What every supervised study lets one choose."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from experiments.harness.settings import drop_fraction_flag, flag
from experiments.harness.variants import VariantSettings
from sparse_plugins import core


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedSettings(VariantSettings):
    """How a model is trained with one of optax's optimizers.

    Raises:
        ValueError: as `VariantSettings`.
    """

    data: str = flag("data set to train on")
    model: str = flag("model to train")
    distribution: str = flag(
        "how the sparsity is distributed over the layers", choices=("uniform", "erk"), default="uniform"
    )
    steps: int = flag("optimizer steps of each run", int, default=400)
    batch_size: int = flag("examples of each step", int, default=64)
    optimizer: str = flag("optimizer; sgd has momentum 0.9", choices=("sgd", "adamw"), default="adamw")
    learning_rate: float = flag("largest learning rate, which falls to 0 as a cosine", float, default=2e-3)
    warmup: float = flag("fraction of the steps in which the learning rate rises from 0", float, default=0.1)
    weight_decay: float = flag(
        "weight decay of matrices and kernels; adamw multiplies it by the learning rate", float, default=1e-4
    )
    clip: float = flag("largest norm of all gradients together; 0 leaves gradients as they are", float, default=1.0)
    change_from: float = flag("fraction of the steps after which the first mask update comes", float, default=0.25)
    change_until: float = flag("fraction of the steps after which the last mask update comes", float, default=0.75)
    changes: int = flag("mask updates behind the first one", int, default=20)
    drop_fraction: float = drop_fraction_flag()
    evaluations: int = flag("number of evaluations during training", int, default=8)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "steps", "batch_size", "changes", "evaluations")
        self.positive("learning_rate")
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

    def updater(
        self, keywords: Mapping[str, Any], filter_fn: Callable[[tuple[str, ...], Any], bool]
    ) -> core.BaseUpdater:
        """The updater of a cell.

        Args:
            keywords: Arguments of `core.create_updater_from_config`, over those that the settings give.
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
        return core.create_updater_from_config(**{**common, **keywords})


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
