"""gin bindings: the paper's names, scopes for modules, and what a misspelt one says."""

import functools

import gin
import jax
import jax.numpy as jnp
import pytest
from dopamine.discrete_domains import gym_lib
from dopamine.jax import networks

from sparse_plugins import core
from sparse_plugins.rl import dopamine
from tests.rl.driving import REPLAY, outside_masks

MODULES = """
    create_agent.agent_name = 'sac'
    SACAgent.hidden_units = 16
    SACAgent.seed = 0
    create_sparse_agent.updater = @PerModule()
    PerModule.updaters = [('params/_actor/.*', @actor/create_updater_from_config()),
                          ('params/_critic.*', @critic/create_updater_from_config())]
    actor/create_updater_from_config.pruner_type = 'static_sparse'
    actor/create_updater_from_config.sparsity = 0.95
    critic/create_updater_from_config.pruner_type = 'set'
    critic/create_updater_from_config.sparsity = 0.5
    create_updater_from_config.dist_type = 'uniform'
    create_updater_from_config.update_start_step = 100
    create_updater_from_config.update_end_step = 500
    create_updater_from_config.update_freq = 100
"""


GRADUAL = {"pruner_type": "magnitude", "update_start_step": 1, "update_end_step": 9, "update_freq": 2}


def test_the_names_of_the_paper_describe_the_updater():
    gin.parse_config("""
        create_updater_from_config.pruner_type = 'rigl'
        create_updater_from_config.dist_type = 'erk'
        create_updater_from_config.sparsity = 0.98
        create_updater_from_config.update_start_step = 1
        create_updater_from_config.update_end_step = 2_000_000
        create_updater_from_config.update_freq = 5_000
        create_updater_from_config.drop_fraction = 0.3
        create_updater_from_config.rng_seed = 5
    """)
    updater = dopamine.create_updater_from_config()
    assert type(updater) is core.RigL
    assert updater.scheduler == core.PeriodicSchedule(5_000, 1, 2_000_000)
    assert (float(updater.drop_fraction_fn(0)), updater.rng_seed) == (0.3, 5)


def test_every_key_of_a_configuration_can_be_bound():
    gin.parse_config("""
        create_updater_from_config.pruner_type = 'global_magnitude'
        create_updater_from_config.use_normalization = True
        create_updater_from_config.normalization_eps = 1e-3
        create_updater_from_config.custom_sparsity_map = {'head': 0.25}
    """)
    updater = dopamine.create_updater_from_config()
    assert (updater.use_normalization, updater.normalization_eps) == (True, 1e-3)
    assert updater.custom_sparsity_map == {"head": 0.25}


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("create_updater_from_config.drop_fracion = 0.3", "drop_fracion"),
        ("create_updater_from_config.pruner_type = 'magnitud'", "Did you mean 'magnitude'"),
        ("create_updater_from_config.step_unit = 'agent step'", "step_unit is 'agent step'; allowed are"),
        ("create_sparse_agent.target_policy = 'sync'", "allowed are at_mask_update, at_sync, after_polyak, dense"),
        ("create_sparse_agent.agent_name = 'dqn'", "agent_name is 'dqn'; allowed are jax_dqn, jax_rainbow"),
        ("create_sparse_agent.agent_nam = 'dqn'", "agent_nam"),
        ("create_sparse_agent.sparsity = 0.9", "got sparsity, which it takes beside an algorithm only"),
    ],
)
def test_a_misspelt_binding_is_an_error(binding, message):
    gin.parse_config([*REPLAY, "create_agent.agent_name = 'jax_dqn'"])
    gin.parse_config([f"create_updater_from_config.{name} = {value!r}" for name, value in GRADUAL.items()])

    def run():
        gin.parse_config(binding)
        dopamine.create_sparse_agent(None, gym_lib.create_gym_environment("CartPole", "v1"))

    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize(
    ("agent", "asked", "message"),
    [
        ("ppo", {"target_policy": "at_sync"}, "target_policy is at_sync, and this agent has no target network"),
        ("sac", {"debug_mode": True}, "debug_mode is True, and 'sac' and 'ppo' write no summaries"),
    ],
)
def test_what_an_agent_has_no_use_for_is_an_error(agent, asked, message):
    gin.parse_config(REPLAY)
    with pytest.raises(ValueError, match=message):
        dopamine.create_sparse_agent(
            None, gym_lib.create_gym_environment("Pendulum", "v1"), agent_name=agent, updater=core.NoPruning(), **asked
        )


def test_a_schedule_for_agents_that_have_their_own_is_an_error(tmp_path):
    gin.parse_config("create_agent.agent_name = 'atari_100k_rainbow'")
    with pytest.raises(ValueError, match="schedule is 'continuous_train', and agents of the Atari-100k benchmark have"):
        dopamine.create_sparse_runner(str(tmp_path), schedule="continuous_train")


def test_scopes_give_actor_and_critic_updaters_of_their_own():
    gin.parse_config([*REPLAY, MODULES])
    agent = dopamine.create_sparse_agent(None, gym_lib.create_gym_environment("Pendulum", "v1"))
    sparsity = {name: float(value) for name, value in core.summarize_sparsity(agent.sparse_params).items()}
    kernels = {name: value for name, value in sparsity.items() if name.endswith("/kernel")}
    for name, value in kernels.items():
        assert value == pytest.approx(0.95 if "_actor" in name else 0.5, abs=0.03)
    assert len(kernels) == 9
    assert outside_masks(agent.target_sparse_params, agent.sparse_state) == 0
    assert "params/_critic.*: first mask change: optimizer step 100 = environment step 20.1k" in agent.describe_plan()


@pytest.mark.parametrize("name", sorted(dopamine.AGENTS))
def test_every_agent_can_be_named_in_gin(name):
    (selector,) = gin.config._REGISTRY.matching_selectors(dopamine.AGENTS[name].__name__)
    assert selector == f"sparse_plugins.rl.{dopamine.AGENTS[name].__name__}"


@pytest.mark.parametrize("width", [1, 2])
def test_erk_is_solved_for_the_real_shapes_of_impala_at_any_width(width):
    """rigl/rl took them from a table of its own, which is wrong for every width but 1."""
    network = functools.partial(networks.ImpalaDQNNetwork, nn_scale=width)
    variables = jax.eval_shape(network(num_actions=6).init, jax.random.key(0), jnp.zeros((84, 84, 4)))
    updater = dopamine.create_updater_from_config("static_sparse", sparsity=0.95)
    targets = jax.tree.leaves(updater.target_sparsities(variables))
    sizes = [leaf.size for leaf in jax.tree.leaves(variables) if leaf.ndim > 1]
    kept = [round((1 - target) * size) for target, size in zip(targets, sizes, strict=True)]
    assert sum(kept) == round(0.05 * sum(sizes))
    assert (11 * 11 * 32 * width, 512) in [leaf.shape for leaf in jax.tree.leaves(variables)]
