"""The rows of a study as Markdown: a table per game, one over all games, and what failed."""

from collections.abc import Iterable, Sequence

from experiments.rl_study.outcomes import Estimate, Outcome, comparable_games, estimate, outcomes, relative
from experiments.rl_study.record import Row
from experiments.statistics import iqm, mean
from experiments.tables import markdown_table, percent

NOTES = """Returns are means over seeds of each seed's mean over its evaluation episodes; late is the mean return of the
training episodes that ended in the last tenth of the steps. Brackets are 95 % percentile intervals of 2,000 bootstrap
samples, in which the seeds of each game are redrawn among themselves (Agarwal et al., 2021). IQM is the mean of the
middle half of all scores. Measured is the fraction of zeros in the weight matrices of the network that acts, at the
end. The settings are in `config.json`, every stretch of training is in `results.csv`.
"""


def report(title: str, about: str, rows: Iterable[Row], sections: Sequence[str] = ()) -> str:
    """The text of `results.md`.

    Args:
        title: Of the study.
        about: What was trained, in a sentence or more.
        rows: All rows of the study.
        sections: What else there is to say, before the notes.
    """
    found = outcomes(rows)
    games = dict.fromkeys(outcome.cell.game for outcome in found)
    parts = [f"# {title}", about]
    for game in games:
        parts += [f"## {game}", game_table([outcome for outcome in found if outcome.cell.game == game])]
    parts += ["## Relative to dense", aggregate_table(found)]
    if left_out := [game for game in games if game not in comparable_games(found)]:
        parts.append(f"Left out, because no dense mean above 0 is there to compare with: {', '.join(left_out)}.")
    if reasons := failures(found):
        parts += ["## Failed", "\n".join(reasons)]
    return "\n\n".join([*parts, *sections, NOTES])


def game_table(found: Sequence[Outcome]) -> str:
    """A line per algorithm and sparsity of one game."""
    header = ("algorithm", "sparsity", "measured", "return", "95 %", "late", "95 %", "seeds", "failed")
    return markdown_table(header, [_cells(outcome) for outcome in found])


def aggregate_table(found: Sequence[Outcome]) -> str:
    """A line per algorithm and sparsity over all comparable games; a score of 1 is the dense mean of its game."""
    header = ("algorithm", "sparsity", "IQM", "95 %", "mean", "95 %", "games", "runs")
    lines = []
    for group in relative(found):
        tasks = list(group.by_game.values())
        numbers = [*_shown(estimate(tasks, iqm), 3), *_shown(estimate(tasks, mean), 3)]
        counts = (str(len(tasks)), str(sum(map(len, tasks))))
        lines.append((group.name, percent(group.sparsity), *numbers, *counts))
    return markdown_table(header, lines) if lines else "There is no dense training to compare with."


def failures(found: Sequence[Outcome]) -> list[str]:
    """A line per seed that failed."""
    return [
        f"- {outcome.cell}, seed {row.seed}, at step {row.step:,}: {row.failure}"
        for outcome in found
        for row in outcome.failed
    ]


def _cells(outcome: Outcome) -> tuple[str, ...]:
    measured = ["failed"] * 5
    if outcome.finished:
        late = outcome.late_returns
        measured = [
            percent(outcome.measured_sparsity),
            *_shown(estimate([outcome.scores], mean), 2),
            *(_shown(estimate([late], mean), 2) if late else ("no episode", "")),
        ]
    counts = (str(len(outcome.finished)), str(len(outcome.failed)))
    return (outcome.cell.name, percent(outcome.cell.sparsity), *measured, *counts)


def _shown(numbers: Estimate, digits: int) -> tuple[str, str]:
    point, low, high = (f"{number:.{digits}f}" for number in numbers)
    return point, f"[{low}, {high}]"
