"""What names and shapes decide is worked out once in a walk from gradients to updates, and never remembered beyond."""

import functools
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
def test_rules_of_one_ranking_are_solved_once_in_an_update(
    algorithm: str, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tx = updater_of(algorithm, use_packed_masks=storage).wrap_optax(optax.sgd(0.1))
    state = jax.eval_shape(tx.init, PARAMS)
    monkeypatch.setattr(global_pruning, "resolve", resolve := Counted(global_pruning.resolve))
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert resolve.calls == 1


def test_each_part_of_a_mixture_is_solved_once_in_an_update() -> None:
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
    for part in parts:
        part.calls = 0
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert [part.calls for part in parts] == [1, 1]


def test_a_refresh_and_an_init_solve_it_once() -> None:
    updater = updater_of("magnitude")
    updater.sparsity_distribution_fn = erk = Counted(functools.partial(core.erk, sparsity=0.75))
    tx = updater.wrap_optax(optax.sgd(0.1), refresh_in_graph=False)
    state = jax.eval_shape(tx.init, PARAMS)
    assert erk.calls == 1
    jax.eval_shape(updater.refresh, state, PARAMS)
    assert erk.calls == 2


def test_a_plan_is_forgotten_after_its_update() -> None:
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
