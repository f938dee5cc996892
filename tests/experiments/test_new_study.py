"""A new study takes sixty lines: it runs, is resumed, and gets its table."""

import shutil
from pathlib import Path

import pytest

from experiments import registry, tables
from experiments.harness.tables.stored import read_study
from tests.experiments import digits_study
from tests.experiments.digits_study import STUDY, run

COLUMNS = "cell,seed,step,training_loss,loss,score,sparsity,is_last,failure"


def test_a_study_in_sixty_lines_runs_is_resumed_and_has_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(digits_study.__file__).read_text().splitlines()
    assert sum(bool(line.strip()) for line in source) <= 60
    assert run(["--seeds=2", "--sparsity=0.5", f"--output={tmp_path}", "--name=whole"]) == 0
    whole = tmp_path / "whole"
    assert (whole / "results.csv").read_text().startswith(COLUMNS + "\n")
    dense, magnitude = read_study(whole, {"digits": STUDY.layout}).outcomes()
    for outcome, sparsity in ((dense, 0.0), (magnitude, 0.5)):
        assert [*outcome.finished] == [0, 1]
        ends = [rows[-1] for rows in outcome.finished.values()]
        assert [row.sparsity for row in ends] == pytest.approx([sparsity] * 2)
        assert min(row.score for row in ends) > 0.8
    assert dense.finished[0][-1].score != dense.finished[1][-1].score, "the seed came from the command line"
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "runs" / "magnitude" / "seed-1")
    (stopped / "results.md").unlink()
    kept = (stopped / "runs" / "dense" / "seed-0" / "summary.json").stat().st_mtime_ns
    assert run([f"--resume={stopped}"]) == 0
    assert (stopped / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert (stopped / "layers.csv").read_bytes() == (whole / "layers.csv").read_bytes()
    assert (stopped / "runs" / "dense" / "seed-0" / "summary.json").stat().st_mtime_ns == kept, (
        "what has ended is left alone"
    )
    capsys.readouterr()
    assert tables.main([str(whole)]) == 1
    assert "'digits' writes no study; those that do are fed_emnist, " in capsys.readouterr().err
    monkeypatch.setitem(registry.LAYOUTS, "digits", STUDY.layout)  # its row
    assert tables.main([str(whole)]) == 0
    assert capsys.readouterr().out == (whole / "results.md").read_text()
    assert "| magnitude |   50 % |" in (whole / "results.md").read_text()


def test_one_seed_alone_gives_the_rows_that_it_gives_among_others(tmp_path: Path) -> None:
    for name, seeds in (("both", ["--seeds", "0", "1"]), ("alone", ["--seed", "1"])):
        assert run([*seeds, "--only", "magnitude", "--steps=6", f"--output={tmp_path}", f"--name={name}"]) == 0
    both, alone = ((tmp_path / name / "results.csv").read_text().splitlines() for name in ("both", "alone"))
    assert [line for line in both if line.startswith("magnitude,1,")] == alone[1:]
