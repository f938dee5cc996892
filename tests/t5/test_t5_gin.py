"""gin: the paper's names, a file to include after someone's own, and what a misspelt name says."""

import ast
import inspect
from pathlib import Path

import gin
import pytest

from sparse_plugins import core, t5
from tests.t5 import t5x_stand_in

ROOT = Path(__file__).parents[2]
SOMEONES = """
    from __gin__ import dynamic_registration
    from sparse_plugins import t5
    from t5x import adafactor
    from t5x import models
    from t5x import trainer
    from t5x import utils

    OPTIMIZER = @adafactor.Adafactor()
    adafactor.Adafactor.min_dim_size_to_factor = 32
    models.EncoderDecoderModel.optimizer_def = %OPTIMIZER
    utils.RestoreCheckpointConfig.path = 'somewhere'
"""
SPARSE = "include 'sparse_plugins/t5/configs/sparse.gin'"
OF_JAXPRUNER = """
    import optax
    from sparse_plugins import t5 as optimizers_wrapper
    from sparse_plugins import t5 as config_util
    OPTIMIZER = @optimizers_wrapper.SparseOptaxWrapper()
    optimizers_wrapper.SparseOptaxWrapper:
        optax_optimizer = @optimizers_wrapper.chain()
        sparsity_updater = @config_util.create_updater_from_config()
    optimizers_wrapper.chain.transformations = [@optax.clip(), @optax.adamw()]
    optax.clip.max_delta = 1.0
    optax.adamw.learning_rate = 1e-3
    config_util.create_updater_from_config:
        pruner_type = 'magnitude'
        dist_type = 'erk'
        update_end_step = 75_000
        update_freq = 1000
        update_start_step = 25_000
        sparsity = 0.8
"""


def build(*files, name="models.EncoderDecoderModel"):
    gin.parse_config("\n".join(files))
    return gin.get_configurable(f"t5x.{name}")()


def test_one_line_after_someones_file_makes_the_model_sparse():
    dense = build(SOMEONES).optimizer_def
    assert isinstance(dense, t5x_stand_in.Adafactor)
    optimizer = build(SOMEONES, SPARSE).optimizer_def
    assert isinstance(optimizer, t5.SparseOptimizer)
    assert (type(optimizer.dense), optimizer.dense.shortest) == (t5x_stand_in.Adafactor, 32)
    assert type(optimizer.updater) is core.MagnitudePruning
    assert optimizer.updater.scheduler == core.PolynomialSchedule(1_000, 25_000, 75_000)
    assert optimizer.updater.sparsity_distribution_fn.func is core.erk
    assert optimizer.updater.sparsity_distribution_fn.keywords["sparsity"] == 0.8


def test_macros_choose_method_and_schedule():
    macros = (
        "PRUNER = 'rigl'\nSPARSITY = 0.9\nPRUNE_FROM = 1\nPRUNE_UNTIL = 9\nPRUNE_EVERY = 2\nDISTRIBUTION = 'uniform'"
    )
    updater = build(SOMEONES, SPARSE, macros).optimizer_def.updater
    assert type(updater) is core.RigL
    assert updater.scheduler == core.PeriodicSchedule(2, 1, 9)
    assert updater.sparsity_distribution_fn.func is core.uniform


def test_every_line_of_the_file_is_used():
    build(SOMEONES, SPARSE)
    build(name="trainer.Trainer")
    used = gin.operative_config_str()
    for line in (ROOT / "sparse_plugins" / "t5" / "configs" / "sparse.gin").read_text().splitlines():
        name, bound, _ = line.partition(" = ")
        if bound and not line.startswith("#") and name != "OPTIMIZER":
            assert f"{name.strip().removeprefix('trainer.')} =" in used, line


def test_the_trainer_gets_the_metrics():
    computer = build(SOMEONES, SPARSE, name="trainer.Trainer").weight_metrics_computer
    assert isinstance(computer, t5.SparsityMetrics)


def test_a_file_for_dense_checkpoints_sets_what_t5x_calls():
    dense = "include 'sparse_plugins/t5/configs/from_dense.gin'"
    config = build(SOMEONES, SPARSE, dense, name="utils.RestoreCheckpointConfig")
    assert config.fallback_to_scratch
    sparse = {"state": {"param_states": {"target_sparsities": {"w": 0.8}, "inner_state": {"w": 0.0}}}}
    dense = {"target": {"w": 1.0}, "state": {"param_states": {"w": 2.0}}}
    (transform,) = config.state_transformation_fns
    assert transform(dense, sparse)["state"]["param_states"] == {"inner_state": {"w": 2.0}}
    assert transform(sparse, sparse) is sparse
    assert transform(dense, sparse, is_resuming=True) is dense


def test_a_file_of_jaxpruner_needs_other_imports_only():
    optimizer = build(SOMEONES, OF_JAXPRUNER).optimizer_def
    assert isinstance(optimizer, t5.SparseOptimizer)
    assert type(optimizer.dense) is t5x_stand_in.OptaxWrapper
    assert optimizer.updater.scheduler == core.PolynomialSchedule(1_000, 25_000, 75_000)


def test_rules_and_filters_can_be_bound():
    lines = """
        from sparse_plugins import core
        t5.create_updater_from_config.filter_fn = @core.kernels_only
        t5.create_updater_from_config.rules = [('.*/rel_embedding', None), ('.*/logits_dense/kernel', 0.5)]
        t5.create_updater_from_config.sparsity_type = '2:4'
    """
    updater = build(SOMEONES, SPARSE, lines).optimizer_def.updater
    assert updater.sparsity_type == core.NByM(2, 4)
    assert len(updater.sparsity_distribution_fn.keywords["rules"]) == 2


def test_nothing_is_registered_that_dopamines_files_call_by_its_last_name():
    with pytest.raises(ValueError, match="Could not find"):
        gin.get_configurable("sparse_plugins.t5.create_updater_from_config")


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("t5.create_updater_from_config.sparsty = 0.9", "'sparsty' is unknown.*Did you mean 'sparsity'"),
        ("PRUNER = 'magnitud'", "Did you mean 'magnitude'"),
        ("DISTRIBUTION = 'erdos'", "dist_type 'erdos' is unknown; allowed are uniform, erk"),
        ("SPARSITY = 80", "sparsity"),
        ("SPARSITY = None", "sparsity is missing"),
        ("PRUNE_EVERY = None", "update_freq is missing"),
        ("t5.SparseOptimizer.optimiser = @adafactor.Adafactor()", "optimiser"),
        ("t5.SparseOptimzer.optimizer = @adafactor.Adafactor()", "SparseOptimzer"),
    ],
)
def test_a_misspelt_binding_is_an_error(binding, message):
    with pytest.raises((ValueError, AttributeError), match=message):
        build(SOMEONES, SPARSE, binding)


def test_an_updater_without_optimizer_is_an_error():
    with pytest.raises(TypeError, match="optimizer is None; give an OptimizerDef"):
        build(SOMEONES, SPARSE, "t5.SparseOptimizer.optimizer = None")
    with pytest.raises(TypeError, match="updater is a NoneType"):
        build(SOMEONES, SPARSE, "t5.SparseOptimizer.updater = None")


def test_there_is_one_vocabulary_for_all_gin_wrappers():
    """JaxPruner has three wrappers of this name with three lists of arguments."""
    source = (ROOT / "sparse_plugins" / "rl" / "dopamine" / "bindings.py").read_text()
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    of_rl = {argument.arg for argument in functions["create_updater_from_config"].args.args}
    keys = set(inspect.signature(core.SparsityConfig).parameters)
    assert of_rl - keys == {"pruner_type"}
    given = {"pruner_type": "rigl", "sparsity": 0.5, "dist_type": "erk", "drop_schedule": "constant", "total_steps": 9}
    updater = t5.create_updater_from_config(**dict.fromkeys(of_rl) | given)
    assert (type(updater), updater.drop_fraction_fn) == (core.RigL, core.ConstantDrop(0.3))
