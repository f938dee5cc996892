"""A Flax NNX script that changes its optimizer."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from sparse_plugins import core, vision
from sparse_plugins.checkpoints import tree_file
from sparse_plugins.core.export import file_format
from sparse_plugins.core.trees import leaf_names, names_of_today
from sparse_plugins.wire.trees import named_leaves
from tests.vision.networks import (
    IMAGES,
    NnxConvNet,
    assert_on_masks,
    dense_optimizer,
    half,
    make_updater,
    squares,
)


@functools.cache
def build(algorithm: str) -> tuple[NnxConvNet, vision.Optimizer]:
    """Under jit, as large models are built."""

    @nnx.jit
    def make() -> tuple[NnxConvNet, vision.Optimizer]:
        model = NnxConvNet(nnx.Rngs(0))
        return model, vision.Optimizer(model, dense_optimizer(), make_updater(algorithm), wrt=nnx.Param)

    return make()


@nnx.jit
def step(pair: tuple[NnxConvNet, nnx.Optimizer]) -> None:
    model, optimizer = pair
    optimizer.update(model, nnx.grad(lambda model: squares(model(IMAGES)))(model))


@functools.cache
def run(algorithm: str) -> list[Any]:
    """Model and optimizer before each step and after the last; between two steps they are split and merged."""
    pair, seen = nnx.clone(build(algorithm)), []
    for number in range(6):
        seen.append(nnx.clone(pair))
        if number == 3:
            pair = nnx.merge(*nnx.split(pair))
        step(pair)
    return [*seen, pair]


def arrays(node: Any, wanted: Any = ...) -> Any:
    return nnx.as_pure(nnx.state(node, wanted))


def assert_equal(node: Any, other_node: Any) -> None:
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    plain = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf  # noqa: E731
    for leaf, expected in zip(jax.tree.leaves(node), jax.tree.leaves(other_node), strict=True):
        np.testing.assert_array_equal(plain(leaf), plain(expected))


@pytest.mark.parametrize("algorithm", ["rigl", "magnitude_ste"])
def test_the_model_is_on_its_masks_from_step_0_on(algorithm: str) -> None:
    updater = make_updater(algorithm)
    for number, (model, optimizer) in enumerate(run(algorithm)):
        params, opt_state = arrays(model, nnx.Param), nnx.as_pure(optimizer.opt_state)
        assert int(optimizer.step[...]) == int(opt_state.count) == number
        assert_on_masks(params, opt_state, algorithm, number)
        assert_equal(params, updater.pre_forward_update(params, opt_state))
    dense = jax.tree.leaves(opt_state.dense_params)
    assert [bool((weights != 0).all()) for weights in dense] == [True] * 2 * (algorithm == "magnitude_ste")


def test_statistics_and_random_states_are_those_of_a_dense_model() -> None:
    (start, _), (model, _) = run("rigl")[:2]
    dense, rest = nnx.clone(start), nnx.Not(nnx.Param)
    assert_equal(arrays(start, rest), arrays(NnxConvNet(nnx.Rngs(0)), rest))
    dense(IMAGES)
    for leaf, expected in zip(*(jax.tree.leaves(arrays(node, nnx.BatchStat)) for node in (model, dense)), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
    assert_equal(arrays(model, nnx.RngState), arrays(dense, nnx.RngState))


def test_a_run_goes_on_from_a_pure_dict_bit_for_bit() -> None:
    pair = nnx.clone(build("rigl"))
    state = nnx.state(pair)
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.state(run("rigl")[3])))
    nnx.update(pair, state)
    step(pair)
    assert_equal(arrays(pair), arrays(run("rigl")[4]))


class Linear(nnx.Module):
    """One layer, by which whatever costs no compilation is tested."""

    def __init__(self, **options: Any) -> None:
        self.layer = nnx.Linear(16, 8, rngs=nnx.Rngs(0), **options)


def weights(model: Linear, wrt: Any = nnx.Param) -> Any:
    """They serve as their own gradients, those of half their squares."""
    return nnx.state(model, wrt)


def test_model_and_optimizer_is_that_of_flax_and_takes_gradients_alone() -> None:
    @nnx.jit
    def trained() -> tuple[jax.Array, vision.ModelAndOptimizer]:
        pair = vision.ModelAndOptimizer(Linear(), optax.sgd(0.1), half())
        before = pair.model.layer.kernel[...]
        pair.update(weights(pair.model))
        return before, pair

    before, pair = trained()
    assert isinstance(pair, nnx.ModelAndOptimizer)
    assert np.count_nonzero(before) == 64
    np.testing.assert_allclose(pair.model.layer.kernel[...], 0.9 * np.asarray(before), rtol=1e-6)


def test_low_rank_adapters_become_sparse_alone() -> None:
    @nnx.jit
    def trained() -> nnx.LoRA:
        ones = nnx.initializers.ones
        model = nnx.LoRA(16, 4, 8, base_module=Linear().layer, b_initializer=ones, rngs=nnx.Rngs(1))
        vision.Optimizer(model, optax.sgd(0.1), half(), wrt=nnx.LoRAParam).update(model, weights(model, nnx.LoRAParam))
        return model

    model = trained()
    assert [np.count_nonzero(leaf) for leaf in jax.tree.leaves(arrays(model, nnx.LoRAParam))] == [32, 16]
    assert np.count_nonzero(model.base_module.kernel[...]) == 128


def test_rules_and_filters_see_the_paths_of_the_modules_when_built_and_in_every_step() -> None:
    seen, model = set(), Linear()
    updater = half(rules=[("layer/bias", None)], filter_fn=lambda path, param: not seen.add(path))
    optimizer = vision.Optimizer(model, optax.sgd(0.1), updater)
    assert seen == {("layer", "kernel")}
    optimizer.update(model, weights(model))
    assert seen == {("layer", "kernel")}


@pytest.mark.parametrize("optimizer_class", ["ours", "flax"])
def test_a_rule_names_a_kernel_alike_in_the_plan_every_step_and_the_checks(optimizer_class: str) -> None:
    model = nnx.Dict(a=nnx.Linear(8, 4, rngs=nnx.Rngs(0)), c=nnx.Linear(8, 4, rngs=nnx.Rngs(1)))
    words = {"sparsity": 0.5, "total_steps": 20, "rules": [("c/kernel", None)]}
    tx = core.sparsify(optax.sgd(0.1), "rigl", **words)
    assert str(core.plan(tx, weights(model))) == str(core.plan(tx, nnx.as_pure(weights(model))))
    if optimizer_class == "ours":
        optimizer = vision.Optimizer(model, optax.sgd(0.1), "rigl", **words)
    else:
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, weights(model))
    assert [int(jnp.count_nonzero(model[name].kernel[...])) for name in "ac"] == [16, 32]
    boxed, state = weights(model), optimizer.opt_state
    for params, opt_state in ((boxed, state), (nnx.as_pure(boxed), nnx.as_pure(state))):
        core.check_sparse(params, opt_state, tx)
        assert core.check_restored(tx, params, opt_state, core.identity_of(tx)) is opt_state
    assert leaf_names(boxed) == leaf_names(nnx.as_pure(boxed)) == ["a/bias", "a/kernel", "c/bias", "c/kernel"]
    assert leaf_names(state) == leaf_names(nnx.as_pure(state))
    for tree in (boxed, state):
        assert [name for name, _ in named_leaves(tree)] == leaf_names(tree)
    with pytest.raises(ValueError, match=r"close: \['c/kernel', .*\]. Leave out '/value'"):
        core.plan(core.sparsify(optax.sgd(0.1), "rigl", **words | {"rules": [("c/kernel/value", None)]}), boxed)


def test_files_that_name_what_is_in_variables_otherwise_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = weights(nnx.Dict(a=nnx.Linear(8, 4, rngs=nnx.Rngs(0))))
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.uint8), nnx.as_pure(params))
    with monkeypatch.context() as before:
        for module in (file_format, tree_file):
            before.setattr(module, "leaf_names", lambda tree: ["a/bias/value", "a/kernel/value"])
        core.export.save_sparse(tmp_path / "old.npz", params, masks)
        with open(tmp_path / "old", "wb") as file:
            tree_file.write_tree(file, params, None)
    assert_equal(core.export.load_sparse(tmp_path / "old.npz", nnx.as_pure(params))[0], params)
    assert_equal(tree_file.read_tree(tmp_path / "old", params, "the checkpoint")[0], params)
    assert names_of_today(["a", "a/value", "b/value"], ["a", "b"]) == ["a", "a/value", "b"]


def test_extra_arguments_reach_the_optimizer() -> None:
    model = Linear()
    optimizer = vision.Optimizer(model, optax.contrib.reduce_on_plateau(), half())
    optimizer.update(model, weights(model), value=7.0)
    assert float(optimizer.opt_state.inner_state.best_value[...]) == 7.0


def test_moments_are_sharded_like_parameters_and_masks_of_other_shapes_are_not() -> None:
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

    @nnx.jit
    def trained() -> tuple[Linear, vision.Optimizer]:
        model = Linear(kernel_init=nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model")))
        optimizer = vision.Optimizer(model, optax.sgd(0.1, momentum=0.9), half())
        optimizer.update(model, weights(model))
        return model, optimizer

    with jax.set_mesh(mesh):
        model, optimizer = trained()
    state, specs = optimizer.opt_state, nnx.get_partition_spec(nnx.state(optimizer))["opt_state"]
    assert specs["inner_state"][0]["trace"]["layer"]["kernel"].get_value() == PartitionSpec(None, "model")
    assert specs["target_sparsities"]["layer"]["kernel"].get_value() == PartitionSpec()
    assert state.masks["layer"]["kernel"].get_value().shape == (2, 8)
    assert int(jnp.count_nonzero(model.layer.kernel[...])) == 64


@pytest.mark.parametrize("storage", [True, False, "zeros"])
@pytest.mark.parametrize("optimizer_class", ["ours", "flax"])
def test_states_are_taken_as_they_are_from_optimizer_to_export(
    storage: bool | str, optimizer_class: str, tmp_path: Path
) -> None:
    """A model's state of Params beside an optimizer's of other Variables, and both as arrays."""
    model, updater = Linear(), core.build_updater("static_sparse", sparsity=0.75, use_packed_masks=storage)
    if optimizer_class == "ours":
        optimizer = vision.Optimizer(model, optax.sgd(0.1), updater)
    else:
        optimizer = nnx.Optimizer(model, updater.wrap_optax(optax.sgd(0.1)), wrt=nnx.Param)
    optimizer.update(model, weights(model))
    boxed, opt_state = weights(model), optimizer.opt_state
    for params in (boxed, nnx.as_pure(boxed)):
        for state in (opt_state, nnx.as_pure(opt_state)):
            assert_equal(updater.pre_forward_update(params, state), params)
            core.check_state(params, state)
            core.check_sparse(params, state)
            assert float(core.summarize_sparsity(params, masks=state.masks)["_total_sparsity"]) == 0.75
            unpacked = core.unpack_masks(params, state.masks)
            np.testing.assert_array_equal(jax.tree.leaves(unpacked)[0], np.asarray(model.layer.kernel[...]) != 0)
            average = jax.tree.map(lambda leaf: 0.5 * leaf + 0.125, params)
            assert np.count_nonzero(jax.tree.leaves(core.apply_masks(average, unpacked))[1]) == 32
            assert jax.tree.leaves(core.export.to_bcoo(params, state.masks))[1].size == 32
            core.export.save_sparse(tmp_path / "model.npz", params, state.masks, overwrite=True)
            assert_equal(core.export.load_sparse(tmp_path / "model.npz", params)[0], params)


def test_a_state_of_another_model_is_refused_boxed_or_not() -> None:
    model = Linear()
    masks = vision.Optimizer(model, optax.sgd(0.1), half()).opt_state.masks
    with pytest.raises(ValueError, match=r"masks \['layer/kernel'\]. If the model changed, call init again"):
        core.apply_masks(nnx.state(nnx.Sequential(Linear()), nnx.Param), masks)
    with pytest.raises(ValueError, match=r"masks \['layer/kernel'\]|has shape"):
        core.apply_masks(nnx.state(nnx.Dict(layer=nnx.Linear(24, 8, rngs=nnx.Rngs(0)))), masks)


SPARSE = functools.partial(core.uniform, sparsity=0.5)


@pytest.mark.parametrize(
    ("tx", "updater", "wrt", "error", "message"),
    [
        (half(), optax.sgd(0.1), nnx.Param, TypeError, "updater is a GradientTransformationExtraArgs"),
        (optax.sgd(0.1), core.RigL, nnx.Param, ValueError, "sparsity is missing"),
        (half().wrap_optax(optax.sgd(0.1)), half(), nnx.Param, TypeError, "sparse already"),
        (optax.sgd(0.1), core.FisherPruning(sparsity_distribution_fn=SPARSE), nnx.Param, ValueError, "optax.adam"),
        (optax.sgd(0.1), half(), nnx.LoRAParam, ValueError, "selects no Variable of this Linear"),
        (optax.sgd(0.1), half(filter_fn=lambda path, param: False), nnx.Param, ValueError, "would prune nothing"),
    ],
)
def test_updaters_and_optimizers_that_do_not_fit_are_refused_and_leave_the_model_alone(
    tx: Any, updater: Any, wrt: Any, error: type[Exception], message: str
) -> None:
    model = Linear()
    with pytest.raises(error, match=message):
        vision.Optimizer(model, tx, updater, wrt=wrt)
    assert bool((model.layer.kernel[...] != 0).all())


def test_another_model_is_refused() -> None:
    optimizer = vision.Optimizer(Linear(), optax.sgd(0.1), half())
    other = Linear(use_bias=False)
    with pytest.raises(ValueError, match=r"different tree structures.*flax.nnx.as_pure\(optimizer.opt_state\)"):
        optimizer.update(other, nnx.state(other, nnx.Param))
