"""The rows of a study as pictures: return by environment step, and return after training by sparsity."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter

from experiments.figures import LEGEND_COLUMNS, POINTS, colours_of, tidy
from experiments.rl_study.cells import DENSE, label
from experiments.rl_study.outcomes import Estimate, Outcome, comparable_games, curve, estimate, relative
from experiments.statistics import iqm, mean
from experiments.tables import percent

BASELINE = label(DENSE)
Levels = Mapping[tuple[str, float], Estimate]


def curves_figure(game: str, found: Sequence[Outcome], changes: tuple[int, int] | None = None) -> Figure:
    """Mean return of training episodes with its 95 % interval, a panel per sparsity.

    Args:
        game: Which game.
        found: Outcomes of the study.
        changes: Environment steps of the first and last mask change, for a shade.
    """
    own = [outcome for outcome in found if outcome.cell.game == game and outcome.finished]
    colours = colours_of(dict.fromkeys(outcome.cell.name for outcome in found), BASELINE)
    sparsities = sorted({o.cell.sparsity for o in own if o.cell.algorithm != DENSE}) or [0.0]
    figure, panels = _panels(len(sparsities), f"{game}: return while training")
    lines = [(outcome.cell, curve(outcome)) for outcome in own]
    for axes, sparsity in zip(panels, sparsities, strict=True):
        shown = {cell.name: line for cell, line in lines if cell.algorithm == DENSE or cell.sparsity == sparsity}
        for place, (name, (steps, (middle, low, high))) in enumerate(shown.items()):
            order = 3 - place / len(shown)
            axes.plot(steps, middle, color=colours[name], linewidth=1.8, label=name, zorder=order)
            axes.fill_between(steps, low, high, color=colours[name], alpha=0.15, linewidth=0, zorder=order - 1)
        if changes is not None:
            axes.axvspan(*changes, color="#F1F1F1", zorder=0, label="masks change")
        axes.set_title(f"At {percent(sparsity)} sparsity")
        axes.set_xlabel("environment steps")
        axes.set_ylabel("return")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(figure, panels)
    return figure


def sparsity_figure(found: Sequence[Outcome]) -> Figure:
    """Return after training against sparsity, a panel per game, and one over all games relative to dense."""
    games = list(dict.fromkeys(outcome.cell.game for outcome in found))
    colours = colours_of(dict.fromkeys(outcome.cell.name for outcome in found), BASELINE)
    figure, panels = _panels(len(games) + 1, "Return after training, with 95 % intervals (dashed: dense)")
    for axes, game in zip(panels, games, strict=False):
        own = [outcome for outcome in found if outcome.cell.game == game and outcome.finished]
        _draw_levels(axes, {(o.cell.name, o.cell.sparsity): estimate([o.scores], mean) for o in own}, colours)
        axes.set_title(game)
        axes.set_ylabel("mean return")
    groups = {(group.name, group.sparsity): list(group.by_game.values()) for group in relative(found)}
    _draw_levels(panels[-1], {place: estimate(tasks, iqm) for place, tasks in groups.items()}, colours)
    count = len(comparable_games(found))
    panels[-1].set_title(f"Relative to dense ({count} game{'' if count == 1 else 's'})")
    panels[-1].set_ylabel("interquartile mean")
    _legend(figure, panels)
    return figure


def _draw_levels(axes: Axes, levels: Levels, colours: Mapping[str, str]) -> None:
    """A line per algorithm; sparsities stand side by side, as most of them are close to 1."""
    sparse = list(dict.fromkeys(name for name, _ in levels if name != BASELINE))
    sparsities = sorted({at for name, at in levels if name != BASELINE})
    for number, name in enumerate(sparse):
        own = sorted(at for other, at in levels if other == name)
        aside = 0.3 * ((number + 0.5) / len(sparse) - 0.5)  # so that bars do not hide each other
        points, lows, highs = zip(*(levels[name, at] for at in own), strict=True)
        below = [point - low for point, low in zip(points, lows, strict=True)]
        above = [high - point for point, high in zip(points, highs, strict=True)]
        places = [sparsities.index(at) + aside for at in own]
        axes.errorbar(places, points, (below, above), fmt="o-", color=colours[name], label=name, **POINTS)
    for name, at in levels:
        if name == BASELINE:
            middle, low, high = levels[name, at]
            axes.axhline(middle, color=colours[name], linestyle="--", label=name)
            axes.axhspan(low, high, color=colours[name], alpha=0.07, linewidth=0)
    axes.set_xticks(range(len(sparsities)), [percent(at) for at in sparsities])
    axes.set_xlabel("sparsity")


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    lines = math.ceil(count / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(max(5.2 * columns, 8), 4.2 * lines + 1), dpi=150, layout=layout)
    figure.suptitle(title, fontsize=15, fontweight="bold")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[:count]:
        tidy(axes)
    return figure, panels[:count]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels."""
    handles = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = min(LEGEND_COLUMNS, max(len(handles), 1))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
