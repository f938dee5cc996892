"""The rows of a study as a Markdown table: a line per algorithm and sparsity, mean and spread over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.fed_emnist.config import DENSE, StudyConfig
from experiments.fed_emnist.record import Row
from experiments.tables import markdown_table, percent


class Outcome(NamedTuple):
    """How the runs of one algorithm and sparsity ended.

    Attributes:
        algorithm: as given to the command line.
        sparsity: target fraction of zeros.
        finished: the last row of each run that finished.
        failed: the last row of each run that failed.
    """

    algorithm: str
    sparsity: float
    finished: list[Row]
    failed: list[Row]

    @property
    def label(self) -> str:
        """The algorithm's name for readers."""
        return "dense" if self.algorithm == DENSE else self.algorithm

    def mean(self, field: str) -> float:
        """Mean of a measurement over the finished runs; NaN if there are none."""
        return statistics.fmean(self._values(field)) if self.finished else float("nan")

    def spread(self, field: str) -> float | None:
        """Sample standard deviation over the finished runs; None if there are fewer than two."""
        return statistics.stdev(self._values(field)) if len(self.finished) > 1 else None

    def _values(self, field: str) -> list[float]:
        return [getattr(row, field) for row in self.finished]


def outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """Groups rows by algorithm and sparsity, in order of first appearance."""
    last = {(row.algorithm, row.sparsity, row.seed): row for row in rows}
    grouped: dict[tuple[str, float], Outcome] = {}
    for (algorithm, sparsity, _), row in last.items():
        outcome = grouped.setdefault((algorithm, sparsity), Outcome(algorithm, sparsity, [], []))
        (outcome.failed if row.failure else outcome.finished).append(row)
    return list(grouped.values())


def table(found: Sequence[Outcome], config: StudyConfig, dense_bytes: int) -> str:
    """A Markdown table of the outcomes, with the reasons of failed runs below it.

    Args:
        found: what `outcomes` made of the rows.
        config: settings of the study.
        dense_bytes: bytes of the dense parameters in float32.
    """
    header = (
        "algorithm",
        "target sparsity",
        "measured",
        "test accuracy",
        "test loss",
        "down",
        "of dense",
        "up",
        "of dense",
        "runs",
        "failed",
    )
    lines = [markdown_table(header, [_cells(outcome, config, dense_bytes) for outcome in found])]
    reasons = [
        f"- {outcome.label} at {percent(outcome.sparsity)}, seed {row.seed}, failed after"
        f" round {row.round}: {row.failure}"
        for outcome in found
        for row in outcome.failed
    ]
    return "\n".join([*lines, "", *reasons] if reasons else lines)


def _cells(outcome: Outcome, config: StudyConfig, dense_bytes: int) -> tuple[str, ...]:
    measured = ["failed"] * 7
    if outcome.finished:
        spread = outcome.spread("test_accuracy")
        accuracy = f"{100 * outcome.mean('test_accuracy'):.2f} %"
        measured = [
            percent(outcome.mean("measured_sparsity")),
            accuracy if spread is None else f"{accuracy[:-2]} ± {100 * spread:.2f} %",
            f"{outcome.mean('test_loss'):.4g}",
        ]
        for field in ("down_bytes", "up_bytes"):
            each = outcome.mean(field) / (config.rounds * config.clients_per_round)
            measured += [f"{each / 1000:.1f} kB", percent(each / dense_bytes)]
    counts = (str(len(outcome.finished)), str(len(outcome.failed)))
    return (outcome.label, percent(outcome.sparsity), *measured, *counts)


def report(config: StudyConfig, rows: Iterable[Row], dense_bytes: int) -> str:
    """The text of `results.md`: what was trained, the table, and how to read it."""
    return f"""# Federated averaging on {config.dataset}: accuracy, sparsity and bytes

{describe(config)}.

{table(outcomes(rows), config, dense_bytes)}

Test accuracy and loss are those of the model that the clients get after the last round, on all test images;
measured is the fraction of zeros in its weight matrices. Down and up are bytes per client and round over the whole
training: lengths of the messages that were used, masks and growth signals included, values as {config.wire}; of
dense is relative to the {dense_bytes / 1000:.1f} kB of all parameters in float32. Mean ± sample standard deviation over
the seeds {", ".join(map(str, config.seeds))}. The settings are in `config.json`, every evaluation is in `results.csv`,
what each client sent and got is in the `ledger.csv` of its run in `runs/`.
"""


def describe(config: StudyConfig) -> str:
    """One line on what was trained."""
    names = {"dense": "784-200-200 network", "conv": "convolutional network", "erk": "ERK", "uniform": "uniform"}
    return (
        f"{names[config.model]}, {config.rounds} rounds of {config.clients_per_round} writers,"
        f" {names[config.distribution]} sparsity, masks change from round {config.update_start} to {config.update_end}"
    )
