"""`python -m experiments.t5`: trains T5 1.1, dense and sparse, and reports what came of it."""

import sys
from collections.abc import Sequence

from experiments.supervised.report import Labels
from experiments.supervised.studies import build
from experiments.supervised.study import Domain, main
from experiments.t5.studies import STUDIES
from experiments.t5.task import T5Settings, task

LABELS = Labels("token accuracy, %", 100.0, "step")
DOMAIN = Domain(
    module="t5",
    description="Trains T5 1.1 by span corruption, dense and sparse, and compares losses and bytes.",
    settings=T5Settings,
    studies=STUDIES,
    build=lambda settings, name: build(task(settings), settings, STUDIES[name], LABELS),
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line; see `supervised.study.main`."""
    return main(DOMAIN, arguments)


if __name__ == "__main__":
    sys.exit(run())
