"""Dopamine's agents that lose their pruned channels in the middle of a run, and go on from checkpoints."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_plugins import core
from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.rl.dopamine import IterationMetrics
from sparse_plugins.rl.dopamine.checkpoints.bundles import bundle_values, stored_channels
from tests.rl.driving import assert_same_bits, build, drive, reload


def options(step: int = 4, **others: Any) -> dict[str, Any]:
    scheduler = core.OneShotSchedule(step)
    return {
        "updater": "magnitude",
        "sparsity": 0.5,
        "distribution": "uniform",
        "scheduler": scheduler,
        "shrink": True,
    } | others


def size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_an_agent_shrinks_after_the_last_change_and_goes_on_from_its_checkpoint(tmp_path):
    agent = build("jax_dqn", **options())
    assert "pruned channels leave after the last mask change" in agent.describe_plan()
    metrics, random = IterationMetrics(agent), np.random.default_rng(0)
    states = np.random.default_rng(1).normal(size=(5, 4, 1, 1)).astype(np.float32)
    values = lambda params: [np.asarray(agent.network_def.apply(params, x).q_values) for x in states]  # noqa: E731
    pairs: list[Any] = []
    shrink = agent.shrinking.step

    def watched() -> None:
        was, left = [values(agent.sparse_params), values(agent.target_sparse_params)], agent.shrinking.left
        steps = int(agent.sparse_state.count)
        shrink()
        if agent.shrinking.left is not left:
            pairs.append((steps, was, [values(agent.sparse_params), values(agent.target_sparse_params)]))

    agent.shrinking.step = watched
    drive(agent, 20, random)  # fewer than the warm-up
    assert (agent.shrinking.left, size(agent.sparse_params)) == ({}, 403)
    early = reload(agent, tmp_path / "early", "jax_dqn", **options())
    drive(agent, 20, random)
    assert int(agent.sparse_state.count) > 5, "trained after the last change"
    ((steps, was, now),) = pairs
    assert steps == 5, "the first step after the last change"
    np.testing.assert_allclose(was, now, atol=1e-5)
    assert {name: len(left) for name, left in agent.shrinking.left.items()} == dict.fromkeys(agent.shrinking.left, 8)
    assert size(agent.sparse_params) == size(agent.target_sparse_params) == 4 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    assert metrics.measure(0)["parameters"] == 139

    again = reload(agent, tmp_path / "late", "jax_dqn", **options())
    early.unbundle(str(tmp_path / "late"), 0, agent.bundle_and_checkpoint(str(tmp_path / "late"), 0))
    for other in (again, early):
        assert_same_bits(other.optimizer_state, agent.optimizer_state)
        assert other.shrinking.channels.keys() == agent.shrinking.channels.keys()
    for each in (agent, again, early):
        drive(each, 26, np.random.default_rng(2))
        each.eval_mode = True
        drive(each, 3, np.random.default_rng(3))
    for other in (again, early):
        assert_same_bits(other.sparse_params, agent.sparse_params)
        assert_same_bits(other.target_sparse_params, agent.target_sparse_params)
        assert_same_bits(other.optimizer_state, agent.optimizer_state)
    assert int(agent.sparse_state.count) > 15
    assert metrics.measure(1)["mask_overlap"] == 1


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["jax_rainbow", "jax_quantile", "jax_implicit_quantile", "sac", "ppo"])
def test_other_agents_shrink_and_go_on_from_their_checkpoints(name, tmp_path):
    agent = build(name, **options())
    before = size(agent.sparse_params)
    drive(agent, 60, np.random.default_rng(0))
    assert size(agent.sparse_params) < 0.65 * before
    again = reload(agent, tmp_path / "late", name, **options())
    for each in (agent, again):
        drive(each, 10, np.random.default_rng(1))
    assert_same_bits(again.sparse_params, agent.sparse_params)
    assert_same_bits(again.optimizer_state, agent.optimizer_state)


def test_checkpoints_that_are_not_the_agents_leave_it_as_it_was(tmp_path):
    agent = build("jax_dqn", **options(step=0))
    drive(agent, 26, np.random.default_rng(0))
    assert agent.shrinking.left
    bundle = agent.bundle_and_checkpoint(str(tmp_path), 0)
    whole = build("jax_dqn", **options(step=0))
    params = jax.tree.map(jnp.copy, whole.sparse_params)
    other = {**bundle, "channels": {name: left[1:] for name, left in bundle["channels"].items()}}
    with pytest.raises(CheckpointMismatchError, match="shrink=True has"):
        whole.unbundle(str(tmp_path), 0, other)
    with pytest.raises(CheckpointMismatchError, match="the checkpoint has target sparsities"):
        whole.unbundle(str(tmp_path), 0, {**bundle, "optimizer_state": whole.optimizer_state})
    assert whole.shrinking.left == {}
    assert_same_bits(whole.sparse_params, params)
    values = bundle_values(bundle)
    values["channels"] = [[name, np.zeros_like(left)] for name, left in values["channels"]]
    with pytest.raises((DamagedFileError, ValueError), match=r"has none left|allowed is"):
        stored_channels(values, whole)
    dense = build("jax_dqn", **options(step=0, shrink=False))
    with pytest.raises(CheckpointMismatchError):
        dense.unbundle(str(tmp_path), 0, bundle)


def test_agents_that_cannot_shrink_are_named():
    with pytest.raises(ValueError, match=r"shrink=True prunes channels as wholes, and the updater has the structure"):
        build("jax_dqn", **options(structure="2:4"))
    endless = options(updater="set", scheduler=core.PeriodicSchedule(10, 0))
    with pytest.raises(ValueError, match="masks change without an end"):
        build("jax_dqn", **endless)
    with pytest.raises(ValueError, match="shrink=True and target_policy 'dense' exclude each other"):
        build("jax_dqn", **options(target_policy="dense"))
    with pytest.raises(ValueError, match="ReDo gives units a new start"):
        build("redo_dqn", **options())
    agent = build("jax_dqn", **options())
    with pytest.raises(ValueError, match="hidden units leave the network"):
        IterationMetrics(agent, plasticity=True)


def test_a_checkpoint_written_with_another_shrink_says_so(tmp_path):
    small, whole = build("jax_dqn", **options(step=0)), build("jax_dqn", **options(step=0, shrink=False))
    for writer, reader in ((small, whole), (whole, small)):
        bundle = writer.bundle_and_checkpoint(str(tmp_path), 0)
        words = (
            f"written with shrink={writer is small}, and .* has shrink={reader is small}: .*Give the run the settings"
        )
        with pytest.raises(CheckpointMismatchError, match=words):
            reader.unbundle(str(tmp_path), 0, bundle)
        with pytest.raises(CheckpointMismatchError, match=words):
            stored_channels(bundle_values(bundle), reader)


def test_channels_of_a_checkpoint_are_taken_without_computing_with_zeros():
    """Of parameters of nothing but zeros, a network that divides by their norm computes NaN."""
    agent = build("jax_dqn", **options(step=0))
    graph = agent.shrinking._graph
    apply = graph.apply

    def normed(params: Any, *inputs: Any) -> Any:
        largest = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)))
        return jax.tree.map(lambda output: output / largest, apply(params, *inputs))

    agent.shrinking._graph = dataclasses.replace(graph, apply=normed)
    half = {name: np.arange(g.size) < g.size // 2 for name, g in graph.groups.items()}
    before = agent.shrinking.take(half)
    assert [len(left) for left in agent.shrinking.left.values()] == [g.size // 2 for g in graph.groups.values()]
    agent.shrinking.give_back(before)
    assert agent.shrinking.left == {}
