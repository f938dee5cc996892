"""`python -m experiments.hostile clients`: trains with hostile clients, with and without a defence."""

import sys
from collections.abc import Sequence

from experiments.common.supervised.study import Domain, main
from experiments.hostile import federated
from experiments.hostile.settings import HostileSettings
from experiments.hostile.studies import STUDIES

DOMAIN = Domain(
    module="hostile",
    description="Sparse federated averaging of which one or two clients in ten turn signs or train for other labels.",
    settings=HostileSettings,
    studies=STUDIES,
    build=lambda settings, name: federated.build(settings, STUDIES[name]),
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line; see `supervised.study.main`."""
    return main(DOMAIN, arguments)


if __name__ == "__main__":
    sys.exit(run())
