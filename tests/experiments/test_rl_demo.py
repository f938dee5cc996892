"""The demonstration end to end at a size at which it solves nothing, and its parts against slow ones."""

import csv
import json
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from experiments.demos.rl_demo import __main__, cartpole, report
from experiments.demos.rl_demo.outcomes import DENSE, Frames, Outcome, Point
from tests.rl.programs import shared_programs

__all__ = ["shared_programs"]  # a fixture that every test here uses

QUICK = (
    "JaxDQNAgent.min_replay_history = 20",
    "ReplayBuffer.batch_size = 4",
    "create_updater_from_config.update_start_step = 30",
    "create_updater_from_config.update_end_step = 60",
    "create_updater_from_config.update_freq = 10",
)


def outcome(pruner: str, seed: int = 1, is_solved: bool = True) -> Outcome:
    sparsity = 0.0 if pruner == DENSE else 0.9
    curve = [Point(1_000, 120.0, 0.0), Point(2_000, 480.0, sparsity)]
    return Outcome(pruner, seed, curve, is_solved, 481.25, sparsity, 100, 1_000, 12.3, {})


@pytest.fixture(scope="module")
def solved() -> Outcome:
    return cartpole.solve("magnitude", seed=1, max_steps=120, bindings=QUICK)


def test_a_run_that_gives_up_is_not_solved_but_sparse(solved: Outcome) -> None:
    assert not solved.is_solved
    assert solved.curve[-1].step >= 120
    assert solved.curve[-1].sparsity == solved.target_sparsity == pytest.approx(0.9, abs=1e-4)
    assert solved.kept == sum(np.count_nonzero(leaf) for leaf in _matrices(solved.params))
    assert solved.weights == sum(leaf.size for leaf in _matrices(solved.params))


@pytest.mark.parametrize(("pruner", "earliest"), [(DENSE, 40), ("magnitude", 60)])
def test_a_run_ends_when_it_is_solved_but_not_before_it_is_pruned(
    pruner: str, earliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cartpole, "SOLVED", 5.0)  # which any policy reaches
    monkeypatch.setattr(cartpole, "EVALUATE_EVERY", 20)
    run = cartpole.solve(pruner, seed=1, max_steps=10_000, bindings=QUICK)
    assert run.is_solved
    assert run.final_return >= 5
    assert earliest - 20 < run.curve[-1].step < 200
    assert run.curve[-1].sparsity == pytest.approx(0.0 if pruner == DENSE else 0.9, abs=1e-4)


def test_one_seed_repeats_and_two_differ(solved: Outcome) -> None:
    again, other = (cartpole.solve("magnitude", seed, 120, QUICK) for seed in (1, 2))
    assert again.curve == solved.curve
    assert all(map(np.array_equal, _matrices(again.params), _matrices(solved.params)))
    assert not any(map(np.array_equal, _matrices(other.params), _matrices(solved.params)))


def test_returns_are_those_of_poles_stepped_one_by_one(solved: Outcome) -> None:
    act = lambda states: (states[:, 2] > 0).astype(int)  # noqa: E731 - after the pole, which swings up
    poles = gymnasium.make_vec("CartPole-v1", 8, "vector_entry_point")
    starts, _ = poles.reset(seed=3)
    slow = []
    for start in starts:
        pole = gymnasium.make("CartPole-v1")
        pole.reset()
        pole.unwrapped.state = start.astype(np.float64)
        state, total, is_over = start, 0.0, False
        while not is_over:
            state, reward, has_fallen, is_cut_off, _ = pole.step(int(act(state[None])[0]))
            total += float(reward)
            is_over = has_fallen or is_cut_off
        slow.append(total)
    assert len(set(slow)) > 1
    np.testing.assert_array_equal(cartpole.returns(poles, act, seed=3), slow)


def test_the_tables_show_failed_seeds() -> None:
    outcomes = [outcome(DENSE), outcome("magnitude"), outcome("magnitude", seed=2, is_solved=False)]
    lines = report.table(outcomes).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[1:4] == [" dense     ", "    1 ", "          2,000 "]
    assert "not in 2,000" in lines[4]
    assert "90.00%" in lines[4]
    assert report.summary(outcomes) == "Solved: 1 of 1 dense, 1 of 2 magnitude."
    assert "+2" in report.pong_table(Frames(400, 1_600, 24, 2.0, 0.9, 10.0))


def test_a_demonstration_leaves_its_files_and_pong_learns_from_frames_of_the_game(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = mock.Mock(wraps=__main__.write)
    monkeypatch.setattr(__main__, "write", tables)
    quick = [f"--gin-bindings={binding}" for binding in QUICK]
    flags = [f"--output={tmp_path}", "--name=first", "--jobs=1", "--max-steps=120", "--pong-steps=80", *quick]
    assert __main__.main(flags) == 1, "nothing is solved in so few steps"
    frames = tables.call_args.args[1]
    assert frames.steps == 80
    assert frames.frames == 320
    assert frames.optimizer_steps >= 4
    assert frames.sparsity == pytest.approx(0.9, abs=1e-3)
    folder = tmp_path / "first"
    files = ["config.json", "log.txt", "policy.gif", "results.csv", "results.md", "return.png"]
    assert sorted(file.name for file in folder.iterdir()) == files
    printed = capsys.readouterr().out
    text = (folder / "results.md").read_text()
    assert "Solved: 0 of 1 dense, 0 of 1 magnitude." in printed
    assert all(line in text for line in printed.splitlines() if line.startswith("|"))
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["pruner"] for row in rows] == [DENSE, "magnitude"]
    assert float(rows[1]["sparsity"]) == pytest.approx(0.9, abs=1e-4)
    assert json.loads((folder / "config.json").read_text())["settings"]["seeds"] == [1]
    height, width, _ = imread(folder / "return.png").shape
    assert min(height, width) > 600
    with Image.open(folder / "policy.gif") as gif:
        assert gif.format == "GIF"

    assert __main__.main(flags) == 2
    assert "is never overwritten; choose another --name" in capsys.readouterr().err


def _matrices(params: dict) -> list[np.ndarray]:
    return [layer["kernel"] for layer in params["params"].values()]
