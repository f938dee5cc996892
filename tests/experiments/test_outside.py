"""What stops a study from outside is no run's result: a full disk, too many open files, a package that is missing."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments.record.rows import read_rows
from experiments.record.runs import Recorder, Run, has_ended
from experiments.study import Study as LoopStudy
from experiments.study import execute, explained, run
from experiments.supervised.layout import Row
from experiments.supervised.settings import Cell, Study, SupervisedSettings, with_defaults
from experiments.supervised.study import Domain, Plan, main
from sparse_plugins.checkpoints import CheckpointAccessError
from tests.disks import WAYS, little_space

RECORD = {"domain": "structures", "study": "rl", "title": "", "prediction": "", "command": "x", "packages": {}}
RECORD |= {"settings": {"only": [], "seeds": [0, 1], "sparsity": 0.5}, "cells": [["a"], ["b"]]}

OUTSIDE = [
    *(OSError(number, errno.errorcode[number]) for number in (errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.EIO)),
    *(OSError(number, errno.errorcode[number]) for number in (errno.EDQUOT, errno.EFBIG, errno.ENOMEM)),
    PermissionError(errno.EACCES, "Permission denied"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    CheckpointAccessError("the checkpoint of round 2 could not be written"),
    ImportError("no module named fedjax"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(RECORD))
    return tmp_path


def trained(recorder: Recorder) -> None:
    cell, seed = recorder.run.cell[0], recorder.run.seed
    recorder.rewrite([Row(cell=cell, seed=seed, step=9, score=0.5, sparsity=0.5, is_last=1)])


def study_of(train: Callable[..., bool], jobs: int = 1) -> LoopStudy:
    runs = [[Run((cell,), seed)] for cell in "ab" for seed in (0, 1)]
    return LoopStudy("structures", RECORD["settings"], RECORD["cells"], runs, train, "", [], jobs=jobs)


@pytest.mark.parametrize("error", OUTSIDE, ids=lambda error: f"{type(error).__name__} {error.args[0]}"[:24])
def test_an_error_of_the_system_keeps_the_run_and_its_checkpoints(error: Exception, folder: Path) -> None:
    def train(batch: Any) -> bool:
        (recorder,) = batch
        recorder.restart()
        recorder.add(Row(cell="a", seed=0, step=3, score=0.1))
        recorder.scratch.mkdir()
        (recorder.scratch / "checkpoint").touch()
        raise error

    own = Run(("a",), 0)
    with pytest.raises(type(error)):
        execute(folder, [own], train, {}, ())
    assert not has_ended(folder, own)
    assert (folder / own.path / "training" / "checkpoint").exists()
    assert [row.failure for row in read_rows(folder / own.path / "results.csv", Row)] == [""]


def test_an_error_of_the_run_itself_is_its_result(folder: Path) -> None:
    def train(batch: Any) -> bool:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    (line,) = execute(folder, [Run(("a",), 0)], train, {}, ()) or ()
    assert "failed: JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory" in line


def test_the_message_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(batch: Any) -> bool:
        if batch[0].run == Run(("b",), 0):
            raise OSError(errno.ENOSPC, "No space left on device")
        trained(batch[0])
        return True

    assert explained(lambda: run(study_of(full), folder, "x")) == 2
    told = capsys.readouterr().err
    assert "error: [Errno 28] No space left on device" in told
    assert f"go on with --resume {folder}" in told
    assert [has_ended(folder, one) for (one,) in study_of(full).batches] == [True, True, False, False]
    seen = []
    again = study_of(lambda batch: (seen.append(batch[0].run), trained(batch[0]))[1] is None)
    assert explained(lambda: run(again, folder, "x")) == 0
    assert seen == [Run(("b",), 0), Run(("b",), 1)]


def full_in_a_process(batch: Any) -> bool:
    (recorder,) = batch
    (recorder.folder / "begun").touch()
    raise CheckpointAccessError("the disk is full")


def test_in_several_processes_no_other_run_begins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [[Run((cell,), seed)] for cell in "ab" for seed in range(8)]
    many = study_of(full_in_a_process, jobs=2)._replace(batches=runs)
    assert explained(lambda: run(many, folder, "x")) == 2
    assert "error: the disk is full" in capsys.readouterr().err
    assert len([*folder.glob("runs/*/*/begun")]) < len(runs), "those that had not begun"
    assert not [*folder.glob("runs/*/*/summary.json")]


def _supervised(rows: int) -> Domain:
    """A supervised study whose runs leave so many rows."""
    cells = [Cell(name, {"algorithm": name}) for name in ("dense", "good")]

    def prepare(cell: Cell) -> Any:
        def train(recorder: Recorder) -> None:
            for step in range(rows):
                common = {"loss": 1.0, "score": recorder.run.seed / 3, "sparsity": 0.5}
                recorder.add(Row(cell=cell.name, seed=recorder.run.seed, step=step, **common))
            recorder.add(Row(cell=cell.name, seed=recorder.run.seed, step=rows, **common, is_last=1))

        return train

    study = Study("A study", "nothing.", lambda settings, shapes: cells, {"short": {}})
    plan = lambda settings, name: Plan("", cells, "", prepare)  # noqa: E731
    return Domain("vision", "", with_defaults(SupervisedSettings, {"data": "", "model": ""}), {"one": study}, plan)


@pytest.mark.parametrize("way", WAYS)
def test_a_supervised_study_goes_on_when_there_is_space_again(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["one", "--seeds", "0", "1", "2"]
    assert main(_supervised(2000), [*command, f"--output={tmp_path}", "--name=whole"]) == 0
    size = (tmp_path / "whole" / "results.csv").stat().st_size
    with little_space(way, tmp_path / "disk", size // 2 if way == "disk" else size // 6) as grow:
        stopped = tmp_path / "disk" / "study"
        assert main(_supervised(2000), [*command, f"--output={tmp_path / 'disk'}", "--name=study"]) == 2
        told = capsys.readouterr().err
        assert "No space left on device" in told or "File too large" in told
        assert f"go on with --resume {stopped}" in told
        ended = [*stopped.glob("runs/*/*/summary.json")]
        assert len(ended) < 6
        assert all(json.loads(file.read_text())["status"] == "finished" for file in ended)
        grow()
        assert main(_supervised(2000), ["one", "--resume", str(stopped)]) == 0
        assert (stopped / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
        assert not [*stopped.rglob("*.partial")]
