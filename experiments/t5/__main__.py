"""`python -m experiments.t5`: trains T5 1.1, dense and sparse, and reports what came of it."""

import functools
import sys

from experiments.common.supervised.studies import domain
from experiments.common.supervised.study import main
from experiments.t5.studies import STUDIES
from experiments.t5.task import T5Settings, task

ABOUT = "Trains T5 1.1 by span corruption, dense and sparse, and compares losses and bytes."

run = functools.partial(main, domain("t5", ABOUT, T5Settings, STUDIES, task))

if __name__ == "__main__":
    sys.exit(run())
