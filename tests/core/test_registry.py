"""An algorithm of one's own, known by a name: in configurations, gin, the contract suite and what growth goes by."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from sparse_plugins import core
from sparse_plugins.core.registry import ALGORITHMS
from sparse_plugins.t5 import bindings
from tests.contract import rows, test_steps
from tests.quick import thorough


@dataclasses.dataclass(eq=False)
class Movement(core.BaseUpdater):
    """Keeps what gradient descent moves away from 0 fastest."""

    power: float = 1.0

    scores_by_gradient: ClassVar[bool] = True

    def calculate_scores(
        self, params: Any, sparse_state: core.SparseState | None = None, grads: Any = None, **kwargs: Any
    ) -> Any:
        """The signed power of -w g."""
        score = lambda w, g: -jnp.sign(w * g) * jnp.abs(w * g) ** self.power  # noqa: E731
        return jax.tree.map(score, params, grads)


@dataclasses.dataclass(eq=False)
class Swap(core.SET):
    """Grows by the smallest gradients."""

    grows_by_gradient: ClassVar[bool] = True

    def grow_sources(self, params: Any, state: core.SparseState, grads: Any) -> Any:
        """Gradients."""
        return grads

    def grow_score(self, param: jax.Array, source: jax.Array) -> jax.Array:
        """-|dL/dw|."""
        return -jnp.abs(source)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The names exist in these tests alone."""
    core.register_algorithm("movement", Movement, power=0.5)
    core.register_algorithm("swap", Swap, drop_fraction_fn=core.ConstantDrop(0.5))
    yield
    del ALGORITHMS["movement"], ALGORITHMS["swap"]


SETTINGS = {"sparsity": 0.75, **rows.WINDOW}


@pytest.mark.parametrize(
    "create",
    [
        lambda **keys: core.create_updater_from_config(**keys),
        lambda **keys: core.create_updater_from_config(ml_collections.ConfigDict(keys)),
        lambda **keys: core.create_updater_from_config(core.SparsityConfig(**keys)),
        lambda algorithm, **keys: bindings.create_updater_from_config(algorithm, dist_type="uniform", **keys),
    ],
    ids=["keywords", "ConfigDict", "SparsityConfig", "gin"],
)
def test_configurations_know_it(create: Any) -> None:
    updater = create(algorithm="movement", sparsity_type="2:4", **SETTINGS)
    assert type(updater) is Movement
    assert updater.power == 0.5
    assert updater.sparsity_type == core.NByM(2, 4)
    assert isinstance(updater.scheduler, core.PolynomialSchedule)
    assert create(algorithm="swap", drop_fraction=0.1, **SETTINGS).drop_fraction_fn == core.ConstantDrop(0.5)
    given = create(algorithm="swap", drop_fraction_fn=core.ConstantDrop(0.2), **SETTINGS)
    assert given.drop_fraction_fn == core.ConstantDrop(0.2)


def test_names_list_it_behind_those_of_the_package() -> None:
    assert core.all_algorithm_names()[-2:] == ("movement", "swap")


def test_what_a_configuration_says_comes_before_what_was_registered() -> None:
    core.register_algorithm("sparse_grads", Movement, is_sparse_gradients=True, sparsity_type=core.Channel())
    try:
        assert core.create_updater_from_config(algorithm="sparse_grads", sparsity=0.5).is_sparse_gradients
        create = functools.partial(core.create_updater_from_config, algorithm="sparse_grads", sparsity=0.5)
        assert create().sparsity_type == core.Channel()
        updater = create(is_sparse_gradients=False, sparsity_type="4x4")
        assert (updater.is_sparse_gradients, updater.sparsity_type) == (False, core.Block((4, 4)))
    finally:
        del ALGORITHMS["sparse_grads"]


@pytest.mark.parametrize("row", ["movement", thorough("swap")])
def test_the_contract_suite_takes_it_as_one_more_row(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rows.UPDATERS, row, ({}, (12, 6)))
    test_steps.test_updates_land_on_the_mask_and_reach_the_target(row)
    test_steps.test_one_program_serves_all_steps(row)
    test_steps.test_parameters_are_their_own_forward_view(row)
    test_steps.test_explicit_refresh_gives_the_same_run(row)
    test_steps.test_only_masks_pass_the_guard(row)
    test_steps.test_scan_and_any_storage_of_masks_give_the_same_run(row, "zeros")


def test_what_it_can_do_is_declared_and_asked_of_mixtures_too() -> None:
    swap, movement = Swap(), Movement()
    mixture = core.PerModule([("head/.*", swap), (".*", movement)])
    assert (swap.grows_by_gradient, movement.grows_by_gradient, mixture.grows_by_gradient) == (True, False, True)
    assert (swap.scores_by_gradient, movement.scores_by_gradient, mixture.scores_by_gradient) == (False, True, True)
    assert [part for _, part in mixture.parts] == [swap, movement]
    assert (swap.parts, swap.map_parts(lambda part: movement)) == ((), movement)


@pytest.mark.parametrize(
    ("register", "error", "message"),
    [
        (lambda: core.register_algorithm("rigl", Movement), ValueError, "'rigl' is taken, by RigL; choose another"),
        (lambda: core.register_algorithm("movement", Movement), ValueError, "'movement' is taken, by Movement"),
        (lambda: core.register_algorithm("new", Movement()), TypeError, "give a class that extends core.BaseUpdater"),
        (lambda: core.register_algorithm("new", dict), TypeError, "is no updater class"),
        (lambda: core.register_algorithm("", Movement), TypeError, "give text such as 'movement'"),
        (lambda: core.register_algorithm("new", Movement, powers=2), ValueError, "Movement has no field 'powers'"),
        (lambda: core.register_algorithm("new", Movement, parts=2), ValueError, "has no field 'parts'"),
        (
            lambda: core.register_algorithm("new", core.GraNet, sparsity=0.5),
            ValueError,
            "sparsity comes from the configuration",
        ),
        (lambda: core.create_updater_from_config(algorithm="movment", sparsity=0.5), ValueError, "mean 'movement'"),
    ],
)
def test_what_cannot_be_registered_is_explained(register: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register()
    assert "new" not in core.all_algorithm_names()
