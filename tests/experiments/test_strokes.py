"""The commands around the embedded handwriting."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.strokes.__main__ import main
from experiments.strokes.sheet import IMAGES, WRITERS
from sparse_plugins.fed import strokes


def test_the_contact_sheet_has_a_row_of_images_for_each_writer(tmp_path: Path) -> None:
    drawn, kept = tmp_path / "sheet.png", Path(__file__).parents[2] / "docs" / "strokes.png"
    assert main(["sheet", "--path", str(drawn)]) == 0
    with Image.open(drawn) as ours, Image.open(kept) as theirs:
        sheet, in_docs = (np.asarray(picture.convert("L"), np.int64) for picture in (ours, theirs))
    tiles = sheet.reshape(WRITERS, 28, 2, IMAGES, 28, 2)
    assert (tiles == tiles[:, :, :1, :, :, :1]).all(), "two pixels a pixel"
    train, _ = strokes.load(WRITERS)
    for row, (_, dataset) in zip(tiles[:, :, 0, :, :, 0], train.clients(), strict=True):
        ink = dataset.all_examples()["x"][:IMAGES, ..., 0]
        np.testing.assert_allclose(row.transpose(1, 0, 2), 255 * (1 - ink), atol=1.0)
    assert np.abs(sheet - in_docs).mean() < 1.0, (
        "that in the docs is of another version: python -m experiments.strokes sheet"
    )


def test_speed_compares_all_ways_to_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--num-writers", "2", "--rounds", "3"]) == 0
    table = capsys.readouterr().out
    assert all(f"| {way} " in table for way in ("read from SQLite", "made", "kept in memory"))
    assert table.count(" images/s |") == 3


def test_central_training_gives_a_row_for_each_seed_and_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--num-writers", "1", "--num-unseen", "1", "--epochs", "2", "--seeds", "2"]
    assert main(["central", *arguments]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [line[:2] for line in lines] == [["0", "1"], ["0", "2"], ["1", "1"], ["1", "2"]]
    for seed, *_, unseen, digits, letters in lines:
        train, _ = strokes.load(2, seed=int(seed), difficulty=0.7, cached_writers=0)
        labels = dict(train.clients())[strokes.client_id(1)].all_examples()["y"]
        share = np.mean(labels < 10)
        assert float(unseen) == pytest.approx(share * float(digits) + (1 - share) * float(letters), abs=0.15)
