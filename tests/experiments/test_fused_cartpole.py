"""The command on CartPole: it trains, is as sparse as it says, and its tables are what runs and clocks said."""

from collections.abc import Iterator
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.benchmarks import rl_seeds
from experiments.common.agents.cartpole import pruned
from experiments.demos import fused_cartpole as command


def test_it_trains_every_seed_to_ninety_percent() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    name, _, returns, sparsity, _ = command.solve("90 %", pruned(100, 1_100, 1_500), keys, 2_000)
    assert (name, sparsity, len(returns.split())) == ("90 %", "90.0%", 2)


def test_a_seed_has_solved_it_at_a_mean_return_of_475(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"b": np.ones((3, 4)), "w": np.array([[[1.0, 0.0], [0.0, 0.0]]] * 3)}
    state = SimpleNamespace(learner=SimpleNamespace(params=params))
    returns = np.array([[450.0, 500.0], [474.0, 475.0], [500.0, 500.0]])
    trained = SimpleNamespace(init=lambda keys: 0, run=lambda *_: (state, 0), evaluate=lambda *_: returns)
    monkeypatch.setattr(command, "trainer", lambda updater: trained)
    monkeypatch.setattr(command.jax, "block_until_ready", lambda state: state)
    row = command.solve("x", pruned(), jax.random.split(jax.random.key(0), 3), 2_000)
    assert row[:4] == ("x", "2 of 3", "475 474 500", "75.0%")


def test_a_single_seed_is_that_of_all_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(command, "solve", lambda name, updater, keys, steps: seen.append(keys) or (name, *"abcd"))
    monkeypatch.setattr(command, "pace", lambda seeds, rounds: (str(seeds), *"abc"))
    for words in (["--seeds=10"], ["--seed=3"], ["--seeds", "3", "5"]):
        command.main(words)
    data = [jax.random.key_data(keys) for keys in seen[::2]]
    np.testing.assert_array_equal(data[1], np.asarray(data[0])[[3]])
    np.testing.assert_array_equal(data[2], np.asarray(data[0])[[3, 5]])


def test_the_ratio_is_that_of_stretches_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(*times: float) -> Iterator[float]:
        return iter((9.0, *times))  # the first one compiles

    sides = iter([clock(1.0, 2.0, 4.0), clock(1.5, 2.2, 8.0)])
    monkeypatch.setattr(command, "trainer", lambda updater: None)
    monkeypatch.setattr(command, "_stretch", lambda *_: next(sides).__next__)
    steps = 2 * 5 * command.CONFIG.vector_steps * command.CONFIG.num_envs
    assert command.pace(2, rounds=3, iterations=5) == ("2", "1.500", f"{steps / 2:,.0f}", f"{steps / 2.2:,.0f}")


def test_seeds_are_counted_together_and_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    asked = []

    def cpu_seconds(batches: list, of: int, steps: int) -> float:
        asked.append(([[*batch] for batch in batches], of, steps))
        return 3.0 * len(batches) + 3.0

    monkeypatch.setattr(rl_seeds, "cpu_seconds", cpu_seconds)
    rl_seeds.main(["--seeds=3", "--steps=1008"])
    assert asked == [([[0, 1, 2]], 3, 1008), ([[0], [1], [2]], 3, 1008)]
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")]
    assert cells == ["3", "6", "12", "0.50"]


def test_a_process_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"the process of seeds \[0\] ended with 1"):
        rl_seeds.cpu_seconds([[0]], of=1, steps=-1)
