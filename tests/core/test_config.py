import collections
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from omegaconf import OmegaConf

from sparse_plugins import core
from sparse_plugins.core import create_updater_from_config
from sparse_plugins.core.registry import ALGORITHMS
from sparse_plugins.core.structure_names import parse_structure
from tests.contract.rows import score_arguments

GRADUAL = {"sparsity": 0.8, "update_freq": 10, "update_start_step": 200, "update_end_step": 1000}
PARAMS = {"w": jax.ShapeDtypeStruct((10, 10), jnp.float32), "head": jax.ShapeDtypeStruct((4, 4), jnp.float32)}


@pytest.mark.parametrize("name", core.all_algorithm_names())
def test_every_form_of_configuration_builds_the_same_updater(name: str) -> None:
    settings = {"algorithm": name, "dist_type": "erk", **GRADUAL}
    forms = [settings, ConfigDict(settings), core.SparsityConfig(**settings)]
    updaters = [create_updater_from_config(**settings), *map(create_updater_from_config, forms)]
    assert {type(updater) for updater in updaters} == {ALGORITHMS[name].updater_class}
    assert len({repr(updater.scheduler) for updater in updaters}) == 1
    assert all(updater.target_sparsities(PARAMS) == updaters[0].target_sparsities(PARAMS) for updater in updaters)


def test_names_of_the_paper_are_known() -> None:
    assert set(core.all_algorithm_names()) >= {
        *("no_prune", "magnitude", "random", "saliency", "magnitude_ste", "random_ste", "global_magnitude"),
        *("global_saliency", "static_sparse", "set", "rigl"),
    }


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("unstructured", core.Unstructured()),
        ("nm_2,4", core.NByM(2, 4)),
        ("2:4", core.NByM(2, 4)),
        ("block_4,8", core.Block((4, 8))),
        ("4x8", core.Block((4, 8))),
        ("channel_-1", core.Channel(-1)),
        ("channel", core.Channel()),
        ("heads", core.Channel(whole_heads=True)),
        ("fan_in", core.ConstantFanIn()),
        ("fan_in_0", core.ConstantFanIn(0)),
        ([("head", "2:4"), ("w", core.Channel())], core.ByPath([("head", core.NByM(2, 4)), ("w", core.Channel())])),
        (core.NByM(1, 4, axis=0), core.NByM(1, 4, axis=0)),
    ],
)
def test_short_names_of_structures(name: str, structure: object) -> None:
    assert (
        create_updater_from_config(algorithm="magnitude", sparsity=0.5, sparsity_type=name).sparsity_type == structure
    )


@pytest.mark.parametrize(
    "name", ["nm", "nm_2", "2:", "2:4:8", "block", "4x", "0.5x4", "channels", "channel_a", "Unstructured", "x"]
)
def test_unknown_structures_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"structure '{name}' is unknown; allowed are .*'unstructured', '2:4' "):
        parse_structure(name)


@pytest.mark.parametrize(
    ("name", "message"), [("4:2", r"n=4 of m=2; n must not exceed m"), ("block_0,4", "smallest allowed value is 1")]
)
def test_structures_that_cannot_be_say_why(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_structure(name)


def test_nm_alone_gives_its_own_sparsity() -> None:
    updater = create_updater_from_config(algorithm="magnitude", sparsity_type="1:4")
    assert updater.target_sparsities(PARAMS)["w"] == 0.75


def test_schedules_follow_from_the_steps_given() -> None:
    build = lambda **keys: create_updater_from_config(sparsity=0.8, **keys).scheduler  # noqa: E731
    assert build(algorithm="magnitude") == core.NoUpdateSchedule()
    assert build(algorithm="magnitude", update_start_step=5, update_end_step=5) == core.OneShotSchedule(5)
    gradual = {"update_freq": 2, "update_start_step": 5, "update_end_step": 9, "step_unit": "round"}
    assert build(algorithm="magnitude", **gradual) == core.PolynomialSchedule(2, 5, 9, step_unit="round")
    assert build(algorithm="rigl", **gradual) == core.PeriodicSchedule(2, 5, 9, step_unit="round")
    assert build(algorithm="set", update_freq=2, update_start_step=5) == core.PeriodicSchedule(2, 5)


def test_drop_fractions_of_set_and_rigl() -> None:
    drop = lambda **keys: create_updater_from_config(algorithm="rigl", **GRADUAL, **keys).drop_fraction_fn  # noqa: E731
    assert (
        drop()
        == core.CosineDrop(0.3, end_step=1000)
        == core.CosineDrop(core.RigL().drop_fraction_fn.fraction, end_step=1000)
    )
    assert drop(drop_fraction=0.3, drop_schedule="linear") == core.LinearDrop(0.3, end_step=1000)
    assert drop(drop_fraction=0.3, drop_schedule="constant") == core.ConstantDrop(0.3)


def test_options_reach_the_updater_and_none_means_its_default() -> None:
    options = {"rng_seed": 7, "use_packed_masks": False, "skip_gradients": True, "is_sparse_gradients": True}
    options |= {"topk_fn": lambda scores, sparsity: scores > sparsity}
    config = ConfigDict({"algorithm": "magnitude", "sparsity": 0.5, "rules": None, "update_freq": None})
    updater = create_updater_from_config(config, **options, custom_sparsity_map={"head": 0.25})
    assert {name: getattr(updater, name) for name in options} == options
    assert updater.target_sparsities(PARAMS) == {"w": 0.5, "head": 0.25}
    assert create_updater_from_config(config).use_packed_masks is True
    shared = create_updater_from_config(
        config, algorithm="global_magnitude", use_normalization=False, normalization_eps=1e-3, rules=[("w", 0.1)]
    )
    assert (shared.use_normalization, shared.normalization_eps) == (False, 1e-3)
    assert shared.target_sparsities(PARAMS) == {"w": 0.1, "head": 0.5}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"algorithm": "magnitud"},
            "algorithm 'magnitud' is unknown; allowed are no_prune, .*Did you mean 'magnitude'",
        ),
        ({"drop_fracion": 0.3}, "key 'drop_fracion' is unknown; allowed are .*Did you mean 'drop_fraction'"),
        ({"dist_type": "erdos"}, "dist_type 'erdos' is unknown; allowed are uniform, erk"),
        ({"algorithm": "rigl", "pruner_type": "set"}, "pruner_type is 'set' and algorithm 'rigl': these are two names"),
        ({"algorithm": "rigl", "drop_schedule": "cos"}, "drop_schedule 'cos' is unknown; allowed are constant, cosine"),
        ({"algorithm": "set", "drop_fraction": 1.5}, r"drop fraction is 1.5; give a number in \[0, 1\]"),
        ({"sparsity": 1.7}, r"sparsity is 1.7; give a number in \[0, 1\]"),
        ({"sparsity": np.nan}, r"sparsity is nan; give a number in \[0, 1\]"),
        ({"algorithm": "global_magnitude", "sparsity": -1}, r"sparsity is -1.0; give a number in \[0, 1\]"),
        ({"sparsity": None}, "sparsity is missing; give the fraction of zeros"),
        ({"algorithm": None}, "algorithm is missing; allowed are no_prune, "),
        ({"update_freq": 0}, "update_freq is 0; the smallest allowed value is 1"),
        ({"update_freq": None}, "update_freq is missing; give the number of steps"),
        ({"update_start_step": None}, "given without update_start_step; give that too"),
        ({"update_end_step": None}, "update_end_step is missing; give the step at which the target"),
        ({"update_end_step": 100}, r"update_end_step \(100\) lies before update_start_step \(200\)"),
        ({"algorithm": "global_magnitude", "sparsity_type": "2:4"}, "ranks single weights .* per-layer algorithm"),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_when_built(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_updater_from_config({"algorithm": "magnitude", **GRADUAL, **keys})


@pytest.mark.parametrize(
    "keys", [{"sparsity": "0.8"}, {"sparsity": [0.8]}, {"algorithm": "global_saliency", "sparsity": "a"}]
)
def test_a_sparsity_that_is_no_number_is_refused(keys: dict) -> None:
    with pytest.raises(TypeError, match=r"sparsity is .*; give a number in \[0, 1\]"):
        create_updater_from_config({"algorithm": "magnitude", **keys})


def test_containers_of_any_kind_are_read(tmp_path: pathlib.Path) -> None:
    """YAML through OmegaConf, and sequences and mappings that are nobody's list and dict."""
    file = tmp_path / "sparsity.yaml"
    file.write_text(
        "algorithm: magnitude\nsparsity: 0.5\nsparsity_type: [[head, '2:4'], ['.*', channel_-1]]\n"
        "rules: [[head, default]]\ncustom_sparsity_map: {w: 0.25}\n"
    )
    of_omegaconf = OmegaConf.load(file)
    settings = OmegaConf.to_container(of_omegaconf)
    wrapped = {
        "sparsity_type": collections.UserList(map(collections.UserList, settings["sparsity_type"])),
        "rules": collections.UserList(map(collections.UserList, settings["rules"])),
        "custom_sparsity_map": types.MappingProxyType(settings["custom_sparsity_map"]),
    }
    forms = [settings, of_omegaconf, ConfigDict(settings), collections.ChainMap(wrapped, settings)]
    for updater in [*map(create_updater_from_config, forms), create_updater_from_config(**of_omegaconf)]:
        assert updater.sparsity_type == core.ByPath([("head", core.NByM(2, 4)), (".*", core.Channel(-1))])
        assert updater.target_sparsities(PARAMS) == {"w": 0.25, "head": 0.5}
    assert core.Block(OmegaConf.create([4, 4])) == core.Block((4, 4))


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(TypeError, match=r"config is \['magnitude'\]; give a SparsityConfig, a mapping or a ConfigDict"):
        create_updater_from_config(["magnitude"])


@pytest.mark.parametrize("algorithm", core.all_algorithm_names())
def test_sparsity_0_is_the_dense_optimizer_bit_for_bit(algorithm):
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8)), "b": jnp.ones(8)}
    updater = core.create_updater_from_config(
        algorithm=algorithm, sparsity=0.0, update_freq=2, update_start_step=1, update_end_step=9
    )
    ends = []
    for tx in (optax.adam(0.1), updater.wrap_optax(optax.adam(0.1))):
        state, weights = tx.init(params), params
        for _ in range(6):
            grads = jax.tree.map(jnp.sin, weights)
            extra = score_arguments(weights)
            updates, state = optax.with_extra_args_support(tx).update(grads, state, weights, **extra)
            weights = optax.apply_updates(weights, updates)
        ends.append(weights)
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_rules_of_a_configuration_say_what_those_of_the_call_say() -> None:
    rules = [("head/b", None), ("head/.*", "2:4"), ("conv/.*", {"algorithm": "set", "sparsity": 0.5})]
    params = {
        "conv": {"w": jnp.ones((4, 4))},
        "body": {"w": jnp.ones((8, 8))},
        "head": {"w": jnp.ones((8, 4)), "b": jnp.ones(4)},
    }
    words = {"sparsity": 0.75, "total_steps": 200, "rules": rules, "distribution": "uniform"}
    ours = core.create_updater_from_config(algorithm="magnitude", **words)
    assert isinstance(ours, core.PerModule)
    assert str(core.plan(ours, params)) == str(core.plan(core.build_updater("magnitude", **words), params))
    structure = core.create_updater_from_config({"algorithm": "static_sparse", "structure": "2:4"})
    assert structure.sparsity_type == core.NByM(2, 4)
    with pytest.raises(ValueError, match="distribution is 'erk' and dist_type 'uniform': these are two names"):
        core.create_updater_from_config(algorithm="magnitude", distribution="erk", dist_type="uniform", sparsity=0.5)
    with pytest.raises(ValueError, match="Did you mean 'magnitude'"):
        core.create_updater_from_config(algorithm="static_sparse", sparsity=0.5, rules=[("head/.*", "magnitud")])
