"""Settings of the study of hostile clients."""

import dataclasses

from experiments.common.supervised.settings import StudySettings
from experiments.harness.settings import flag, flag_name
from sparse_plugins.fed import datasets


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostileSettings(StudySettings):
    """What is trained under every attack and defence; checked when built.

    Raises:
        ValueError: as `StudySettings`.
    """

    dataset: str = flag("handwriting to train on", choices=datasets.NAMES, default="strokes")
    algorithm: str = flag("of sparsity", default="rigl")
    rounds: int = flag("federated rounds of each run", int, default=50)
    clients_per_round: int = flag("of whom the first one or two are hostile, 10 or more", int, default=10)
    factor: float = flag("by which hostile clients scale what they send, above 0", float, default=10.0)
    clipping_norm: float = flag("of the defence that clips norms, above 0", float, default=0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("rounds", 1), ("clients_per_round", 10)):
            if getattr(self, name) < least:
                raise ValueError(f"{flag_name(name)} must be {least} or more, got {getattr(self, name)}.")
        for name in ("factor", "clipping_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{flag_name(name)} must be above 0, got {getattr(self, name)}.")
