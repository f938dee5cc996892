"""`python -m experiments.hostile clients`: trains with hostile clients, with and without a defence."""

import functools
import sys

from experiments.harness.command import main
from experiments.hostile.federated import HostileSettings, task
from experiments.registry import STUDIES

run = functools.partial(main, STUDIES["hostile"], HostileSettings, task)

if __name__ == "__main__":
    sys.exit(run())
