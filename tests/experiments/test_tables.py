"""The command that turns stored studies into tables: what it shows, and what it refuses."""

import csv
import itertools
import json
import shutil
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from experiments.fed_emnist.__main__ import main as federated
from experiments.harness.files import read_record
from experiments.harness.tables.colours_and_labels import COLOURS, PALETTE, colours_of
from experiments.harness.tables.report import report
from experiments.harness.tables.stored import joined, read_study
from experiments.registry import LAYOUTS
from experiments.tables import main

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("*/config.json"))


def csv_lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_lines(folder: Path, lines: list[dict[str, str]]) -> None:
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def part(source: Path, folder: Path, seeds: list[int], **settings: object) -> Path:
    """A copy of a study with some of its seeds."""
    folder.mkdir()
    record = read_record(source)
    record["settings"] = {**record["settings"], "seeds": seeds, "name": folder.name, **settings}
    (folder / "config.json").write_text(json.dumps(record))
    write_lines(folder, [line for line in csv_lines(source) if int(line["seed"]) in seeds])
    return folder


def cells_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_every_committed_study_has_the_table_of_its_rows_that_names_its_commit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert text == (folder / "results.md").read_text()
    record = read_record(folder)
    assert all(part["git"]["commit"][:7] in text for part in record.get("joined", [record]))


@pytest.mark.parametrize(
    ("name", "cell", "field", "factor", "column"),
    [
        ("fed_strokes", ("algorithm", "sparsity"), "test_accuracy", 100, 3),
        ("fed_growth", ("algorithm", "sparsity"), "test_accuracy", 100, 3),
        ("minatar_breakout", ("algorithm", "sparsity"), "final_return", 1, 3),
        ("vision_ste", ("cell",), "score", 100, 3),
    ],
)
def test_means_and_sample_deviations_are_those_of_the_file(
    name: str,
    cell: tuple[str, ...],
    field: str,
    factor: int,
    column: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = {(*(line[column_name] for column_name in cell), line["seed"]): line for line in csv_lines(RESULTS / name)}
    values = defaultdict(list)
    for key, line in last.items():
        values[key[:-1]].append(factor * float(line[field]))
    assert main([str(RESULTS / name)]) == 0
    lines = cells_of(capsys.readouterr().out)[2:]
    for (key, seeds), line in zip(values.items(), lines, strict=False):
        assert line[0] == key[0].replace("no_prune", "dense")
        mean, deviation = sum(seeds) / len(seeds), statistics.stdev(seeds)
        assert line[column] == f"{mean:.2f} ± {deviation:.2f}"
        assert str(len(seeds)) in line


def test_the_papers_numbers_stand_beside_the_same_algorithm_and_sparsity(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(RESULTS / "fed_strokes"), str(RESULTS / "vision_ste")]) == 0
    text = capsys.readouterr().out
    lines = {(line[0], line[1]): line for line in cells_of(text)}
    place = lines["algorithm", "target"].index("published (ViT-B/16 90 epochs, %)")
    assert lines["magnitude_ste", "80 %"][place] == "74.21"
    federated = {(line[0], line[1]): line[-4] for line in cells_of(text) if len(line) == 14}
    assert federated["rigl", "80 %"] == "84.64"
    assert federated["rigl", "90 %"] == ""
    assert federated["dense", "0 %"] == "86.21"
    for line in ("- 200 rounds instead of 1,000.", "- strokes for data instead of emnist.", "- No dropout."):
        assert line in text
    assert "batch" not in text[text.index("# Federated") : text.index("# Straight")].split("differs")[1]


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_missing_seed_is_refused_by_name(is_cut: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = part(RESULTS / "vision_ste", tmp_path / "copy", [0, 1, 2])
    if is_cut:  # in the middle of the last line
        whole = (folder / "results.csv").read_bytes()
        (folder / "results.csv").write_bytes(whole[:-20])
        reason = "static_sparse at 80 %, seed 2: only up to step 525"
    else:
        left = [line for line in csv_lines(folder) if (line["cell"], line["seed"]) != ("magnitude", "1")]
        write_lines(folder, left)
        reason = "magnitude at 80 %, seed 1: no row"
    assert main([str(RESULTS / "fed_growth"), str(folder), "--write"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"- {reason}\n" in told.err
    assert f"Finish it with: python -m experiments.vision ste --resume {folder}" in told.err
    assert not (folder / "results.md").exists()


def test_a_whole_cell_that_is_missing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = part(RESULTS / "fed_growth", tmp_path / "copy", [0, 1])
    write_lines(folder, [line for line in csv_lines(folder) if line["algorithm"] != "set"])
    assert main([str(folder)]) == 1
    assert "- set at 95 %, seed 0: no row\n- set at 95 %, seed 1: no row" in capsys.readouterr().err


def test_a_failed_seed_is_shown_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = part(RESULTS / "vision_ste", tmp_path / "copy", [0, 1, 2])
    lines = csv_lines(folder)
    end = max(i for i, line in enumerate(lines) if (line["cell"], line["seed"]) == ("magnitude", "1"))
    lines[end] = {**dict.fromkeys(lines[end], ""), "cell": "magnitude", "seed": "1", "step": "525", "is_last": "1"}
    lines[end]["failure"] = "FloatingPointError: the loss is nan"
    write_lines(folder, lines)
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "- magnitude at 80 %, seed 1, at step 525: FloatingPointError: the loss is nan" in text
    (line,) = (line for line in cells_of(text) if line[0] == "magnitude")
    assert line[-3:-1] == ["2", "1"]


def test_federated_accuracies_are_averaged_over_what_follows_the_last_mask_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(RESULTS / "fed_strokes")]) == 0
    header, _, *lines = cells_of(capsys.readouterr().out)
    (text,) = (line[header.index("since the last change, %")] for line in lines if line[:2] == ["rigl", "80 %"])
    of_seeds = defaultdict(list)
    for row in csv_lines(RESULTS / "fed_strokes"):
        if (row["algorithm"], row["sparsity"]) == ("rigl", "0.8") and 160 <= int(row["round"]) <= 200:
            of_seeds[row["seed"]].append(100 * float(row["test_accuracy"]))
    assert [len(accuracies) for accuracies in of_seeds.values()] == 3 * [5]
    means = [statistics.fmean(accuracies) for accuracies in of_seeds.values()]
    assert text == f"{statistics.fmean(means):.2f} ± {statistics.stdev(means):.2f}"


def test_studies_that_differ_in_seeds_share_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = RESULTS / "fed_growth"
    first, second = (part(source, tmp_path / name, seeds) for name, seeds in (("a", [0, 1]), ("b", [2])))
    assert main([str(source)]) == 0
    whole = cells_of(capsys.readouterr().out)
    assert main([str(first), str(second)]) == 0
    text = capsys.readouterr().out
    assert cells_of(text) == whole
    assert text.count("\n- `a`: commit") == text.count("\n- `b`: commit") == 1


def test_the_committed_report_of_all_of_minatar_is_that_of_its_folders() -> None:
    text = (RESULTS / "minatar" / "results.md").read_text()
    names = [line.split("`")[1] for line in text.splitlines() if line.startswith("- `minatar")]
    assert sorted(names) == [folder.name for folder in STUDIES if folder.name.startswith("minatar")]
    (together,) = joined(read_study(RESULTS / name, LAYOUTS) for name in names)
    assert report(together) == text


def split_games(tmp_path: Path) -> tuple[Path, Path]:
    """Breakout at two sparsities, and a part of it that stands for another game at one of them."""
    source = RESULTS / "minatar_breakout"
    first = part(source, tmp_path / "breakout", [0, 1])
    second = part(source, tmp_path / "freeway", [0, 1], games=["Freeway"], sparsities=[0.9])
    lines = [line for line in csv_lines(second) if line["sparsity"] != "0.98"]
    write_lines(second, [{**line, "game": "Freeway"} for line in lines])
    return first, second


def test_studies_of_several_games_share_a_report_in_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = split_games(tmp_path)
    before = {path: path.read_bytes() for folder in (first, second) for path in folder.iterdir()}
    for _ in range(2):  # it is derived, and may be written again
        assert main([str(first), str(second), "--into", str(tmp_path / "joint")]) == 0
    files = ["config.json", "curves.png", "results.csv", "results.md", "sparsity.png"]
    assert sorted(path.name for path in (tmp_path / "joint").iterdir()) == files
    assert {path: path.read_bytes() for folder in (first, second) for path in folder.iterdir()} == before
    text = (tmp_path / "joint" / "results.md").read_text()
    capsys.readouterr()
    assert main([str(tmp_path / "joint")]) == 0, "each game promises its own cells"
    assert capsys.readouterr().out == text
    assert "- MinAtar's Breakout, Freeway instead of Atari's MsPacman" in text
    lines = cells_of(text[text.index("## Relative") : text.index("### Probability")])
    places = [lines[0].index(name) for name in ("algorithm", "target", "games", "runs")]
    counts = {tuple(line[place] for place in places) for line in lines if line[0] in {"dense", "rigl"}}
    assert counts == {("dense", "0 %", "2", "4"), ("rigl", "90 %", "2", "4"), ("rigl", "98 %", "1", "2")}
    assert "Lines of different numbers of games can't be compared" in text


def test_a_joint_table_is_ordered_as_that_of_one_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = RESULTS / "minatar_breakout"
    sparse = [name for name in read_record(source)["settings"]["algorithms"] if name != "no_prune"]
    whole = part(source, tmp_path / "whole", [0, 1])
    high = part(source, tmp_path / "high", [0, 1], sparsities=[0.98])
    low = part(source, tmp_path / "low", [0, 1], sparsities=[0.9], algorithms=sparse)
    for folder, levels in ((high, ("0.0", "0.98")), (low, ("0.9",))):
        write_lines(folder, [line for line in csv_lines(folder) if line["sparsity"] in levels])
    tables = []
    for folders in ([whole], [high, low]):
        assert main(list(map(str, folders))) == 0
        tables.append(cells_of(capsys.readouterr().out))
    assert tables[0] == tables[1]


def test_a_joint_report_of_several_tables_or_over_a_study_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = split_games(tmp_path)
    other = part(RESULTS / "fed_growth", tmp_path / "other", [0, 1, 2])
    assert main([str(first), str(other), "--into", str(tmp_path / "joint")]) == 1
    assert "differ in nothing but seeds, games, algorithms and sparsities" in capsys.readouterr().err
    third = part(RESULTS / "minatar_breakout", tmp_path / "third", [2])
    (third / "results.md").write_text("own")
    assert main([str(first), str(second), "--into", str(third)]) == 1
    assert "holds a study of its own" in capsys.readouterr().err
    assert (third / "results.md").read_text() == "own"
    assert not (tmp_path / "joint").exists()


def test_what_was_joined_is_a_study_that_can_be_joined_with_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = RESULTS / "minatar_breakout_published"
    parts = [part(source, tmp_path / name, [seed]) for seed, name in enumerate("abc")]
    for number, folder in enumerate(parts):
        record = read_record(folder)
        record["git"] = {"commit": 40 * str(number), "changed": False}
        (folder / "config.json").write_text(json.dumps(record))
        head, *lines = (source / "layers.csv").read_text().splitlines(keepends=True)
        at = head.split(",").index("seed")
        (folder / "layers.csv").write_text(head + "".join(line for line in lines if line.split(",")[at] == str(number)))
        (folder / "timing.csv").write_text(f"game,seed,seconds\nBreakout,{number},1.5\n")
    at_once, by_and_by, (a, b, c) = tmp_path / "at_once", tmp_path / "by_and_by", map(str, parts)
    assert main([a, b, c, "--into", str(at_once)]) == 0
    whole = capsys.readouterr().out
    assert main([a, b, "--into", str(by_and_by)]) == main([str(by_and_by), c, "--into", str(by_and_by)]) == 0
    assert capsys.readouterr().out.endswith(whole)
    for name in ("results.csv", "layers.csv", "timing.csv", "results.md", "curves.png"):
        assert (by_and_by / name).read_bytes() == (at_once / name).read_bytes(), name
    rows = [line for folder in parts for line in csv_lines(folder)]
    assert csv_lines(at_once) == sorted(rows, key=lambda line: line["sparsity"]), "cell by cell"
    assert all(f"- `{name}`: commit {7 * str(number)}, `" in whole for number, name in enumerate("abc"))
    assert main([str(at_once)]) == 0
    assert capsys.readouterr().out == whole == (at_once / "results.md").read_text()
    assert len(read_record(at_once)["joined"]) == 3


def test_a_joint_study_loses_no_run_and_is_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, joint = RESULTS / "fed_growth", tmp_path / "joint"
    a, b, c = (str(part(source, tmp_path / name, [seed])) for seed, name in enumerate("abc"))
    assert main([a, b, "--into", str(joint)]) == 0
    before = {path: path.read_bytes() for path in joint.iterdir()}
    capsys.readouterr()
    assert main([b, c, "--into", str(joint)]) == 1
    assert "rows would be lost: name it among those that are joined" in capsys.readouterr().err
    assert federated(["--resume", str(joint)]) == 2
    assert "is joined of several studies and goes on no more: train another and join it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in joint.iterdir()} == before
    lines = csv_lines(joint)
    write_lines(joint, [line for line in lines if line["seed"] == "0"])
    assert main([str(joint)]) == 1
    assert "seed 1: no row" in (error := capsys.readouterr().err)
    assert "Join it again" in error
    record = read_record(joint)
    (joint / "config.json").write_text(json.dumps({**record, "joined": [{"settings": 1}]}))
    assert main([str(joint)]) == 1
    assert "its joined can't be read" in capsys.readouterr().err


def test_studies_that_differ_in_more_or_share_runs_do_not(tmp_path: Path) -> None:
    source = RESULTS / "fed_growth"
    first = part(source, tmp_path / "a", [0, 1])
    other = part(source, tmp_path / "b", [2], batch_size=16)
    overlapping = part(source, tmp_path / "c", [1, 2])
    studies = [read_study(folder, LAYOUTS) for folder in (first, other, overlapping, RESULTS / "vision_ste")]
    assert [study.folders for study in joined(studies)] == [(folder,) for (folder,) in (s.folders for s in studies)]


def test_writing_renews_what_is_derived_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(RESULTS / "vision_ste", folder)
    before = {name: (folder / name).read_bytes() for name in ("config.json", "results.csv", "timing.csv")}
    (folder / "results.md").write_text("old")
    for _ in range(2):
        assert main([str(folder), "--write"]) == 0
    assert capsys.readouterr().out == 2 * (folder / "results.md").read_text()
    assert {name: (folder / name).read_bytes() for name in before} == before
    for name in ("curves.png", "sparsity.png"):
        height, width, _ = imread(folder / name).shape
        assert min(height, width) > 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no study"),
        ('{"settings": {}, "command": "python -m experiments.strokes"}', "'strokes' writes no study"),
        ("", "config.json is damaged: Expecting value"),
        ('{"command": "python -m experiments.t5"}', "config.json is damaged: its settings can't be read. Copy it back"),
        ('{"settings": [], "git": 1, "cells": {}}', "config.json is damaged: its settings, cells, git can't be read"),
        (
            '{"settings": {}, "domain": "minatar"}',
            "config.json is damaged: it does not say what a study of mina",
        ),
    ],
)
def test_what_is_no_study_is_told(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert main([str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


# Linear RGB as seen without red, without green (Machado et al., 2009, at full severity), and as it is.
SIGHT = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_algorithms_can_be_told_apart(sight: str) -> None:
    def lab(colour: str) -> np.ndarray:
        """CIE L*a*b*, in which a distance of 2 is just seen."""
        encoded = np.array(to_rgb(colour))
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        xyz = TO_XYZ @ np.clip(np.array(SIGHT[sight]) @ linear, 0, 1) / [0.95047, 1, 1.08883]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    places = {name: lab(colour) for name, colour in COLOURS.items()}
    nearest = min((np.linalg.norm(places[a] - places[b]), a, b) for a, b in itertools.combinations(places, 2))
    assert nearest[0] > 12, nearest


def test_an_algorithm_has_its_colour_in_every_study_and_no_cell_another_ones() -> None:
    colours_of_first, colours_of_second = (
        colours_of(["set", "rigl", "2:4"]),
        colours_of(["dense", "rigl:topk", "rigl", "2:4"]),
    )
    assert (colours_of_first["rigl"], colours_of_first["set"]) == (colours_of_second["rigl"], COLOURS["set"])
    for colours in (colours_of_first, colours_of_second):
        assert len(set(colours.values())) == len(colours)
    many = colours_of([f"cell {i}" for i in range(25)])
    assert len(set(many.values())) == len(PALETTE)
