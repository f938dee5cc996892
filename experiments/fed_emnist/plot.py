"""The rows of a study as a picture: accuracy by round, and accuracy after the last round."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from experiments.fed_emnist.config import DENSE, StudyConfig
from experiments.fed_emnist.record import Row
from experiments.fed_emnist.report import Outcome, describe, outcomes
from experiments.figures import LEGEND_COLUMNS, POINTS, colours_of, tidy
from experiments.tables import percent

Array = np.ndarray[Any, Any]


def accuracy_figure(config: StudyConfig, rows: Sequence[Row]) -> Figure:
    """Draws a study: left the curves at its first sparsity, right how every run ended."""
    ended = [outcome for outcome in outcomes(rows) if outcome.finished]
    num_failed = sum(len(outcome.failed) for outcome in outcomes(rows))
    colours = colours_of(config.algorithms, DENSE)

    figure = Figure(figsize=(12.5, 5.8), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    figure.suptitle(f"Federated averaging on {config.dataset}\n", fontsize=15, fontweight="bold")
    spread = f"; bands and bars: ± 1 standard deviation of {len(config.seeds)} seeds"
    subtitle = describe(config) + (spread if len(config.seeds) > 1 else "")
    figure.text(0.5, 0.925, subtitle, ha="center", fontsize=10, color="#555555")
    if num_failed:
        figure.text(0.99, 0.97, f"{num_failed} failed, see results.md", ha="right", color="#B00020")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    for axes in (left, right):
        tidy(axes)
    _draw_curves(left, config, rows, ended, colours)
    if len(config.sparsities) > 1:
        _draw_by_sparsity(right, ended, colours)
    else:
        _draw_ranking(right, config, ended, colours)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(labels)), frameon=False)
    return figure


def means_by_round(outcome: Outcome, rows: Sequence[Row], field: str) -> tuple[Array, Array, Array]:
    """Rounds, mean and standard deviation over the finished seeds of a measurement."""
    seeds = {row.seed for row in outcome.finished}
    by_round = defaultdict(list)
    for row in rows:
        if (row.algorithm, row.sparsity) == outcome[:2] and row.seed in seeds:
            by_round[row.round].append(getattr(row, field) or 0.0)
    values = np.array(list(by_round.values()))
    return np.array(list(by_round)), values.mean(axis=1), values.std(axis=1, ddof=min(1, len(seeds) - 1))


def _draw_curves(
    axes: Axes,
    config: StudyConfig,
    rows: Sequence[Row],
    ended: Sequence[Outcome],
    colours: Mapping[str, str],
) -> None:
    """Mean accuracy by round, with one standard deviation over the seeds to either side."""
    main = config.sparsities[0]
    shown = [outcome for outcome in ended if outcome.algorithm == DENSE or outcome.sparsity == main]
    for place, outcome in enumerate(shown):
        rounds, mean, spread = means_by_round(outcome, rows, "test_accuracy")
        mean, spread = 100 * mean, 100 * spread
        colour, order = colours[outcome.algorithm], 3 - place / len(shown)
        axes.plot(rounds, mean, color=colour, linewidth=2, label=outcome.label, zorder=order)
        axes.fill_between(rounds, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.axvspan(config.update_start, config.update_end, color="#F1F1F1", zorder=0, label="masks change")
    finals = [100 * outcome.mean("test_accuracy") for outcome in shown] or [0.0, 100.0]
    # All curves climb alike at first; the room belongs to their differences.
    axes.set_ylim(max(0, min(finals) - max(6, 3 * (max(finals) - min(finals)))), min(100, max(finals) + 1))
    axes.set_xlim(0, config.rounds)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"By round, at {percent(main)} sparsity")
    axes.set_xlabel("round")
    axes.set_ylabel("test accuracy (%)")


def _draw_ranking(axes: Axes, config: StudyConfig, ended: Sequence[Outcome], colours: Mapping[str, str]) -> None:
    """A line per algorithm, best on top: mean and standard deviation over the seeds."""
    ranked = sorted(ended, key=lambda outcome: outcome.mean("test_accuracy"))
    for place, outcome in enumerate(ranked):
        mean, spread = _accuracy(outcome)
        colour = colours[outcome.algorithm]
        axes.errorbar(mean, place, xerr=spread, fmt="o", color=colour, **POINTS)
        axes.annotate(f"{mean:.1f}", (mean, place), (0, 8), textcoords="offset points", ha="center", color=colour)
    axes.set_yticks(range(len(ranked)), [outcome.label for outcome in ranked])
    axes.set_ylim(-0.6, max(len(ranked), 1) - 0.3)
    axes.margins(x=0.08)
    axes.set_title(f"After {config.rounds} rounds, at {percent(config.sparsities[0])} sparsity")
    axes.set_xlabel("test accuracy (%)")


def _draw_by_sparsity(axes: Axes, ended: Sequence[Outcome], colours: Mapping[str, str]) -> None:
    """Accuracy against sparsity, a line per algorithm; dense training is the dashed level."""
    for algorithm in dict.fromkeys(outcome.algorithm for outcome in ended):
        own = sorted((o for o in ended if o.algorithm == algorithm), key=lambda outcome: outcome.sparsity)
        mean, spread = zip(*map(_accuracy, own), strict=True)
        if algorithm == DENSE:
            axes.axhline(mean[0], color=colours[algorithm], linestyle="--")
        else:
            sparsity = [100 * outcome.sparsity for outcome in own]
            axes.errorbar(sparsity, mean, yerr=spread, fmt="o-", color=colours[algorithm], **POINTS)
    axes.set_title("After the last round, by sparsity (dashed: dense)")
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel("test accuracy (%)")


def _accuracy(outcome: Outcome) -> tuple[float, float]:
    """Mean and standard deviation of the final test accuracy, in percent; one seed has no deviation."""
    return 100 * outcome.mean("test_accuracy"), 100 * (outcome.spread("test_accuracy") or 0.0)
