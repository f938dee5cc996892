"""The Atari study end to end at a size at which it learns nothing, and what it plans, measures and reports."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optax
import pytest

from experiments.atari import plan, train
from experiments.atari.__main__ import main
from experiments.atari.config import AtariSettings
from experiments.atari.layout import deviations, layout
from experiments.harness import csv_files as csv_rows
from experiments.harness.cells import DENSE, Cell, Run
from experiments.harness.layout import Row
from experiments.harness.recorder import Recorder
from experiments.harness.settings import read_command_line
from experiments.harness.tables.published import MSPACMAN
from experiments.harness.tables.report import report
from experiments.harness.tables.stored import Stored
from experiments.tables import main as tables
from sparse_plugins.core import erk
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure
from sparse_plugins.rl.haiku import SparseDQN, mlp_torso
from sparse_plugins.rl.loops.vector import Episode
from tests.experiments.stopping import report_of, stopping

SMALL = ["--steps=200", "--envs=2", "--batch=2", "--curve-points=4", "--checkpoint-every=1", "--evaluation-episodes=1"]
QUICK = [*SMALL, "--seeds=2", "--algorithms", DENSE, "magnitude", "--memory-gb=1"]
CELLS = [Cell("MsPacman", DENSE, 0.0), Cell("MsPacman", "magnitude", 0.98)]
HIDDEN = 4


SETTINGS = {"games": ["MsPacman"], "algorithms": [DENSE], "sparsities": [0.98], "seeds": [0], "network": "nature"}
LAYOUT = layout(
    {"settings": {**SETTINGS, "steps": 1, "envs": 1, "width": [1]}, "about": "", "changes": [0, 1], "command": ""}
)


def row_of(cell: Cell, **numbers: object) -> Row:
    empty = {**dict.fromkeys(LAYOUT.columns), "failure": "", "seed": 0}
    return Row(**{**empty, **dict(zip(LAYOUT.cell, cell, strict=True)), **numbers})


def read_rows(folder: Path) -> list[Row]:
    return csv_rows.read_rows(folder / "results.csv", LAYOUT.columns)


@pytest.fixture(scope="module", autouse=True)
def small_and_compiled_once() -> Iterator[None]:
    """A network that a CPU learns in no time; agents are made once, so that a study that goes on compiles nothing."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(train, "nature_torso", lambda as_matmuls: mlp_torso((HIDDEN,)))
        build, made = train.agent, {}

        def agent(config: AtariSettings, cell: Cell) -> object:
            key = (cell, config.steps)
            return made[key] if key in made else made.setdefault(key, build(config, cell))

        patches.setattr(train, "agent", agent)
        patches.setattr(plan, "agent", agent)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two cells and two seeds, all trained together."""
    output = tmp_path_factory.mktemp("runs")
    assert main([*QUICK, f"--output={output}", "--name=first"]) == 0
    return output / "first"


def test_a_study_leaves_its_files(folder: Path) -> None:
    names = ["churn.png", "config.json", "curves.png", "layers.csv", "layers.png", "results.csv", "results.md", "runs"]
    names += ["sparsity.png", "timing.csv"]
    assert sorted(file.name for file in folder.iterdir()) == names
    for cell in CELLS:
        files = {file.name for file in (folder / LAYOUT.path(Run(cell, 1))).iterdir()} - {"layers.csv"}
        assert files == {"config.json", "results.csv", "summary.json", "timing.csv"}
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert (settings["together"], settings["width"], settings["warm_up"]) == (2, [1], 20)
    rows = read_rows(folder)
    assert [(*LAYOUT.run_of(row), row.step) for row in rows] == [
        (cell, seed, step) for cell in CELLS for seed in (0, 1) for step in (52, 104, 156, 200)
    ]
    assert all((row.final_return is not None) == (row.step == 200) for row in rows)
    assert all(row.final_return >= 10 for row in rows if row.final_return is not None)


def test_both_networks_end_exactly_as_sparse_as_they_are_meant_to_be(folder: Path) -> None:
    shapes = {"hidden_1": (84 * 84 * 4, HIDDEN), "values": (HIDDEN, 9)}
    layers = erk({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, sparsity=0.98)
    weights = sum(np.prod(shape) for shape in shapes.values())
    kept = sum(round((1 - layers[name]) * np.prod(shape)) for name, shape in shapes.items())
    for row in read_rows(folder):
        if row.final_return is not None and row.algorithm != DENSE:
            assert row.online_sparsity == row.target_sparsity == 1 - kept / weights


def test_the_report_holds_the_published_numbers_and_what_differs(folder: Path) -> None:
    text = (folder / "results.md").read_text()
    assert re.search(r"\| dense +\| +0 % \| .* \| +2588\.8 \|", text)
    assert re.search(r"\| magnitude +\| +98 % \| .* \| +2123\.8 \|", text)
    assert re.search(r"\| magnitude +\| +98 % \| .* \| +0\.820 \|", text)
    for line in ("200 environment steps instead of 10,000,000", "2 copies of the game", "2 transitions in a batch"):
        assert f"- {line}" in text
    assert "change masks from step 60 to 180" in text


def test_a_study_that_was_stopped_ends_as_the_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it matter which cells are trained together: here one by one."""
    with monkeypatch.context() as patch:
        patch.setattr(train, "train", stopping(train.train, after=6))  # in the second cell
        assert main([*QUICK, "--together=1", f"--output={tmp_path}", "--name=stopped"]) == 143
    stopped = tmp_path / "stopped"
    assert f"go on with --resume {stopped}" in capsys.readouterr().out
    assert (stopped / LAYOUT.path(Run(CELLS[1], 0)) / "training").exists()
    assert len(read_rows(stopped)) == 8, "the first cell alone"

    def broken(*arguments: object, **options: object) -> None:
        raise EnvironmentFailure("a thread died.")

    with monkeypatch.context() as patch:
        patch.setattr(train, "train", broken)
        assert main([f"--resume={stopped}"]) == 2
    told = capsys.readouterr().err
    assert "error: a thread died." in told
    assert f"go on with --resume {stopped}" in told
    assert main([f"--resume={stopped}"]) == 0
    for name in ("results.csv", "layers.csv", "sparsity.png", LAYOUT.path(Run(CELLS[1], 1)) / "results.csv"):
        assert (stopped / name).read_bytes() == (folder / name).read_bytes()
    assert report_of(stopped) == report_of(folder)


def test_a_run_that_breaks_is_cut_where_it_broke_and_costs_the_others_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = train.agent

    def agent(config: AtariSettings, cell: Cell) -> SparseDQN:
        built = build(config, cell)
        return built if cell.name == DENSE else dataclasses.replace(built, optimizer=optax.sgd(1e30))

    monkeypatch.setattr(train, "agent", agent)
    assert main([*QUICK, f"--output={tmp_path}", "--name=broken"]) == 1
    rows, whole = read_rows(tmp_path / "broken"), read_rows(folder)
    assert [row for row in rows if row.algorithm == DENSE] == [row for row in whole if row.algorithm == DENSE]
    broken = [row for row in rows if row.algorithm != DENSE]
    assert [(row.seed, row.step, row.failure) for row in broken] == [
        (0, 52, "the loss is nan"),
        (1, 52, "the loss is nan"),
    ]
    assert "- magnitude at 98 % on MsPacman, seed 1, at environment step 52: the loss is nan" in report_of(
        tmp_path / "broken"
    )


def test_training_ends_when_no_run_is_left() -> None:
    broken, rows = train.Broken(), [row_of(CELLS[0], step=step) for step in (10, 20, 30)]
    broken.look(10, {"dense": np.array([0.5, 2.0]), "rigl": np.array([1.0, 0.1])})
    broken.look(20, {"dense": np.array([np.inf, 2.0]), "rigl": np.array([np.nan, np.nan])})
    assert broken.cut(rows, "dense", 0) == [rows[0], row_of(CELLS[0], step=20, failure="the loss is inf")]
    assert broken.cut(rows, "dense", 1) == rows
    with pytest.raises(FloatingPointError, match="no run is left"):
        broken.look(30, {"dense": np.array([np.nan, np.nan]), "rigl": np.array([np.nan, np.nan])})


def test_figures_that_are_missing_are_drawn_later(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("sparsity.png", "results.md"):
        (copy / name).unlink()
    with monkeypatch.context() as patch:
        for name in ("figures", "colours_and_labels", "mask_figures"):
            patch.delitem(sys.modules, f"experiments.harness.tables.{name}", raising=False)
        patch.setitem(sys.modules, "matplotlib.axes", None)
        assert main([f"--resume={copy}"]) == 0
    assert f"this draws them: python -m experiments.tables {copy} --write" in capsys.readouterr().out
    assert not (copy / "sparsity.png").exists()
    assert (copy / "results.md").read_text() == (folder / "results.md").read_text()
    assert tables([str(copy), "--write"]) == 0
    assert (copy / "sparsity.png").read_bytes() == (folder / "sparsity.png").read_bytes()


BLOCKED = """
import sys
for name in {"gymnasium", "gymnax", "matplotlib", "tqdm", "scipy", "tensorflow", "dopamine", "cv2", "flax"}:
    sys.modules[name] = None
from experiments.atari.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_runs_where_little_is_installed(tmp_path: Path) -> None:
    """The whole network, in a process of its own."""
    flags = [*SMALL, "--steps=40", "--seeds=1", "--algorithms", "magnitude", "--name=bare"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *flags, f"--output={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "No figures: matplotlib" in done.stdout
    assert "No bar: tqdm is not installed" in done.stdout
    assert "magnitude at 98 % on MsPacman: 40 of 40 steps" in done.stdout
    assert not list((tmp_path / "bare").glob("*.png"))
    (row,) = (row for row in read_rows(tmp_path / "bare") if row.final_return is not None)
    assert row.online_sparsity == pytest.approx(0.98, abs=1e-6)


def test_it_tells_how_long_the_parts_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, "--seeds=1", "--algorithms", DENSE, "--measure=0.01"]
    assert main([*flags, f"--output={tmp_path}", "--name=none"]) == 0
    text = capsys.readouterr().out
    for part in ("environment", "copy to the device", "act and store", "learn", "all of it"):
        assert re.search(rf"\| {part}.*\| +\d+\.\d+ \| +[\d,]+ (steps|frames|updates) \|", text)
    assert re.search(r"About [\d.]+ minutes for the first batch of 1 cells, [\d.]+ for all 1 cells", text)
    assert not list(tmp_path.iterdir())


# Settings.


def settings(*flags: str) -> AtariSettings:
    return read_command_line(AtariSettings, "atari", "", flags)


def test_the_presets_are_the_published_settings() -> None:
    paper = settings("--seeds=1")
    assert [cell.label for cell in paper.cells()] == sorted(MSPACMAN.numbers, key=lambda name: -MSPACMAN.numbers[name])
    loop, clock = paper.loop, paper.loop.clock
    assert (loop.capacity, loop.batch_size, loop.warm_up, loop.epsilon_decay) == (1_000_000, 32, 20_000, 250_000)
    assert (clock.period, loop.updates, loop.clip_rewards, loop.discount) == (4, 4, True, 0.99)
    pruner = paper.updater(Cell("MsPacman", "magnitude", 0.98)).scheduler
    assert (pruner.update_start_step, pruner.update_end_step, pruner.update_freq) == (500_000, 2_000_000, 1_000)
    rigl = paper.updater(Cell("MsPacman", "rigl", 0.98))
    assert (rigl.scheduler.update_start_step, rigl.scheduler.update_freq) == (1, 5_000)
    assert float(rigl.drop_fraction_fn(0)) == pytest.approx(0.1)
    assert paper.mask_changes == (2_020_000, 8_020_000)
    assert len(deviations(dataclasses.asdict(paper))) == 4
    pruned = settings("--preset=pruned", "--games", "ALE/Pong-v5", "ms_pacman")
    assert [str(cell) for cell in pruned.cells()][:4] == [
        "dense on Pong",
        "magnitude at 95 % on Pong",
        "dense (width 3) on Pong",
        "magnitude (width 3) at 95 % on Pong",
    ]
    assert [len(batch) for batch in pruned.batches()] == [4, 4]


def test_shorter_training_changes_masks_in_the_same_part_of_it() -> None:
    quarter = settings("--steps=2500000")
    pruner = quarter.updater(Cell("MsPacman", "magnitude", 0.98)).scheduler
    assert (pruner.update_start_step, pruner.update_end_step, pruner.update_freq) == (125_000, 500_000, 250)
    assert settings("--envs=2", "--steps=4000").loop.vector_steps == 2


def test_as_many_cells_as_fit_are_trained_together() -> None:
    frames = 84 * 84 * 1e6 / 1e9
    of_seed = plan.state_bytes(settings("--seeds=1"), CELLS[0]) / 1e9
    assert frames < of_seed < frames + 0.05
    assert plan.fitted(settings("--seeds=1", "--memory-gb=28.2")).together == 3
    assert plan.fitted(settings("--seeds=1", "--memory-gb=1000")).together == 7
    assert plan.fitted(settings("--seeds=1", "--memory-gb=1")).together == 1
    assert plan.fitted(settings("--seeds=1", "--memory-gb=1", "--together=4")).together == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--games", "MsPackman"], "there is no Atari game 'MsPackman' for one player; did you mean ms_pacman"),
        (["--games", "Pong", "pong"], "--games takes one value or more, each once"),
        (["--width", "3"], "--width is for --network impala"),
        (["--network=impala", "--width", "0"], "--width must be 1 or more, got 0"),
        (["--envs", "3"], "num_envs is 3; give a multiple of num_halves=2"),
        (["--steps", "10"], "fifth of --steps=10"),
        (["--algorithms", "rigle"], "rigle"),
        (["--together", "0"], "--together must be 1 or more"),
    ],
)
def test_bad_input_is_explained(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


# Rows and reports of made-up runs.


def test_episodes_are_told_where_they_ended(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, LAYOUT, Run(CELLS[0], 0), {})
    episodes = [Episode("g", 0, step, score, 9) for step, score in ((0, 1.0), (96, 3.0), (100, 5.0), (249, 7.0))]
    rows = list(train.rows_of(recorder, episodes, 100, 250, {"final_return": 2.0}))
    assert [(row.step, row.episodes, row.training_return) for row in rows] == [
        (100, 2, 2.0),
        (200, 1, 5.0),
        (250, 1, 7.0),
    ]
    assert [row.final_return for row in rows] == [None, None, 2.0]


def test_wide_networks_are_compared_with_the_narrow_dense_one() -> None:
    rows = [
        row_of(Cell("Pong", algorithm, at, width), step=9, online_sparsity=at, final_return=score)
        for algorithm, at, width, score in ((DENSE, 0.0, 3, 5.0), (DENSE, 0.0, 1, 10.0), ("magnitude", 0.95, 3, 15.0))
    ]
    chosen = json.loads(json.dumps(dataclasses.asdict(settings("--preset=pruned"))))
    record = {"settings": chosen, "about": "About.", "changes": [3, 6], "command": ""}
    text = report(Stored((), (record,), layout(record), rows, [], [], {}))
    assert re.search(r"\| magnitude \(width 3\) \| +95 % \| +1\.500 \|", text)
    assert re.search(r"\| dense \(width 3\) +\| +0 % \| +0\.500 \|", text)
    assert "Obando-Ceron" in text
