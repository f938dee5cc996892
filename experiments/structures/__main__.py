"""`python -m experiments.structures`: compares structures in federated learning and in reinforcement learning."""

import sys
from collections.abc import Sequence

from experiments.structures import cartpole, federated
from experiments.structures.settings import StructureSettings
from experiments.supervised.settings import Study
from experiments.supervised.studies import structure_cells
from experiments.supervised.study import Domain, main

STUDIES = {
    "federated": Study(
        "Structures at one half in federated averaging",
        "unstructured and 2:4 level with dense, 4x4 blocks behind them, channels last; bytes about half of dense, and"
        " the fewer the larger the units, because masks of blocks and channels cost next to nothing.",
        lambda settings, shapes: structure_cells(()),
        {"short": {}, "long": {"rounds": 1000}},
    ),
    "rl": Study(
        "Structures at one half in a DQN on CartPole",
        "no difference between any of them and dense: the network has room to spare.",
        lambda settings, shapes: structure_cells(()),
        {"short": {"seeds": tuple(range(10))}},
    ),
}
BUILDERS = {"federated": federated.build, "rl": cartpole.build}
DOMAIN = Domain(
    module="structures",
    description="Unstructured, 2:4, blocks of 4x4 and channels at the same sparsity, by the domains' own trainers.",
    settings=StructureSettings,
    studies=STUDIES,
    build=lambda settings, name: BUILDERS[name](settings, STUDIES[name]),
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line; see `supervised.study.main`."""
    return main(DOMAIN, arguments)


if __name__ == "__main__":
    sys.exit(run())
