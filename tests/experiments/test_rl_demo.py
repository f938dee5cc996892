"""The demonstration end to end at a size at which it solves nothing, and its parts against slow ones."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from PIL import Image

from experiments.demos.rl_demo import __main__, cartpole
from experiments.harness.cells import DENSE
from experiments.harness.tables.stored import read_study
from experiments.registry import LAYOUTS
from tests.rl.programs import shared_programs

__all__ = ["shared_programs"]  # a fixture that every test here uses

QUICK = (
    "JaxDQNAgent.min_replay_history = 20",
    "ReplayBuffer.batch_size = 4",
    "create_updater_from_config.update_start_step = 30",
    "create_updater_from_config.update_end_step = 60",
    "create_updater_from_config.update_freq = 10",
)


def given_up(seed: int) -> tuple[Any, list[tuple[int, dict]]]:
    """A sparse agent that solves nothing in so few steps, and its rows."""
    agent, environment = cartpole.cartpole_agent("magnitude", seed, QUICK)
    rows = []
    with pytest.raises(cartpole.NotSolvedError, match="not solved in 1"):
        rows += cartpole.solve(agent, environment, max_steps=120)  # `+=` keeps what came before the error
    return agent, rows


@pytest.mark.parametrize(("pruner", "earliest"), [(DENSE, 40), ("magnitude", 60)])
def test_a_run_ends_when_it_is_solved_but_not_before_it_is_pruned(
    pruner: str, earliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cartpole, "SOLVED", 5.0)  # which any policy reaches
    monkeypatch.setattr(cartpole, "EVALUATE_EVERY", 20)
    agent, environment = cartpole.cartpole_agent(pruner, 1, QUICK)
    *before, (step, last) = cartpole.solve(agent, environment, max_steps=10_000)
    assert not any("final_return" in numbers for _, numbers in before)
    assert last["final_return"] >= 5
    assert earliest - 20 < step < 200
    sparsity = 0.0 if pruner == DENSE else 0.9
    assert last["online_sparsity"] == last["target_sparsity"] == pytest.approx(sparsity, abs=1e-4)
    assert last["kept"] == sum(np.count_nonzero(leaf) for leaf in _matrices(agent.sparse_params))


def test_one_seed_repeats_and_two_differ() -> None:
    runs = [given_up(seed) for seed in (1, 1, 2)]
    first, again, other = (_matrices(agent.sparse_params) for agent, _ in runs)
    assert runs[0][1] == runs[1][1]
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))


def test_returns_are_those_of_poles_stepped_one_by_one() -> None:
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


def test_a_demonstration_leaves_its_files_and_pong_learns_from_frames_of_the_game(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    quick = [f"--gin-bindings={binding}" for binding in QUICK]
    flags = [f"--output={tmp_path}", "--name=first", "--jobs=1", "--max-steps=120", "--pong-steps=80", *quick]
    assert __main__.main(flags) == 1, "nothing is solved in so few steps"
    study = read_study(tmp_path / "first", LAYOUTS)
    assert [(row.pruner, row.failure[:31]) for row in study.rows if row.failure] == [
        (pruner, "NotSolvedError: not solved in 1") for pruner in (DENSE, "magnitude")
    ]
    frames = {line.item: line.value for line in study.measurements}
    assert frames["agent steps"] == 80
    assert frames["frames"] == 320
    assert frames["optimizer steps"] >= 4
    assert frames["zeros, %"] == pytest.approx(90, abs=0.1)
    sparse = [row.online_sparsity for row in study.rows if row.pruner == "magnitude" and not row.failure]
    assert sparse == pytest.approx([0.9], abs=1e-4)
    assert json.loads((study.folders[0] / "config.json").read_text())["settings"]["seeds"] == [1]
    with Image.open(study.folders[0] / "runs" / "magnitude" / "seed-1" / "policy.gif") as gif:
        assert gif.format == "GIF"
    text = (study.folders[0] / "results.md").read_text()
    assert "- magnitude, seed 1, at agent step 1" in text
    assert "## Pong, the first steps" in text
    capsys.readouterr()
    assert __main__.main(flags) == 2
    assert "is never overwritten" in capsys.readouterr().err


def _matrices(params: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
