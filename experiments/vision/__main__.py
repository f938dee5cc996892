"""`python -m experiments.vision`: trains image classifiers, dense and sparse, and reports what came of it."""

import functools
import sys

from experiments.common.supervised.studies import study_of
from experiments.harness.command import main
from experiments.registry import STUDIES
from experiments.vision.task import VisionSettings, task

run = functools.partial(main, STUDIES["vision"], VisionSettings, study_of(task))

if __name__ == "__main__":
    sys.exit(run())
