"""The comparison with purejaxql, whose part is played by a module that hands a trained network back as it does."""

import csv
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.versus_purejaxql import our_side, their_side
from experiments.versus_purejaxql.__main__ import main

STEPS = 10 * 4_096
SETTINGS = "LR: 0.0005\nTOTAL_TIMESTEPS: 1e7\nEPS_START: 1.\nEPS_DECAY: 0.1\nENV_NAME: Asterix-MinAtar\n"
MODULE = """
from typing import Any, NamedTuple

import gymnax
import hydra
import jax
import jax.numpy as jnp
import wandb
from gymnax.wrappers.purerl import LogWrapper


class TrainState(NamedTuple):
    params: Any


def make_train(config):
    assert config["TOTAL_TIMESTEPS"] == config["TOTAL_TIMESTEPS_DECAY"] == 40960
    assert config["LR"] == 5e-4 and config["EPS_START"] == 1.0

    def train(rng):
        game, fields = gymnax.make(config["ENV_NAME"])
        game = LogWrapper(game)
        observation, state = game.reset(rng, fields)
        observation, state, reward, done, info = game.step(rng, state, 0, fields)
        layer = lambda *shape: {"kernel": jax.random.normal(rng, shape), "bias": jnp.full(shape[-1], 0.25)}
        norm = lambda size: {"scale": jnp.full(size, 0.5), "bias": jnp.full(size, -0.125)}
        torso = {"Conv_0": layer(3, 3, 4, 16), "Dense_0": layer(1024, 128)}
        torso |= {"LayerNorm_0": norm(16), "LayerNorm_1": norm(128)}
        params = {"CNN_0": torso, "Dense_0": layer(128, 3), "BatchNorm_0": norm(4)}
        return {"runner_state": (TrainState(params), reward, done)}

    return train


@hydra.main(version_base=None)
def main(config):
    wandb.init()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "checkout" / "purejaxql"
    (package / "config" / "alg").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "pqn_minatar.py").write_text(MODULE)
    (package / "config" / "alg" / "pqn_minatar.yaml").write_text(SETTINGS)
    return package.parent


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that a comparison imports or replaces are as before afterwards."""
    for name in ("purejaxql", "purejaxql.pqn_minatar", *their_side.NOT_NEEDED):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.delitem(sys.modules, name)


def test_both_sides_are_tested_alike_and_share_a_table(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(our_side, "EPISODES", 2)
    monkeypatch.setattr(our_side, "run", lambda game, seeds, steps: ([float(seed) for seed in seeds], 300.0))
    flags = [f"--purejaxql={checkout}", "--games", "Breakout", "--seeds=2", f"--steps={STEPS}"]
    assert main([*flags, f"--output={tmp_path}", "--name=x"]) == 0
    text = (tmp_path / "x" / "results.md").read_text()
    assert "| Breakout, purejaxql |" in text
    with (tmp_path / "x" / "results.csv").open() as file:
        theirs = [float(row["evaluated_return"]) for row in csv.DictReader(file) if row["side"] == "purejaxql"]
    trained = our_side.trainer("Breakout", STEPS)
    state = trained.init(our_side.keys_of([0, 1]))
    layers = jax.tree.map(lambda leaf: leaf.shape, state.learner.params)
    assert layers["hidden"] == {"w": (2, 1024, 128), "b": (2, 128)}
    keys = jax.vmap(jax.random.PRNGKey)(np.arange(2, dtype=np.uint32))
    shapes = {"conv_1": (3, 3, 4, 16), "hidden": (1024, 128), "values": (128, 3)}
    w = {name: np.stack([jax.random.normal(key, shape) for key in keys]) for name, shape in shapes.items()}
    params = {
        name: {"w": w[name], "b": np.full_like(layer["b"], 0.25)}
        if "w" in layer
        else {"scale": np.full_like(layer["scale"], 0.5), "offset": np.full_like(layer["offset"], -0.125)}
        for name, layer in state.learner.params.items()
    }
    assert theirs == our_side.evaluated(trained, state._replace(learner=state.learner._replace(params=params)))


def test_help_names_no_default_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "needs chex besides what is here --games" in told
    assert "MISSING" not in told


def test_a_folder_without_it_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--purejaxql={tmp_path}"])
    assert "holds no purejaxql/pqn_minatar.py" in capsys.readouterr().err
