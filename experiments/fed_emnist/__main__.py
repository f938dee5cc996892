"""`python -m experiments.fed_emnist`: trains every run of the study and reports what came of it."""

import functools
import sys

from experiments.fed_emnist.config import FederatedSettings
from experiments.fed_emnist.runs import plan
from experiments.harness.command import main as run
from experiments.registry import STUDIES
from sparse_plugins.fed.fedjax.datasets import DatasetUnavailableError

main = functools.partial(run, STUDIES["fed_emnist"], FederatedSettings, plan, explains=(DatasetUnavailableError,))

if __name__ == "__main__":
    sys.exit(main())
