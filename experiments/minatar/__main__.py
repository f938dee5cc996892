"""`python -m experiments.minatar`: trains every cell of the study, all seeds at once, and reports what came of it."""

import functools
import sys

from experiments.harness.command import main as run
from experiments.minatar.config import MinAtarSettings
from experiments.minatar.train import plan
from experiments.registry import STUDIES

main = functools.partial(run, STUDIES["minatar"], MinAtarSettings, plan)

if __name__ == "__main__":
    sys.exit(main())
