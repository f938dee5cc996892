"""Scenic's trainers and steps with a sparse train state; tests/vision/scenic_like.py stands in for Scenic."""

import functools
import itertools
import logging
import math
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import jax_utils

from sparse_plugins import core, vision
from tests.vision import scenic_like
from tests.vision.networks import (
    ConvNet,
    assert_on_masks,
    half,
    make_updater,
    sparsity_config,
    variables,
)

# Two replicas of bfloat16 parameters, and one device.
RUNS = {"rigl": (2, "bfloat16"), "magnitude_ste": (1, "float32")}


def experiment(algorithm: str, **settings: Any) -> Any:
    settings = {"num_training_steps": 6, "replicas": RUNS[algorithm][0]} | settings
    return ml_collections.ConfigDict({"sparsity_config": sparsity_config(algorithm), **settings})


def train(algorithm: str, workdir: str, start_step: int = 0) -> tuple[list[Any], Any]:
    """The states before each step and after the last, and what evaluation sees before the first."""
    seen: list[Any] = []
    replicas, dtype = RUNS[algorithm]
    cast = lambda params: jax.tree.map(lambda leaf: leaf.astype(dtype), params)  # noqa: E731
    _, _, summary = vision.scenic.sparsify_trainer(scenic_like.train)(
        rng=jax.random.PRNGKey(0),
        config=experiment(algorithm),
        model_cls=lambda: {**variables(), "params": flax.core.freeze(cast(variables()["params"]))},
        dataset=itertools.islice(scenic_like.batches(replicas), start_step, None),
        workdir=workdir,
        writer=seen,
    )
    return seen, summary["logits"]


@functools.cache
def run(algorithm: str) -> tuple[list[Any], Any]:
    return train(algorithm, "no such folder")


@pytest.mark.parametrize("algorithm", RUNS)
def test_every_replica_is_sparse_from_step_0_on_and_like_the_others(algorithm: str) -> None:
    updater, (replicas, dtype) = make_updater(algorithm), RUNS[algorithm]
    for step, states in enumerate(run(algorithm)[0]):
        for leaf in jax.tree.leaves((states.params, states.opt_state)):
            np.testing.assert_array_equal(leaf[:-1], leaf[1:])
        assert len(np.unique(states.model_state["batch_stats"]["norm"]["mean"])) == (8 * replicas if step else 1)
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), states)
        assert int(state.global_step) == int(state.opt_state.count) == step
        assert_on_masks(state.params, state.opt_state, algorithm, step)
        view = updater.pre_forward_update(state.params, state.opt_state)
        jax.tree.map(np.testing.assert_array_equal, state.params, view)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {dtype}
    assert scenic_like.train.__globals__["train_utils"].TrainState is scenic_like.TrainState


def test_evaluation_before_the_first_step_sees_the_sparse_weights() -> None:
    (start, *_), logits = run("magnitude_ste")
    collections = jax.tree.map(lambda leaf: leaf[0], {"params": start.params, **start.model_state})
    images = next(scenic_like.batches())["inputs"][0]
    np.testing.assert_allclose(logits[0], jax.jit(ConvNet().apply)(collections, images), rtol=1e-5, atol=1e-6)


def test_a_run_logs_its_plan_and_goes_on_from_its_checkpoint_bit_for_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states, _ = run("rigl")
    scenic_like.save_checkpoint(str(tmp_path), jax_utils.unreplicate(states[3]))
    with caplog.at_level(logging.INFO, "sparse_plugins"):
        again, _ = train("rigl", str(tmp_path), start_step=3)
    assert "RigL: masks change 3 times" in caplog.text
    assert "72 of 288" in caplog.text
    # Scenic saves one replica's running statistics, which steps write and do not read.
    kept = lambda run: [(state.params, state.opt_state, state.rng, state.global_step) for state in run]  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, kept(again), kept(states[3:]))


def tiny_trainer(moves_off: bool = False) -> Any:
    """A trainer of one step on one layer, as Scenic's are laid out; what it knows of Scenic is `train_utils`."""
    utils = types.SimpleNamespace(
        TrainState=scenic_like.TrainState,
        restore_checkpoint=scenic_like.restore_checkpoint,
        get_num_training_steps=lambda config, metadata: (config["num_training_steps"], 1),
    )
    code = """
def train(*, config, workdir):
    train_utils.get_num_training_steps(config, {})
    state = train_utils.TrainState(**fields())
    state, start = train_utils.restore_checkpoint(workdir, state)
    updates, opt_state = state.tx.update(state.params, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params = jax.tree.map(lambda leaf: leaf + moves_off, params)
    return state.replace(params=params, opt_state=opt_state, global_step=start + 1), None, None
"""
    scope = {"train_utils": utils, "jax": jax, "optax": optax, "moves_off": 1.0 * moves_off}
    tx, params = optax.sgd(0.1), {"kernel": jnp.ones((4, 4))}
    scope["fields"] = lambda: {"params": params, "tx": tx, "opt_state": tx.init(params)}
    exec(code, scope)
    return scope["train"]


def tiny_config(algorithm: str, sparsity: float, steps: int = 8) -> dict[str, Any]:
    timed = {} if algorithm == "static_sparse" else {"total_steps": 8}
    settings = {"algorithm": algorithm, "sparsity": sparsity, "dist_type": "uniform", **timed}
    return {"sparsity_config": settings, "num_training_steps": steps}


def test_a_checkpoint_of_another_sparsity_is_refused_unless_that_is_meant(tmp_path: Path) -> None:
    train = tiny_trainer()
    state, *_ = vision.scenic.sparsify_trainer(train)(config=tiny_config("rigl", 0.5), workdir=str(tmp_path))
    scenic_like.save_checkpoint(str(tmp_path), state)
    wanted = {"config": tiny_config("static_sparse", 0.75), "workdir": str(tmp_path)}
    with pytest.raises(core.CheckpointMismatchError, match=r"'kernel' ends at sparsity 0\.5, and here"):
        vision.scenic.sparsify_trainer(train)(**wanted)
    state, *_ = vision.scenic.sparsify_trainer(train, keep_targets=False)(**wanted)
    assert float(state.opt_state.target_sparsities["kernel"]) == 0.75
    assert int(state.global_step) == 2


def test_a_run_that_is_too_short_or_ends_off_its_masks_warns(tmp_path: Path) -> None:
    config = tiny_config("magnitude", 0.5, steps=3)
    with pytest.warns(UserWarning, match="reaches .* of its target sparsity in a run of 3 optimizer steps"):
        vision.scenic.sparsify_trainer(tiny_trainer())(config=config, workdir=str(tmp_path))
    with pytest.warns(RuntimeWarning, match="8 of the 8 pruned weights of 'kernel' are not 0"):
        vision.scenic.sparsify_trainer(tiny_trainer(moves_off=True))(
            config=tiny_config("static_sparse", 0.5), workdir=str(tmp_path)
        )


def test_the_checkpoint_of_a_dense_run_is_refused(tmp_path: Path) -> None:
    scenic_like.save_checkpoint(str(tmp_path), dense_state())
    with pytest.raises(ValueError, match="masks"):
        scenic_like.restore_checkpoint(str(tmp_path), vision.scenic.sparsify_train_state(dense_state(), half()))


def dense_state(**fields: Any) -> scenic_like.TrainState:
    tx = optax.sgd(0.1)
    params = {"kernel": jnp.ones((4, 4))}
    return scenic_like.TrainState(**{"params": params, "tx": tx, "opt_state": tx.init(params), **fields})


def test_a_configuration_of_jaxpruner_keeps_its_meaning() -> None:
    config = ml_collections.ConfigDict()
    config.sparsity_config = ml_collections.ConfigDict()
    config.sparsity_config.algorithm = "rigl"
    config.sparsity_config.update_freq = 1000
    config.sparsity_config.update_start_step = 10_000
    config.sparsity_config.update_end_step = 25_000
    config.sparsity_config.drop_fraction = 0.1
    config.sparsity_config.sparsity = 0.8
    config.sparsity_config.filter_fn = lambda key, param: param.ndim > 1 and "stem_conv" not in key
    config.sparsity_config.dist_type = "uniform"
    updater = vision.scenic.create_updater(config)
    assert isinstance(updater, core.RigL)
    assert (updater.scheduler.update_freq, updater.scheduler.update_end_step) == (1000, 25_000)
    assert math.isclose(updater.drop_fraction_fn(12_500), 0.05)
    params = {"stem_conv": {"kernel": jnp.ones((3, 3))}, "cls": jnp.ones((1, 1, 4)), "bias": jnp.ones(3)}
    assert jax.tree.leaves(updater.target_sparsities(params)) == [0.8]
    assert updater.target_sparsities(params)["cls"] == 0.8


@pytest.mark.parametrize(
    "config_type", [dict, ml_collections.ConfigDict, lambda settings: core.SparsityConfig(**settings)]
)
def test_without_a_filter_only_kernels_are_pruned(config_type: Any) -> None:
    updater = vision.scenic.create_updater(
        {"sparsity_config": config_type({"algorithm": "magnitude_ste", "sparsity": 0.8})}
    )
    params = {"pos_embedding": jnp.ones((1, 4, 8)), "norm": {"scale": jnp.ones((4, 8))}, "kernel": jnp.ones((4, 4))}
    assert jax.tree.leaves(updater.target_sparsities(params)) == [0.8]


@pytest.mark.parametrize("config", [{}, {"sparsity_config": None}, {"lr_configs": {}, "optimizer_configs": {}}])
def test_no_sparsity_config_means_a_dense_run(config: dict[str, Any]) -> None:
    for config_type in (dict, ml_collections.ConfigDict):
        assert isinstance(vision.scenic.create_updater(config_type(config)), core.NoPruning)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sparsity_configs": {}}, "has the key 'sparsity_configs' and no 'sparsity_config'"),
        ({"sparcity_config": {}}, "rename it"),
        ({"algorithm": "rigl", "sparsity": 0.8}, "this is the sparsity_config itself"),
        (
            {"sparsity_config": {"algorithm": "rigl", "sparsty": 0.8}},
            "'sparsty' is unknown; .* Did you mean 'sparsity'",
        ),
        ({"sparsity_config": {"algorithm": "rigle", "sparsity": 0.8}}, "'rigle' is unknown"),
        ({"sparsity_config": {}}, "algorithm is missing"),
    ],
)
def test_misspelt_configurations_are_errors(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vision.scenic.create_updater(ml_collections.ConfigDict(config))


@pytest.mark.parametrize(
    ("state", "updater", "error", "message"),
    [
        (dense_state(), optax.sgd(0.1), TypeError, "updater is a GradientTransformation"),
        (dense_state(), core.RigL, ValueError, "sparsity is missing"),
        (types.SimpleNamespace(params={}), half(), TypeError, "SimpleNamespace has no tx, opt_state, global_step, rep"),
        (dense_state(tx=None), half(), TypeError, "wrap_optax got None"),
        (dense_state(tx=half().wrap_optax(optax.sgd(0.1))), half(), TypeError, "sparse already"),
        (dense_state(global_step=3), half(), ValueError, "has taken 3 steps"),
        (dense_state(params={}), half(), ValueError, "would prune nothing"),
        (dense_state(params={"w": jnp.ones((4, 4), int)}), half(), ValueError, "would prune nothing"),
    ],
)
def test_a_train_state_that_cannot_be_made_sparse_is_refused(
    state: Any, updater: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        vision.scenic.sparsify_train_state(state, updater)


def test_a_trainer_that_builds_no_train_state_or_loads_weights_after_it_is_refused() -> None:
    with pytest.raises(TypeError, match=r"print builds no train_utils.TrainState .* sparsify_train_state"):
        vision.scenic.sparsify_trainer(print)
    with pytest.raises(TypeError, match="train builds no"):
        vision.scenic.sparsify_trainer(vision.scenic.sparsify_trainer(scenic_like.train))
    config = experiment("rigl")
    config.init_from = {"checkpoint_path": "elsewhere"}
    with pytest.raises(ValueError, match="init_from loads weights after"):
        vision.scenic.sparsify_trainer(scenic_like.train)(
            rng=None, config=config, model_cls=None, dataset=None, workdir="", writer=[]
        )


def test_the_module_is_there_without_scenic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenic", None)
    assert set(vision.scenic.__all__) <= set(runpy.run_path(str(vision.scenic.__file__)))
