"""The MinAtar study end to end at a size at which it learns little, and the reports of any study of agents."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.common.agents.layout import FINAL
from experiments.common.agents.relative import relative
from experiments.harness import csv_files as csv_rows
from experiments.harness.cells import DENSE, Cell, Run, grid
from experiments.harness.layout import Row
from experiments.harness.recorder import Recorder
from experiments.harness.settings import read_command_line
from experiments.harness.tables import figures, report
from experiments.harness.tables.outcomes import outcomes
from experiments.harness.tables.statistics import iqm
from experiments.harness.tables.stored import Stored
from experiments.minatar import train
from experiments.minatar.__main__ import main
from experiments.minatar.config import MinAtarSettings
from experiments.minatar.layout import about, layout
from sparse_plugins.core import erk
from sparse_plugins.rl.loops.fused import FusedTrainer
from sparse_plugins.rl.loops.fused_runs import Chunk
from tests.disks import WAYS, little_space
from tests.experiments.stopping import report_of, stopping

FILES = ["churn.png", "config.json", "curves.png", "layers.csv", "layers.png", "results.csv", "results.md", "runs"]
FILES += ["sparsity.png", "timing.csv"]
RUN_FILES = ["config.json", "results.csv", "summary.json", "timing.csv"]
QUICK = ["--algorithms", DENSE, "magnitude", "--sparsities=0.9", "--seeds=2", "--steps=2000"]
QUICK += ["--curve-points=5", "--checkpoint-every=1", "--evaluation-episodes=3"]


SETTINGS = {"games": ["A", "B"], "algorithms": [DENSE, "magnitude", "rigl"], "sparsities": [0.5, 0.9], "steps": 100}
SETTINGS |= {"seeds": [0, 1, 2, 3], "distribution": "erk", "evaluation_episodes": 3, "drop_fraction": 0.1}
RECORD = {"settings": SETTINGS, "command": "python -m experiments.minatar"}
LAYOUT = layout(RECORD)


def read_rows(folder: Path) -> list[Row]:
    return csv_rows.read_rows(folder / "results.csv", LAYOUT.columns)


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Compiling is nearly all that takes time here: one program per cell."""
    made, build = {}, FusedTrainer
    train.FusedTrainer = lambda game, learner, loop: made.setdefault(
        (game.name, type(learner.updater), loop), build(game, learner, loop)
    )
    yield
    train.FusedTrainer = build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two cells and two seeds."""
    output = tmp_path_factory.mktemp("runs")
    assert main([*QUICK, f"--output={output}", "--name=first"]) == 0
    return output / "first"


def test_a_study_leaves_its_files(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == FILES
    for cell, further in (("Breakout-no_prune-0.0-1", []), ("Breakout-magnitude-0.9-1", ["layers.csv"])):
        for seed in (0, 1):
            files = sorted(file.name for file in (folder / "runs" / cell / f"seed-{seed}").iterdir())
            assert files == sorted([*RUN_FILES, *further])
    for picture in ("curves.png", "sparsity.png", "layers.png", "churn.png"):
        height, width, _ = imread(folder / picture).shape
        assert min(height, width) > 600
    record = json.loads((folder / "config.json").read_text())
    assert record["settings"]["seeds"] == [0, 1]
    assert {"gymnax", "jax"} <= {name for name, version in record["packages"].items() if version}
    text = (folder / "results.md").read_text()
    assert "| dense     |" in text
    assert "| magnitude |   90 % |  90 % |" in text
    assert "masks change from step 400 to 1,600" in text


def test_there_is_a_row_for_every_stretch_of_every_seed(folder: Path) -> None:
    rows = read_rows(folder)
    cells = [Cell("Breakout", DENSE, 0.0), Cell("Breakout", "magnitude", 0.9)]
    assert [(*LAYOUT.run_of(row), row.step) for row in rows] == [
        (cell, seed, step) for cell in cells for seed in (0, 1) for step in (1200, 1400, 1600, 1800, 2000)
    ]
    assert all(row.episodes > 5 and 0 <= row.training_return < 3 and not row.failure for row in rows)
    assert all((row.final_return is not None) == (row.step == 2000) for row in rows)
    assert len({tuple(row.training_return for row in rows[i : i + 5]) for i in range(0, 20, 5)}) == 4


def test_both_networks_end_exactly_as_sparse_as_they_are_meant_to_be(folder: Path) -> None:
    shapes = {"conv_1": (3, 3, 4, 16), "hidden": (1024, 128), "values": (128, 3)}
    layers = erk({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, sparsity=0.9)
    weights = sum(np.prod(shape) for shape in shapes.values())
    kept = sum(round((1 - layers[name]) * np.prod(shape)) for name, shape in shapes.items())
    for row in read_rows(folder):
        if row.final_return is not None:
            exact = 0.0 if row.algorithm == DENSE else 1 - kept / weights
            assert row.online_sparsity == row.target_sparsity == exact


def test_pqn_is_trained_without_a_target_network_at_any_width(tmp_path: Path) -> None:
    flags = ["--agent=pqn", "--algorithms", "rigl:fan_in", "--sparsities=0.9", "--width", "2", "--steps=8192"]
    flags += ["--seed=3", "--curve-points=2", "--evaluation-episodes=2", f"--output={tmp_path}", "--name=pqn"]
    assert main(flags) == 0
    rows = read_rows(tmp_path / "pqn")
    assert [(row.width, row.step, row.failure) for row in rows] == [(2, 4096, ""), (2, 8192, "")]
    sizes = {"conv_1": 3 * 3 * 4 * 32, "hidden": 2048 * 256, "values": 256 * 3}
    for row in rows[1::2]:
        assert row.target_sparsity is None
        assert row.online_sparsity == pytest.approx(0.9, abs=3 / sum(sizes.values()))
    text = (tmp_path / "pqn" / "results.md").read_text()
    assert "64 optimizer steps of batch 128 for every 4,096" in text
    assert "purejaxql" in text


def test_a_study_that_was_stopped_ends_as_the_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train, "train", stopping(train.train, after=7))  # in the second stretch of the second cell
        assert main([*QUICK, f"--output={tmp_path}", "--name=stopped"]) == 143
    stopped = tmp_path / "stopped"
    assert f"go on with --resume {stopped}" in capsys.readouterr().out
    assert not (stopped / "results.md").exists()
    assert len(read_rows(stopped)) == 10, "the first cell alone"
    finished = (stopped / "runs" / "Breakout-no_prune-0.0-1" / "seed-0" / "results.csv").stat()
    trained = []
    whole = train.train
    monkeypatch.setattr(train, "train", lambda *given, **options: (trained.append(given), whole(*given, **options))[1])
    assert main([f"--resume={stopped}"]) == 0
    assert len(trained) == 1, "a finished cell is not trained again"
    assert (stopped / "runs" / "Breakout-no_prune-0.0-1" / "seed-0" / "results.csv").stat() == finished
    for name in (
        "results.csv",
        "layers.csv",
        "runs/Breakout-magnitude-0.9-1/seed-1/results.csv",
        "sparsity.png",
    ):
        assert (stopped / name).read_bytes() == (folder / name).read_bytes()
    assert report_of(stopped) == report_of(folder)


@pytest.mark.parametrize("way", WAYS[:1])
def test_a_full_disk_stops_the_study_and_costs_nothing(
    way: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train, "train", stopping(train.train, after=1))
        assert main([*QUICK, f"--output={tmp_path}", "--name=stopped"]) == 143
    (checkpoint,) = (tmp_path / "stopped").rglob("*.npz")
    with little_space(way, tmp_path / "disk", int(1.7 * checkpoint.stat().st_size)) as grow:
        full = tmp_path / "disk" / "full"
        assert main([*QUICK, f"--output={tmp_path / 'disk'}", "--name=full"]) == 2
        told = capsys.readouterr().err
        assert "could not be written to" in told
        assert f"go on with --resume {full}" in told
        assert not [*full.rglob("summary.json")], "nothing is recorded as the result of a run"
        assert [*full.rglob("*.partial")] == []
        if way == "disk":
            assert [file.name for file in full.rglob("*.npz")] == [checkpoint.name]
        grow()
        assert main([f"--resume={full}"]) == 0
        assert (full / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()
        assert (full / "layers.csv").read_bytes() == (folder / "layers.csv").read_bytes()


def test_a_finished_study_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert main([f"--resume={folder}"]) == 0
    assert f"{folder} is finished and left alone." in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert main([*QUICK, f"--output={folder.parent}", "--name=first"]) == 2
    assert "is never overwritten" in capsys.readouterr().err


def test_a_cell_that_breaks_is_told_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(trainer: FusedTrainer, *arguments: object, settings: dict, **options: object) -> object:
        if settings["algorithm"] == "rigl":
            options["report"](Chunk(1200, [1, 1], [0.5, 0.5], [0.1, 0.1]))
            raise RuntimeError("the game\nis over")
        return whole(trainer, *arguments, settings=settings, **options)

    whole = train.train
    monkeypatch.setattr(train, "train", broken)
    flags = [*QUICK[:1], "rigl", *QUICK[2:], f"--output={tmp_path}", "--name=broken"]
    assert main(flags) == 1
    printed = capsys.readouterr().out
    rows = read_rows(tmp_path / "broken")
    assert [row.failure for row in rows if row.algorithm == "rigl"] == 2 * ["RuntimeError: the game is over"]
    assert sum(row.final_return is not None for row in rows) == 2, "magnitude finished"
    text = (tmp_path / "broken" / "results.md").read_text()
    for line in (
        "- rigl at 90 % on Breakout, seed 1, at environment step 1,200: RuntimeError: the game is over",
        "No dense training to compare with.",
    ):
        assert line in text
    assert printed.count("failed: RuntimeError") == 2
    assert main([f"--resume={tmp_path / 'broken'}"]) == 1, "and is not trained again"


def test_a_seed_whose_loss_is_not_finite_has_failed(tmp_path: Path) -> None:
    curve = [Chunk(100, [2, 0], [1.5, np.nan], [0.1, 0.2]), Chunk(200, [1, 3], [1.0, 2.0], [0.1, np.nan])]
    end = {"final_return": 4.0, "online_sparsity": 0.0, "target_sparsity": 0.0}
    cell = Cell("Breakout", DENSE, 0.0)
    recorders = [Recorder(tmp_path, LAYOUT, Run(cell, seed), RECORD) for seed in (0, 1)]
    whole, broken = (list(train.rows_of(recorder, curve, seed, end)) for seed, recorder in enumerate(recorders))
    assert [row.training_return for row in whole] == [1.5, 1.0]
    assert whole[-1].final_return == 4.0
    assert [row.training_return for row in broken] == [None, None]
    assert broken[-1].failure == "the loss is nan"
    (outcome,) = outcomes([*whole, *broken], LAYOUT)
    assert (list(outcome.finished), [row.seed for row in outcome.failed]) == ([0], [1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--games", "Breakot"], "MinAtar has no game 'Breakot'; did you mean Breakout?"),
        (["--games", "Go"], "allowed are Asterix, Breakout"),
        (["--seeds", "3", "1", "3"], "--seeds takes one value or more, each once, got [3, 1, 3]"),
        (["--seeds", "0"], "--seeds 0 asks for no seed: one number says how many. Try --seed 0."),
        (["--seeds", "-1", "2"], "--seeds must be 0 or more, got -1"),
        (["--algorithms", "rigle"], "rigle"),
        (["--algorithms", "rigl:fan"], "'rigl:fan' is no algorithm with a variant of it; allowed is :fan_in behind"),
        (["--algorithms", "magnitude:fan_in"], ":fan_in behind static_sparse, set, rigl, srigl"),
        (["--sparsities", "1.5"], "1.5"),
        (["--steps", "1999"], "--steps must be 2000 or more"),
        (["--masks-until", "0.2"], "--masks-until must be above 0.2, when pruning begins, and at most 1, got 0.2."),
        (["--curve-points", "0"], "--curve-points must be 1 or more"),
        (["--resume", "x", "--steps", "5"], "x/config.json: leave out --steps, or start"),
    ],
)
def test_bad_input_is_explained(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_seeds_are_a_number_or_a_list() -> None:
    read = functools.partial(read_command_line, MinAtarSettings, "minatar", "")
    assert read([]).seeds == read(["--seeds", "10"]).seeds == tuple(range(10))
    assert read(["--seeds", "1"]).seeds == (0,)
    assert read(["--seeds", "7", "3"]).seeds == (7, 3)
    assert read(["--seed", "7"]).seeds == (7,)
    assert len(list(read([]).cells())) == 1 + 5 * 5


def test_weights_are_exchanged_as_in_jaxpruners_program_or_late() -> None:
    early, late = (
        config.loop.clock.in_optimizer_steps(config.updater(cell))
        for exchange in ("first", "late")
        for config in [
            MinAtarSettings(name="x", algorithms=("rigl",), sparsities=(0.9,), steps=10_000_000, exchange=exchange)
        ]
        for cell in config.cells()
    )
    assert late.scheduler.update_start_step == pytest.approx(500_000, rel=0.01)
    assert (early.scheduler.update_start_step, early.scheduler.update_freq) == (1, 5_000)
    assert early.scheduler.update_end_step == pytest.approx(2_000_000, rel=0.01)
    assert (late.drop_fraction_fn.fraction, early.drop_fraction_fn.fraction) == (0.1, 0.1)


def test_the_plan_and_the_report_say_which_masks_change_and_when() -> None:
    def told(*algorithms: str, **settings: Any) -> tuple[str, str]:
        config = MinAtarSettings(name="x", algorithms=algorithms, sparsities=(0.9,), steps=100_000, **settings)
        return train.described(config), about(dataclasses.asdict(config))

    assert "mask change:" not in told("static_sparse")[0]
    plan, report = told("rigl")
    assert "first mask change: optimizer step 1 " in plan
    first = "set and rigl exchange weights from the first step on"
    assert first in report
    assert first not in told("magnitude")[1]
    assert first not in told("rigl", exchange="late")[1]
    for algorithms, is_said in ((("magnitude",), False), (("magnitude", "set"), True)):
        config = MinAtarSettings(name="x", algorithms=algorithms, sparsities=(0.9,), agent="pqn")
        deviations = layout({"settings": dataclasses.asdict(config)}).deviations
        assert any("no paper says how often PQN should" in line for line in deviations) == is_said


def test_masks_can_be_left_alone_for_a_longer_end_of_training() -> None:
    config = MinAtarSettings(
        name="x", algorithms=("magnitude", "rigl"), sparsities=(0.9,), steps=100_000, masks_until=0.5
    )
    for cell in config.cells():
        assert config.sparsity_config(cell)["update_end_step"] == 50_000
    assert "masks change from step 20,000 to 50,000" in about(dataclasses.asdict(config))
    assert "to 80,000" in about({**dataclasses.asdict(config), "masks_until": 0.8})


def test_initial_weights_can_be_scaled_to_the_inputs_that_are_kept() -> None:
    config = MinAtarSettings(name="x", algorithms=("static_sparse", "static_sparse:fan_in"), sparsities=(0.9,))
    plain, scaled = (
        train.agent(config, cell).init(jax.random.key(3), jnp.zeros((1, 10, 10, 4))) for cell in config.cells()
    )
    for name, layer in plain.params.items():
        weights, scaled_weights = np.asarray(layer["w"]), np.asarray(scaled.params[name]["w"])
        units, scaled_units = (
            np.moveaxis(each, -1, 0).reshape(each.shape[-1], -1) for each in (weights, scaled_weights)
        )
        for unit, scaled_unit in zip(units, scaled_units, strict=True):
            kept = np.count_nonzero(unit)
            np.testing.assert_allclose(scaled_unit, unit * np.sqrt(unit.size / max(kept, 1)), rtol=1e-6)
    assert zeros_of(scaled.params) == zeros_of(plain.params) > 0.8
    jax.tree.map(np.testing.assert_array_equal, scaled.target_params, scaled.params)


def zeros_of(params: Any) -> float:
    weights = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return 1 - sum(map(np.count_nonzero, weights)) / sum(leaf.size for leaf in weights)


# Reports of made-up studies.

EMPTY = {**dict.fromkeys(LAYOUT.columns), "failure": ""}
QUALITY = {DENSE: 10.0, "magnitude": 8.0, "rigl": 6.0}


def made_up(games: dict[str, float], seeds: int = 4) -> list[Row]:
    """Rows of a study of three algorithms in which a game multiplies all returns."""
    rows = []
    for cell in grid(list(QUALITY), (0.5, 0.9), list(games)):
        for seed in range(seeds):
            level = games[cell.group] * QUALITY[cell.name] * (1 - cell.sparsity / 2) + seed
            cell_and_seed = {
                **EMPTY,
                **dict(zip(LAYOUT.cell, cell, strict=True)),
                "seed": seed,
                "online_sparsity": cell.sparsity,
                "target_sparsity": cell.sparsity,
            }
            rows += [
                Row(**{**cell_and_seed, "step": 80, "episodes": 10, "training_return": 1.0}),
                Row(**{**cell_and_seed, "step": 95, "episodes": 1, "training_return": 2.0}),
                Row(**{**cell_and_seed, "step": 100, "episodes": 3, "training_return": 4.0, "final_return": level}),
            ]
    return rows


def stored(rows: list[Row]) -> Stored:
    return Stored((), (RECORD,), LAYOUT, rows, [], [], {})


def test_the_tables_hold_what_the_rows_say() -> None:
    rows = made_up({"A": 1.0, "B": 10.0})
    rows[-1:] = [Row(**{**vars(rows[-1]), "step": 90, "final_return": None, "failure": "the loss is nan"})]
    text = report.report(stored(rows))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    dense = ["11.50 ± 1.29", "[10.50, 12.50]", "3.50 ± 0.00", "[3.50, 3.50]"]
    assert ["dense", "0 %", "0 %", *dense, "4", "0", ""] in lines
    assert ["rigl", "90 %", "90 %", "34.00 ± 1.00", "[33.00, 35.00]", *dense[2:], "3", "1", ""] in lines
    scores = np.concatenate([(4.4 + np.arange(4)) / 11.5, (44 + np.arange(4)) / 101.5])
    (relative_line,) = (line for line in lines if line[:2] == ["magnitude", "90 %"] and len(line) == 9)
    assert relative_line[2::2] == [f"{scores.mean():.3f}", f"{iqm(scores):.3f}", "2", ""]
    assert relative_line[7] == "8"
    assert "- rigl at 90 % on B, seed 3, at environment step 90: the loss is nan" in text


def test_games_without_a_dense_mean_above_zero_are_not_compared() -> None:
    rows = made_up({"A": 1.0, "B": -10.0})
    assert {game for group in relative(outcomes(rows, LAYOUT), FINAL) for game in group.by_game} == {"A"}
    assert "there to compare with: B." in report.report(stored(rows))


def test_the_pictures_show_every_game_and_sparsity() -> None:
    drawn = figures.figures(stored(made_up({"A": 1.0, "B": 10.0})))
    assert list(drawn) == ["curves.png", "sparsity.png"]
    titles = [f"{game}, at {at} % sparsity" for game in "AB" for at in (50, 90)]
    assert [axes.get_title() for axes in drawn["curves.png"].axes] == titles
    for axes in drawn["curves.png"].axes:
        assert [line.get_ydata().tolist() for line in axes.lines] == 3 * [[1.0, 2.0, 4.0]]
    levels = drawn["sparsity.png"].axes
    assert [axes.get_title() for axes in levels] == ["A", "B"]
    (dense,) = (line for line in levels[0].lines if line.get_label() == "dense")
    assert set(dense.get_ydata()) == {11.5}
