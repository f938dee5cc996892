"""A learner reads from its network which axes stack layers, or says why it does not."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core, rl

KEY, X, LAYERS = jax.random.key(0), jnp.ones((2, 6)), 3
STACK = hk.transform(lambda x: hk.experimental.layer_stack(LAYERS)(lambda x: jnp.tanh(hk.Linear(6)(x)))(x))
KERNEL = "__layer_stack_no_per_layer/linear"


def learner(network: Any = STACK, **settings: Any) -> rl.SparseLearner:
    apply = network.apply if isinstance(network, hk.Transformed) else network[1]
    return rl.SparseLearner(
        network=network,
        loss_fn=lambda params, target, key, x: (jnp.sum(apply(params, key, x) ** 2), {}),
        act_fn=lambda params, key, x: apply(params, key, x),
        optimizer=optax.sgd(0.1),
        updater=core.build_updater("static_sparse", sparsity=0.5, distribution="uniform", **settings),
    )


def kept(params: Any) -> list[int]:
    return np.count_nonzero(params[KERNEL]["w"], axis=(-2, -1)).tolist()


def test_every_layer_of_a_stack_keeps_its_count_and_biases_stay_dense() -> None:
    agent = learner()
    state = agent.init(KEY, X)
    assert kept(state.params) == [18] * LAYERS
    plan = agent.describe_plan(state)
    assert f"{KERNEL}/w/0  (6, 6)  inputs 6, outputs 6  0.5              18 of 36" in plan
    assert next(line for line in plan.splitlines() if "/b/2" in line).endswith("dense            6 of 6")
    state, _ = agent.learn(state, X)
    assert kept(state.params) == [18] * LAYERS
    seeds = jax.vmap(agent.init, in_axes=(0, None))(jax.random.split(KEY, 2), X)
    assert kept(seeds.params) == [[18] * LAYERS] * 2


def test_a_state_of_another_learner_is_learnt_from_where_axes_make_no_difference_or_are_read() -> None:
    plain = hk.transform(lambda x: hk.Linear(6)(x))
    state = learner(plain).init(KEY, X)
    after, _ = learner(plain).learn(state, X)
    assert int(jnp.count_nonzero(after.params["linear"]["w"])) == 18
    state = learner().init(KEY, X)
    with pytest.raises(ValueError, match=r"is pruned depends on what its axes are \(stack 3, .*learner.reading\("):
        learner().learn(state, X)
    after, _ = learner().reading(X).learn(state, X)
    assert kept(after.params) == [18] * LAYERS


def test_a_network_that_cannot_be_traced_is_read_by_shapes_and_the_plan_says_why() -> None:
    def apply(params: Any, key: Any, x: jax.Array) -> jax.Array:
        return params["w"] * float(x.sum())

    agent = learner((lambda key, x: {"w": jnp.ones((4, 4))}, apply))
    state = agent.init(KEY, X)
    assert int(jnp.count_nonzero(state.params["w"])) == 8
    assert "one layer (not traced, because of Concretization" in agent.describe_plan(state)
    with pytest.raises(ValueError, match=r"'w' of shape \(2, 4, 4\) are inputs .*stack layers \(not traced, because"):
        learner((lambda key, x: {"w": jnp.ones((2, 4, 4))}, apply), structure="fan_in").init(KEY, X)
