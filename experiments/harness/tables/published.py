"""Numbers that papers report, by the names of this package's algorithms. Each is one number, without a spread.

Source: Lee et al., JaxPruner: A Concise Library for Sparsity Research (2023), arXiv 2304.14082. Its table names no
sparsity; 80 % are what the programs behind it have as defaults, 98 % stands in the gin file of DQN (whose program has
95 % as its default).
"""

from collections.abc import Mapping

from experiments.harness.layout import Published

_PAPER = "Lee et al., JaxPruner (2023), arXiv 2304.14082"
_SILENT = "one number each, without spread; the table names no sparsity, {} is {} of the paper's program"

# The columns after dense training, in the order of the numbers below.
ALGORITHMS = (
    *("random", "magnitude", "saliency", "global_magnitude", "magnitude_ste"),
    *("static_sparse", "set", "rigl"),
)


def _row(*numbers: float | None) -> Mapping[str, float]:
    return {name: number for name, number in zip(("dense", *ALGORITHMS), numbers, strict=True) if number is not None}


def _table(
    what: str,
    setting: str,
    sparsity: float,
    numbers: Mapping[str, float],
    digits: int = 2,
    stands: str = "the default",
    note: str = "",
) -> Published:
    silent = _SILENT.format(f"{100 * sparsity:g} %", stands)
    return Published(what, f"{_PAPER}, {setting}; {silent}.{note}", sparsity, numbers, digits)


RESNET50 = _table(
    "ResNet-50, %",
    "ResNet-50 on ImageNet",
    0.8,
    _row(76.67, 70.19, 75.53, 74.93, 75.49, 73.54, 71.34, 74.57, 74.75),
)
VIT_B16_90 = _table(
    "ViT-B/16 90 epochs, %",
    "ViT-B/16 on ImageNet, 90 epochs",
    0.8,
    _row(74.04, 69.76, 72.89, 72.80, 73.60, 74.21, 64.61, 70.98, 71.58),
)
FEDERATED = _table(
    "Fed. EMNIST, %",
    "federated averaging on EMNIST (its row is called Fed. MNIST)",
    0.8,
    _row(86.21, 83.53, 85.74, 85.60, 86.01, 86.16, 83.33, 84.20, 84.64),
    note=" Its magnitude_ste is tested with the dense weights behind the masks: it is the number of no sparse network.",
)
T5_BASE = _table(
    "T5 base on C4, loss",
    "T5 base on C4, loss",
    0.8,
    _row(2.584, 3.288, 2.954, 3.522, 5.440, 2.712, 3.173, 3.131, 3.124),
    digits=3,
)
MSPACMAN = _table(
    "DQN on MsPacman",
    "DQN with Nature's network on MsPacman",
    0.98,
    _row(2588.82, 1435.29, 2123.83, None, 2322.21, None, 1156.69, 1723.30, 1535.19),
    digits=1,
    stands="in the gin file",
)
WIDE = (
    "Obando-Ceron et al., In value-based deep reinforcement learning, a pruned network is a good network (2024), report"
    " for DQN with Impala, 15 games, 5 seeds and 40M frames: at 95 % sparsity and their largest width about 60 % more"
    " than the dense network of width 1, in the interquartile mean of human-normalized scores; dense networks fall as"
    " they get wider. Here scores are relative to dense training at the smallest width of the study."
)
