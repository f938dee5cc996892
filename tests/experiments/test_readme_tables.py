"""The tables of both READMEs are those that their command makes of the stored rows."""

import re
from pathlib import Path

import pytest

from experiments import readme_tables
from experiments.harness.csv_files import read_lines


@pytest.mark.parametrize("path", readme_tables.FILES, ids=str)
def test_no_number_is_typed_by_hand(path: Path) -> None:
    assert path.read_text() == readme_tables.filled(path), "run python -m experiments.readme_tables"


def test_numbers_are_means_of_the_last_rows() -> None:
    rows = read_lines(readme_tables.RESULTS / "fed_strokes" / "results.csv")
    last = [row for row in rows if row["round"] == "200" and row["algorithm"] == "rigl" and row["sparsity"] == "0.8"]
    mean = 100 * sum(float(row["test_accuracy"]) for row in last) / 3
    line = next(line for line in readme_tables.long_table().splitlines() if "[fed_strokes]" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2 + list(readme_tables.COLUMNS).index("rigl")].startswith(f"{mean:.2f} ± ")
    assert len(last) == 3


def test_every_line_has_the_columns_of_the_first() -> None:
    for table in (readme_tables.short_table(), readme_tables.long_table()):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1


def test_a_readme_without_a_place_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "README.md"
    path.write_text("no table")
    monkeypatch.setattr(readme_tables, "FILES", {path: readme_tables.short_table})
    assert readme_tables.main([]) == 1
    assert path.read_text() == "no table"
    path.write_text("a\n<!-- python -m experiments.readme_tables -->\nold\n<!-- end -->\nb\n")
    assert readme_tables.main([]) == 0
    assert "old" not in path.read_text()
    assert path.read_text() == readme_tables.filled(path)
