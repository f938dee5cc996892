"""What names, shapes and dtypes decide is worked out once for an updater, and anew when one of its fields is set."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.core import structures
from sparse_plugins.core.algorithms import global_pruning

PARAMS = {"body": {"w": jnp.ones((8, 6))}, "head": {"w": jnp.ones((6, 4))}}
EVERY_OTHER = {"update_freq": 2, "update_start_step": 1, "update_end_step": 5}
BY_PATH = core.ByPath([("head/.*", core.NByM(2, 4))])


class Counted:
    """A function that knows how often it was called."""

    def __init__(self, function: Callable) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


def updater_of(algorithm: str, **options: Any) -> core.BaseUpdater:
    return core.create_updater_from_config(algorithm=algorithm, sparsity=0.75, **EVERY_OTHER, **options)


@pytest.mark.parametrize("algorithm", ["magnitude", "saliency", "rigl", "gradual_set", "acdc", "sr_ste", "fisher"])
@pytest.mark.parametrize("structure", [core.Unstructured(), BY_PATH], ids=["unstructured", "by path"])
def test_erk_and_structures_are_solved_once_in_an_update(
    algorithm: str, structure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = updater_of(algorithm, sparsity_type=structure)
    tx = updater.wrap_optax(optax.adam(1e-3))
    state = jax.eval_shape(tx.init, PARAMS)
    updater.sparsity_distribution_fn = erk = Counted(functools.partial(core.erk, sparsity=0.75))
    monkeypatch.setattr(structures, "first_match", first_match := Counted(structures.first_match))
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert (erk.calls, first_match.calls) == (1, int(structure is BY_PATH))
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert erk.calls == 1


def test_inputs_of_layers_cost_no_second_plan() -> None:
    updater = updater_of("wanda")
    tx = updater.wrap_optax(optax.sgd(0.1))
    state = jax.eval_shape(tx.init, PARAMS)
    updater.sparsity_distribution_fn = erk = Counted(functools.partial(core.erk, sparsity=0.75))
    seen = {"body": {"w": jnp.ones(8)}, "head": {"w": jnp.ones(6)}}
    jax.eval_shape(functools.partial(tx.update, activations=seen), PARAMS, state, PARAMS)
    assert erk.calls == 1


@pytest.mark.parametrize("storage", [True, "zeros"])
@pytest.mark.parametrize("algorithm", ["global_magnitude", "global_saliency", "granet"])
def test_rules_of_one_ranking_are_solved_once(algorithm: str, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tx = updater_of(algorithm, use_packed_masks=storage).wrap_optax(optax.sgd(0.1))
    monkeypatch.setattr(global_pruning, "resolve", resolve := Counted(global_pruning.resolve))
    state = jax.eval_shape(tx.init, PARAMS)
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert resolve.calls == 1


def test_each_part_of_a_mixture_is_solved_once() -> None:
    parts = [Counted(functools.partial(core.erk, sparsity=0.5)) for _ in range(2)]
    schedule = core.PeriodicSchedule(2, 1, 5)
    updater = core.PerModule(
        [
            ("body/.*", core.RigL(sparsity_distribution_fn=parts[0], scheduler=schedule)),
            ("head/.*", core.SteMagnitudePruning(sparsity_distribution_fn=parts[1], scheduler=schedule)),
        ]
    )
    tx = updater.wrap_optax(optax.sgd(0.1))
    state = jax.eval_shape(tx.init, PARAMS)
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert [part.calls for part in parts] == [1, 1]


def test_an_init_a_step_and_a_refresh_share_what_is_solved() -> None:
    updater = updater_of("magnitude")
    updater.sparsity_distribution_fn = erk = Counted(functools.partial(core.erk, sparsity=0.75))
    tx = updater.wrap_optax(optax.sgd(0.1), refresh_in_graph=False)
    state = jax.eval_shape(tx.init, PARAMS)
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    jax.eval_shape(updater.refresh, state, PARAMS)
    assert erk.calls == 1
    halves = jax.tree.map(lambda w: w.astype(jnp.float16), PARAMS)
    jax.eval_shape(tx.init, halves)
    jax.eval_shape(tx.init, {"body": {"w": jnp.ones((8, 6), int)}, "head": PARAMS["head"]})
    assert erk.calls == 3  # which leaves are pruned goes by dtypes, too


def test_a_plan_is_forgotten_when_a_field_is_set() -> None:
    """An updater whose fields are changed between two updates goes by the new ones."""
    updater = core.MagnitudePruning(
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5), scheduler=core.PeriodicSchedule(1, 0)
    )
    tx = updater.wrap_optax(optax.sgd(0.0))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    updater.sparsity_distribution_fn = functools.partial(core.uniform, sparsity=0.75)
    _, state = tx.update(PARAMS, state, PARAMS)
    kept = [int(mask.sum()) for mask in jax.tree.leaves(core.unpack_masks(PARAMS, state.masks))]
    assert kept == [12, 6]


def test_a_plan_is_forgotten_when_a_field_of_a_part_is_set() -> None:
    part = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
    mixture = core.PerModule([(".*", part)])
    assert mixture.leaf_plans(PARAMS).leaves[0].target == 0.5
    part.sparsity_distribution_fn = functools.partial(core.uniform, sparsity=0.75)
    assert mixture.leaf_plans(PARAMS).leaves[0].target == 0.75


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda updater: pickle.loads(pickle.dumps(updater))])
def test_a_copy_makes_its_plans_itself(copied: Callable) -> None:
    updater = core.MagnitudePruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
    assert updater.leaf_plans(PARAMS) is updater.leaf_plans(PARAMS)
    again = copied(updater)
    assert vars(again).keys() == vars(updater).keys()
    assert again.leaf_plans(PARAMS) is again.leaf_plans(PARAMS)
    assert {plan.updater for plan in again.leaf_plans(PARAMS).leaves} == {again}


def test_what_is_made_once_is_not_kept_without_end() -> None:
    updater = updater_of("magnitude")
    first = updater.leaf_plans({"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)})
    for length in range(3, 80):
        updater.leaf_plans({"w": jax.ShapeDtypeStruct((2, length), jnp.float32)})
    assert updater.leaf_plans({"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)}) is not first
