"""Metrics are right, and measuring changes nothing."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import pytest

from sparse_plugins.core import masks
from sparse_plugins.rl import plasticity
from sparse_plugins.rl.dopamine.metrics import IterationMetrics, MetricsFile, sample_states
from sparse_plugins.rl.plasticity.activations import hidden_activations
from tests.rl import driving, resume_worker
from tests.rl.test_resume import assert_same


def flat(leaves: Iterable[jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


def prunable(params: Any, agent: Any) -> np.ndarray:
    """All entries of the layers that are pruned."""
    chosen = masks.map_pruned(lambda param, _: param, params, agent.sparse_state.masks, otherwise=lambda _: None)
    return flat(jax.tree.leaves(chosen))


def entries(agent: Any) -> np.ndarray:
    """All entries of the masks."""
    return flat(jax.tree.leaves(masks.unpack_masks(agent.sparse_params, agent.sparse_state.masks))).astype(bool)


def test_numbers_are_those_of_slow_loops() -> None:
    gin_bindings = ["create_updater_from_config.algorithm = 'set'", "create_updater_from_config.update_freq = 2"]
    window = ["create_updater_from_config.update_start_step = 1", "create_updater_from_config.update_end_step = 500"]
    gin.parse_config([*gin_bindings, *window])
    agent = driving.build("jax_dqn", target_policy="at_sync")
    driving.drive(agent, 60, random := np.random.default_rng(0))
    metrics = IterationMetrics(agent)
    before = entries(agent)
    driving.drive(agent, 40, random)
    row = metrics.measure(1)
    online, target = prunable(agent.sparse_params, agent), prunable(agent.target_sparse_params, agent)
    assert row["optimizer_steps"] == int(agent.sparse_state.count) > 0
    assert row["sparsity"] == pytest.approx(float(np.mean(~entries(agent))), abs=1e-6)
    assert row["target_sparsity"] == pytest.approx(float(np.mean(target == 0)), abs=1e-6)
    assert row["target_mask_hamming"] == pytest.approx(float(np.mean((online == 0) != (target == 0))), abs=1e-6)
    assert row["mask_overlap"] == pytest.approx(float(np.mean(entries(agent)[before])), abs=1e-6)
    assert row["mask_overlap"] < 1
    pairs = zip(jax.tree.leaves(agent.sparse_params), jax.tree.leaves(agent.target_sparse_params), strict=True)
    squares = sum(
        float(((np.asarray(online_leaf, np.float64) - target_leaf) ** 2).sum()) for online_leaf, target_leaf in pairs
    )
    assert row["target_l2"] == pytest.approx(squares**0.5, rel=1e-5)
    assert metrics.measure(2)["mask_overlap"] == 1, "nothing has happened since"


def test_a_dense_agent_keeps_all_it_has() -> None:
    row = IterationMetrics(driving.build("jax_dqn")).measure(0)
    assert (row["sparsity"], row["mask_overlap"], row["optimizer_steps"]) == (0, 1, 0)


def test_a_measured_run_is_an_unmeasured_one(tmp_path: Path) -> None:
    short = "Runner.num_iterations = 3"
    resume_worker.start(tmp_path / "plain", short).run_experiment()
    resume_worker.start(tmp_path / "measured", short, "IterationMetrics.plasticity = True").run_experiment()
    rows = {name: (tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("plain", "measured")}
    for plain, measured in zip(rows["plain"], rows["measured"], strict=True):
        assert measured.startswith(plain + ",")
    assert rows["measured"][0].endswith("dormant_share,srank,policy_churn")
    (tmp_path / "measured" / "metrics.csv").write_text((tmp_path / "plain" / "metrics.csv").read_text())
    assert_same(tmp_path / "measured", tmp_path / "plain", iteration=2)


# One for each way in which agents call their networks.
AGENTS = ("jax_dqn", "jax_rainbow", "full_rainbow", "jax_implicit_quantile", "sac", "ppo")


@pytest.mark.parametrize("name", AGENTS)
def test_plasticity_is_measured_on_every_agent(name: str) -> None:
    agent = driving.build(name)
    metrics = IterationMetrics(agent, plasticity=True, states=4)
    assert "srank" not in metrics.measure(0), "no states yet"
    driving.drive(agent, 28, random := np.random.default_rng(0))
    metrics.measure(0)
    key = np.asarray(agent._rng)
    unchanged = metrics.measure(1)
    np.testing.assert_array_equal(np.asarray(agent._rng), key)
    change = "action_distance" if name in ("sac", "ppo") else "policy_churn"
    assert unchanged[change] == 0
    assert 0 <= unchanged["dormant_share"] <= 1
    assert 1 <= unchanged["srank"] <= 4 * 64
    driving.drive(agent, 12, random)
    assert metrics.measure(2)[change] >= 0


def test_units_are_dormant_behind_the_networks_own_activation() -> None:
    agent = driving.build("ppo")
    driving.drive(agent, 20, np.random.default_rng(0))
    states = sample_states(agent, np.random.default_rng((0, 1)), 4)
    shares = {}
    for activation in (jax.nn.tanh, jax.nn.relu):
        network = (agent.network_def, agent.sparse_params, states, jax.random.PRNGKey(0))
        hidden = hidden_activations(*network, activation=activation)
        shares[activation] = float(plasticity.dormant_share(plasticity.dormant_units(hidden, 0.3)))
    assert shares[jax.nn.tanh] != shares[jax.nn.relu]
    metrics = IterationMetrics(agent, plasticity=True, states=4, dormant_threshold=0.3)
    assert metrics.measure(1)["dormant_share"] == shares[jax.nn.tanh]


def test_states_come_from_the_replay_and_leave_its_sampler_alone() -> None:
    agent = driving.build("jax_rainbow")
    driving.drive(agent, 30, np.random.default_rng(0))
    before = pickle.dumps(agent._replay._sampling_distribution.to_state_dict())
    states = np.asarray(sample_states(agent, np.random.default_rng(1), 5))
    assert states.shape == (5, 12, 12, 2)
    stored = [element.unpack().state for element in agent._replay._memory.values()]
    assert all(any(np.array_equal(state, other) for other in stored) for state in states)
    assert pickle.dumps(agent._replay._sampling_distribution.to_state_dict()) == before


def test_too_few_states_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"IterationMetrics.states is 0; give the number of states"):
        IterationMetrics(None, plasticity=True, states=0)


def test_rows_of_lost_iterations_are_cut(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", start=0)
    for iteration in range(3):
        file.append({"iteration": iteration, "return": iteration / 3})
    MetricsFile(tmp_path / "metrics.csv", start=2).append({"iteration": 2, "return": 7.5, "srank": 4})
    assert (tmp_path / "metrics.csv").read_text() == (
        "iteration,return,srank\n0,0.0,\n1,0.3333333333333333,\n2,7.5,4\n"
    )
