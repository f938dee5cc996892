"""`python -m experiments.demos.rl_demo`: solves CartPole dense and sparse, plays some Pong, and reports on both."""

import functools
import sys

from experiments.demos.rl_demo.task import DemoSettings, plan
from experiments.harness.command import main as run
from experiments.registry import STUDIES

main = functools.partial(run, STUDIES["demos.rl_demo"], DemoSettings, plan)

if __name__ == "__main__":
    sys.exit(main())
