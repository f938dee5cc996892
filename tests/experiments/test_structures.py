"""Structures at one half in the other domains, by their own trainers, at a length at which little is learnt."""

from pathlib import Path

import pytest

from experiments.harness.csv_files import read_lines
from experiments.harness.tables.stored import read_study
from experiments.registry import LAYOUTS
from experiments.structures.__main__ import run


@pytest.mark.parametrize(
    ("study", "flags"),
    [("federated", ["--dataset=digits", "--rounds=4"]), ("rl", ["--steps=2000", "--episodes=2"])],
)
def test_all_layers_but_the_last_end_two_of_four(study: str, flags: list[str], tmp_path: Path) -> None:
    command = [study, "--only", "2:4", "--seeds", "0", "1", f"--output={tmp_path}", "--name=x", *flags]
    assert run(command) == 0
    ends = [row for row in read_study(tmp_path / "x", LAYOUTS).rows if row.is_last]
    assert [(row.seed, row.sparsity, row.failure) for row in ends] == [(0, 0.5, ""), (1, 0.5, "")]
    assert all(row.score > 0 for row in ends)
    sizes = [line for line in read_study(tmp_path / "x", LAYOUTS).measurements if line.item == "down"]
    assert [line.seed for line in sizes] == ([0, 1] if study == "federated" else [])
    ends = read_lines(tmp_path / "x" / "runs" / "2-4" / "seed-1" / "layers.csv")[-2:]
    assert [2 * int(line["kept"]) for line in ends] == [int(line["size"]) for line in ends]


def test_too_few_steps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["rl", "--steps=100", f"--output={tmp_path}"])
    assert "--steps must be 2000 or more, got 100" in capsys.readouterr().err
