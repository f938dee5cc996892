"""The first picture, and the numbers that README and documentation show, are those of the stored rows."""

import re
from pathlib import Path

import pytest

from experiments import front_picture
from experiments.harness.tables.outcomes import spread
from experiments.harness.tables.stored import read_study
from experiments.registry import LAYOUTS

ROOT = Path(__file__).parents[2]
COLUMNS = [  # folder, sparsity, index of the measure, digits
    ("fed_strokes", 0.8, 0, 1),
    ("fed_strokes", 0.95, 0, 1),
    ("minatar_breakout", 0.9, 0, 2),
    ("minatar_breakout", 0.98, 0, 2),
    ("vision_resnet", 0.8, 0, 1),
    ("t5_algorithms", 0.8, 1, 2),
]


def stored(folder: str, sparsity: float, measure: int, digits: int) -> dict[str, str]:
    """Mean and deviation of each algorithm, dense training among them."""
    study = read_study(ROOT / "experiments" / "results" / folder, LAYOUTS)
    shown = [o for o in study.outcomes() if o.cell.is_dense or o.cell.sparsity == sparsity]
    return {o.cell.label: spread(o.values(study.layout.scores[measure]), digits) for o in shown}


def cells(text: str, first: str) -> list[list[str]]:
    """The rows of the Markdown table whose first row starts with a cell."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def test_the_page_on_choosing_shows_stored_numbers() -> None:
    shown = cells((ROOT / "docs" / "which_algorithm.md").read_text(), "dense")
    for place, column in enumerate(COLUMNS, start=1):
        expected = stored(*column)
        found = {row[0]: row[place] for row in shown if row[place]}
        assert found == {name: expected[name] for name in found}, column
        assert len(found) >= 6


def test_the_readme_shows_stored_numbers() -> None:
    text = (ROOT / "README.md").read_text()
    names = [
        "dense",
        "magnitude",
        "global_magnitude",
        "saliency",
        "magnitude_ste",
        "rigl",
        "set",
        "static_sparse",
        "random",
    ]
    for start, column in {"federated, 80%": 0, "ResNet-20, 80%": 4, "T5 1.1 tiny, 80%": 5}.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
        found = dict(zip(names, [cell.strip() for cell in row.strip("|").split("|")][1:], strict=True))
        expected = stored(*COLUMNS[column])
        assert {name: value for name, value in found.items() if value} == {n: expected[n] for n in names if found[n]}


def test_the_first_picture_draws_every_line_and_bar() -> None:
    figure = front_picture.picture(front_picture.RESULTS / "fed_strokes", front_picture.AGENTS)
    lines, bars = figure.axes
    labels = [line.get_label() for line in lines.get_lines()]
    assert labels == ["dense", "RigL, 80% sparse", "RigL, 90% sparse", "RigL, 95% sparse"]
    assert len({line.get_linestyle() for line in lines.get_lines()[1:]}) == 3
    assert all(len(line.get_xdata()) == 20 for line in lines.get_lines())
    names = [tick.get_text() for tick in bars.get_xticklabels()]
    assert names == ["dense", "50%", "80%", "90%", "95%", "98%"]
    heights = [bar.get_height() for bar in bars.patches]
    assert heights[0] == pytest.approx(100)
    assert [round(height) for height in heights] == [int(re.sub(r"\D", "", text.get_text())) for text in bars.texts]


def test_the_command_writes_a_picture_and_names_a_folder_that_is_no_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert front_picture.main([f"--output={tmp_path}/new/gains.png"]) == 0
    assert (tmp_path / "new" / "gains.png").read_bytes().startswith(b"\x89PNG")
    assert front_picture.main([f"--federated={tmp_path}", f"--output={tmp_path}/other.png"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
