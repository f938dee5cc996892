"""A study that was stopped ends as the one that was not, byte for byte."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from experiments.fed_emnist import runs
from experiments.fed_emnist.__main__ import main
from experiments.fed_emnist.kills import differences, survive
from experiments.harness.files import locked
from experiments.tables import main as tables
from sparse_plugins.checkpoints import tree_file
from sparse_plugins.fed.checkpoints import Checkpoints
from tests.disks import WAYS, little_space

FLAGS = ["--rounds=6", "--clients-per-round=2", "--evaluate-every=2", "--checkpoint-every=2", "--seed=0"]
SPARSE = ["--algorithms", "static_sparse", "rigl:topk", "--update-start=1", "--update-every=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    assert main([*FLAGS, *SPARSE, f"--output={output}", "--name=whole"]) == 0
    return output / "whole"


class Stopped(BaseException):
    """What no run takes for its own failure."""


def stopped_study(output: Path, monkeypatch: pytest.MonkeyPatch, saves: int) -> Path:
    """A study that ended right after so many checkpoints."""
    save, left = Checkpoints.save, [saves]

    def save_and_stop(self: Checkpoints, *arguments: object) -> None:
        save(self, *arguments)
        left[0] -= 1
        if not left[0]:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stopped):
            main([*FLAGS, *SPARSE, f"--output={output}", "--name=stopped"])
    return output / "stopped"


def test_a_run_goes_on_from_its_newest_checkpoint(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = stopped_study(tmp_path, monkeypatch, saves=4)
    assert (stopped / "runs" / "static_sparse-0.8" / "seed-0" / "params.npz").exists()
    assert Checkpoints(stopped / "runs" / "rigl-topk-0.8" / "seed-0" / "training").rounds() == [2, 4]
    finished = (stopped / "runs" / "static_sparse-0.8" / "seed-0" / "params.npz").stat()
    seen = []
    train = runs.train
    monkeypatch.setattr(runs, "train", lambda *given: (seen.append(given[-1].round), train(*given))[1])
    assert main([f"--resume={stopped}"]) == 0
    assert seen == [4], "one run, from round 4 on"
    assert (stopped / "runs" / "static_sparse-0.8" / "seed-0" / "params.npz").stat() == finished
    assert differences(whole, stopped) == []


def test_a_damaged_checkpoint_costs_time_and_no_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = stopped_study(tmp_path, monkeypatch, saves=2)
    newest = stopped / "runs" / "static_sparse-0.8" / "seed-0" / "training" / "4.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="the checkpoint of round 4 in .* is damaged"):
        assert main([f"--resume={stopped}"]) == 0
    assert differences(whole, stopped) == []


def test_processes_change_nothing(whole: Path, tmp_path: Path) -> None:
    assert main([*FLAGS, *SPARSE, "--jobs=2", f"--output={tmp_path}", "--name=parallel"]) == 0
    assert differences(whole, tmp_path / "parallel") == []


def test_a_finished_study_is_left_alone(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    assert main([f"--resume={whole}"]) == 0
    assert f"{whole} is finished and left alone." in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before


def test_a_report_is_written_again_if_it_is_all_that_is_missing(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    for name in ("results.md", "curves.png", "results.csv"):
        (copy / name).unlink()
    (copy / "runs" / "rigl-topk-0.8" / "seed-0" / "training").mkdir()
    assert main([f"--resume={copy}"]) == 0
    assert differences(whole, copy) == []
    assert (copy / "results.md").read_bytes() == (whole / "results.md").read_bytes()


def test_other_flags_beside_it_are_refused(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"--resume={whole}", "--rounds=7", "--jobs=2"])
    assert caught.value.code == 2
    assert "config.json: leave out --rounds, --jobs, or start a new study" in capsys.readouterr().err


def test_what_is_no_study_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--resume={tmp_path}"]) == 2
    assert "holds no study: it has no config.json" in capsys.readouterr().err
    record = json.loads((whole / "config.json").read_text())
    record["settings"]["speed"] = 3
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert main([f"--resume={tmp_path}"]) == 2
    assert "of another version of this program" in capsys.readouterr().err


def test_what_an_older_version_left_unfinished_is_refused_and_what_it_finished_is_left_alone(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((whole / "config.json").read_text())
    older = {name: value for name, value in record.items() if name not in ("cells", "domain", "hardware")}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert main([f"--resume={tmp_path}"]) == 2
    assert f"finish it with its own commit, {record['git']['commit']}" in capsys.readouterr().err
    for name in ("results.csv", "results.md"):
        shutil.copy(whole / name, tmp_path / name)
    before = sorted(tmp_path.iterdir())
    assert main([f"--resume={tmp_path}"]) == 0
    assert "is finished and left alone" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_two_processes_do_not_go_on_with_one_study(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(whole):
        assert main([f"--resume={whole}"]) == 2
    assert "another process is at work on" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stopped_study(tmp_path, monkeypatch, saves=1)
    record = json.loads((stopped / "config.json").read_text())
    record["settings"]["model"] = "conv"
    (stopped / "config.json").write_text(json.dumps(record))
    assert main([f"--resume={stopped}"]) == 2
    assert "belongs to another model, optimizer, updater or environment" in capsys.readouterr().err


@pytest.mark.parametrize("way", WAYS[:1])
def test_a_full_disk_stops_it_and_costs_nothing(
    way: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = stopped_study(tmp_path, monkeypatch, saves=1) / "runs" / "static_sparse-0.8" / "seed-0" / "training"
    size = sum(file.stat().st_size for file in checkpoint.rglob("*"))
    with little_space(way, tmp_path / "disk", int(1.6 * size)) as grow:
        full = tmp_path / "disk" / "full"
        assert main([*FLAGS, *SPARSE, f"--output={tmp_path / 'disk'}", "--name=full"]) == 2
        told = capsys.readouterr().err
        assert "could not be written to" in told
        assert f"go on with --resume {full}" in told
        assert not [*full.rglob("summary.json")], "nothing is recorded as the result of a run"
        if way == "disk":
            assert Checkpoints(full / "runs" / "static_sparse-0.8" / "seed-0" / "training").rounds() == [2]
        grow()
        seen = []
        train = runs.train
        monkeypatch.setattr(runs, "train", lambda *given: (seen.append(given[-1].round), train(*given))[1])
        assert main([f"--resume={full}"]) == 0
        assert seen == [2 if way == "disk" else 0, 0]
        assert differences(whole, full) == []


def test_without_memory_it_stops_and_its_checkpoints_stay(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stopped_study(tmp_path, monkeypatch, saves=1)
    training = stopped / "runs" / "static_sparse-0.8" / "seed-0" / "training"
    with monkeypatch.context() as patch:
        error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
        patch.setattr(tree_file, "_restored", lambda *_: (_ for _ in ()).throw(error))
        assert main([f"--resume={stopped}"]) == 2
    assert "can't be read now" in capsys.readouterr().err
    assert Checkpoints(training).rounds() == [2]
    shutil.move(training, tmp_path / "moved")
    training.write_text("a file where a folder should be")
    assert main([f"--resume={stopped}"]) == 2
    assert "Not a directory" in capsys.readouterr().err
    training.unlink()
    shutil.move(tmp_path / "moved", training)
    assert main([f"--resume={stopped}"]) == 0
    assert differences(whole, stopped) == []


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


RUN = Path("runs", "rigl-topk-0.8", "seed-0")


DAMAGES = {"cut": cut, "flipped": flip, "empty": empty, "missing": Path.unlink}
ENDED = ["results.csv", "layers.csv", "params.npz", "ledger.csv"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ENDED for damage in DAMAGES),
        *(("summary.json", damage) for damage in ("cut", "flipped", "empty")),  # without it a run has not ended
    ],
)
def test_a_damaged_file_of_a_finished_run_is_an_error_that_names_it(
    name: str, damage: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    DAMAGES[damage](copy / RUN / name)
    assert (tables([str(copy)]), main([f"--resume={copy}"])) == (1, 2)
    for told in capsys.readouterr().err.splitlines():
        assert f"{copy / RUN / name} is " in told
        assert f"Copy it back from where it is whole, or remove {copy / RUN} and --resume the study" in told


def test_a_damaged_run_is_trained_again_as_the_message_says(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / RUN)
    assert main([f"--resume={copy}"]) == 0
    assert differences(whole, copy) == []


@pytest.mark.parametrize("damage", [cut, flip, empty], ids=["cut", "flipped", "empty"])
def test_damaged_files_that_are_made_of_others_are_made_again(
    damage: Callable[[Path], object], whole: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    damage(copy / "results.csv")
    damage(copy / "layers.csv")
    assert main([f"--resume={copy}"]) == 0
    assert differences(whole, copy) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: Expecting value"),
        (b"{", "is damaged: Expecting property name"),
        (b"\xff\xfe", "is damaged: "),
        (b"[" * 100_000, "is damaged: "),
        (b"[]", "is damaged: it holds a list in place of names and values"),
        (b"{}", "is damaged: its settings can't be read"),
        (b'{"settings": 3}', "is damaged: its settings can't be read"),
        (b'{"settings": {"rounds": "6"}}', "is damaged, or of another version of this program: rounds is '6'"),
        (b'{"settings": {"seeds": 0}}', "is damaged, or of another version of this program: seeds is 0"),
        (b'{"settings": {"rounds": 6}}', "is of another version of this program: "),
    ],
)
def test_a_damaged_config_is_an_error_that_names_it(
    content: bytes, message: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "config.json").write_bytes(content)
    assert main([f"--resume={copy}"]) == 2
    assert f"{copy / 'config.json'} {message}" in capsys.readouterr().err
    assert tables([str(copy)]) == 1


def test_a_study_survives_kills_at_any_moment(tmp_path: Path) -> None:
    lines = list(survive(tmp_path, kills=2, seed=1))
    assert sum(line.startswith("kill ") for line in lines) == 2
    assert lines[-1] == "done, and 16 files as of the undisturbed study"
