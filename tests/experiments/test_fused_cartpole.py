"""The command on CartPole, short: it trains, is as sparse as it says, and times both sides."""

import jax
import pytest

from experiments.benchmarks import rl_seeds
from experiments.common.agents.cartpole import pruned
from experiments.demos import fused_cartpole as command


def test_it_trains_and_reports_every_seed() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    name, solved, returns, sparsity, seconds = command.solve("90 %", pruned(100, 1_100, 1_500), keys, 2_000)
    assert (name, solved, sparsity) == ("90 %", "0 of 2", "90.0%")
    assert all(8 <= float(mean) <= 500 for mean in returns.split())
    assert float(seconds) > 0


def test_it_times_both_sides() -> None:
    seeds, ratio, dense, sparse = command.pace(1, rounds=3, iterations=5)
    assert seeds == "1"
    assert float(ratio) > 0
    assert min(int(pace.replace(",", "")) for pace in (dense, sparse)) > 0


def test_seeds_are_counted_together_and_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in the processes it starts
    rl_seeds.main(["--seeds=1", "--steps=1008"])
    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert cells[0].strip() == "1"
    assert min(float(cell) for cell in cells[1:]) > 0
