"""`python -m experiments.t5`: trains T5 1.1, dense and sparse, and reports what came of it."""

import functools
import sys

from experiments.common.supervised.studies import study_of
from experiments.harness.command import main
from experiments.registry import STUDIES
from experiments.t5.task import T5Settings, task

run = functools.partial(main, STUDIES["t5"], T5Settings, study_of(task))

if __name__ == "__main__":
    sys.exit(run())
