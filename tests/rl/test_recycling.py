import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.core.masks import apply_masks
from sparse_plugins.rl import dopamine, plasticity
from sparse_plugins.rl.dopamine.recycling import SparseRecycledDQNAgent
from sparse_plugins.rl.plasticity.activations import layer_graph, recyclable
from sparse_plugins.rl.plasticity.links import find_links
from tests.rl.driving import assert_same_bits, drive, outside_masks
from tests.rl.driving import build as build_agent
from tests.rl.driving import reload as reload_agent

RESETS = ["BaseRecycler.reset_period = 7", "BaseRecycler.dead_neurons_threshold = 0.4"]
RARELY = ["BaseRecycler.reset_period = 1000000", "BaseRecycler.logging_period = 1000000"]
INTO = pytest.mark.parametrize("into", ["mask", "growth"])
SMALL = {"agent_class": SparseRecycledDQNAgent, "width": 0.125, "batch_size_statistics": 16}


def updater_of(pruner: str = "static_sparse", **options) -> core.BaseUpdater:
    ramp = {"update_start_step": 4, "update_end_step": 60, "update_freq": 4}
    return dopamine.create_updater_from_config(pruner, sparsity=0.8, **{**ramp, **options})


def build(bindings: list[str], **options) -> SparseRecycledDQNAgent:
    gin.parse_config(bindings)
    return build_agent("redo_dqn", **{"updater": updater_of(), "reset_mode": "neurons", **SMALL, **options})


def kept(agent: SparseRecycledDQNAgent) -> list[int]:
    masks = core.unpack_masks(agent.sparse_params, agent.sparse_state.masks)
    return [int(mask.sum()) for mask in jax.tree.leaves(masks)]


@INTO
def test_a_run_with_resets_is_exactly_sparse_and_goes_on_from_a_checkpoint(into, tmp_path):
    bindings = [*RESETS, f"MaskedRecycler.recycle_into = '{into}'"]
    agent = build(bindings)
    at_first, resets = kept(agent), []
    recycle = agent.weight_recycler.update_weights
    agent.weight_recycler.update_weights = lambda *given: resets.append(agent.gradient_step) or recycle(*given)
    random = np.random.default_rng(0)
    for _ in range(12):
        drive(agent, 25, random)
        assert kept(agent) == at_first
        assert outside_masks(agent.sparse_params, agent.sparse_state) == 0
        assert outside_masks(agent.target_sparse_params, agent.sparse_state) == 0
    assert resets == list(range(14, 150, 7))

    again = reload_agent(
        agent, tmp_path / "checkpoint", "redo_dqn", updater=updater_of(), reset_mode="neurons", **SMALL
    )
    assert_same_bits(again.optimizer_state, agent.optimizer_state)
    for driven in (agent, again):
        drive(driven, 50, np.random.default_rng(1))
    assert resets[-1] > 150
    for name in ("optimizer_state", "sparse_params", "target_sparse_params", "_rng"):
        assert_same_bits(getattr(again, name), getattr(agent, name))


@INTO
def test_of_dormant_units_weights_and_moments_start_anew(into):
    agent = build([*RESETS, "BaseRecycler.reset_period = 1000000", f"MaskedRecycler.recycle_into = '{into}'"])
    drive(agent, 60, np.random.default_rng(0))
    intermediates, params = agent.get_intermediates(agent.online_params), agent.online_params
    hidden = {layer: node["__call__"][0] for layer, node in intermediates.items()}
    dormant = plasticity.dormant_units(hidden, 0.4)
    assert 0 < float(plasticity.dormant_share(dormant)) < 1
    graph = recyclable(layer_graph(agent.network_def, params, jnp.zeros((12, 12, 2))))
    assert len(graph) == 4
    links = find_links(params, dormant, graph)

    new_params, new_state = agent.weight_recycler.update_weights(
        intermediates, params, jax.random.PRNGKey(0), agent.optimizer_state
    )
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    before, after = (
        next(filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam))) for state in (agent.optimizer_state, new_state)
    )
    assert int(after.count) == int(before.count) > 0
    for moment in ("mu", "nu"):
        for old, new, into_unit, out_of in zip(
            *map(jax.tree.leaves, (getattr(before, moment), getattr(after, moment), *links)), strict=True
        ):
            restarted = np.asarray(into_unit | out_of)
            assert not np.any(np.asarray(new)[restarted])
            if into == "mask":
                assert np.array_equal(np.asarray(new)[~restarted], np.asarray(old)[~restarted])
    silent = jax.tree.map(lambda p, leads_in, out: jnp.where(out & ~leads_in, p, 0.0), new_params, *links)
    assert not any(leaf.any() for leaf in jax.tree.leaves(silent))
    assert_same_bits(apply_masks(new_params, core.find_sparse_state(new_state).masks), new_params)


def test_looking_at_neurons_changes_nothing():
    often = build([*RARELY, "BaseRecycler.logging_period = 3"])
    drive(often, 90, np.random.default_rng(0))
    logged = {statistic.name for statistic in often.collector_dispatcher.written}
    assert {"dead_feature_percentage", "dead_feature_count/params/Conv_0"} <= logged
    gin.clear_config()
    never = build(RARELY)
    drive(never, 90, np.random.default_rng(0))
    assert_same_bits(often.online_params, never.online_params)
    assert_same_bits(often.optimizer_state, never.optimizer_state)
    random = lambda agent: agent._replay._sampling_distribution._rng.bit_generator.state  # noqa: E731
    assert random(often) == random(never)


def test_weight_decay_stays_inside_the_mask_and_in_a_checkpoint(tmp_path):
    options = {"weight_decay": 0.01, "updater": updater_of("magnitude_ste", update_start_step=0)}
    agent = build(RESETS, **options)
    dense = agent.sparse_state.dense_params["params"]["Conv_0"]["kernel"]
    assert np.all(np.asarray(dense) != 0), "dense weights are those before step 0"
    drive(agent, 60, np.random.default_rng(0))
    assert outside_masks(agent.sparse_params, agent.sparse_state) == 0
    again = reload_agent(agent, tmp_path / "checkpoint", "redo_dqn", reset_mode="neurons", **SMALL, **options)
    for driven in (agent, again):
        drive(driven, 30, np.random.default_rng(1))
    assert_same_bits(again.optimizer_state, agent.optimizer_state)
    assert_same_bits(again.online_params, agent.online_params)


def test_a_run_without_a_seed_goes_on_looking_at_the_same_states(tmp_path):
    agent = build(RARELY)
    agent._seed = 1793000000000001  # the time of the start, if none is bound
    drive(agent, 60, np.random.default_rng(0))
    options = {"updater": updater_of(), "reset_mode": "neurons", **SMALL}
    again = reload_agent(agent, tmp_path / "checkpoint", "redo_dqn", **options)
    again.gradient_step = agent.gradient_step
    assert_same_bits(again._sample_batch_for_statistics(), agent._sample_batch_for_statistics())


def test_settings_of_dopamines_recycler_hold():
    agent = build([*RESETS, "BaseRecycler.reset_start_step = 20", "BaseRecycler.reset_end_step = 30"])
    due = [step for step in range(60) if agent.weight_recycler.is_reset(step)]
    assert due == [21, 28]
    assert [step for step in range(30) if agent.weight_recycler.is_intermediated_required(step)] == [0, 7, 14, 21, 28]


def test_layers_before_the_first_to_be_reset_are_left_alone():
    agent = build([*RESETS, "BaseRecycler.reset_start_layer_idx = 3"])
    silent = {
        layer: {"__call__": (jnp.zeros_like(node["__call__"][0]),)}
        for layer, node in _intermediates_of_single_state(agent).items()
    }
    new, _ = agent.weight_recycler.update_weights(
        silent, agent.online_params, jax.random.PRNGKey(0), agent.optimizer_state
    )
    same = {
        name: np.array_equal(new["params"][name]["kernel"], agent.online_params["params"][name]["kernel"])
        for name in new["params"]
    }
    assert same == {"Conv_0": True, "Conv_1": True, "Conv_2": True, "Dense_0": False, "final_layer": False}


def _intermediates_of_single_state(agent: SparseRecycledDQNAgent) -> dict:
    hidden = agent._activations(agent.online_params, jnp.zeros((1, 12, 12, 2)))
    return {layer: {"__call__": (activations,)} for layer, activations in hidden.items()}


def test_several_updates_per_step_are_in_the_clock():
    gin.parse_config("RecycledDQNAgent.num_updates_per_train_step = 4")
    assert build(RARELY).clock.period == 0.5


@pytest.mark.parametrize(
    ("bindings", "options", "message"),
    [
        ([], {"reset_mode": "weights"}, "reset_mode is 'weights'.*allowed are None, 'neurons'"),
        (["RecycledDQNAgent.reset_mode = 'neurons_scheduled'"], {"reset_mode": None}, "is 'neurons_scheduled'"),
        (["MaskedRecycler.recycle_into = 'masks'"], {}, "recycle_into is 'masks'; allowed are mask, growth"),
        (["NeuronRecycler.weight_scaling = True"], {}, "weight_scaling=True; with masks"),
        (["NeuronRecycler.init_method_outgoing = 'random'"], {}, "init_method_outgoing='random'"),
        (
            ["MaskedRecycler.recycle_into = 'growth'"],
            {"updater": functools.partial(updater_of, "magnitude_ste")},
            "masks of SteMagnitudePruning follow the dense weights",
        ),
    ],
)
def test_what_masks_do_not_allow_is_refused_when_the_agent_is_built(bindings, options, message):
    made = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        build(bindings, **made)
