"""What users of each library hand over by mistake, and what they are told."""

import functools
from collections.abc import Callable
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from sparse_plugins import core

PARAMS = {"layer": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}}
MLP = equinox.nn.MLP(4, 2, 4, 1, key=jax.random.key(0))
HALF = functools.partial(core.uniform, sparsity=0.5)
KERNELS = functools.partial(HALF, filter_fn=core.kernels_only)
UPDATERS = {
    "magnitude": core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(0)),
    "rigl": core.RigL(sparsity_distribution_fn=HALF, scheduler=core.PeriodicSchedule(2, 0)),
    "straight-through": core.SteMagnitudePruning(sparsity_distribution_fn=HALF),
}


class Network(nnx.Module):
    def __init__(self) -> None:
        self.layer = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))


NETWORK = Network()
REMEDY = r"Give the trainable arrays alone, such as equinox.filter.*nnx.state\(model, nnx.Param\).*v.value"

NO_ARRAYS: dict[str, tuple[Any, str]] = {
    "an Equinox model, not filtered": (MLP, "parameter 'activation' is no array of numbers but .*" + REMEDY),
    "a function in the tree": (PARAMS | {"act": jax.nn.relu}, "parameter 'act' is no array of numbers but .*" + REMEDY),
    "a string in the tree": (PARAMS | {"name": "net"}, "parameter 'name' is no array of numbers but str.*" + REMEDY),
    "a random key in the tree": (
        PARAMS | {"key": jax.random.key(0)},
        "'key' is no array .* key<fry>.*" + REMEDY,
    ),
    "an NNX module": (NETWORK, "'dropout/rngs/key' is no array .* array of key<fry>.*" + REMEDY),
    "all state of an NNX module": (nnx.state(NETWORK), "'dropout/rngs/key' is no array.*" + REMEDY),
    "shapes": (
        jax.eval_shape(lambda: PARAMS),
        r"'layer/bias' is ShapeDtypeStruct.* come from jax.eval_shape",
    ),
}


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("case", NO_ARRAYS)
def test_what_is_no_array_is_named_with_the_remedy(case: str, updater: str) -> None:
    params, message = NO_ARRAYS[case]
    with pytest.raises(TypeError, match=message):
        UPDATERS[updater].wrap_optax(optax.adam(0.1)).init(params)


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("empty", [{}, [], (), None, {"params": {}}, nnx.State({})], ids=repr)
def test_an_empty_tree_is_an_error(empty: Any, updater: str) -> None:
    with pytest.raises(ValueError, match=r"would prune nothing: the parameters are .*, a tree without leaves"):
        UPDATERS[updater].wrap_optax(optax.adam(0.1)).init(empty)


def test_an_empty_tree_may_stay_dense() -> None:
    assert core.NoPruning().wrap_optax(optax.sgd(0.1)).init({}).masks == {}


def updated(params: Any, grads: Any) -> Any:
    tx = UPDATERS["magnitude"].wrap_optax(optax.sgd(0.1))
    return tx.update(grads, tx.init(params), params)


KERAS_LISTS = [jnp.ones((8, 6)), jnp.ones(6)]
VALUE_ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "other names": (
        lambda: core.RigL(sparsity_distribution_fn=KERNELS).init_state({"table": jnp.ones((4, 4))}),
        r"none of \['table'\] .* goes by names: other layers need a rule, such as rules=\[\('table', 'default'\)\]",
    ),
    "a list without names": (
        lambda: core.RigL(sparsity_distribution_fn=KERNELS).init_state(KERAS_LISTS),
        r"none of \['0', '1'\] .* and a list of arrays a dict",
    ),
    "a rule for integers": (
        lambda: core.uniform({"body": {"w": jnp.ones((2, 2)), "steps": np.arange(3)}}, 0.5, rules=[("body/.*", 0.9)]),
        r"prunes 'body/steps', which is no floating array: narrow the pattern, or put \('body/steps', None\) before it",
    ),
    "gradients in another container": (
        lambda: updated(PARAMS, FrozenDict(PARAMS)),
        r"same leaves \['layer/bias', 'layer/kernel'\], but in other containers \(outermost: FrozenDict and dict\)",
    ),
    "gradients of an NNX module that was not split": (
        lambda: updated(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), nnx.state(nnx.Linear(8, 6, rngs=nnx.Rngs(0)))),
        r"the same leaves .* \(outermost: State and Linear\). Give both as the same kind of tree",
    ),
}


@pytest.mark.parametrize("case", VALUE_ERRORS)
def test_a_tree_that_does_not_fit_is_explained(case: str) -> None:
    act, message = VALUE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        act()


def test_gradients_of_integers_are_named() -> None:
    params = PARAMS | {"steps": jnp.arange(3)}
    grads = PARAMS | {"steps": np.zeros(3, jax.dtypes.float0)}
    with pytest.raises(TypeError, match=r"gradient of parameter 'steps' is no array of numbers .*float0"):
        updated(params, grads)


def test_summaries_and_plans_of_a_whole_model_say_what_is_wrong() -> None:
    for report in (core.summarize_sparsity, functools.partial(core.describe_plan, UPDATERS["rigl"])):
        with pytest.raises(TypeError, match="parameter 'activation' is no array of numbers"):
            report(MLP)
    plan = core.describe_plan(UPDATERS["rigl"], jax.eval_shape(lambda: PARAMS))
    assert "24 of 48" in plan


@pytest.mark.parametrize("updater", ["magnitude", "straight-through"])
def test_integers_numbers_and_numpy_arrays_go_on_as_in_optax(updater: str) -> None:
    kernel = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    params = {"kernel": kernel, "steps": np.arange(3), "scale": 1.5, "flag": np.array(True)}
    grads = {"kernel": kernel, "steps": np.zeros(3, np.int32), "scale": 0.5, "flag": np.array(False)}
    trained = []
    for tx in (optax.sgd(0.5), UPDATERS[updater].wrap_optax(optax.sgd(0.5))):
        updates, _ = tx.update(grads, tx.init(params), params)
        trained.append(optax.apply_updates(params, updates))
    dense, sparse = trained
    assert int(np.count_nonzero(sparse["kernel"])) == 24
    for name in ("steps", "scale", "flag"):
        np.testing.assert_array_equal(sparse[name], dense[name])
