"""`python -m experiments.vision`: trains image classifiers, dense and sparse, and reports what came of it."""

import functools
import sys

from experiments.common.supervised.studies import domain
from experiments.common.supervised.study import main
from experiments.vision.studies import STUDIES
from experiments.vision.task import VisionSettings, task

ABOUT = "Trains image classifiers, dense and sparse, and compares accuracy, spectra and bytes."

run = functools.partial(main, domain("vision", ABOUT, VisionSettings, STUDIES, task))

if __name__ == "__main__":
    sys.exit(run())
