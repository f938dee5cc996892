"""The optimizer definition: T5X's protocol around it, sparse at every step, whatever is inside."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from sparse_plugins import core, t5
from tests.quick import quick_jit
from tests.t5 import t5x_stand_in
from tests.t5.tiny import (
    AXES,
    CASES,
    LAYERS,
    WINDOW,
    definition,
    gradients,
    optimizer,
    parameters,
    run,
    train_state,
    train_step,
    updater,
)


def nonzero(tree):
    return sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)


PRUNABLE = nonzero(parameters())
KEPT = round(0.25 * PRUNABLE)


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.parametrize("case", CASES)
def test_what_the_model_sees_is_on_the_mask_from_the_state_t5x_creates_on(case):
    """Upstream, a step had no forward view: straight-through training was dense, and step 0 always was."""
    for step, state in enumerate(run(case)):
        assert int(state.step) == step
        assert_same(state.params, definition(state).updater.pre_forward_update(state.params, state.param_states))
        if case.startswith("magnitude,") and step < 2:
            assert nonzero(state.params) == PRUNABLE
        elif not case.startswith("magnitude,") or step == 4:
            assert KEPT // 2 < nonzero(state.params) <= KEPT  # what RigL and SET grow starts at 0


@pytest.mark.parametrize("case", CASES)
def test_a_state_dict_brings_back_masks_and_everything_else(case):
    fresh, *_, before, after = run(case)
    stored = flatten_dict(before.state_dict(), keep_empty_nodes=True)
    assert all(hasattr(leaf, "shape") for leaf in stored.values())  # T5X writes no empty parts
    restored = fresh.restore_state(unflatten_dict(stored))
    assert_same(restored, before)
    core.check_state(restored.params, restored.param_states)
    assert_same(train_step(restored), after)


def test_an_optax_transformation_takes_the_steps_it_takes_in_a_loop_of_optax():
    states = run("magnitude, adam")
    tx = definition(states[0]).updater.wrap_optax(optax.adam(0.1))

    @quick_jit
    def step(params, state):
        updates, state = tx.update(gradients(params), state, params)
        return optax.apply_updates(params, updates), state

    params, opt_state = parameters(), quick_jit(tx.init)(parameters())
    for _ in states[1:]:
        params, opt_state = step(params, opt_state)
    last = states[-1]
    assert_same(jax.tree.leaves((last.params, last.param_states)), jax.tree.leaves((params, opt_state)))


def test_adafactor_inside_takes_the_steps_it_takes_alone():
    """And hears of T5X's learning rate, and of T5X's step, which sets its decay."""
    dense, sparse = t5x_stand_in.Adafactor(), t5.SparseOptimizer(t5x_stand_in.Adafactor(), core.NoPruning())
    ends = []
    for optimizer_def in (dense, sparse):
        state = train_step(train_state(optimizer_def))
        optimizer_state = state._optimizer.state.replace(step=jnp.int32(100))
        ends.append(train_step(state.replace(_optimizer=state._optimizer.replace(state=optimizer_state))))
    alone, inside = ends
    close = lambda leaf, expected: np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, inside.params, alone.params)
    jax.tree.map(close, inside.param_states.inner_state, alone.param_states)
    assert int(inside.step) == int(alone.step) == 101


def test_straight_through_training_is_that_of_a_loop_in_numpy():
    states, dense = run("magnitude_ste, momentum"), flatten_dict(parameters(), sep="/")
    velocity = {name: np.zeros_like(weight) for name, weight in dense.items()}

    def mask(weight):
        largest = np.argsort(-np.abs(weight).ravel(), kind="stable")[: round(0.25 * weight.size)]
        return np.isin(np.arange(weight.size), largest).reshape(weight.shape) | (weight.ndim == 1)

    seen = {name: np.where(mask(weight), weight, 0) for name, weight in dense.items()}
    for state in states[1:]:
        grads = gradients(seen)
        velocity = {name: np.asarray(grads[name]) + np.float32(0.9) * velocity[name] for name in dense}
        dense = {name: weight - np.float32(0.1) * velocity[name] for name, weight in dense.items()}
        seen = {name: np.where(mask(weight), weight, 0) for name, weight in dense.items()}
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, flatten_dict(state.params, sep="/"), seen)
        for name, weight in flatten_dict(state.param_states.dense_params, sep="/").items():
            if weight != core.NOT_PRUNED:
                close(weight, dense[name])


def test_evaluation_and_export_read_sparse_parameters():
    """T5X evaluates `train_state.params` and exports 'target' of a checkpoint; no trainer has to know."""
    state = run("magnitude_ste, momentum")[1]
    assert nonzero(state.state_dict()["target"]) == nonzero(state.params) == KEPT
    assert nonzero(state.param_states.dense_params) == PRUNABLE


def test_the_axes_of_parameters_reach_an_optimizer_that_asks_for_them():
    assert definition(run("rigl, Adafactor")[0]).dense.param_axes == AXES
    # T5X insists on axes where anyone asks for them; without, it cannot partition a state at all.
    read = definition(run("magnitude, adam")[0]).updater.layers
    assert str(read["encoder/attention/out/kernel"]) == "inputs 24, outputs 16"


def test_metrics_give_sparsity_per_layer_and_in_total():
    state = run("magnitude_ste, momentum")[0]
    metrics = t5.SparsityMetrics().compute_metrics(None, None, state)
    summary = core.summarize_sparsity(state.params)
    layers = {name for name, (shape, _) in LAYERS.items() if len(shape) > 1}
    assert set(metrics) == {"sparsity/total", *(f"sparsity/{name}" for name in layers)}
    assert all(metrics[f"sparsity/{name}"].value == summary[name] for name in layers)
    assert metrics["sparsity/total"].value == pytest.approx(1 - KEPT / PRUNABLE)
    with pytest.raises(ValueError, match="it holds no masks"):
        t5.SparsityMetrics().compute_metrics(None, None, train_state(t5x_stand_in.OptaxWrapper(optax.sgd(0.1))))


@pytest.mark.parametrize("case", ["magnitude_ste, momentum", "magnitude, adam"])
def test_a_dense_checkpoint_is_an_error_until_it_is_laid_out_anew(case):
    fresh = run(case)[0]
    inside = definition(fresh).dense
    dense = train_step(train_state(inside))
    plain = definition(fresh).state_dict(dense.params, dense._optimizer.state)
    with pytest.raises(ValueError, match=r"lacks \d+ parts .* 'param_states/count'.*dense run.*from_dense.gin"):
        fresh.restore_state(plain)
    moved = flatten_dict(t5.from_dense(plain, fresh.state_dict()))
    state = fresh.restore_state(unflatten_dict({**flatten_dict(fresh.state_dict()), **moved}))  # as T5X fills gaps
    assert_same(state.params, dense.params)
    assert_same(state.param_states.inner_state, dense.param_states)
    state, dense = train_step(state), train_step(dense)
    learned = state.param_states.dense_params if "ste" in case else state.params
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, learned["token_embedder"], dense.params["token_embedder"])
    for _ in range(3):
        state = train_step(state)
    assert nonzero(state.params) == KEPT


def test_importing_the_shim_loads_no_t5x_and_its_use_says_what_is_missing():
    program = """
        import sys
        sys.modules["t5x"] = None
        import optax
        from sparse_plugins import t5
        updater = t5.create_updater_from_config(sparsity=0.5)
        wrap = lambda: t5.SparseOptimizer(optax.adam(0.1), updater)
        log = lambda: t5.SparsityMetrics().compute_metrics(None, None, None)
        for use in (wrap, log):
            try:
                use()
            except ModuleNotFoundError as error:
                assert 'needs t5x, which is not installed; run: pip install "t5x @ git+' in str(error), error
            else:
                raise AssertionError
    """
    lines = "\n".join(line.removeprefix(" " * 8) for line in program.splitlines())
    subprocess.run([sys.executable, "-c", lines], check=True, timeout=300)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: None, "optimizer is None; give an OptimizerDef"),
        (lambda: optax.adam, "optimizer is <function adam"),
        (lambda: t5x_stand_in.Adafactor, "an instance and not the class"),
        (lambda: CASES["magnitude, adam"](), "sparse already"),
        (lambda: updater("magnitude", **WINDOW).wrap_optax(optax.adam(0.1)), "sparse already"),
    ],
)
def test_what_is_no_dense_optimizer_is_an_error(wrong, message):
    with pytest.raises(TypeError, match=message):
        optimizer("magnitude", wrong(), **WINDOW).init_state(parameters())


def test_an_optimizer_without_updater_is_an_error():
    with pytest.raises(TypeError, match="updater is a NoneType; give an updater"):
        t5.SparseOptimizer(optax.adam(0.1), None)


def test_a_rule_that_matches_no_layer_is_an_error():
    with pytest.raises(ValueError, match=r"decoder/.*matches"):
        train_state(optimizer("magnitude", optax.adam(0.1), rules=[("decoder/.*", 0.5)], **WINDOW))


def test_parameters_that_are_no_floats_stay_dense():
    params = {"kernel": jnp.ones((16, 8)), "table": jnp.ones((16, 8), jnp.int32)}
    sparse = optimizer("static_sparse", optax.sgd(0.1))
    masks = jax.eval_shape(sparse.init_state, params).param_states.masks
    assert (masks["table"], masks["kernel"].shape) == (core.NOT_PRUNED, (2, 8))
    with pytest.raises(ValueError, match="would prune nothing"):
        sparse.init_state({"table": params["table"]})


def test_an_empty_tree_is_an_error():
    with pytest.raises(ValueError, match="would prune nothing"):
        CASES["magnitude, adam"]().create({})


def test_the_private_table_of_t5x_is_left_alone():
    """Upstream wrote its rules into it when it was imported."""
    before = dict(t5x_stand_in.OptaxStatePartitionRules._RULES)
    run("magnitude, adam")[-1].as_logical_axes()
    assert before == t5x_stand_in.OptaxStatePartitionRules._RULES


def of_sparsity(algorithm, sparsity, **options):
    adam = t5x_stand_in.OptaxWrapper(optax.adam(0.1))
    return train_state(t5.SparseOptimizer(adam, algorithm, sparsity=sparsity, total_steps=100, **options))


def test_a_checkpoint_of_another_sparsity_is_refused_unless_that_is_meant():
    saved = of_sparsity("rigl", 0.5).state_dict()
    of_sparsity("rigl", 0.5).restore_state(saved)
    with pytest.raises(core.CheckpointMismatchError, match=r"ends at sparsity .*keep_targets=False"):
        of_sparsity("static_sparse", 0.75).restore_state(saved)
    fresh = of_sparsity("static_sparse", 0.75, keep_targets=False)
    meant = fresh.restore_state(saved)
    assert_same(meant.param_states.target_sparsities, fresh.param_states.target_sparsities)
    assert nonzero(meant.params) > nonzero(fresh.params)


def test_a_state_that_is_off_its_masks_is_told_of_when_it_is_saved():
    state = train_step(of_sparsity("static_sparse", 0.75))
    moved = state._optimizer.replace(target=jax.tree.map(lambda weight: weight + 1, state.params))
    with pytest.warns(RuntimeWarning, match="after the first mask update, .* pruned weights of .* are not 0"):
        state.replace(_optimizer=moved).state_dict()
    state.replace(_optimizer=moved).state_dict()  # once is enough
