"""Settings of both studies."""

import dataclasses

from experiments.common.supervised.settings import StudySettings
from experiments.harness.settings import flag, flag_name
from sparse_plugins.fed import datasets


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructureSettings(StudySettings):
    """What is trained with every structure; checked when built.

    Raises:
        ValueError: as `StudySettings`.
    """

    sparsity: float = flag("target fraction of zeros in all layers but the last, 0 to 1", float, default=0.5)
    dataset: str = flag("federated: handwriting to train on", choices=datasets.NAMES, default="strokes")
    rounds: int = flag("federated: rounds of each run", int, default=100)
    steps: int = flag("rl: environment steps of each seed", int, default=48_000)
    episodes: int = flag("rl: that each seed plays greedily after training", int, default=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag_name(name)} must be 1 or more, got {getattr(self, name)}.")
