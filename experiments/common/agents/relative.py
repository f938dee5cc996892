"""Scores relative to dense training, over all games: one table for what games cannot be compared by returns."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.harness.cells import Cell
from experiments.harness.layout import Measure, Published
from experiments.harness.tables import markdown_table, percent
from experiments.harness.tables.outcomes import Outcome
from experiments.harness.tables.statistics import Statistic, improvement, interval, iqm, mean


class Relative(NamedTuple):
    """Scores of an algorithm at a sparsity, divided by the mean dense score of each game.

    Attributes:
        name: Algorithm, and width if it is not 1.
        sparsity: Target fraction of zeros.
        by_game: Scores of the finished seeds.
    """

    name: str
    sparsity: float
    by_game: dict[str, list[float]]


def relative(found: Sequence[Outcome], measure: Measure) -> list[Relative]:
    """Relative scores of each algorithm and sparsity over all games whose mean dense score is above 0."""
    dense = _dense_means(found, measure)
    grouped: dict[tuple[str, float | None], Relative] = {}
    for outcome in found:
        game, name, sparsity = outcome.cell.group, outcome.cell.label, outcome.cell.sparsity
        if dense.get(game, 0) > 0 and outcome.finished:
            group = grouped.setdefault((name, sparsity), Relative(name, sparsity or 0.0, {}))
            group.by_game[game] = [score / dense[game] for score in outcome.values(measure)]
    return list(grouped.values())


def relative_section(found: Sequence[Outcome], measure: Measure, beside: Published | None) -> str:
    """A line per algorithm and sparsity; a score of 1 is the dense mean of its game.

    Args:
        found: Outcomes of the study.
        measure: The score.
        beside: Numbers of a paper, to be set beside the means.
    """
    header = ["algorithm", "target", "mean / dense", "95 %", "IQM / dense", "95 %", "games", "runs"]
    header += [f"published ({beside.what}) / dense"] if beside else []
    lines = []
    for group in relative(found, measure):
        tasks = list(group.by_game.values())
        numbers = [*_estimate(tasks, mean), *_estimate(tasks, iqm)]
        counts = [str(len(tasks)), str(sum(map(len, tasks)))]
        lines.append([group.name, percent(group.sparsity), *numbers, *counts, *_beside(group, beside)])
    parts = ["## Relative to dense", markdown_table(header, lines) if lines else "No dense training to compare with."]
    levels = _dense_means(found, measure)
    games = dict.fromkeys(outcome.cell.group for outcome in found)
    if left_out := [game for game in games if not levels.get(game, 0) > 0]:
        parts.append(f"Left out, because no dense mean above 0 is there to compare with: {', '.join(left_out)}.")
    if lines:
        parts.append("IQM is the mean of the middle half of all scores; intervals redraw the seeds of each game.")
    if len({line[6] for line in lines}) > 1:
        parts.append("Lines of different numbers of games can't be compared with each other.")
    if lines and beside:
        parts.append(f"Published: {beside.source}")
    return "\n\n".join([*parts, *_improvements(relative(found, measure))])


def _estimate(tasks: Sequence[Sequence[float]], statistic: Statistic) -> tuple[str, str]:
    """A statistic of all scores, and the interval of a bootstrap stratified by game."""
    low, high = interval(tasks, statistic)
    return f"{float(statistic(np.concatenate(tasks))):.3f}", f"[{low:.3f}, {high:.3f}]"


def _improvements(groups: Sequence[Relative]) -> list[str]:
    """How often a run ends above one of dense training, and above one of static masks of the same sparsity."""
    dense = next((group for group in groups if group.name == "dense"), None)
    static = {group.sparsity: group for group in groups if group.name == "static_sparse"}
    lines = []
    for group in groups:
        columns = [_above(group, other) for other in (dense, static.get(group.sparsity))]
        if group is not dense and any(any(texts) for texts in columns):
            lines.append([group.name, percent(group.sparsity), *columns[0], *columns[1], str(len(group.by_game))])
    header = ["algorithm", "target", "over dense", "95 %", "over static", "95 %", "games"]
    told = (
        "The probability that a run ends above one of the others on the same game, ties half, mean over games; one half"
        " is level. Static masks are of the same sparsity."
    )
    return ["### Probability of improvement", markdown_table(header, lines), told] if lines else []


def _above(group: Relative, other: Relative | None) -> tuple[str, str]:
    """The probability that it is above another on the games of both, and its interval; empty without such games."""
    games = [game for game in group.by_game if other is not None and other is not group and game in other.by_game]
    if other is None or not games:
        return "", ""
    point, ends = improvement([group.by_game[game] for game in games], [other.by_game[game] for game in games])
    return f"{point:.2f}", f"[{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""


def _beside(group: Relative, beside: Published | None) -> list[str]:
    if beside is None:
        return []
    number = beside.of(Cell("", group.name, group.sparsity))
    return ["" if number is None else f"{number / beside.numbers['dense']:.3f}"]


def _dense_means(found: Sequence[Outcome], measure: Measure) -> dict[str, float]:
    """By game, those of the narrowest dense network, whose name is the shortest."""
    dense = [outcome for outcome in found if outcome.cell.is_dense and outcome.finished]
    ordered = sorted(dense, key=lambda outcome: outcome.cell.width, reverse=True)
    return {outcome.cell.group: statistics.fmean(outcome.values(measure)) for outcome in ordered}
