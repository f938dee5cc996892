"""`python -m experiments.front_picture`: what sparsity gains, from stored rows, for the README and the front page."""

import argparse
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness.files import write_whole
from experiments.harness.layout import Layout
from experiments.harness.tables.colours_and_labels import COLOURS, tidy
from experiments.harness.tables.figures import by_step
from experiments.harness.tables.outcomes import Outcome
from experiments.harness.tables.stored import joined, read_study
from experiments.registry import LAYOUTS

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "gains.png"
AGENTS = (RESULTS / "minatar_breakout", RESULTS / "minatar_breakout_50_80_95")
STYLES = ("-", "--", ":")
SPARSE = tuple(COLOURS[name] for name in ("magnitude", "rigl", "saliency"))  # by sparsity: told apart at a glance


def picture(federated: Path, agents: Sequence[Path]) -> Figure:
    """Accuracy by uploaded bytes, and the return of sparse agents.

    Args:
        federated: Folder of a study of `experiments.fed_emnist` with dense and RigL runs.
        agents: Folders of studies of `experiments.minatar` that make one table, with dense and magnitude runs.
    """
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4, 3))
    _bytes_panel(left, federated)
    _agents_panel(right, agents)
    for axes in (left, right):
        tidy(axes)
    return figure


def _bytes_panel(axes: Axes, folder: Path) -> None:
    study = read_study(folder, LAYOUTS)
    found = study.outcomes()
    dense = next(outcome for outcome in found if outcome.cell.is_dense)
    sparse = [outcome for outcome in found if outcome.cell.label.partition(":")[0] == "rigl"]
    _bytes_line(axes, dense, study.layout, "dense", COLOURS["dense"], "-")
    for place, outcome in enumerate(sorted(sparse, key=lambda outcome: outcome.cell.sparsity or 0.0)):
        name = f"RigL, {100 * (outcome.cell.sparsity or 0.0):.0f}% sparse"
        _bytes_line(axes, outcome, study.layout, name, SPARSE[place % len(SPARSE)], STYLES[place % len(STYLES)])
    seeds = len(dense.finished)
    axes.set_title("Federated averaging: more accuracy for the same upload", loc="left", fontsize=11)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("megabytes uploaded by all clients so far")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, title=f"mean and standard deviation, {seeds} seeds", title_fontsize=8, fontsize=9)


def _bytes_line(axes: Axes, outcome: Outcome, layout: Layout, name: str, colour: str, style: str) -> None:
    _, sent, _ = by_step(outcome, layout.step_of, "up_bytes")
    _, accuracy, deviation = by_step(outcome, layout.step_of, "test_accuracy")
    after = sent > 0
    sent, accuracy, deviation = sent[after] / 1e6, 100 * accuracy[after], 100 * deviation[after]
    axes.plot(sent, accuracy, color=colour, linestyle=style, linewidth=2, label=name)
    axes.fill_between(sent, accuracy - deviation, accuracy + deviation, color=colour, alpha=0.15, linewidth=0)


def _agents_panel(axes: Axes, folders: Sequence[Path]) -> None:
    (study,) = joined(read_study(folder, LAYOUTS) for folder in folders)
    measure = study.layout.scores[0]
    chosen = [outcome for outcome in study.outcomes() if outcome.cell.is_dense or outcome.cell.label == "magnitude"]
    chosen.sort(key=lambda outcome: outcome.cell.sparsity or 0.0)
    level = statistics.fmean(chosen[0].values(measure))
    for place, outcome in enumerate(chosen):
        shares = [100 * value / level for value in outcome.values(measure)]
        mean, colour = statistics.fmean(shares), COLOURS["dense"] if outcome.cell.is_dense else SPARSE[0]
        bar = {"capsize": 3, "ecolor": "#555555"}
        axes.bar(place, mean, 0.7, color=colour, alpha=0.85, yerr=statistics.stdev(shares), error_kw=bar)
        axes.text(place, 4, f"{mean:.0f}%", ha="center", color="white", fontsize=9, fontweight="bold")
    names = ["dense" if o.cell.is_dense else f"{100 * (o.cell.sparsity or 0.0):.0f}%" for o in chosen]
    axes.set_xticks(range(len(chosen)), names)
    axes.set_ylabel("return, % of dense")
    axes.set_title("DQN on MinAtar's Breakout, pruned", loc="left", fontsize=11)
    axes.set_xlabel(f"sparsity (magnitude pruning; {len(chosen[0].finished)} seeds, standard deviation)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the picture of a command line, the process's when None.

    Returns:
        Exit status: 0, or 1 if a study can't be read.
    """
    made = argparse.ArgumentParser(prog="python -m experiments.front_picture", description=__doc__, allow_abbrev=False)
    made.add_argument("--federated", type=Path, default=RESULTS / "fed_strokes", help="a study of fed_emnist")
    made.add_argument("--agents", type=Path, nargs="+", default=AGENTS, help="studies of minatar that make one table")
    made.add_argument("--output", type=Path, default=PICTURE, help="the file that is written")
    options = made.parse_args(arguments)
    try:
        drawn = picture(options.federated, options.agents)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    drawn.savefig(content := io.BytesIO(), format="png")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.output, content.getvalue())
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
