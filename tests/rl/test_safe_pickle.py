"""A checkpoint builds what checkpoints are made of, and calls nothing else, whoever wrote it."""

import collections
import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from dopamine.discrete_domains import gym_lib
from dopamine.jax.replay_memory import accumulator, replay_buffer
from flax import serialization

from sparse_plugins import core
from sparse_plugins.rl.dopamine import UnsafeCheckpointError, allow_in_checkpoints, safe_pickle
from sparse_plugins.rl.dopamine.run_folder import SealedCheckpointer
from sparse_plugins.rl.dopamine.snapshots import restore_environment, take_snapshot
from tests.rl import driving


class Trap:
    """Its pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Weather:
    """State of someone's environment."""

    def __init__(self) -> None:
        self.rain = 3


BITS = (np.random.PCG64, np.random.MT19937)
VALUES = {
    "containers": {"a": [1, (2.0, None)], "b": {3}, "c": collections.deque([4], maxlen=5), "d": b"7"},
    "numpy": np.arange(6).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.float32(1.5),
    "objects": np.array([None, "a"], dtype=object),
    "bfloat16": np.ones(3, ml_dtypes.bfloat16),
    "jax": jnp.arange(3.0),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_checkpoints_are_made_of_comes_back(name: str) -> None:
    back = safe_pickle.loads(safe_pickle.dumps(VALUES[name]))
    assert jax.tree.structure(back) == jax.tree.structure(VALUES[name])
    jax.tree.map(np.testing.assert_array_equal, back, VALUES[name])
    assert str(getattr(back, "dtype", "")) == str(getattr(VALUES[name], "dtype", ""))


@pytest.mark.parametrize("bits", BITS)
def test_random_generators_go_on(bits: Any) -> None:
    generator = np.random.Generator(bits(3))
    back = safe_pickle.loads(safe_pickle.dumps(generator))
    assert (back.integers(1000, size=9) == generator.integers(1000, size=9)).all()


def test_states_of_updaters_and_spaces_come_back() -> None:
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    state = core.RigL().wrap_optax(optax.adamw(1e-3)).init(params)
    back = safe_pickle.loads(safe_pickle.dumps(state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(0, 1, (2,)), "y": gymnasium.spaces.Discrete(3)})
    assert safe_pickle.loads(safe_pickle.dumps(space)) == space


def test_what_it_must_not_call_is_refused_before_it_is_called(tmp_path: Path) -> None:
    trap, sprung = pickle.dumps({"step": 3, "x": Trap(tmp_path / "sprung")}), tmp_path / "sprung"
    with pytest.raises(UnsafeCheckpointError, match="not among what checkpoints are made of"):
        safe_pickle.loads(trap)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists(), "the trap works"


@pytest.mark.parametrize("name", ["os system", "builtins eval", "functools partial", "numpy load", "operator call"])
def test_no_function_gets_through(name: str) -> None:
    with pytest.raises(UnsafeCheckpointError, match=f"names {name.replace(' ', '.')}"):
        safe_pickle.loads(f"c{name.replace(' ', chr(10))}\n.".encode())


def test_nothing_is_imported() -> None:
    assert "this" not in sys.modules
    with pytest.raises(UnsafeCheckpointError):
        safe_pickle.loads(b"cthis\ns\n.")
    assert "this" not in sys.modules


def test_a_checkpoint_from_a_stranger_runs_nothing_though_its_digest_is_right(tmp_path: Path) -> None:
    content = pickle.dumps({"agent": Trap(tmp_path / "sprung")})
    (tmp_path / "ckpt.0").write_bytes(content + b"sparse-plugins sha256 " + hashlib.sha256(content).digest())
    (tmp_path / "sentinel_checkpoint_complete.0").touch()
    with pytest.raises(UnsafeCheckpointError, match="from someone else, do not read it"):
        SealedCheckpointer(str(tmp_path)).newest()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("part", ["memory", "transition_accumulator"])
def test_a_replay_from_a_stranger_runs_nothing(part: str, tmp_path: Path) -> None:
    agent, sprung = driving.build("jax_dqn"), tmp_path / "sprung"
    driving.drive(agent, 30, np.random.default_rng(0))
    bundle = agent.bundle_and_checkpoint(str(tmp_path), 0)
    file = next(tmp_path.rglob("*.msgpack"))
    whole = file.read_bytes()
    content = serialization.msgpack_restore(whole)
    content[part]["treedef"] = pickle.dumps(Trap(sprung))
    file.write_bytes(serialization.msgpack_serialize(content))
    other = driving.build("jax_dqn")
    with pytest.raises(UnsafeCheckpointError, match=r"names pathlib\.Path\.touch"):
        other.unbundle(str(tmp_path), 0, bundle)
    assert not sprung.exists()
    assert replay_buffer.pickle is accumulator.pickle is pickle, "for others nothing has changed"
    file.write_bytes(whole)
    assert other.unbundle(str(tmp_path), 0, bundle)
    assert list(other._replay._memory) == list(agent._replay._memory)
    for one, same in zip(other._replay._memory.values(), agent._replay._memory.values(), strict=True):
        driving.assert_same_bits(one, same)


def test_a_state_of_ones_own_is_refused_when_it_is_saved_and_allowed_on_request(monkeypatch: Any) -> None:
    monkeypatch.setattr(safe_pickle, "_OWN", set())
    environment, other = (gym_lib.create_gym_environment("CartPole", "v1") for _ in range(2))
    environment.weather = Weather()
    with pytest.raises(TypeError, match=r"weather is a Weather, .* call sparse_plugins.rl.dopamine.allow_in_checkp"):
        take_snapshot(environment, in_episode=True)
    allow_in_checkpoints(Weather)
    restore_environment(other, take_snapshot(environment, in_episode=True))
    assert other.weather.rain == 3
