"""`python -m experiments.vision`: trains image classifiers, dense and sparse, and reports what came of it."""

import sys
from collections.abc import Sequence

from experiments.supervised.report import Labels
from experiments.supervised.studies import build
from experiments.supervised.study import Domain, main
from experiments.vision.studies import STUDIES
from experiments.vision.task import VisionSettings, task

LABELS = Labels("test accuracy, %", 100.0, "step")
DOMAIN = Domain(
    module="vision",
    description="Trains image classifiers, dense and sparse, and compares accuracy, spectra and bytes.",
    settings=VisionSettings,
    studies=STUDIES,
    build=lambda settings, name: build(task(settings), settings, STUDIES[name], LABELS),
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line; see `supervised.study.main`."""
    return main(DOMAIN, arguments)


if __name__ == "__main__":
    sys.exit(run())
