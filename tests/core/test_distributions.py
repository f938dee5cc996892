import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.core import NOT_PRUNED, erk, kernels_only, uniform
from sparse_plugins.core.selection.counts import keep_count
from tests import reference

bounded = settings(max_examples=200, deadline=None, derandomize=True)
BOTH = pytest.mark.parametrize("distribution", [uniform, erk])


def arrays(**shapes: tuple) -> dict:
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


PARAMS = {"body": arrays(kernel=(8, 16), bias=(16,)), "head": arrays(kernel=(16, 4), scale=(4, 4))}


def erk_counts(shapes: list[tuple[int, ...]], sparsity: float) -> list[int]:
    plan = erk([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes], sparsity)
    return [keep_count(math.prod(shape), target) for shape, target in zip(shapes, plan, strict=True)]


def test_uniform_prunes_what_has_two_axes_and_is_floating() -> None:
    params = {**PARAMS, "steps": jnp.zeros((2, 2), jnp.int32), "half": jnp.zeros((2, 2), jnp.bfloat16)}
    assert uniform(params, 0.75) == {
        "body": {"kernel": 0.75, "bias": NOT_PRUNED},
        "head": {"kernel": 0.75, "scale": 0.75},
        "steps": NOT_PRUNED,
        "half": 0.75,
    }


@BOTH
def test_filters_choose_layers_by_path_and_shape(distribution) -> None:
    assert distribution(PARAMS, 0.5, filter_fn=kernels_only)["head"]["scale"] == NOT_PRUNED
    by_path = distribution(PARAMS, 0.5, filter_fn=lambda path, _: path == ("body", "bias"))
    assert [by_path["body"]["bias"], by_path["body"]["kernel"]] == [0.5, NOT_PRUNED]
    assert jax.tree.leaves(distribution(PARAMS, 0.5, filter_fn=lambda *_: False)) == []


@BOTH
def test_first_matching_rule_wins_and_comes_before_the_filter(distribution) -> None:
    rules = [("head/kernel", 0.25), ("head/.*", None), (".*/bias", "default")]
    plan = distribution(PARAMS, 0.9, rules=rules)
    assert (plan["head"]["kernel"], plan["head"]["scale"]) == (0.25, NOT_PRUNED)
    assert plan["body"]["bias"] not in (NOT_PRUNED, 0.25)


@BOTH
def test_custom_map_takes_paths_as_tuples_or_strings_even_for_filtered_leaves(distribution) -> None:
    plan = distribution(PARAMS, 0.9, custom_sparsity_map={("body", "bias"): 0.5, "head/kernel": 0.0})
    assert (plan["body"]["bias"], plan["head"]["kernel"]) == (0.5, 0.0)


@BOTH
def test_trees_of_tuples_and_lists(distribution) -> None:
    leaf = jnp.ones((10, 10))
    plan = distribution(({"w": leaf}, [leaf, jnp.ones(3)]), 0.5, rules=[("1/0", 0.75)])
    assert plan == ({"w": 0.5}, [0.75, NOT_PRUNED])
    assert distribution(leaf, 0.5) == 0.5


@BOTH
def test_plans_inside_and_outside_jit_are_the_same(distribution) -> None:
    params = {"w": jnp.ones((10, 10)), "v": jnp.ones((100, 3))}
    seen = []
    jax.jit(lambda p: seen.append(distribution(p, 0.8)))(params)
    assert seen == [distribution(params, 0.8)]


def test_erk_by_hand() -> None:
    # Weights 4, 20, 200 for 4, 100, 10000 entries; the first is dense, and 1006 entries are left for the other two.
    assert erk_counts([(2, 2), (10, 10), (100, 100)], 0.9) == [4, 91, 915]


@bounded
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=8), st.floats(0, 1))
def test_erk_keeps_its_budget_exactly_and_stays_close_to_the_real_shares(shapes: list, sparsity: float) -> None:
    sizes, shapes = [math.prod(shape) for shape in shapes], [tuple(shape) for shape in shapes]
    budget = reference.keep_count(sum(sizes), sparsity)
    assume(budget == round((1.0 - sparsity) * sum(sizes)))
    assume(budget == 0 or budget >= len(shapes))
    leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    plan = erk(leaves, sparsity, filter_fn=lambda *_: True)
    counts = [keep_count(size, target) for size, target in zip(sizes, plan, strict=True)]
    shares = reference.erk_shares(shapes, sparsity)
    assert sum(counts) == budget
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert budget == 0 or min(counts) >= 1
    if budget and min(shares) >= 1:
        assert all(abs(count - share) < 1.0001 for count, share in zip(counts, shares, strict=True))


def test_erk_is_not_silently_dense_at_low_sparsity() -> None:
    shapes = [(3, 3, 3, 16), (64, 10), (300, 100)]
    sizes = [math.prod(shape) for shape in shapes]
    for sparsity in (0.0, 0.01, 0.05, 1.0):
        assert sum(erk_counts(shapes, sparsity)) == round((1 - sparsity) * sum(sizes))


def test_erk_empties_no_layer_while_there_is_an_entry_for_each() -> None:
    shapes = [(2, 2)] * 9 + [(1000, 1000)]
    for budget in (10, 11, 15):
        counts = erk_counts(shapes, 1 - budget / 1_000_036)
        assert sum(counts) == budget
        assert min(counts) == 1


def test_erk_says_which_sparsity_still_works() -> None:
    for shapes in ([(10, 10)] * 4, [(463, 1000)] * 54):
        with pytest.raises(ValueError, match=r"fewer than there are layers \(\d+\); the highest .* Lower") as refused:
            erk_counts(shapes, 1 - 2 / sum(math.prod(shape) for shape in shapes))
        advice = re.search(r"layer is ([\d.]+)\. Lower", str(refused.value))
        assert min(erk_counts(shapes, float(advice[1]))) >= 1


def test_erk_leaves_layers_of_their_own_out_of_its_budget() -> None:
    params = arrays(a=(10, 10), b=(30, 30), c=(50, 50))
    plan = erk(params, 0.9, rules=[("c", 0.5)])
    assert plan["c"] == 0.5
    assert keep_count(100, plan["a"]) + keep_count(900, plan["b"]) == 100
    assert erk(params, 0.9, rules=[(".", 0.5)]) == {"a": 0.5, "b": 0.5, "c": 0.5}


@BOTH
def test_an_empty_leaf_does_no_harm(distribution) -> None:
    assert distribution({"none": jnp.ones((0, 4)), "w": jnp.ones((4, 4))}, 0.5)["w"] == 0.5


@BOTH
@pytest.mark.parametrize("sparsity", [-0.1, 1.7, np.nan])
def test_sparsity_outside_zero_to_one_is_refused(distribution, sparsity: float) -> None:
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity}; give a number in \[0, 1\]"):
        distribution(PARAMS, sparsity)


@BOTH
@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("head/kernal", 0.5)], r"rule 'head/kernal' matches no leaf.*whole path; close: \['head/kernel'"),
        ([("xyz", 0.5)], r"rule 'xyz' matches no leaf.*the paths are \['body/bias', 'body/kernel'"),
        ([("kernel", 0.5)], r"rule 'kernel' matches no leaf\. Rules are regular expressions for a whole path"),
        ([(".*", 0.5), ("head/kernel", 0.1)], r"'head/kernel' is never used: earlier rules match all its leaves"),
        ([("(", 0.5)], r"rule \('\(', 0.5\) is not a pair \(regular expression, sparsity\)"),
        (["head"], r"rule 'head' is not a pair"),
        ([("head/.*", 1.5)], r"sparsity of rule 'head/.\*' is 1.5; give a number in \[0, 1\]"),
    ],
)
def test_bad_rules_are_refused(distribution, rules: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distribution(PARAMS, 0.5, rules=rules)


@BOTH
def test_custom_entry_for_a_missing_layer_is_refused(distribution) -> None:
    with pytest.raises(ValueError, match=r"matches no leaf.*close: \['body/kernel'"):
        distribution(PARAMS, 0.5, custom_sparsity_map={("body", "kernels"): 0.1})


def test_a_rule_cannot_prune_integers() -> None:
    with pytest.raises(ValueError, match=r"rule '.\*' prunes 'steps', which is no floating array"):
        uniform({"steps": jnp.zeros((2, 2), jnp.int32)}, 0.5, rules=[(".*", 0.5)])


def test_a_rule_is_about_what_the_filter_prunes_or_about_what_it_names() -> None:
    params = {"head": {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}, "body": jnp.ones((8, 8))}
    for distribution in (uniform, erk):
        plan = distribution(params, 0.75, rules=[("head/.*", 0.5)])
        assert (plan["head"]["w"], plan["head"]["b"], plan["body"]) == (0.5, NOT_PRUNED, 0.75)
        plan = distribution(params, 0.75, rules=[("head/b", 0.5)])
        assert (plan["head"]["b"], plan["head"]["w"] > 0.5) == (0.5, True)
    globally_ranked = core.GlobalMagnitudePruning(sparsity=0.75, rules=[("head/.*", 0.5)])
    assert globally_ranked.target_sparsities(params) == {"head": {"w": 0.5, "b": NOT_PRUNED}, "body": 0.75}
    updater = core.build_updater("static_sparse", sparsity=0.75, rules=[("head/.*", 0.5)], distribution="uniform")
    state, plan = updater.init_state(params), core.describe_plan(updater, params)
    summary = core.summarize_sparsity(updater.pre_forward_update(params, state))
    assert f"prunable: {int(summary['_nparams_nnz'])} of {int(summary['_nparams'])} kept" in plan
