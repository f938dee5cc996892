"""`python -m experiments.structures`: compares structures in federated learning and in reinforcement learning."""

import sys
from collections.abc import Sequence

from experiments.common.supervised.study import Domain, main
from experiments.structures import cartpole, federated
from experiments.structures.settings import StructureSettings
from experiments.structures.studies import STUDIES

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
