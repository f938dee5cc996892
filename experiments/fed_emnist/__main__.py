"""`python -m experiments.fed_emnist`: trains every run of the study and reports what came of it."""

import io
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.fed_emnist.cli import folder_to_resume, parse
from experiments.fed_emnist.config import DENSE, StudyConfig
from experiments.fed_emnist.plot import accuracy_figure
from experiments.fed_emnist.plot_bytes import bytes_figure
from experiments.fed_emnist.record import PACKAGES, create_folder, read_rows
from experiments.fed_emnist.report import outcomes, report, table
from experiments.fed_emnist.runs import CHECKPOINTS, RUNS, collect, execute_all, has_ended
from experiments.fed_emnist.train import Task, prepare
from experiments.files import changed_packages, locked, read_config, write_whole
from sparse_plugins import core
from sparse_plugins.fed.datasets import DatasetUnavailableError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line, the process's own when None, or goes on with one.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    folder = folder_to_resume(arguments)
    try:
        if folder is None:
            config = parse(arguments)
            task = prepare(config)
            folder = create_folder(config, shlex.join(["python", "-m", "experiments.fed_emnist", *arguments]))
        else:
            config = read_config(folder, StudyConfig)
            task = prepare(config)
        with locked(folder):
            return study(config, folder, task)
    except (DatasetUnavailableError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def study(config: StudyConfig, folder: Path, task: Task) -> int:
    """Trains what is left of a study and writes its files, the report last.

    Returns:
        Exit status, as of `main`.
    """
    runs = list(config.runs())
    if (folder / "results.md").exists() and all(has_ended(config, folder, run) for run in runs):
        rows = read_rows(folder)
        print(f"{folder} is finished and left alone.\n\n{table(outcomes(rows), config, task.dense_bytes)}")
        return int(any(row.failure for row in rows))
    for change in changed_packages(folder, PACKAGES):
        print(f"note: {change}; results may differ in their last bits from those of a study that never stopped.")
    print(plan(config, task))
    for line in execute_all(config, folder):
        print(line, flush=True)
        collect(config, folder)
    rows = collect(config, folder)
    for run in runs:
        shutil.rmtree(folder / RUNS / run.folder / CHECKPOINTS, ignore_errors=True)
    for name, figure in (("accuracy.png", accuracy_figure(config, rows)), ("bytes.png", bytes_figure(config, rows))):
        figure.savefig(picture := io.BytesIO(), format="png")
        write_whole(folder / name, picture.getvalue())
    write_whole(folder / "results.md", report(config, rows, task.dense_bytes))
    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    print(f"\n{table(outcomes(rows), config, task.dense_bytes)}\n\nIn {folder}: {files}")
    return int(any(row.failure for row in rows))


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
