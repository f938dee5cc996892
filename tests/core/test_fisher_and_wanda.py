"""Scores from more than weights and gradients: curvature, inputs, the first batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests import reference


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def half(params: Any) -> Any:
    return core.uniform(params, 0.5)


FISHER = core.FisherPruning(sparsity_distribution_fn=half, scheduler=core.OneShotSchedule(2))


@pytest.mark.parametrize(
    "inner",
    [optax.adam(0.1), optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adamw)(0.1)), optax.rmsprop(0.1)],
    ids=["adam", "nested", "rmsprop"],
)
def test_fisher_ranks_by_the_second_moment_of_the_optimizer(inner: optax.GradientTransformation) -> None:
    params, tx = {"w": normal(6, 8), "b": jnp.ones(8)}, FISHER.wrap_optax(inner)
    state = tx.init(params)
    for number in range(3):
        before, nu = params, jax.tree.leaves(optax.tree.get(state.inner_state, "nu"))[-1]
        updates, state = tx.update({"w": normal(6, 8, seed=number + 1), "b": jnp.ones(8)}, state, params)
        params = optax.apply_updates(params, updates)
    expected = reference.top_k(np.asarray(before["w"], np.float32) ** 2 * np.asarray(nu), 24)
    np.testing.assert_array_equal(core.unpack_masks(params, state.masks)["w"], expected)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda params: FISHER.wrap_optax(optax.sgd(0.1)).init(params), "'nu', which the optimizer lacks: wrap one"),
        (
            lambda params: (
                core.FisherPruning(sparsity_distribution_fn=half, scheduler=core.OneShotSchedule(0))
                .wrap_optax(optax.adam(0.1))
                .init(params)
            ),
            "before the optimizer has seen a gradient: start the schedule at step 1",
        ),
        (FISHER.instant_sparsify, "use it through wrap_optax"),
        (
            lambda params: FISHER.wrap_optax(
                optax.partition({"a": optax.adam(0.1), "s": optax.adam(0.1)}, {"w": "a", "v": "s"})
            ).init(params),
            r"which the optimizer \(it has 2\) lacks",
        ),
    ],
    ids=["no second moment", "too early", "no state", "two optimizers"],
)
def test_fisher_says_what_it_needs(act: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act({"w": normal(6, 8), "v": normal(6, 8)})


def test_fisher_refuses_a_layer_that_its_optimizer_does_not_look_after() -> None:
    tx = FISHER.wrap_optax(optax.partition({"a": optax.adam(0.1), "s": optax.sgd(0.1)}, {"w": "a", "v": "s"}))
    params = {"w": normal(6, 8), "v": normal(6, 8)}
    state = tx.init(params)
    with pytest.raises(ValueError, match="'nu', which the optimizer for one of the layers lacks"):
        FISHER.refresh(state, params, params)


@pytest.mark.parametrize(("axis", "shape"), [(-2, (6, 5)), (-2, (3, 3, 6, 5)), (-1, (5, 6))])
def test_wanda_compares_within_each_output(axis: int, shape: tuple) -> None:
    outputs = {-2: -1, -1: 0}[axis]
    updater = core.WandaPruning(
        sparsity_distribution_fn=half, input_axis=axis, sparsity_type=core.ConstantFanIn(axis=outputs)
    )
    kernel, inputs = normal(*shape), normal(7, 4, 6, seed=1)
    norms = np.sqrt((np.asarray(inputs) ** 2).sum(axis=(0, 1)))
    side = [1] * len(shape)
    side[axis] = 6
    scores = np.moveaxis(np.abs(np.asarray(kernel)) * norms.reshape(side), outputs, 0)
    expected = np.stack([reference.top_k(neuron, neuron.size // 2) for neuron in scores])
    for given in (inputs, jnp.asarray(norms)):
        _, masks = updater.instant_sparsify({"w": kernel, "b": jnp.ones(3)}, activations={"w": given, "b": None})
        np.testing.assert_array_equal(masks["w"], np.moveaxis(expected, 0, outputs))


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (None, r"got None as activations of 'w', whose shape is \(6, 5\): pass activations= with its inputs"),
        ({"w": jnp.ones(5)}, r"got \(5,\) as activations of 'w'.* \[..., 6\] or their norms \[6\]"),
        ({"v": jnp.ones(6)}, "activations and the parameters have different tree structures"),
    ],
)
def test_wanda_says_which_inputs_are_missing(activations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        core.WandaPruning(sparsity_distribution_fn=half).instant_sparsify({"w": normal(6, 5)}, activations=activations)


@pytest.mark.thorough
def test_snip_and_grasp_rank_all_layers_by_the_first_batch() -> None:
    params = {"a": normal(4, 6), "b": normal(6, 3, seed=1) * 3}
    inputs, wanted = normal(8, 4, seed=2), normal(8, 3, seed=3)
    loss = lambda p: jnp.mean((jnp.tanh(inputs @ p["a"]) @ p["b"] - wanted) ** 2)  # noqa: E731
    grads, product = core.hessian_gradient_product(loss, params)
    flat, shape_again = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda flat: loss(shape_again(flat)))(flat)
    slow = hessian @ jax.flatten_util.ravel_pytree(grads)[0]
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(product)[0], slow, rtol=1e-4, atol=1e-5)
    for updater, score in (
        (core.SnipPruning(sparsity=0.5), lambda p, g, hg: np.abs(p * g)),
        (core.GraspPruning(sparsity=0.5), lambda p, g, hg: p * hg),
    ):
        tx = updater.wrap_optax(optax.sgd(0.1))
        _, state = tx.update(grads, tx.init(params), params, hessian_gradient=product)
        scores = [np.asarray(score(params[k], grads[k], product[k])) for k in "ab"]
        expected = reference.top_k_together(scores, 21)
        for name, mask in zip("ab", expected, strict=True):
            np.testing.assert_array_equal(core.unpack_masks(params, state.masks)[name], mask)


def test_grasp_removes_what_costs_the_gradient_least() -> None:
    """On a quadratic loss the first-order loss of |g|^2 is w * H g, twice: exact for the derivative along w."""
    curvature = jnp.array([1.0, 2.0, 3.0, 4.0])
    params = {"w": jnp.array([[1.0, -2.0, 0.5, 3.0]])}
    loss = lambda p: jnp.sum(curvature * (p["w"][0] - 1) ** 2) / 2  # noqa: E731
    grads, product = core.hessian_gradient_product(loss, params)
    norm = lambda w: float(jnp.sum(jax.grad(loss)({"w": w})["w"] ** 2))  # noqa: E731
    scores = core.GraspPruning().calculate_scores(params, hessian_gradient=product)["w"][0]
    step = 1e-3
    for i in range(4):
        less = params["w"].at[0, i].multiply(1 - step)
        np.testing.assert_allclose((norm(params["w"]) - norm(less)) / (2 * step), scores[i], rtol=0.02, atol=2e-2)
    with pytest.raises(ValueError, match=r"pass hessian_gradient=, as core.hessian_gradient_product"):
        core.GraspPruning(sparsity=0.5).instant_sparsify(params, grads)
