"""An optimizer made sparse in one call: what it means where nothing is said."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.core.sparse_checks import FirstCheck

PARAMS = {"conv": {"w": jnp.ones((3, 3, 4, 8)), "b": jnp.ones(8)}, "head": {"w": jnp.ones((64, 16)), "b": jnp.ones(16)}}
SHAPES = jax.eval_shape(lambda: PARAMS)
ADAM = optax.adam(1e-3)


def updater_for(algorithm, **words):
    return core.updater_of(core.sparsify(ADAM, algorithm, **words))


@pytest.mark.parametrize("name", core.all_algorithm_names())
def test_every_algorithm_has_a_default_by_its_family(name: str) -> None:
    updater = updater_for(name, sparsity=0.9, total_steps=1000)
    schedule = updater.scheduler
    if name in ("no_prune", "static_sparse", "magnitude_ste", "random_ste", "sr_ste", "soft_topk_ste"):
        assert type(schedule) is core.NoUpdateSchedule
    elif name in ("snip", "grasp"):
        assert schedule == core.OneShotSchedule(0)
    elif name == "acdc":
        assert schedule == core.AlternatingSchedule(55, 200, 750)
    elif name in ("set", "rigl", "srigl"):
        assert schedule == core.PeriodicSchedule(10, 0, 750)
    else:
        start = 0 if name in ("gradual_set", "gradual_rigl", "granet") else 200
        assert schedule == core.PolynomialSchedule(10 if start == 0 else 5, start, 750)
    if hasattr(updater, "drop_fraction_fn"):
        assert updater.drop_fraction_fn == core.CosineDrop(0.5 if name == "granet" else 0.3, end_step=750)


def test_erk_is_the_default_and_a_ranking_across_layers_takes_no_distribution() -> None:
    assert updater_for("static_sparse", sparsity=0.9).target_sparsities(SHAPES) == core.erk(SHAPES, 0.9)
    uniform = updater_for("static_sparse", sparsity=0.9, distribution="uniform")
    assert uniform.target_sparsities(SHAPES) == core.uniform(SHAPES, 0.9)
    ours = updater_for("static_sparse", distribution=functools.partial(core.uniform, sparsity=0.3))
    assert ours.target_sparsities(SHAPES) == core.uniform(SHAPES, 0.3)
    with pytest.raises(ValueError, match="ranks all layers together"):
        core.sparsify(ADAM, "global_magnitude", sparsity=0.9, total_steps=100, distribution="erk")


@pytest.mark.parametrize("name", ["rigl", "set", "magnitude", "granet", "acdc", "global_saliency"])
def test_an_algorithm_that_changes_masks_asks_how_long_the_run_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"give total_steps=\.\.\., the number of optimizer steps of the run"):
        core.sparsify(ADAM, name, sparsity=0.9)
    core.sparsify(ADAM, name, sparsity=0.9, update_start_step=5, update_end_step=20, update_freq=5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"algorithm": "RigL", "sparsity": 0.9}, "Did you mean 'rigl'?"),
        ({"algorithm": "static_sparse", "sparsity": 0.9, "distribution": "ERK"}, "Did you mean 'erk'?"),
        ({"algorithm": "static_sparse"}, "sparsity is missing"),
        ({"algorithm": "static_sparse", "sparsity": 90}, "sparsity"),
        ({"algorithm": "static_sparse", "sparsity": 0.9, "rng_sed": 1}, "Did you mean 'rng_seed'?"),
        ({"algorithm": "static_sparse", "sparsity": 0.9, "sparsity_type": "2:4"}, "is called structure here"),
        ({"algorithm": "static_sparse", "sparsity": 0.8, "structure": "2:4"}, "which is sparsity 0.5"),
        ({"algorithm": "static_sparse", "sparsity": 0.8, "preset": "jax_pruner"}, "Did you mean 'jaxpruner'?"),
        ({"algorithm": "static_sparse", "sparsity": 0.8, "drop_fraction": 0.1}, "has no drop fraction"),
        ({"algorithm": core.RigL(), "sparsity": 0.8}, "says all of itself: give sparsity to the updater"),
        (
            {"algorithm": "rigl", "sparsity": 0.8, "total_steps": 10, "update_start_step": 10},
            "changes no mask in a run",
        ),
        (
            {"algorithm": "rigl", "sparsity": 0.8, "drop_fraction": 0.1, "drop_fraction_fn": core.ConstantDrop(0.1)},
            "say the same",
        ),
        (
            {"algorithm": "rigl", "sparsity": 0.8, "scheduler": core.OneShotSchedule(3), "update_freq": 3},
            "say the same",
        ),
        (
            {"algorithm": "magnitude", "sparsity": 0.8, "scheduler": core.OneShotSchedule(50), "total_steps": 50},
            "changes no mask in a run of 50 optimizer steps",
        ),
    ],
)
def test_what_is_wrong_is_said_when_the_optimizer_is_built(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        core.sparsify(ADAM, **words)


def test_a_schedule_that_does_not_end_in_the_run_warns() -> None:
    schedule = core.PolynomialSchedule(10, 0, 200)
    with pytest.warns(UserWarning, match="reaches 88% of its target sparsity in a run of 100 optimizer steps"):
        core.sparsify(ADAM, "magnitude", sparsity=0.9, total_steps=100, scheduler=schedule)
    late = core.PeriodicSchedule(10, 0, 200)
    with pytest.warns(UserWarning, match="RigL still changes masks at the end of a run of 100 optimizer steps"):
        tx = core.sparsify(ADAM, "rigl", sparsity=0.9, total_steps=100, scheduler=late)
    with pytest.warns(UserWarning, match="SET still changes masks at the end of a run of 100 rounds: masks change 21"):
        core.sparsify(
            ADAM, "set", sparsity=0.9, total_steps=100, update_freq=10, update_end_step=200, step_unit="round"
        )
    assert core.plan(tx, SHAPES, steps=200).concerns == ()  # it ends where the run does
    with pytest.warns(UserWarning, match="RigL still changes masks at the end of a run of 100"):
        core.plan(core.PerModule([("conv/.*", core.updater_of(tx))]), SHAPES, steps=100)


def test_an_algorithm_may_be_a_class_or_an_updater() -> None:
    assert type(updater_for(core.RigL, sparsity=0.9, total_steps=100)) is core.RigL
    updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.erk, sparsity=0.9))
    assert updater_for(updater) is updater
    with pytest.raises(TypeError, match="give a name such as 'rigl'"):
        core.sparsify(ADAM, 3, sparsity=0.9)


def test_the_papers_preset_keeps_its_settings() -> None:
    updater = updater_for("rigl", sparsity=0.9, total_steps=1000, preset="jaxpruner")
    assert updater.target_sparsities(SHAPES) == core.uniform(SHAPES, 0.9)
    assert updater.drop_fraction_fn == core.CosineDrop(0.1, end_step=750)


def test_settings_reach_the_updater() -> None:
    updater = updater_for("sr_ste", sparsity=0.5, decay=0.1, rng_seed=7, use_packed_masks=False)
    assert (updater.decay, updater.rng_seed, updater.use_packed_masks) == (0.1, 7, False)
    updater = updater_for("set", sparsity=0.5, total_steps=100, update_freq=20, drop_fraction=0.2, step_unit="round")
    assert updater.scheduler == core.PeriodicSchedule(20, 0, 75, step_unit="round")
    assert updater.drop_fraction_fn.fraction == 0.2


def kept(updater) -> dict:
    params = updater.pre_forward_update(PARAMS, updater.init_state(PARAMS))
    return {name: int(np.count_nonzero(part["w"])) for name, part in params.items()}


def structures(updater) -> list:
    return [leaf.rule.structure for leaf in updater.leaf_plans(PARAMS).leaves]


def test_rules_say_what_differs_by_layer() -> None:
    plan = lambda *rules: updater_for("static_sparse", sparsity=0.9, distribution="uniform", rules=rules)  # noqa: E731
    assert kept(plan(("conv/w", None))) == {"conv": 288, "head": 102}
    assert kept(plan(("conv/w", 0.5))) == {"conv": 144, "head": 102}
    assert kept(plan(("head/w", "2:4"))) == {"conv": 29, "head": 512}
    both = plan(("conv/w", 0.25), (".*/w", "2:4"))
    assert kept(both) == {"conv": 216, "head": 512}
    assert structures(both) == [core.Unstructured()] * 3 + [core.NByM(2, 4)]
    blocks = plan(("head/w", {"structure": "4x4", "sparsity": 0.5}))
    assert kept(blocks) == {"conv": 29, "head": 512}
    assert structures(blocks)[-1] == core.Block((4, 4))


@pytest.mark.parametrize("algorithm", ["static_sparse", "global_magnitude"])
def test_the_papers_names_for_layers_are_rules(algorithm: str) -> None:
    words = {"sparsity": 0.9} | ({"total_steps": 100} if algorithm == "global_magnitude" else {})
    dense = ("conv/.*", None)
    meant = updater_for(algorithm, **words, rules=[("head/w", 0.5), dense])
    aliases = updater_for(algorithm, **words, custom_sparsity_map={("head", "w"): 0.5}, rules=[dense])
    targets = [updater.target_sparsities(PARAMS) for updater in (meant, aliases)]
    assert targets[0] == targets[1]
    assert targets[0]["head"]["w"] == 0.5
    with pytest.raises(ValueError, match=r"rule 'heads/w' matches no leaf"):
        updater_for(algorithm, **words, custom_sparsity_map={"heads/w": 0.5}).target_sparsities(PARAMS)


def test_structures_and_updaters_by_path_are_what_rules_make() -> None:
    structure = core.ByPath([("head/.*", core.NByM(2, 4))])
    by_rule = updater_for("static_sparse", sparsity=0.5, distribution="uniform", rules=[("head/.*", "2:4")])
    by_path = updater_for("static_sparse", sparsity=0.5, distribution="uniform", structure=structure)
    assert structures(by_rule) == structures(by_path)
    assert by_rule.sparsity_type == structure
    by_algorithm = updater_for("static_sparse", sparsity=0.5, rules=[("head/.*", "set")], total_steps=9)
    assert isinstance(by_algorithm, core.PerModule)


def test_a_rule_may_name_an_algorithm() -> None:
    rules = [("conv/b", None), ("conv/.*", "set"), ("head/w", {"algorithm": core.SteMagnitudePruning, "sparsity": 0.5})]
    updater = updater_for("rigl", sparsity=0.9, total_steps=100, rules=[*rules[:2]], rng_seed=3)
    assert [(pattern, type(part)) for pattern, part in updater.parts] == [
        (r"(?!(?:(?:conv/b))\Z)(?:conv/.*)", core.SET),
        (".*", core.RigL),
    ]
    assert {part.rng_seed for _, part in updater.parts} == {3}
    assert kept(updater)["conv"] == 29
    updater = updater_for("rigl", sparsity=0.9, total_steps=100, rules=[rules[2]])
    assert kept(updater)["head"] == 512


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("w", "rigle"), "Did you mean 'rigl'?"),
        (("w", {"sparsty": 0.5}), "Did you mean 'sparsity'?"),
        (("w", {"structure": "2:4", "sparsity": 0.8}), "which is sparsity 0.5"),
        (("w", {"structure": core.ByPath([])}), "write a rule for each"),
        (("w", 3), "sparsity of rule 'w'"),
        ("w", "is not a pair"),
    ],
)
def test_a_wrong_rule_says_what_is_allowed(rule: object, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        core.sparsify(ADAM, "static_sparse", sparsity=0.9, rules=[rule])


def test_the_updater_is_found_in_whatever_wraps_the_optimizer() -> None:
    tx = core.sparsify(ADAM, "static_sparse", sparsity=0.9)
    updater = core.updater_of(tx)
    wrapped = [
        optax.chain(optax.clip(1.0), tx),
        optax.MultiSteps(tx, 2),
        optax.MultiSteps(tx, 2).gradient_transformation(),
        optax.masked(tx, True),
        optax.partition({"a": tx, "b": optax.sgd(0.1)}, lambda params: params),
        optax.apply_if_finite(tx, 3),
    ]
    assert all(core.updater_of(each) is updater for each in wrapped)
    with pytest.raises(ValueError, match="no updaters in this"):
        core.updater_of(ADAM)
    other = core.sparsify(ADAM, "static_sparse", sparsity=0.9)
    with pytest.raises(ValueError, match="2 updaters"):
        core.updater_of(optax.partition({"a": tx, "b": other}, lambda params: params))


def test_a_plan_knows_how_long_the_run_is() -> None:
    tx = core.sparsify(ADAM, "magnitude", sparsity=0.9, total_steps=1000)
    assert str(core.plan(tx, SHAPES, steps=1000)) == core.describe_plan(core.updater_of(tx), SHAPES)
    with pytest.warns(UserWarning, match="changes no mask in a run of 50 optimizer steps"):
        never = core.plan(tx, SHAPES, steps=50)
    assert len(never.concerns) == 1
    assert "WARNING: MagnitudePruning changes no mask" in repr(never)
    with pytest.warns(UserWarning, match="reaches 84% of its target sparsity in a run of 451 optimizer steps"):
        core.plan(core.updater_of(tx), SHAPES, steps=451)


def test_a_run_of_defaults_ends_at_its_sparsity() -> None:
    tx = core.sparsify(optax.sgd(0.1), "magnitude", sparsity=0.9, total_steps=8)
    params, state = PARAMS, tx.init(PARAMS)
    update = jax.jit(lambda params, state: tx.update(jax.tree.map(jnp.ones_like, params), state, params))
    for _ in range(8):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
    summary = core.summarize_sparsity(params, masks=state.masks)
    assert int(summary["_nparams_nnz"]) == round(0.1 * (288 + 1024))


def test_a_plan_marks_and_counts_outputs_and_inputs_without_a_weight() -> None:
    tx = core.sparsify(ADAM, "static_sparse", sparsity=0.95, distribution="uniform")
    updater = core.updater_of(tx)
    shapes = jax.eval_shape(lambda: {"w": jnp.ones((3, 3, 4, 8)), "b": jnp.ones(8), "head": jnp.ones((4, 4))})
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    mask = np.asarray(core.unpack_masks(params, updater.init_state(params).masks)["w"])
    outputs = sum(not mask[..., i].any() for i in range(8))
    inputs = sum(not mask[:, :, i].any() for i in range(4))
    assert outputs
    for tree in (shapes, params):
        notes = core.plan(tx, tree).notes
        assert f"w starts with {outputs} of 8 outputs and {inputs} of 4 inputs without a weight" in notes
        assert f"{outputs + 3} outputs (last axis) and {inputs + 3} inputs" in notes[-1]
    assert core.plan(core.sparsify(ADAM, "magnitude", sparsity=0.95, total_steps=100), params).notes == ()
    assert core.plan(core.sparsify(ADAM, "magnitude_ste", sparsity=0.95), shapes).notes == ()


def test_a_plan_says_what_sparsity_1_does_and_what_n_of_m_reaches() -> None:
    assert core.plan(core.sparsify(ADAM, "static_sparse", sparsity=0.5, rules=[("head/w", 1.0)]), SHAPES).notes[0] == (
        "pruned whole, as sparsity 1 asks: head/w"
    )
    groups = core.StaticRandomSparse(
        sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.8), sparsity_type=core.NByM(2, 4)
    )
    assert [line.split()[-4:] for line in str(core.plan(groups, SHAPES)).splitlines() if "/w" in line][1] == [
        *("0.5", "512", "of", "1024")
    ]


SPARSE = core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=0.9, use_packed_masks=False)
UNDOING = {
    "ema": optax.chain(SPARSE, optax.ema(0.9)),
    "scale": optax.chain(optax.clip(1.0), SPARSE, optax.scale(0.5)),
    "add_decayed_weights": optax.MultiSteps(optax.chain(SPARSE, optax.add_decayed_weights(0.1)), 1),
    "clip": optax.apply_if_finite(optax.chain(optax.chain(SPARSE), optax.clip(0.01)), 3),
    "schedule_free": optax.contrib.schedule_free(SPARSE, 0.1),
}


@pytest.mark.parametrize("name", UNDOING)
def test_what_undoes_masks_is_recognised_and_found(name: str) -> None:
    tx = UNDOING[name]
    with pytest.warns(UserWarning, match=f"{name} after the sparse optimizer moves weights off their masks"):
        core.plan(tx, PARAMS)
    with pytest.warns(UserWarning, match=f"{name} after the sparse optimizer moves weights off their masks"):
        core.start(tx, PARAMS)
    if name == "schedule_free":  # its parameters come nearer to the masks with every step
        return
    state, params = tx.init(PARAMS), PARAMS
    for _ in range(2):
        updates, state = tx.update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
    with pytest.raises(
        ValueError, match=r"of the \d+ pruned weights of '\w+/w' are not 0, .* put the sparse optimizer"
    ):
        core.check_sparse(params, state)
    with pytest.raises(ValueError, match=rf"are not 0, .*: {name} after the sparse optimizer moves weights off their"):
        core.check_sparse(params, state, tx)


def test_the_first_check_asks_nothing_before_masks_are_updated_and_nothing_afterwards() -> None:
    parts = [
        ("conv/.*", core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))),
        ("head/.*", core.MagnitudePruning(scheduler=core.OneShotSchedule(3))),
    ]
    state = SPARSE.init(PARAMS)
    for check in (FirstCheck(parts[1][1]), FirstCheck(core.PerModule(parts))):
        check(3, None, None)
        with pytest.warns(RuntimeWarning, match="after the first mask update, .* pruned weights of 'conv/w' are not 0"):
            check(4, PARAMS, state)
        check(5, PARAMS, state)
    FirstCheck(core.NoPruning())(5, None, None)


STORED = [(name, storage) for name in ("static_sparse", "rigl", "magnitude") for storage in (True, "zeros")]


@pytest.mark.parametrize(("name", "storage"), [*STORED, ("magnitude_ste", True)])
def test_a_sparse_optimizer_at_the_end_of_a_chain_passes(name: str, storage: object) -> None:
    tx = optax.chain(
        optax.clip(1.0), core.sparsify(optax.sgd(0.1), name, sparsity=0.9, total_steps=4, use_packed_masks=storage)
    )
    assert core.plan(tx, PARAMS, steps=4).concerns == ()
    params, state = core.start(tx, PARAMS)
    core.check_sparse(params, state)
    for _ in range(4):
        updates, state = tx.update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
        core.check_sparse(params, state)


def test_a_start_is_on_the_masks_and_rescaled_for_the_inputs_that_are_left() -> None:
    params = {"w": np.asarray(jax.random.normal(jax.random.key(0), (64, 16))), "b": np.ones(16, np.float32)}
    tx = core.sparsify(ADAM, "rigl", sparsity=0.75, distribution="uniform", total_steps=100)
    first, state = core.start(tx, params)
    mask = np.asarray(core.unpack_masks(params, state.masks)["w"])
    scale = np.sqrt(64 / mask.sum(axis=0))
    np.testing.assert_allclose(first["w"], np.where(mask, params["w"] * scale, 0), rtol=1e-6)
    np.testing.assert_array_equal(first["b"], params["b"])
    rows, state = core.start(tx, params, output_axis=0)
    np.testing.assert_allclose(
        rows["w"], np.where(mask, params["w"] * np.sqrt(16 / np.maximum(mask.sum(axis=1), 1))[:, None], 0), 1e-6
    )
    paper, _ = core.start(core.sparsify(ADAM, "rigl", sparsity=0.75, total_steps=100, preset="jaxpruner"), params)
    np.testing.assert_array_equal(paper["w"], np.where(mask, params["w"], 0))
    dense, _ = core.start(core.sparsify(ADAM, "magnitude", sparsity=0.75, total_steps=100), params)
    np.testing.assert_array_equal(dense["w"], params["w"])
    by_part = core.sparsify(ADAM, "magnitude", sparsity=0.75, total_steps=100, rules=[("w", "static_sparse")])
    both, _ = core.start(by_part, params | {"v": params["w"]})
    np.testing.assert_allclose(np.square(both["w"]).sum(), np.square(params["w"]).sum(), rtol=0.2)
    np.testing.assert_array_equal(both["v"], params["w"])


def test_rescaling_what_begins_with_all_weights_is_an_error() -> None:
    for name in ("magnitude", "magnitude_ste", "snip"):
        with pytest.raises(ValueError, match="begins with all weights, as they were drawn: leave it out"):
            core.sparsify(ADAM, name, sparsity=0.5, total_steps=100, rescale=True)


def test_everyones_first_try_says_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"core.sparsify\(optimizer, core.RigL, sparsity=0.9, total_steps=...\)"):
        core.RigL(sparsity=0.9)
    assert core.GlobalMagnitudePruning(sparsity=0.9).sparsity == 0.9


def test_the_names_of_core_are_those_of_its_api() -> None:
    assert [name for name in dir(core) if name[:2] != "__"] == sorted(core.__all__)


def test_a_plan_names_layers_that_groups_do_not_divide_and_refuses_what_would_not_come_true() -> None:
    shapes = {
        "first": jax.ShapeDtypeStruct((3, 3, 3, 8), jnp.float32),
        "rest": jax.ShapeDtypeStruct((8, 4), jnp.float32),
    }
    tx = core.sparsify(ADAM, "magnitude", sparsity=0.5, total_steps=100, structure=core.NByM(2, 4))
    assert core.plan(tx, shapes).notes == (
        "first has 3 entries along the axis of its groups, so the last group has 3 of 4, of which 2 are kept",
    )


def test_the_first_check_says_nothing_of_a_training_that_broke() -> None:
    tx = core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=0.5)
    params, broken = {"w": jnp.ones((8, 8))}, {"w": jnp.full((8, 8), jnp.nan)}
    state = tx.init(params)
    FirstCheck(core.updater_of(tx))(1, broken, state)
    with pytest.warns(RuntimeWarning, match="32 of the 32 pruned weights of 'w' are not 0"):
        FirstCheck(core.updater_of(tx))(1, params, state)


@pytest.mark.parametrize(
    ("algorithm", "result"), [(core.MagnitudePruning, "keeps every weight"), (core.RigL, "is a static")]
)
def test_a_plan_of_masks_that_never_change_promises_nothing(algorithm: type, result: str) -> None:
    idle = algorithm(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.8))
    for updater, where in ((idle, ""), (core.PerModule([("head/.*", idle)]), " of 'head/.*'")):
        lack = re.escape(f"{algorithm.__name__}{where} with NoUpdateSchedule") + rf".* {result}"
        with pytest.raises(ValueError, match=lack):
            core.plan(updater, SHAPES)
        assert re.match(
            f"WARNING: training does not do this. {lack}", core.describe_plan(updater, SHAPES).splitlines()[-1]
        )
    refreshed = core.PerModule([("head/.*", idle)]).wrap_optax(ADAM, refresh_in_graph=False)
    assert refreshed.init(PARAMS).count == 0  # by calls of refresh


@pytest.mark.parametrize(
    ("algorithm", "words", "message"),
    [
        ("ste", {"sparsity": 0.9}, "Did you mean 'magnitude_ste'?"),
        ("global", {"sparsity": 0.9}, "Did you mean 'global_magnitude'?"),
        ("static", {"sparsity": 0.9}, "Did you mean 'static_sparse'?"),
        ("dense", {}, "Did you mean 'no_prune'?"),
        ("set", {"sparsity": 0.9, "rounds": 10}, "rounds is called total_steps here"),
        ("set", {"sparsity": 0.9, "dist_type": "erk"}, "dist_type is called distribution here"),
        ("static_sparse", {"sparsity": 0.9, "structure": "channels"}, "Did you mean 'channel'?"),
        ("static_sparse", {"sparsity": 0.9, "structure": core.ChannelGroups}, "give core.ChannelGroups(core.channel"),
    ],
)
def test_what_newcomers_write_leads_to_what_is_meant(algorithm: str, words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        core.sparsify(ADAM, algorithm, **words)


@pytest.mark.parametrize("structure", ["2:4", "4x4"])
def test_a_structure_of_matrices_on_a_vector_is_an_error_of_the_plan(structure: str) -> None:
    tx = core.sparsify(ADAM, "static_sparse", sparsity=0.5, rules=[("head/b", structure)])
    with pytest.raises(ValueError, match="parameter 'head/b' of shape"):
        core.plan(tx, SHAPES)


def test_a_plan_says_that_there_is_no_sparsity_to_reach() -> None:
    assert "RigL has no sparsity to reach" in str(core.plan(core.sparsify(ADAM, core.RigL()), SHAPES))
    assert "no sparsity" not in str(core.plan(core.sparsify(ADAM, core.NoPruning()), SHAPES))
