"""Dopamine is repaired for itself alone, and left alone where it needs no repair."""

import importlib
import subprocess
import sys
import types

import gin
import pytest

from sparse_plugins.rl import compat


def test_the_import_leaves_no_trace_outside_dopamine():
    runners = compat.import_dopamine()
    assert compat.import_dopamine() is runners
    assert not [name for name in sys.modules if name.partition(".")[0] == "baselines"]
    assert not hasattr(importlib.import_module("jax.interpreters.xla"), "pytype_aval_mappings")


def test_what_is_there_already_is_not_replaced(monkeypatch):
    baselines, table = types.ModuleType("baselines"), {}
    monkeypatch.setitem(sys.modules, "baselines", baselines)
    monkeypatch.setattr("jax.interpreters.xla.pytype_aval_mappings", table, raising=False)
    for patch in compat.PATCHES:
        with patch.during_import():
            assert sys.modules["baselines"] is baselines
            assert sys.modules["jax.interpreters.xla"].pytype_aval_mappings is table
    assert sys.modules["baselines"] is baselines
    assert sys.modules["jax.interpreters.xla"].pytype_aval_mappings is table


def test_the_stand_in_says_what_is_missing_when_it_is_used():
    from dopamine.discrete_domains import atari_lib

    with pytest.raises(ImportError, match=r"atari_wrappers.NoopResetEnv belongs to OpenAI's baselines.*use_ppo"):
        atari_lib.create_atari_environment("Pong", use_ppo_preprocessing=True)


@pytest.mark.parametrize("name", ["identity_epsilon", "linearly_decaying_epsilon"])
def test_names_that_upstreams_configurations_use_are_not_ambiguous(name):
    gin.parse_config([f"JaxDQNAgent.epsilon_fn = @dqn_agent.{name}"])
    (bound,) = gin.config._REGISTRY.matching_selectors(f"dqn_agent.{name}")
    assert bound.startswith("dopamine.jax.")
    assert not any(patch.after_import() for patch in compat.PATCHES), "a second time changes nothing"


def test_every_patch_says_since_when_and_why():
    for patch in compat.PATCHES:
        assert patch.version.split()[0] in ("dopamine-rl", "jax")
        assert len(patch.reason) > 80


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    code = "import sys; sys.modules['gymnasium'] = None; import sparse_plugins.rl.dopamine"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'needs gymnasium, which is not installed; run: pip install "sparse-plugins[dopamine]"' in run.stderr


def test_rl_itself_needs_neither_tensorflow_nor_dopamine():
    code = (
        "import sys; from sparse_plugins import rl; from sparse_plugins.rl import plasticity, redo; "
        "assert not {'tensorflow', 'dopamine', 'flax', 'gin', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
