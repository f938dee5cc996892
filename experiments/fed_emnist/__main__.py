"""`python -m experiments.fed_emnist`: trains every run of the study and reports what came of it."""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence

import jax

from experiments.fed_emnist.cli import folder_to_resume, parse
from experiments.fed_emnist.config import StudyConfig
from experiments.fed_emnist.layout import about
from experiments.fed_emnist.runs import execute
from experiments.fed_emnist.train import Task, prepare
from experiments.record.cells import DENSE
from experiments.record.files import read_config
from experiments.record.runs import Run
from experiments.study import Study, begin, explained, run
from sparse_plugins import core
from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.fed.fedjax.datasets import DatasetUnavailableError

PACKAGES = (
    *("jax", "jaxlib", "optax", "numpy", "fedjax", "dm-haiku", "scikit-learn"),
    "sparse-plugins",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line, the process's own when None, or goes on with one.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start or go on.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.fed_emnist", *arguments])
    folder = folder_to_resume(arguments)

    def study() -> int:
        made = study_of(parse(arguments) if folder is None else read_config(folder, StudyConfig))
        return run(made, begin(made, command) if folder is None else folder, command)

    return explained(study, DatasetUnavailableError)


def study_of(config: StudyConfig) -> Study:
    """The study of some settings.

    Raises:
        DatasetUnavailableError: the data can't be had.
        ValueError: the settings do not fit data or model.
    """
    settings = dataclasses.asdict(config)
    runs = [Run((one.algorithm, one.sparsity), one.seed) for one in config.runs()]
    return Study(
        domain="fed_emnist",
        settings=settings,
        cells=list(dict.fromkeys(one.cell for one in runs)),
        batches=[[one] for one in runs],
        train=functools.partial(execute, config),
        plan=plan(config, prepare(config)),
        packages=PACKAGES,
        record={"about": about(settings)},
        passes=(CheckpointMismatchError,),
        jobs=config.jobs,
    )


def plan(config: StudyConfig, task: Task) -> str:
    """How many runs there are, and when and how sparse the first sparse one gets; a step is a round."""
    runs = list(config.runs())
    text = f"{len(runs)} runs of {config.rounds} rounds on {config.dataset}."
    sparse = [run for run in runs if run.algorithm != DENSE]
    if sparse:
        params = jax.eval_shape(task.model.init, jax.random.PRNGKey(0))
        text += f" Plan of {sparse[0]}:\n{core.describe_plan(config.updater(sparse[0]), params)}"
    return text


if __name__ == "__main__":
    sys.exit(main())
