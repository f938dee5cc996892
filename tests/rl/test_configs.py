"""Every gin file of the package, by itself: it parses, its agent is built on its real environment and acts."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gin
import pytest

from sparse_plugins import core
from sparse_plugins.rl.dopamine import configs
from sparse_plugins.rl.dopamine.runners import create_sparse_runner
from tests.rl.driving import outside_masks

FOLDER = Path(configs.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.gin"))
UPDATER = "create_updater_from_config"

# What makes networks fast to compile, and files fast to run. Pong stays as it is.
_SMALL_SCREEN = {"AtariPreprocessing.screen_size": 28, "JaxDQNAgent.observation_shape": (28, 28)}
_NARROW_IMPALA = {"ImpalaEncoder.num_blocks": 1, "ImpalaEncoder.stack_sizes": (2, 2, 2)}
NARROW: dict[str, dict[str, Any]] = {
    "atari_100k_der": _SMALL_SCREEN,
    "atari_100k_drq_eps": _SMALL_SCREEN,
    "impala_dqn": {**_SMALL_SCREEN, **_NARROW_IMPALA},
    "impala_rainbow": {**_SMALL_SCREEN, **_NARROW_IMPALA, "JaxRainbowAgent.observation_shape": (28, 28)},
    "mspacman_dqn": _SMALL_SCREEN,
    "pendulum_ppo": {"PPOAgent.num_layers": 1, "PPOAgent.hidden_units": 16},
    "pendulum_sac": {"SACAgent.num_layers": 1, "SACAgent.hidden_units": 16},
    "redo_dqn": {"RecycledDQNAgent.width": 0.125},
}
FAST: dict[str, Any] = {
    "JaxDQNAgent.min_replay_history": 8,
    "ReplayBuffer.batch_size": 4,
    "ReplayBuffer.max_capacity": 64,
    "Runner.num_iterations": 1,
    "Runner.training_steps": 40,
    "Runner.evaluation_steps": 8,
    "Runner.max_steps_per_episode": 24,
    f"{UPDATER}.step_unit": "optimizer step",
    f"{UPDATER}.update_start_step": 1,
    f"{UPDATER}.update_end_step": 3,
    f"{UPDATER}.update_freq": 2,
}
_PRIORITIZED = {"PrioritizedSamplingDistribution.max_capacity": 64}
_RAINBOW = {"JaxRainbowAgent.min_replay_history": 8, **_PRIORITIZED}
_LAB = {
    "DataEfficientAtariRunner.max_noops": 0,
    "DataEfficientAtariRunner.num_eval_envs": 1,
    "DataEfficientAtariRunner.num_eval_episodes": 1,
    "JaxDQNAgent.update_period": 4,
    **_PRIORITIZED,
}
FAST_FOR: dict[str, dict[str, Any]] = {
    "atari_100k_der": _LAB,
    "atari_100k_drq_eps": _LAB,
    "cartpole_rainbow": _RAINBOW,
    "impala_rainbow": _RAINBOW,
    "pendulum_ppo": {"PPOAgent.update_period": 16, "PPOAgent.batch_size": 8, "ReplayBuffer.batch_size": 16},
    "pendulum_sac": {"SACAgent.min_replay_history": 8},
    "redo_dqn": {"BaseRecycler.reset_period": 3, "RecycledDQNAgent.batch_size_statistics": 8},
}


def parse(name: str, bindings: Mapping[str, Any] = MappingProxyType({})) -> None:
    lines = [f"{parameter} = {value!r}" for parameter, value in bindings.items()]
    gin.parse_config_files_and_bindings([str(FOLDER / f"{name}.gin")], lines, skip_unknown=False)


def test_there_are_files() -> None:
    assert {"cartpole_dqn", "mspacman_dqn", "impala_rainbow", "pendulum_sac"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_masks_reach_their_target_in_training(name: str, tmp_path: Path) -> None:
    parse(name, NARROW.get(name, {}))
    built = create_sparse_runner(str(tmp_path))
    agent, steps = built._agent, built._num_iterations * built._training_steps
    last = agent.updater.scheduler.refresh_steps()[-1]
    assert 0 < agent.clock.environment_step(last) < steps
    assert f"last mask change: optimizer step {last:,} = environment step" in agent.describe_plan()


@pytest.mark.parametrize("name", NAMES)
def test_the_agent_learns_on_its_masks(name: str, tmp_path: Path) -> None:
    parse(name, FAST | FAST_FOR.get(name, {}) | NARROW.get(name, {}))
    built = create_sparse_runner(str(tmp_path))
    built.run_experiment()
    agent = built._agent
    assert int(agent.sparse_state.count) > 3
    params, stored = agent.sparse_params, agent.sparse_state.masks
    assert outside_masks(params, agent.sparse_state) == 0
    # Of the masks, not of the weights: a recycled unit's outgoing weights start at 0 inside the mask.
    summary = core.summarize_sparsity(core.unpack_masks(params, stored), masks=stored)
    assert float(summary["_total_sparsity"]) == pytest.approx(gin.query_parameter(f"{UPDATER}.sparsity"), abs=0.01)


def test_a_misspelt_binding_is_an_error() -> None:
    with pytest.raises(ValueError, match="create_updatr_from_config"):
        parse("cartpole_dqn", {"create_updatr_from_config.sparsity": 0.3})
    parse("cartpole_dqn", {f"{UPDATER}.drop_fracion": 0.3})
    with pytest.raises(ValueError, match=r"'drop_fracion' is unknown.*Did you mean 'drop_fraction'"):
        gin.get_configurable(UPDATER)()


def test_files_find_what_they_include_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gin.parse_config_file("sparse_plugins/rl/dopamine/configs/impala_dqn.gin")
    assert gin.query_parameter("atari_lib.create_atari_environment.game_name") == "Pong"
    assert gin.query_parameter("Runner.num_iterations") == 40, "what follows an include wins"


def test_mspacman_is_the_papers(tmp_path: Path) -> None:
    parse("mspacman_dqn", NARROW["mspacman_dqn"])
    agent = create_sparse_runner(str(tmp_path))._agent
    assert agent.num_actions == 9
    plan = agent.describe_plan()
    assert "first mask change: optimizer step 500,000 = environment step 2.02M = frame 8.08M" in plan
    assert "last mask change: optimizer step 2,000,000 = environment step 8.02M = frame 32.1M" in plan
