"""Pictures of studies: what coincides is told apart, what stands alone is seen, and panels come in order."""

import dataclasses
import itertools
from pathlib import Path

from experiments.harness.tables.colours_and_labels import DEVIATION, style_of
from experiments.harness.tables.figures import figures
from experiments.harness.tables.mask_figures import layers_figure
from experiments.harness.tables.report import report
from experiments.harness.tables.stored import read_study
from experiments.registry import LAYOUTS

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_neighbours_differ_in_style() -> None:
    colours = dict.fromkeys(["dense", "a", "b", "c", "d", "e"], "#000000")
    styles = [style_of(name, colours) for name in colours]
    assert all(style != next_style for style, next_style in itertools.pairwise(styles))


def test_panels_of_bytes_say_which_way_and_curves_show_their_ends() -> None:
    axes_of = figures(read_study(RESULTS / "fed_strokes", LAYOUTS))["bytes.png"].axes
    titles = [axes.get_title() for axes in axes_of]
    assert len(set(titles)) == len(titles) == 6
    assert [title.rpartition(", ")[2] for title in titles] == ["down", "up"] * 3
    curves, ends = axes_of[0].get_lines()[::2], axes_of[0].get_lines()[1::2]
    assert [end.get_xdata()[0] for end in ends] == [curve.get_xdata()[-1] for curve in curves]


def test_a_curve_of_one_evaluation_is_a_point() -> None:
    drawn = figures(read_study(RESULTS / "structures_rl", LAYOUTS))
    assert {line.get_marker() for line in drawn["curves.png"].axes[0].get_lines()} == {"o"}


def test_a_single_seed_has_no_deviation_to_name() -> None:
    study = read_study(RESULTS / "fed_strokes", LAYOUTS)
    for seeds in (study.layout.seeds, study.layout.seeds[:1]):
        rows = [row for row in study.rows if row.seed in seeds]
        of_seeds = dataclasses.replace(study, rows=rows, layout=dataclasses.replace(study.layout, seeds=seeds))
        for name, figure in figures(of_seeds).items():
            named = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
            assert (DEVIATION in named) == (name in {"curves.png", "sparsity.png"} and len(seeds) > 1), name
        assert ("standard deviation" in report(of_seeds)) == (len(seeds) > 1)


def test_panels_of_layers_go_from_the_lowest_target_to_the_highest() -> None:
    study = read_study(RESULTS / "minatar_breakout_fan_in", LAYOUTS)
    backwards = dataclasses.replace(study, layers=study.layers[::-1])
    colours = dict.fromkeys([outcome.cell.label for outcome in study.outcomes()], "#000000")
    axes_of = layers_figure(backwards, colours).axes
    targets = [float(axes.get_title().split(" at ")[1].split()[0].rstrip("%")) for axes in axes_of]
    assert targets == [90, 98]
    assert all(axes.get_ylim() == (0, 100) for axes in axes_of)
    names = [[text.get_text() for text in axes.get_xticklabels()] for axes in axes_of]
    empty = [
        [axes_names[int(text.get_position()[0])] for text in axes.texts]
        for axes, axes_names in zip(axes_of, names, strict=True)
    ]
    assert empty == [["values/w"], []], "a layer without zeros says so"
