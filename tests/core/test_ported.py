"""Algorithms as written for JaxPruner: what they call is there, and what they return is taken."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from tests.contract.rows import FAMILIES, TREES, assert_same, equations, make_updater
from tests.quick import quick_jit

HALF = functools.partial(core.uniform, sparsity=0.5)
EVERY_STEP = core.PeriodicSchedule(update_freq=1, update_start_step=0, update_end_step=2**31 - 2)
PARAMS = {"w": jnp.array([[4.0, 1.0, 3.0, 2.0]]), "b": jnp.ones(2)}


def forget_moments(state: core.SparseState) -> core.SparseState:
    """Adam and momentum as after init, found in a chain by their types."""

    def forget(part: Any) -> Any:
        names = {"mu", "nu", "trace"} & set(getattr(part, "_fields", ()))
        return part._replace(**{name: jax.tree.map(jnp.zeros_like, getattr(part, name)) for name in names})

    return state._replace(inner_state=tuple(forget(part) for part in state.inner_state))


@dataclasses.dataclass
class Phases(core.MagnitudePruning):
    """As AC/DC: it is asked at every step and decides by itself, in branches of its own."""

    phase: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scheduler = EVERY_STEP

    def update_state(self, sparse_state: Any, params: Any, grads: Any) -> Any:
        place = sparse_state.count % (2 * self.phase)

        def prune() -> Any:
            scores = self.calculate_scores(params, sparse_state=sparse_state, grads=grads)
            masks = self.create_masks(scores, sparse_state.target_sparsities)
            return forget_moments(sparse_state._replace(masks=masks))

        def revive() -> Any:
            masks = self.get_initial_masks(params, sparse_state.target_sparsities)
            return forget_moments(sparse_state._replace(masks=masks))

        keep = lambda: sparse_state  # noqa: E731
        sparse_state = jax.lax.cond(place == 0, prune, keep)
        return jax.lax.cond(place == self.phase, revive, lambda: sparse_state)


@dataclasses.dataclass
class Curvature(core.BaseUpdater):
    """As Fisher pruning with Adam's second moment, which starts anew at a mask change."""

    def calculate_scores(self, params: Any, sparse_state: Any = None, grads: Any = None) -> Any:
        return jax.tree.map(lambda p, nu: p**2 * nu, params, sparse_state.inner_state[0].nu)

    def update_state(self, sparse_state: Any, params: Any, grads: Any) -> Any:
        return forget_moments(super().update_state(sparse_state, params, grads))


@dataclasses.dataclass
class Exchange(core.StaticRandomSparse):
    """As RigL: two rankings of arrays by `topk_fn`, at the sparsity that a mask has."""

    drop_fraction: float = 0.5

    def is_refresh_due(self, step: Any) -> Any:
        return self.scheduler.is_mask_update_iter(step)

    def exchanged(self, mask: jax.Array, drop: jax.Array, grow: jax.Array) -> jax.Array:
        density = jnp.sum(mask) / mask.size
        dropped = self.topk_fn(jnp.where(mask == 0, jnp.min(drop) - 1, drop), 1 - density * (1 - self.drop_fraction))
        return self.topk_fn(jnp.where(dropped == 1, jnp.max(grow) + 1, grow), 1 - density)

    def update_state(self, sparse_state: Any, params: Any, grads: Any) -> Any:
        scores = [jax.tree.map(jnp.abs, tree) for tree in (params, grads)]
        return sparse_state._replace(masks=jax.tree.map(self.exchanged, sparse_state.masks, *scores))


def run(updater: core.BaseUpdater, inner: Any, params: Any, gradients: list[Any], **how: Any) -> list[Any]:
    """Parameters and state after each step."""
    tx = updater.wrap_optax(inner, **how)
    update, refresh = quick_jit(tx.update), quick_jit(updater.refresh)
    state, seen = tx.init(params), []
    for grads in gradients:
        if how and updater.is_refresh_due(int(core.find_sparse_state(state).count)):
            state = refresh(state, params, grads)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append((params, state))
    return seen


@pytest.mark.parametrize("how", [{}, {"refresh_in_graph": False}], ids=["in the graph", "by refresh"])
def test_phases_with_branches_of_their_own_forget_the_momentum(how: dict) -> None:
    updater = Phases(sparsity_distribution_fn=HALF, use_packed_masks=False)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    seen = run(updater, optax.sgd(0.0, momentum=1.0), PARAMS, 5 * [ones], **how)
    assert [state.masks["w"][0].tolist() for _, state in seen] == 2 * [[1, 0, 1, 0]] + 2 * [4 * [1]] + [[1, 0, 1, 0]]
    assert [params["w"][0].tolist() for params, _ in seen] == 5 * [[4, 0, 3, 0]]
    # Fresh at each of the three changes; without the reset it would be 1, 2, 3, 4, 5.
    assert [float(state.inner_state[0].trace["b"][0]) for _, state in seen] == [1, 2, 1, 2, 1]
    assert [int(state.count) for _, state in seen] == [1, 2, 3, 4, 5]


def test_a_reset_of_adam_reaches_the_step_of_the_mask_change() -> None:
    updater = Curvature(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(2))
    grads = {"w": jnp.array([[0.1, 9.0, 1.0, 9.0]]), "b": jnp.ones(2)}
    seen = run(updater, optax.adam(0.0, b1=0.5, b2=0.5), PARAMS, 4 * [grads])
    # 16 * 0.01, 1 * 81, 9 * 1 and 4 * 81, times one factor.
    assert [params["w"][0].tolist() for params, _ in seen] == 2 * [[4, 1, 3, 2]] + 2 * [[0, 1, 0, 2]]
    assert [float(state.inner_state[0].nu["b"][0]) for _, state in seen] == [0.5, 0.75, 0.5, 0.75]


@pytest.mark.parametrize("structure", [core.Unstructured(), core.Channel()], ids=str)
def test_an_exchange_by_topk_fn_is_that_of_rigl(structure: core.Unstructured) -> None:
    params = {"w": jax.random.normal(jax.random.key(0), (8, 6))}
    gradients = [{"w": jax.random.normal(jax.random.key(i), (8, 6))} for i in (1, 2, 3)]
    same = {"sparsity_distribution_fn": HALF, "scheduler": core.PeriodicSchedule(2, 0), "sparsity_type": structure}
    theirs = run(Exchange(**same, use_packed_masks=False), optax.sgd(0.1), params, gradients)
    ours = core.RigL(**same, drop_fraction_fn=core.ConstantDrop(0.5), skip_gradients=False)
    for (their_params, their_state), (our_params, our_state) in zip(
        theirs, run(ours, optax.sgd(0.1), params, gradients), strict=True
    ):
        assert_same(their_state.masks, core.unpack_masks(our_params, our_state.masks))
        assert_same(their_params, our_params)


def test_masks_come_back_in_any_form() -> None:
    """Booleans, floats, unpacked ones for packed storage, None for a dense layer; those of jnp.packbits are refused."""

    @dataclasses.dataclass
    class Thrifty(core.MagnitudePruning):
        form: Any = None

        def update_state(self, sparse_state: Any, params: Any, grads: Any) -> Any:
            return sparse_state._replace(masks={"w": self.form(params["w"] > 2), "b": None})

    masks = set()
    for form in (lambda kept: kept, lambda kept: kept.astype(jnp.float32), core.masks.pack):
        for packed in (True, False):
            updater = Thrifty(sparsity_distribution_fn=HALF, scheduler=EVERY_STEP, use_packed_masks=packed, form=form)
            ((_, state),) = run(updater, optax.sgd(0.0), PARAMS, [PARAMS])
            core.check_state(PARAMS, state)
            masks.add(str((core.unpack_masks(PARAMS, state.masks)["w"].tolist(), state.masks["b"])))
    assert masks == {"([[1, 0, 1, 0]], NotPruned())"}
    foreign = dataclasses.replace(updater, form=jnp.packbits)
    with pytest.raises(ValueError, match=r"mask of parameter 'w' has shape \(1,\); .* it has to be \(1, 4\) or"):
        run(foreign, optax.sgd(0.0), PARAMS, [PARAMS])


@dataclasses.dataclass
class Patient(core.MagnitudePruning):
    """Overrides without changing more than masks."""

    def update_state(self, sparse_state: Any, params: Any, grads: Any) -> Any:
        return super().update_state(sparse_state, params, grads)


def test_only_what_an_override_changes_passes_the_guard() -> None:
    def guarded(updater: core.BaseUpdater) -> int:
        tx = updater.wrap_optax(optax.adam(0.1))
        jaxpr = jax.make_jaxpr(tx.update)(PARAMS, jax.eval_shape(tx.init, PARAMS), PARAMS).jaxpr
        outside = equations(jaxpr, into_branches=False)
        (guard,) = [equation for equation in outside if equation.primitive.name == "cond"]
        return len(guard.outvars)

    once = {"sparsity_distribution_fn": HALF, "scheduler": core.OneShotSchedule(3)}
    assert guarded(core.MagnitudePruning(**once)) == 1
    assert guarded(Patient(**once)) == 1
    assert guarded(Curvature(**once)) == 1 + 5  # Adam's state: mu and nu of both leaves, and its count


def test_changes_that_cannot_be_kept_are_refused() -> None:
    settings = {"sparsity_distribution_fn": HALF, "scheduler": core.OneShotSchedule(1)}
    rest = "update_state changes inner_state as well as masks. "
    for updater, remedy in (
        (Curvature(**settings, use_packed_masks="zeros"), "not stored .* use_packed_masks=True takes the rest along"),
        (core.PerModule([("w", Curvature(**settings))]), "Under PerModule .* use this updater by itself"),
    ):
        tx = updater.wrap_optax(optax.adam(0.1))
        with pytest.raises(ValueError, match=rest + ".*" + remedy):
            jax.eval_shape(lambda tx=tx: tx.update(PARAMS, tx.init(PARAMS)._replace(count=jnp.int32(1)), PARAMS))


@pytest.mark.parametrize("row", ["no_prune", *FAMILIES])
def test_initial_masks_without_targets_are_those_of_the_updater(row: str) -> None:
    updater, params = make_updater(row), TREES["dict"]()
    assert_same(
        updater.get_initial_masks(params, None), updater.get_initial_masks(params, updater.target_sparsities(params))
    )


@pytest.mark.parametrize("cls", [core.GlobalMagnitudePruning, core.SnipPruning, core.GraNet])
def test_one_number_is_the_sparsity_of_all_layers_of_a_ranking(cls: Any) -> None:
    scores = {
        "a": jnp.array([[1.0, 5.0, 6.0]]),
        "b": jnp.array([[3.0, 4.0, 2.0]]),
        "c": jnp.array([[1.0, 2.0]]),
        "d": jnp.ones(3),
    }
    updater = cls(sparsity=0.9, rules=[("c", 0.0)])
    for number in (0.5, jnp.float32(0.5)):
        masks = updater.create_masks(scores, number)
        assert [masks[name].tolist() for name in "abc"] == [[[0, 1, 1]], [[0, 1, 0]], [[1, 1]]]
        assert masks["d"] == core.NOT_PRUNED
    assert cls(sparsity=0.9).create_masks(scores["a"], 0.5).tolist() == [[0, 1, 1]]


def test_topk_fn_is_the_rule_of_the_structure_until_another_is_given() -> None:
    scores = jnp.arange(1.0, 17.0).reshape(4, 4)
    updater = core.MagnitudePruning(sparsity_distribution_fn=HALF)
    for structure in (core.Unstructured(), core.NByM(2, 4), core.Block((2, 2)), core.Channel(), core.ConstantFanIn()):
        updater = dataclasses.replace(updater, sparsity_type=structure)
        np.testing.assert_array_equal(updater.topk_fn(scores, 0.5), updater.create_masks(scores, 0.5))
    with pytest.raises(TypeError, match=r"topk_fn gets scores without a path.* create_masks"):
        dataclasses.replace(updater, sparsity_type=core.ByPath([("w", core.Channel())])).topk_fn(scores, 0.5)
