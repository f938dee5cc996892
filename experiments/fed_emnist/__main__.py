"""`python -m experiments.fed_emnist`: trains every run of the study and reports what came of it."""

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence

import jax
from tqdm import tqdm

from experiments.fed_emnist.cli import parse
from experiments.fed_emnist.config import DENSE, Run, StudyConfig
from experiments.fed_emnist.plot import save_plot
from experiments.fed_emnist.record import Row, RowWriter, create_folder, read_rows, row_writer, write_config
from experiments.fed_emnist.report import outcomes, report, table
from experiments.fed_emnist.train import Task, prepare, train
from sparse_plugins import core
from sparse_plugins.fed.datasets import DatasetUnavailableError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line, the process's own when None.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, 2 if the study could not start.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(arguments)
    try:
        task = prepare(config)
        folder = create_folder(config)
    except (DatasetUnavailableError, FileExistsError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_config(folder, config, shlex.join(["python", "-m", "experiments.fed_emnist", *arguments]))
    print(plan(config, task))
    with row_writer(folder) as writer:
        for run in config.runs():
            execute(config, run, task, writer)
    rows = read_rows(folder)
    (folder / "results.md").write_text(report(config, rows))
    save_plot(folder / "accuracy.png", config, rows)
    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    print(f"\n{table(outcomes(rows))}\n\nIn {folder}: {files}")
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


def execute(config: StudyConfig, run: Run, task: Task, writer: RowWriter) -> None:
    """Trains one run and records it, whatever happens to it: one bad run must not cost the others."""
    started = time.perf_counter()
    empty = row = Row(algorithm=run.algorithm, sparsity=run.sparsity, seed=run.seed, round=0)
    with tqdm(range(1, config.rounds + 1), str(run), unit="round", leave=False, disable=None) as rounds:
        try:
            for evaluation in train(config, run, task, rounds):
                seconds = round(time.perf_counter() - started, 2)
                row = dataclasses.replace(row, **evaluation._asdict(), seconds=seconds)
                writer.write(row)
                summary = f"{evaluation.test_accuracy:.1%} right, {evaluation.measured_sparsity:.1%} zeros"
                rounds.set_postfix_str(summary)
        except Exception as error:
            summary = " ".join(f"failed: {type(error).__name__}: {error}".split())
            row = dataclasses.replace(empty, round=row.round, failure=summary.removeprefix("failed: "))
            writer.write(row)
    print(f"{run}: {summary}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
