"""`python -m experiments.versus_purejaxql`: trains one agent on both sides, with equal settings, and compares."""

import functools
import sys

from experiments.harness.command import main as run
from experiments.registry import STUDIES
from experiments.versus_purejaxql.task import VersusSettings, plan

main = functools.partial(run, STUDIES["versus_purejaxql"], VersusSettings, plan)

if __name__ == "__main__":
    sys.exit(main())
