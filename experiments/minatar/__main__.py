"""`python -m experiments.minatar`: trains every cell of the study, all seeds at once, and reports what came of it."""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.files import changed_packages, create_folder, locked, read_config
from experiments.minatar.config import StudyConfig
from experiments.minatar.train import plan, train_cell
from experiments.rl_study.flags import read_command_line
from experiments.rl_study.study import run
from experiments.surroundings import surroundings

PACKAGES = ("dm-haiku", "gymnax", "jax", "jaxlib", "numpy", "optax", "sparse-plugins")
TITLE = "DQN on MinAtar: return and sparsity"
DESCRIPTION = (
    "Trains DQN on MinAtar's games, dense and sparse, and compares returns. Makes a new folder with tables, plots and"
    " config.json. SIGTERM stops it after the current stretch of training, --resume goes on."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line, the process's own when None, or goes on with one.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start, 143 if SIGTERM
        stopped it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = read_command_line(StudyConfig, "minatar", DESCRIPTION, arguments)
    try:
        if isinstance(asked, Path):
            folder, config = asked, read_config(asked, StudyConfig)
            for change in changed_packages(folder, PACKAGES):
                print(f"note: {change}; results may differ in their last bits from those of a study without a stop.")
        else:
            config, command = asked, shlex.join(["python", "-m", "experiments.minatar", *arguments])
            record = surroundings(command, dataclasses.asdict(config), PACKAGES)
            folder = create_folder(Path(config.output) / config.name, record)
        with locked(folder):
            print(plan(config), flush=True)
            return run(
                config,
                folder,
                "DQN on MinAtar: return and sparsity",
                about(config),
                functools.partial(train_cell, config),
            )
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def about(config: StudyConfig) -> str:
    """What was trained, for the report."""
    start, end = config.mask_changes
    names = {"erk": "ERK", "uniform": "uniform"}
    return (
        f"{config.steps:,} environment steps, an optimizer step of batch {config.loop.batch_size} for every"
        f" {config.loop.clock.period} of them, {names[config.distribution]} sparsity, masks change from step {start:,}"
        f" to {end:,}; {config.evaluation_episodes} evaluation episodes per seed. Games are those of gymnax, with"
        " sticky actions."
    )


if __name__ == "__main__":
    sys.exit(main())
