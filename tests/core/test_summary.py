import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_plugins import core
from sparse_plugins.core import summary as module

SHAPES = {"a": (5, 16), "b": (3, 3, 7), "c": (1, 130)}

PARAMS = {"a": {"w": jnp.eye(4), "b": jnp.zeros(4)}, "c": (jnp.ones((2, 3)),)}


def test_zero_biases_do_not_make_a_dense_model_look_sparse() -> None:
    summary = core.summarize_sparsity({"w": jnp.ones((3, 3)), "b": jnp.zeros(9)})
    assert {name: float(value) for name, value in summary.items()} == {
        "w": 0.0,
        "b": 1.0,
        "_total_sparsity": 0.0,
        "_nparams": 9.0,
        "_nparams_nnz": 9.0,
    }


def test_sparsity_by_leaf_and_in_total_under_jit() -> None:
    summary = jax.jit(core.summarize_sparsity)(PARAMS)
    assert set(summary) == {"a/w", "a/b", "c/0", "_total_sparsity", "_nparams", "_nparams_nnz"}
    assert [float(summary[k]) for k in ("a/w", "c/0", "_nparams", "_nparams_nnz")] == [0.75, 0.0, 22.0, 10.0]
    assert float(summary["_total_sparsity"]) == pytest.approx(12 / 22)
    assert "a/w" not in core.summarize_sparsity(PARAMS, only_total_sparsity=True)


@pytest.mark.parametrize(("weights", "sparsity"), [(jnp.ones((193, 7)), 0.0), (jnp.zeros((193, 7)), 1.0)])
@pytest.mark.usefixtures("full_compilation")
def test_dense_is_0_and_empty_is_1_to_the_bit_when_compiled(weights: jax.Array, sparsity: float) -> None:
    summary = jax.jit(core.summarize_sparsity)({"w": weights})
    assert [float(summary[name]) for name in ("w", "_total_sparsity")] == [sparsity, sparsity]


def test_masks_say_which_leaves_count() -> None:
    masks = {"a": {"w": core.NOT_PRUNED, "b": jnp.ones(4, jnp.uint8)}, "c": (None,)}
    summary = core.summarize_sparsity(PARAMS, only_total_sparsity=True, masks=masks)
    assert [float(value) for value in summary.values()] == [1.0, 4.0, 0.0]
    assert float(core.summarize_sparsity({"b": jnp.zeros(3)})["_total_sparsity"]) == 0.0


def test_packed_and_plain_masks_overlap_alike() -> None:
    rng = np.random.default_rng(0)
    params = {"w": jnp.zeros((9, 5)), "b": jnp.zeros(3)}
    masks, other_masks = (
        {"w": jnp.asarray(rng.integers(0, 2, (9, 5)), jnp.uint8), "b": core.NOT_PRUNED} for _ in range(2)
    )
    plain = core.summarize_intersection(masks, other_masks)
    packed = core.summarize_intersection(core.pack_masks(params, masks), core.pack_masks(params, other_masks))
    expected = float((masks["w"] & other_masks["w"]).sum() / masks["w"].sum())
    assert set(plain) == {"w", "_total_intersection"}
    for summary in (plain, packed, core.summarize_intersection(masks, other_masks, only_total_intersection=True)):
        assert float(summary["_total_intersection"]) == pytest.approx(expected)
    assert float(core.summarize_intersection(masks, masks)["w"]) == 1.0


def test_masks_that_cannot_be_compared_are_refused() -> None:
    mask = {"w": jnp.ones((8, 2), jnp.uint8)}
    with pytest.raises(ValueError, match=r"masks of 'w' differ in format or shape: \(8, 2\) and \(1, 2\)"):
        core.summarize_intersection(mask, core.pack_masks({"w": jnp.ones((8, 2))}, mask))
    with pytest.raises(ValueError, match=r"other masks and the parameters have different tree structures"):
        core.summarize_intersection(mask, {"v": mask["w"]})


@pytest.mark.parametrize("structure", [core.NByM(2, 4), core.Block((2, 4)), core.Channel()], ids=str)
def test_plan_says_what_will_be_kept(structure: object) -> None:
    params = {"w": jax.random.normal(jax.random.key(0), (10, 12)), "v": jnp.ones((4, 4)), "b": jnp.ones(3)}
    updater = core.MagnitudePruning(
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5, rules=[("v", 0.25)]),
        sparsity_type=structure,
        scheduler=core.PolynomialSchedule(10, 0, 50, step_unit="round"),
    )
    lines = core.describe_plan(updater, params).splitlines()
    masks = jax.jit(updater.instant_sparsify)(params)[1]
    kept = {name: int(mask.sum()) for name, mask in masks.items() if name != "b"}
    assert lines[0] == "MagnitudePruning: masks change 6 times, every 10 rounds from round 0 to 50"
    assert [line.split()[0] for line in lines[1:5]] == ["layer", "b", "v", "w"]
    assert lines[2].endswith("dense            3 of 3")
    assert lines[3].endswith(f"0.25             {kept['v']} of 16")
    assert lines[4].endswith(f"0.5              {kept['w']} of 120")
    assert f"{sum(kept.values())} of 136 kept" in lines[5]


@pytest.mark.thorough
def test_plan_of_one_ranking_across_layers_leaves_their_counts_open() -> None:
    weights = jnp.arange(1.0, 6)[None]
    params = {"a": weights, "b": 2 * weights, "c": 3 * weights, "own": jnp.ones((2, 5))}
    together = core.GlobalMagnitudePruning(sparsity=0.5, rules=[("own", 0.8)], scheduler=core.OneShotSchedule(0))
    lines = core.describe_plan(together, params).splitlines()
    kept = sum(int(mask.sum()) for mask in together.instant_sparsify(params)[1].values())
    assert [" ".join(line.split()) for line in lines[2:]] == [
        *(f"{name} (1, 5) one layer 0.5 in all some of 5" for name in "abc"),
        "own (2, 5) one layer 0.8 2 of 10",
        f"prunable: {kept} of 25 kept (sparsity {1 - kept / 25:.4g})",
    ]
    half, fifth = (core.GlobalMagnitudePruning(sparsity=sparsity) for sparsity in (0.5, 0.2))
    plan = core.describe_plan(core.PerModule([("[ab]", half), (".*", fifth)]), params)
    assert f"{round(0.5 * 10) + round(0.8 * 15)} of 25 kept" in plan


@pytest.mark.parametrize("algorithm", ["static_sparse", "random_ste", "gradual_set", "rigl"])
def test_plan_says_what_random_masks_are_drawn_from(algorithm: str) -> None:
    params = {name: jnp.ones((4, 4)) for name in "vw"}
    window = {"update_freq": 5, "update_start_step": 0, "update_end_step": 10}
    make = lambda **seed: core.create_updater_from_config(algorithm=algorithm, sparsity=0.5, **window, **seed)  # noqa: E731
    last = lambda updater: core.describe_plan(updater, params).splitlines()[-1]  # noqa: E731
    for seed in (0, 3):
        assert last(make(rng_seed=seed)) == (
            f"random masks and scores: drawn from rng_seed={seed}, the same at every init; give rng_seed=key for others"
        )
    for updater in (make(rng_seed=jax.random.key(0)), make().seeded(jax.random.key(0))):
        assert last(updater).startswith("prunable:")
    both = core.PerModule([("w", make(rng_seed=1)), (".*", make(rng_seed=2))])
    assert core.describe_plan(both, params).count("random masks and scores: drawn from rng_seed=") == 2
    assert last(both.seeded(jax.random.key(0))).startswith("prunable:")


@pytest.mark.thorough
def test_leaves_larger_than_an_int32_counts_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    params = {name: jnp.asarray(random.integers(0, 2, shape), jnp.uint8) for name, shape in SHAPES.items()}
    masks = core.pack_masks(params, params)
    whole = core.summarize_sparsity(params), core.summarize_intersection(masks, masks)
    monkeypatch.setattr(module, "_MOST", 31)
    parts = core.summarize_sparsity(params), core.summarize_intersection(masks, masks)
    assert jax.tree.map(float, parts) == jax.tree.map(float, whole)
    huge = {"w": jax.ShapeDtypeStruct((3, 2**20, 2**11), jnp.float32)}
    monkeypatch.undo()
    assert jax.eval_shape(core.summarize_sparsity, huge)["w"].shape == ()
    many = {str(i): jax.ShapeDtypeStruct((2**15, 2**14), jnp.float32) for i in range(5)}
    assert jax.eval_shape(core.summarize_sparsity, many)["_total_sparsity"].shape == ()


def test_masks_of_booleans_can_be_compared() -> None:
    masks, other_masks = {"w": jnp.array([True, True, False])}, {"w": jnp.array([False, True, True])}
    assert float(core.summarize_intersection(masks, other_masks)["w"]) == 0.5


def test_packed_masks_are_not_taken_for_sparsity() -> None:
    params = {"w": jax.random.normal(jax.random.key(0), (16, 8))}
    updater = core.MagnitudePruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.25))
    masks = updater.instant_sparsify(params)[1]
    assert float(core.summarize_sparsity(masks)["_total_sparsity"]) == 0.25
    with pytest.raises(ValueError, match=r"'w' is a packed mask.* pass unpack_masks\(params, masks\)"):
        core.summarize_sparsity(core.pack_masks(params, masks))
