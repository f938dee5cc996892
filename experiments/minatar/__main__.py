"""`python -m experiments.minatar`: trains every cell of the study, all seeds at once, and reports what came of it."""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.agents.study import study_of
from experiments.harness.files import read_config
from experiments.harness.loop import begin, explained, run
from experiments.harness.settings import read_command_line
from experiments.minatar.config import StudyConfig
from experiments.minatar.layout import about
from experiments.minatar.train import plan, train_cell

PACKAGES = ("dm-haiku", "gymnax", "jax", "jaxlib", "numpy", "optax", "sparse-plugins")
DESCRIPTION = (
    "Trains DQN on MinAtar's games, dense and sparse, and compares returns. Makes a new folder with tables, plots and"
    " config.json. SIGTERM stops it after the current stretch of training, --resume goes on."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line, the process's own when None, or goes on with one.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start or go on, 143 if SIGTERM
        stopped it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = read_command_line(StudyConfig, "minatar", DESCRIPTION, arguments)
    command = shlex.join(["python", "-m", "experiments.minatar", *arguments])

    def study() -> int:
        folder = asked if isinstance(asked, Path) else None
        config = read_config(asked, StudyConfig) if isinstance(asked, Path) else asked
        train = functools.partial(train_cell, config)
        record = {"about": about(dataclasses.asdict(config))}
        made = study_of("minatar", config, folder, train, plan=plan(config), packages=PACKAGES, record=record)
        return run(made, begin(made, command) if folder is None else folder, command)

    return explained(study)


if __name__ == "__main__":
    sys.exit(main())
