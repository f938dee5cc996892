"""The learner with every family of algorithms, against a plain loop and by its compiled program."""

import functools
import pickle
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core, rl
from sparse_plugins.core.masks import is_pruned
from sparse_plugins.rl.haiku.remembered_params import RememberedParams
from sparse_plugins.rl.replay import Batch, ReplayState, Row
from tests.quick import quick_jit
from tests.rl_haiku.toy_learner import (
    BATCHES,
    OPTIMIZER,
    STEPS,
    assert_same_bits,
    compiled,
    init,
    learner_of,
    loss,
    mask_changes,
    run,
    updater_of,
)

FAMILIES = ["magnitude", "global_magnitude", "random", "static_sparse", "set", "rigl", "granet", "magnitude_ste"]
KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 3)


@pytest.mark.parametrize("pruner", FAMILIES)
def test_online_and_target_network_are_sparse_at_every_step(pruner):
    learner = learner_of(updater_of(pruner))
    state, reports, extra = compiled(learner)(KEY)
    assert not np.any(reports.online)
    assert not np.any(reports.target)
    assert int(state.steps) == STEPS
    assert extra["loss"].shape == (STEPS,)
    total = core.summarize_sparsity(state.params, masks=state.sparse_state.masks)["_total_sparsity"]
    assert float(total) == pytest.approx(0.5)
    assert mask_changes(reports) == 0 if pruner == "static_sparse" else mask_changes(reports) >= 2


@pytest.mark.parametrize("pruner", ["static_sparse", "set", "rigl"])
def test_algorithms_that_start_sparse_are_sparse_before_the_first_step(pruner):
    state = quick_jit(learner_of(updater_of(pruner)).init)(KEY, BATCHES.observation[0])
    for params in (state.params, state.target_params):
        assert float(core.summarize_sparsity(params)["_total_sparsity"]) == pytest.approx(0.5)


class TestTargets:
    """What the target network sees under each policy, copied every 5 steps and averaged at every step."""

    COPIED, AVERAGED = {"target_period": 5}, {"target_period": 1, "target_step_size": 0.1}

    @staticmethod
    @functools.cache
    def outside(pruner: str, policy: str, averaged: bool) -> list[int]:
        options = TestTargets.AVERAGED if averaged else TestTargets.COPIED
        return compiled(learner_of(updater_of(pruner), target_policy=policy, **options))(KEY)[1].target.tolist()

    @pytest.mark.parametrize("averaged", [False, True])
    def test_at_mask_update_never_has_weights_outside_the_masks(self, averaged):
        assert not any(self.outside("rigl", "at_mask_update", averaged))

    def test_at_sync_waits_for_the_copy(self):
        waits = self.outside("magnitude", "at_sync", False)
        assert max(waits) > 0
        assert [waits[step] for step in (0, 5, 10, 15, 20)] == [0] * 5

    def test_an_average_keeps_what_was_pruned_unless_it_is_masked(self):
        assert self.outside("magnitude", "at_sync", True)[-1] > 0
        assert not any(self.outside("magnitude", "after_polyak", True))

    @pytest.mark.parametrize("averaged", [False, True])
    def test_dense_starts_from_dense_weights(self, averaged):
        found = self.outside("static_sparse", "dense", averaged)
        assert min(found[:5]) > 0
        assert (found[5] > 0) == averaged, "a copy of the online network is as sparse as that is"


@functools.cache
def dense_run() -> tuple:
    """A DQN loop that knows nothing of sparsity."""

    def step(carry, batch):
        params, target, state, steps = carry
        grads = jax.grad(loss, has_aux=True)(params, target, None, batch)[0]
        updates, state = OPTIMIZER.update(grads, state, params)
        params, steps = optax.apply_updates(params, updates), steps + 1
        target = jax.tree.map(lambda new, old: jnp.where(steps % 5 == 0, new, old), params, target)
        return (params, target, state, steps), None

    @jax.jit
    def all_steps(key):
        params = init(jax.random.split(key)[1], BATCHES.observation[0])
        return jax.lax.scan(step, (params, params, OPTIMIZER.init(params), 0), BATCHES)[0]

    return all_steps(KEY)


@pytest.mark.parametrize("pruner", ["no_prune", "magnitude", "global_magnitude", "rigl", "granet", "magnitude_ste"])
def test_sparsity_0_is_the_plain_loop_bit_for_bit(pruner, full_compilation):
    state = jax.jit(functools.partial(run, learner_of(updater_of(pruner, sparsity=0.0))))(KEY)[0]
    params, target, optimizer_state, _ = dense_run()
    assert_same_bits(state.params, params)
    assert_same_bits(state.target_params, target)
    assert_same_bits(state.sparse_state.inner_state, optimizer_state)


def primitives(jaxpr: Any, within: bool = False) -> Iterator[tuple[str, bool]]:
    """Every primitive of a program, and whether it stands inside a branch."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, within
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, within or name == "cond")


class TestVmap:
    """Several seeds at once."""

    def test_seeds_at_once_are_the_seeds_one_by_one(self):
        learner, keys = learner_of(updater_of("rigl")), jax.random.split(KEY, 3)
        together, reports, _ = quick_jit(jax.vmap(functools.partial(run, learner)))(keys)
        single = compiled(learner)
        for seed, key in enumerate(keys):
            alone, alone_reports, _ = single(key)
            mine = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (together, reports.masks))
            assert_same_bits(mine[1], alone_reports.masks)
            assert_same_bits(jax.random.key_data(mine[0].key), jax.random.key_data(alone.key))
            for found, expected in ((mine[0].params, alone.params), (mine[0].target_params, alone.target_params)):
                jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
        first, second = (np.asarray(together.params["hidden"]["w"][seed]) for seed in (0, 1))
        assert not np.array_equal(first, second)

    @pytest.mark.parametrize("pruner", ["magnitude", "global_magnitude", "set", "rigl"])
    def test_a_mask_change_stays_inside_a_branch(self, pruner):
        learner = learner_of(updater_of(pruner))
        batch = jax.tree.map(lambda leaf: leaf[0], BATCHES)
        states = jax.eval_shape(jax.vmap(lambda key: learner.init(key, batch.observation)), jax.random.split(KEY, 3))
        found = set(primitives(jax.make_jaxpr(jax.vmap(lambda state: learner.learn(state, batch)))(states).jaxpr))
        ranking = {"sort", "top_k", "approx_top_k", "while", "scan"}
        assert ("cond", False) in found
        assert {name for name, within in found if within} & ranking, "masks are ranked somewhere"
        assert not {name for name, within in found if not within} & ranking


class TestSeeds:
    """The key of an agent decides about its random masks, too."""

    SHAPES = BATCHES.observation[0]

    @staticmethod
    def same_weights(pruner: str, **options: Any) -> Any:
        """A learner in which nothing but masks depends on the key."""
        fixed = lambda key, x: init(jax.random.key(0), x)  # noqa: E731
        return learner_of(updater_of(pruner, **options), network=(fixed, None))

    @pytest.mark.parametrize("pruner", ["random", "static_sparse", "set", "rigl", "gradual_set", "random_ste"])
    def test_masks_differ_by_key_and_repeat_alone_or_beside_others(self, pruner):
        learner = self.same_weights(pruner)
        together = quick_jit(jax.vmap(functools.partial(run, learner)))(KEYS)[1].masks
        alone = compiled(learner)
        masks = jax.tree.leaves(together)
        for seed, key in enumerate(KEYS):
            alone_masks = alone(key)[1].masks
            # Growth by gradients may differ in the last bit; what is drawn may not.
            first = slice(0, 1) if pruner == "rigl" else slice(None)
            for many, single in zip(masks, jax.tree.leaves(alone_masks), strict=True):
                np.testing.assert_array_equal(many[seed][first], single[first])
            assert any((mask[seed] != mask[seed - 1]).any() for mask in masks)

    def test_a_critic_and_its_twin_differ(self):
        first, second = (self.same_weights("static_sparse").init(key, self.SHAPES) for key in jax.random.split(KEY))
        assert not np.array_equal(first.params["hidden"]["w"] != 0, second.params["hidden"]["w"] != 0)

    def test_the_updaters_seed_counts_beside_the_key(self):
        def masks(rng_seed: Any, key: Any = KEY, mask_key: Any = None) -> Any:
            updater = core.StaticRandomSparse(
                sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5), rng_seed=rng_seed
            )
            state = learner_of(updater, mask_key=mask_key).init(key, self.SHAPES)
            return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.sparse_state.masks)]).tolist()

        other = jax.random.key(7)
        found = [masks(seed, key) for seed in (0, 5, jax.random.key(5)) for key in (KEY, other)]
        assert len(set(map(tuple, found))) == 6
        assert masks(5) == found[2]
        assert masks(0, KEY, other) == masks(0, other, other) != masks(0)
        assert masks(0, jax.random.PRNGKey(3)) == masks(0, jax.random.key(3))

    def test_parts_of_one_network_keep_seeds_of_their_own(self):
        def masks(key: Any, **seeds: int) -> Any:
            parts = [(f"{name}/.*", updater_of("static_sparse", rng_seed=seed)) for name, seed in seeds.items()]
            return learner_of(core.PerModule(parts)).init(key, self.SHAPES).sparse_state.masks

        start, again, other = masks(KEY, hidden=1, out=2), masks(KEY, hidden=1, out=3), masks(KEYS[0], hidden=1, out=2)
        assert_same_bits(start["hidden"]["w"], again["hidden"]["w"])
        for changed in (again["out"], other["out"], other["hidden"]):
            name = "hidden" if changed is other["hidden"] else "out"
            assert (changed["w"] != start[name]["w"]).any()


def test_a_state_is_arrays_and_goes_on_from_a_file_bit_for_bit():
    traced = []

    def traced_loss(*arguments):
        traced.append(arguments)
        return loss(*arguments)

    learner = learner_of(updater_of("rigl"), loss_fn=traced_loss)
    step = quick_jit(learner.learn)
    states = [quick_jit(learner.init)(jax.random.PRNGKey(3), BATCHES.observation[0])]
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i], BATCHES) for i in range(10)]
    for batch in batches:
        states.append(step(states[-1], batch)[0])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(states[-1]))
    again = pickle.loads(pickle.dumps(jax.device_get(states[5])))
    for batch in batches[5:]:
        again = step(again, batch)[0]
    assert_same_bits(again, states[-1])
    assert len(traced) == 1, "compiled once, also for a state that was read from a file"


def test_a_fresh_state_can_be_donated():
    learner = learner_of(updater_of("no_prune"))
    batch = jax.tree.map(lambda leaf: leaf[0], BATCHES)
    state, _ = jax.jit(learner.learn, donate_argnums=0)(learner.init(KEY, batch.observation), batch)
    assert int(state.steps) == 1


def test_acting_advances_the_key_and_reads_the_online_network():
    learner = learner_of(updater_of("no_prune"))
    state = learner.init(KEY, BATCHES.observation[0])
    action, after = learner.act(state, BATCHES.observation[0])
    assert action.shape == (8,)
    assert_same_bits(after._replace(key=None), state._replace(key=None))
    assert not np.array_equal(jax.random.key_data(after.key), jax.random.key_data(state.key))


def test_actor_and_critic_with_an_updater_each():
    """Anything with parameters can be learnt: here a policy gradient with a learnt baseline."""
    names = ("actor", "critic")

    def two(key, x):
        return {name: init(net_key, x) for name, net_key in zip(names, jax.random.split(key), strict=True)}

    def surrogate(params, target, key, batch):
        layer = lambda net, x: jax.nn.relu(x @ net["hidden"]["w"]) @ net["out"]["w"]  # noqa: E731
        value = layer(params["critic"], batch.observation)[:, 0]
        following = layer(target["critic"], batch.next_observation)[:, 0]
        error = batch.reward + batch.discount * jax.lax.stop_gradient(following) - value
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(layer(params["actor"], batch.observation)), batch.action[:, None], axis=1
        )[:, 0]
        return jnp.mean(error**2) - jnp.mean(jax.lax.stop_gradient(error) * chosen), {}

    parts = [("actor/.*", updater_of("magnitude", 0.75)), ("critic/.*", updater_of("rigl", 0.5))]
    learner = learner_of(core.PerModule(parts), network=(two, None), loss_fn=surrogate, target_step_size=0.2)
    state, reports, _ = compiled(learner)(KEY)
    assert not np.any(reports.online)
    assert not np.any(reports.target)
    totals = [core.summarize_sparsity(state.params[name]) for name in names]
    assert [float(total["_total_sparsity"]) for total in totals] == pytest.approx([0.75, 0.5])
    assert all(is_pruned(mask) for mask in jax.tree.leaves(state.sparse_state.masks))


class TestBadInput:
    """Errors when the learner is built."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"network": print}, r"network is .*print.*; give something with `init`"),
            ({"target_policy": "at_snyc"}, "'at_snyc'; allowed are at_mask_update, at_sync, after_polyak, dense"),
            ({"target_period": 0}, "target_period is 0; give optimizer steps between copies, 1 or more"),
            ({"target_step_size": 0.0}, r"target_step_size is 0.0; allowed are numbers in \(0, 1\]"),
        ],
    )
    def test_of_the_learner(self, options, message):
        with pytest.raises((TypeError, ValueError), match=message):
            learner_of(core.NoPruning(), **options)

    def test_a_sparsity_without_an_updater(self):
        with pytest.raises(TypeError, match="sparsity came without an updater: give SparseLearner updater='rigl'"):
            rl.SparseLearner(network=(None, None), loss_fn=None, act_fn=None, optimizer=None, sparsity=0.9)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"use_packed_masks": "zeros"}, "where the target network can't find them; use True"),
            ({"step_unit": "frame"}, r"schedule counts 'frame'; convert it with rl.Clock"),
        ],
    )
    def test_of_the_updater(self, options, message):
        with pytest.raises(ValueError, match=message):
            learner_of(updater_of("magnitude", **options))


@pytest.mark.parametrize("node_type", [rl.LearnerState, RememberedParams, Row, Batch, ReplayState])
def test_states_and_batches_can_be_serialized_with_a_step(node_type):
    node = node_type(*range(len(node_type._fields)))
    written = jax.export.export(jax.jit(lambda node: node))(node).serialize()
    assert jax.export.deserialize(written).call(node) == node
