"""Settings of the study of hostile clients."""

import dataclasses

from experiments.harness.settings import flag
from experiments.harness.variants import VariantSettings
from sparse_plugins.fed import datasets


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostileSettings(VariantSettings):
    """What is trained under every attack and defence; checked when built.

    Raises:
        ValueError: as `VariantSettings`.
    """

    dataset: str = flag("handwriting to train on", choices=datasets.NAMES, default="strokes")
    algorithm: str = flag("of sparsity", default="rigl")
    rounds: int = flag("federated rounds of each run", int, default=50)
    clients_per_round: int = flag("of whom the first one or two are hostile, 10 or more", int, default=10)
    factor: float = flag("by which hostile clients scale what they send, above 0", float, default=10.0)
    clipping_norm: float = flag("of the defence that clips norms, above 0", float, default=0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "rounds")
        self.at_least(10, "clients_per_round")
        self.positive("factor", "clipping_norm")
