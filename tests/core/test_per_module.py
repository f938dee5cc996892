"""Several updaters around one optimizer, each as it is alone."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.core.algorithms.tree_partition import Parts
from tests import reference
from tests.contract.optimizer_rows import OPTIMIZERS, UNSUPPORTED
from tests.contract.rows import (
    STEPS,
    TREES,
    UPDATERS,
    assert_same,
    make_step,
    make_updater,
    params_like,
)
from tests.quick import quick_jit

HALF = functools.partial(core.uniform, sparsity=0.5)
MODULES = ("torso", "actor", "critic", "value", "free")
# Every way masks come about, among others; the fifth module of each model has no rule.
MODELS = [
    ("magnitude", "rigl", "magnitude_ste", "static_sparse"),
    ("global_saliency", "set 2x2", "random_ste", "fisher"),
    ("granet", "acdc", "soft_topk_ste", "wanda"),
    ("gradual_rigl 2x2", "sr_ste", "grasp", "magnitude erk"),
    ("random", "gradual_set 2:4", "srigl", "rigl by path"),
]


def module_updater(row: str, module: str, seed: int) -> core.BaseUpdater:
    """That of a row, whose rules on paths are those of the module; no two share a seed."""
    settings = {"rng_seed": seed}
    if "by path" in row:
        settings["sparsity_type"] = [
            (f"{module}/{rule}", structure) for rule, structure in UPDATERS[row][0]["sparsity_type"]
        ]
    return make_updater(row, **settings)


def run(updater: core.BaseUpdater, params: Any) -> tuple[Any, core.SparseState]:
    tx = updater.wrap_optax(optax.adam(0.1))
    step = quick_jit(make_step(tx))
    pair = (params, tx.init(params))
    for _ in range(STEPS):
        pair = step(*pair)
    return pair


def of_module(module: str, params: Any, state: core.SparseState) -> Any:
    """All that a run knows about a module."""
    adam = state.inner_state[0]
    trees = {"params": params, "masks": state.masks, "targets": state.target_sparsities, "mu": adam.mu, "nu": adam.nu}
    return {name: tree[module] for name, tree in trees.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("rows", MODELS, ids=" + ".join)
def test_a_module_ends_with_the_bits_of_its_updater_alone(rows: tuple[str, ...]) -> None:
    updaters = {name: module_updater(row, name, i) for i, (name, row) in enumerate(zip(MODULES, rows, strict=False))}
    params = {name: TREES["dict"]() for name in MODULES}
    together = run(core.PerModule([(f"{name}/.*", updater) for name, updater in updaters.items()]), params)
    core.check_state(*together)
    for name, updater in {**updaters, "free": core.NoPruning()}.items():
        alone = run(updater, {name: params[name]})
        assert_same(of_module(name, *together), of_module(name, *alone))
        if alone[1].dense_params:
            assert_same(together[1].dense_params[name], alone[1].dense_params[name])


@pytest.mark.parametrize("name", TREES)
def test_one_rule_for_all_is_the_updater_itself(name: str) -> None:
    params, updater = TREES[name](), make_updater("random_ste", rng_seed=5, sparsity_type="2:4")
    both = core.PerModule([(".*", updater)])
    state = both.init_state(params)
    assert_same(state._replace(rng=state.rng[0]), updater.init_state(params))
    assert_same(both.instant_sparsify(params), updater.instant_sparsify(params))
    targets = updater.target_sparsities(params)
    assert_same(both.target_sparsities(params), targets)
    assert_same(both.get_initial_masks(params, targets), updater.get_initial_masks(params, targets))


def test_ties_across_layers_are_decided_in_the_order_of_the_tree() -> None:
    """Not in that of the paths, where 'a-b/w' comes before 'a/w' and 'layers/10' before 'layers/2'."""
    params = {"a": {"w": 0}, "a-b": {"w": 0}, "layers": [0] * 12}
    params = jax.tree.map(lambda _: jnp.ones((2, 2)), params)
    updater = core.GlobalMagnitudePruning(sparsity=0.5)
    both = core.PerModule([(".*", updater)])
    with pytest.warns(UserWarning, match=r"pruned all weights of 'layers/5', .* 'layers/11'"):
        assert_same(both.instant_sparsify(params), updater.instant_sparsify(params))


def masks_after(updater: core.BaseUpdater, params: Any, grads: Any, steps: int) -> list[Any]:
    tx = updater.wrap_optax(optax.sgd(0.0))
    state, seen = tx.init(params), []
    for _ in range(steps):
        seen.append(core.unpack_masks(params, state.masks))
        _, state = tx.update(grads, state, params)
    return [*seen, core.unpack_masks(params, state.masks)]


def test_each_schedule_and_budget_is_its_own() -> None:
    params = params_like({"actor": {"w": (8, 6), "v": (4, 4)}, "critic": {"w": (16, 6), "v": (3, 2)}})
    plan = functools.partial(core.erk, sparsity=0.7)
    early, late = (
        core.MagnitudePruning(sparsity_distribution_fn=plan, scheduler=core.OneShotSchedule(step)) for step in (0, 2)
    )
    seen = masks_after(core.PerModule([("actor/.*", early), ("critic/.*", late)]), params, params, 3)
    for module, first in (("actor", 1), ("critic", 3)):
        names = sorted(params[module])
        shares = reference.erk_shares([params[module][name].shape for name in names], 0.7)
        for name, share in zip(names, shares, strict=True):
            kept = int(seen[-1][module][name].sum())
            assert abs(kept - share) < 1
            best = reference.top_k(np.abs(params[module][name]), kept)
            for number, masks in enumerate(seen):
                np.testing.assert_array_equal(masks[module][name], best if number >= first else np.ones_like(best))


def row(*values: float) -> jax.Array:
    return jnp.array([values], jnp.float32)


def test_two_steps_by_hand() -> None:
    """The optimizer halves gradients whose common norm is 10; only the module that grows holds still, bias included."""
    now = {"sparsity_distribution_fn": HALF, "scheduler": core.OneShotSchedule(0), "use_packed_masks": False}
    grow = core.RigL(drop_fraction_fn=core.ConstantDrop(0.5), **now)
    updater = core.PerModule([("critic/.*", grow), ("actor/.*", core.MagnitudePruning(**now))])
    tx = updater.wrap_optax(optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(1.0)))
    params = {"actor": {"w": row(4, 3, 2, 1)}, "critic": {"w": row(3, 1, 0, 0), "b": row(7)[0]}, "head": row(1, 1)}
    grads = {"actor": {"w": row(0, -6, 0, 0)}, "critic": {"w": row(4, 0, 0, -4), "b": row(4)[0]}, "head": row(0, 4)}
    state = tx.init(params)
    state.masks["critic"]["w"] = row(1, 1, 0, 0).astype(jnp.uint8)
    seen = []
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(jax.tree.map(lambda leaf: leaf.ravel().tolist(), params))
    assert seen == [
        {"actor": {"w": [4, 6, 0, 0]}, "critic": {"w": [3, 0, 0, 0], "b": [7]}, "head": [1, -1]},
        {"actor": {"w": [4, 9, 0, 0]}, "critic": {"w": [1, 0, 0, 2], "b": [5]}, "head": [1, -3]},
    ]


@pytest.mark.parametrize("name", ["adam", "muon", "schedule_free", "lbfgs"])
def test_moments_restart_only_where_weights_come_back(name: str) -> None:
    """Garbage under the mask of RigL is never seen; that of straight-through weights is theirs, and counts."""
    updater, params = make_updater("mixture of rigl and magnitude_ste"), TREES["dict"]()
    tx = updater.wrap_optax(OPTIMIZERS[name]())
    step = quick_jit(make_step(tx))
    pair = (params, tx.init(params))
    for _ in range(2):
        pair = step(*pair)
    params, state = pair
    masks = core.unpack_masks(params, state.masks)

    def spoiled(layer: str) -> core.SparseState:
        def spoil(leaf: Any) -> Any:
            if jnp.shape(leaf)[-2:] != params[layer].shape:
                return leaf
            return jnp.where(masks[layer] == 1, leaf, leaf + jnp.ones((), leaf.dtype))

        return state._replace(inner_state=jax.tree.map(spoil, state.inner_state))

    clean, unheard, heard = (step(params, start) for start in (state, spoiled("w"), spoiled("head")))
    assert_same(
        (unheard[0], unheard[1].masks, unheard[1].dense_params), (clean[0], clean[1].masks, clean[1].dense_params)
    )
    assert (heard[1].dense_params["head"] != clean[1].dense_params["head"]).any()


def test_moments_that_cannot_be_restarted_are_an_error_only_if_weights_come_back() -> None:
    make, message = UNSUPPORTED["flatten"]
    params = TREES["dict"]()
    make_updater("mixture of static_sparse and no_prune").wrap_optax(make()).init(params)
    with pytest.raises(ValueError, match=message):
        make_updater("mixture of rigl and magnitude_ste").wrap_optax(make()).init(params)


def test_an_explicit_refresh_changes_what_is_due() -> None:
    now, later = (
        core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(t)) for t in (0, 1)
    )
    updater, params = core.PerModule([("w", now), ("head", later)]), TREES["dict"]()
    tx = updater.wrap_optax(optax.sgd(0.0), refresh_in_graph=False)
    state = updater.refresh(tx.init(params), params)
    assert kept(params, state) == (24, 24)
    _, state = tx.update(params, state, params)
    assert kept(params, updater.refresh(state, params)) == (24, 12)
    assert [bool(updater.is_refresh_due(step)) for step in range(3)] == [True, True, False]


def kept(params: Any, state: Any) -> tuple[int, int]:
    masks = core.unpack_masks(params, core.find_sparse_state(state).masks)
    return int(masks["w"].sum()), int(masks["head"].sum())


def test_masks_from_elsewhere_and_the_reports_need_nothing_special() -> None:
    updater, params = make_updater("mixture of rigl and magnitude_ste"), TREES["dict"]()
    state = updater.wrap_optax(optax.sgd(0.1)).init(params)
    masks = {"w": jnp.eye(8, 6, dtype=jnp.uint8), "head": jnp.eye(6, 4, dtype=jnp.uint8), "b": core.NOT_PRUNED}
    state = updater.with_masks((state,), params, masks)
    view = updater.pre_forward_update(params, state)
    summary = core.summarize_sparsity(view, masks=core.find_sparse_state(state).masks)
    assert (float(summary["_nparams"]), float(summary["_nparams_nnz"])) == (72, 10)
    with pytest.raises(ValueError, match="'b'"):
        updater.with_masks(state, params, masks | {"b": jnp.ones(6, jnp.uint8)})


def test_the_plan_shows_every_updater_and_structure() -> None:
    by_path = core.ByPath([(".*/w", core.NByM(2, 4))], default=core.Channel())
    growing = core.SET(
        sparsity_distribution_fn=HALF, sparsity_type=by_path, scheduler=core.OneShotSchedule(5, step_unit="round")
    )
    steady = core.StaticRandomSparse(sparsity_distribution_fn=HALF)
    updater = core.PerModule([("a/.*", growing), ("b/.*", steady)])
    params = params_like({"a": {"w": (6, 2), "v": (3, 5)}, "b": {"w": (2, 2)}, "c": {"w": (2, 2)}})
    assert core.describe_plan(updater, params).splitlines() == [
        "PerModule: one updater per module",
        "  a/.*  SET: masks change once, at round 5",
        "  b/.*  StaticRandomSparse: masks never change",
        "layer  shape   read as          target sparsity  kept",
        "a/v    (3, 5)  inputs, outputs  0.5              6 of 15",
        "a/w    (6, 2)  inputs, outputs  0.5              8 of 12",
        "b/w    (2, 2)  one layer        0.5              2 of 4",
        "c/w    (2, 2)                   dense            4 of 4",
        "prunable: 16 of 31 kept (sparsity 0.4839)",
        "random masks and scores: drawn from rng_seed=0, the same at every init; give rng_seed=key for others",
    ]
    assert updater.scheduler.step_unit == "round"
    masks = core.unpack_masks(params, updater.init_state(params).masks)
    assert [int(masks["a"]["v"].sum()), int(masks["a"]["w"].sum()), int(masks["b"]["w"].sum())] == [6, 8, 2]


def test_each_updater_has_its_seed_and_one_can_replace_them() -> None:
    params = {"a": {"w": jnp.ones((16, 16))}, "b": {"w": jnp.ones((16, 16))}}

    def masks(*seeds: int, **settings: Any) -> Any:
        parts = [(f"{name}/.*", make_updater("set", rng_seed=seed)) for name, seed in zip("ab", seeds, strict=True)]
        return core.PerModule(parts, **settings).init_state(params).masks

    assert_same(masks(1, 2)["a"], masks(1, 3)["a"])
    assert (masks(1, 2)["b"]["w"] != masks(1, 3)["b"]["w"]).any()
    assert_same(masks(1, 2, rng_seed=7), masks(7, 7))


def test_optax_maps_over_the_state() -> None:
    params, tx = TREES["dict"](), make_updater("mixture of rigl and magnitude_ste").wrap_optax(optax.adam(0.1))
    named = optax.tree.map_params(tx, lambda _: "like params", tx.init(params), transform_non_params=lambda _: "own")
    assert named.inner_state[0].mu == dict.fromkeys(params, "like params")
    assert (named.masks, named.dense_params["head"], named.rng) == ("own", "like params", ("own", "own"))


PATHS = st.lists(st.sampled_from(["a", "a-b", "b", "10", "2"]), min_size=2, max_size=2)


@hypothesis.given(
    st.lists(PATHS, min_size=1, max_size=8), st.lists(st.sampled_from(["a/.*", ".*/b", "2/.*"]), max_size=3)
)
def test_parts_are_the_first_match_and_join_again(paths: list[list[str]], patterns: list[str]) -> None:
    tree: dict[str, dict[str, int]] = {}
    for i, (outer, inner) in enumerate(paths):
        tree.setdefault(outer, {})[inner] = i
    names = [f"{outer}/{inner}" for outer in sorted(tree) for inner in sorted(tree[outer])]
    owners = [next((i for i, p in enumerate(patterns) if re.fullmatch(p, name)), len(patterns)) for name in names]
    hypothesis.assume(set(range(len(patterns))) <= set(owners))
    parts = Parts((core.NoPruning(),) * (len(patterns) + 1), tree, patterns)
    leaf = lambda name: tree[name.split("/")[0]][name.split("/")[1]]  # noqa: E731
    expected = [
        [(name, leaf(name)) for name, owner in zip(names, owners, strict=True) if owner == i]
        for i in range(len(patterns) + 1)
    ]
    assert [list(part.items()) for part in parts.cut(tree)] == expected
    assert parts.join(parts.cut(tree)) == tree


SPARSE = core.MagnitudePruning(sparsity_distribution_fn=HALF, scheduler=core.OneShotSchedule(3))
GROWING = core.RigL(sparsity_distribution_fn=HALF, scheduler=core.PeriodicSchedule(2, 0))
PARAMS = {"a": {"w": jnp.ones((4, 4))}, "b": {"w": jnp.ones((4, 4)), "c": jnp.ones(4)}}
Act = Callable[[], Any]


def rules(*pairs: Any) -> core.PerModule:
    return core.PerModule(pairs)


def started(*pairs: Any) -> core.SparseState:
    return rules(*pairs).wrap_optax(optax.sgd(0.1)).init(PARAMS)


def altered(updater: core.BaseUpdater, **fields: Any) -> core.BaseUpdater:
    return dataclasses.replace(updater, **fields)


REFUSED: dict[str, tuple[Act, str]] = {
    "nothing": (lambda: rules(), r"no updaters; give pairs such as"),
    "no pair": (lambda: rules(SPARSE), r"is not a pair \(regular expression, updater\), e.g. \('actor"),
    "bad pattern": (lambda: rules(("a/(", SPARSE)), "is not a pair"),
    "nested": (lambda: rules(("a/.*", rules(("a/w", SPARSE)))), "'a/.*' is a PerModule; put its rules into this one"),
    "zeros": (
        lambda: rules(("a", altered(SPARSE, use_packed_masks="zeros"))),
        "store the masks with use_packed_masks=T",
    ),
    "two formats": (
        lambda: rules(("a", SPARSE), ("b", altered(SPARSE, use_packed_masks=False))),
        r"differ in use_packed_masks \({'a': True, 'b': False}\)",
    ),
    "two units": (
        lambda: rules(("a", SPARSE), ("b", altered(SPARSE, scheduler=core.OneShotSchedule(3, step_unit="round")))),
        r"different units \(optimizer step, round\)",
    ),
    "no match": (lambda: started(("a/.*", SPARSE), ("d/.*", GROWING)), r"'d/.\*' matches no leaf"),
    "shadowed": (lambda: started((".*", SPARSE), ("a/.*", GROWING)), "earlier rules match all its leaves"),
    "a rule inside that is outside": (
        lambda: started(
            ("b/.*", altered(SPARSE, sparsity_distribution_fn=functools.partial(HALF, rules=[("a/w", 0.1)])))
        ),
        r"'a/w' matches no leaf.*\['b/",
    ),
    "only biases": (
        lambda: started(("a/.*", SPARSE), ("b/c", GROWING)),
        r"RigL would prune nothing: none of \['b/c'\]",
    ),
    "idle": (
        lambda: started(("a/.*", altered(SPARSE, scheduler=core.NoUpdateSchedule()))),
        r"MagnitudePruning of 'a/.\*' with NoUpdateSchedule.* keeps every weight: give a schedule",
    ),
    "one path twice": (
        lambda: rules((".*", SPARSE)).init_state({"a/w": jnp.ones((2, 2)), "a": {"w": jnp.ones((2, 2))}}),
        "two parameters have the path 'a/w'",
    ),
    "state of one updater": (
        lambda: (
            rules((".*", SPARSE))
            .wrap_optax(optax.sgd(0.1))
            .update(PARAMS, SPARSE.wrap_optax(optax.sgd(0.1)).init(PARAMS), PARAMS)
        ),
        "state was not made by this PerModule: its rng should hold one key for each of the 1 rules",
    ),
    "no second moment": (lambda: started(("a/.*", core.FisherPruning(scheduler=core.OneShotSchedule(1)))), "lacks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_explained(case: str) -> None:
    act, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        act()


def test_an_updater_has_to_be_one() -> None:
    with pytest.raises(TypeError, match=r"updater of 'a/.\*' is <class .*; give an instance such as Mag"):
        rules(("a/.*", core.RigL))


def test_dense_modules_may_store_masks_as_they_like() -> None:
    updater = rules(("a/.*", altered(SPARSE, use_packed_masks=False)), ("b/.*", core.NoPruning()))
    assert updater.init_state(PARAMS).masks["a"]["w"].shape == (4, 4)
