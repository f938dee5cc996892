"""The commands around the embedded handwriting."""

from pathlib import Path

import pytest
from PIL import Image

from experiments.strokes.__main__ import main


def test_the_contact_sheet_in_the_docs_is_the_one_that_is_drawn(tmp_path: Path) -> None:
    drawn, kept = tmp_path / "sheet.png", Path(__file__).parents[2] / "docs" / "strokes.png"
    assert main(["sheet", "--path", str(drawn)]) == 0
    with Image.open(drawn) as ours, Image.open(kept) as theirs:
        assert ours.size == (24 * 56, 16 * 56)
        assert ours.tobytes() == theirs.tobytes()


def test_speed_compares_all_ways_to_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--num-writers", "2", "--rounds", "3"]) == 0
    table = capsys.readouterr().out
    assert all(f"| {way} | " in table for way in ("read from SQLite", "made", "kept in memory"))
    assert table.count(" images/s |") == 3


def test_central_training_gives_a_row_for_each_seed_and_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--num-writers", "1", "--num-unseen", "1", "--epochs", "2", "--seeds", "0", "1"]
    assert main(["central", *arguments]) == 0
    *_, first, second, third, fourth = capsys.readouterr().out.splitlines()
    for line, start in zip((first, second, third, fourth), ("0 | 1", "0 | 2", "1 | 1", "1 | 2"), strict=True):
        assert line.startswith(f"| {start} | ")
        assert all(0 <= float(share) <= 100 for share in line.strip("| ").split(" | ")[2:])
