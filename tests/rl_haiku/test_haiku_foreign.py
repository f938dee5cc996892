"""Agents that call their optimizer without parameters, made sparse; see foreign_agents.py for their shape."""

import functools
import itertools
import pickle
from typing import Any

import jax
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.rl import haiku
from tests.rl_haiku.foreign_agents import AcmeLearner, OtherNames, ZooAgent
from tests.rl_haiku.toy_learner import BATCHES, OPTIMIZER, assert_same_bits, loss, outside, updater_of

ROWS = [jax.tree.map(lambda leaf, i=i: leaf[i], BATCHES) for i in range(20)]
KEY = jax.random.PRNGKey(0)
# Steps of the ramp lie between two copies.
PERIOD = 7
pruned_in_use = jax.jit(outside)


def zoo(updater: core.BaseUpdater | str, agent_class: type = ZooAgent, **options: Any) -> Any:
    settings = {"optimizer": OPTIMIZER, "target_network_update_period": PERIOD, "rng_key": KEY, **options}
    return haiku.sparsify_dqn_zoo(agent_class)(ROWS[0].observation, updater=updater, **settings)


def acme(updater: core.BaseUpdater | str, **options: Any) -> Any:
    settings = {"optimizer": OPTIMIZER, "target_update_period": PERIOD, "random_key": KEY, **options}
    return haiku.sparsify_acme(AcmeLearner)(loss, data_iterator=iter(ROWS), updater=updater, **settings)


def zoo_step(agent: Any, i: int) -> None:
    agent.step(ROWS[i])


def acme_step(learner: Any, i: int) -> None:
    learner._data_iterator = iter(ROWS[i:])
    learner.step()


def networks(agent: Any) -> tuple[Any, Any]:
    if hasattr(agent, "_state"):
        return jax.tree.map(lambda leaf: leaf[0], (agent._state.params, agent._state.target_params))
    return agent._online_params, agent._target_params


def remembered(agent: Any) -> Any:
    if hasattr(agent, "_state"):
        return jax.tree.map(lambda leaf: leaf[0], agent._state.opt_state.params)
    return agent._opt_state.params


def pruned_weights_in_use(agent: Any) -> list[int]:
    return [int(pruned_in_use(params, agent.sparse_state.masks)) for params in networks(agent)]


SHAPES = {"zoo": (zoo, zoo_step), "acme": (acme, acme_step)}


class WithoutKey(ZooAgent):
    """Makes its own key, and so can't hand it on."""

    def __init__(self, sample: Any, **kwargs: Any) -> None:
        super().__init__(sample, rng_key=KEY, **kwargs)


def test_random_masks_of_an_agent_without_a_key_are_a_warning():
    settings = {"optimizer": OPTIMIZER, "target_network_update_period": PERIOD}
    build = lambda pruner: haiku.sparsify_dqn_zoo(WithoutKey)(  # noqa: E731
        ROWS[0].observation, updater=updater_of(pruner), **settings
    )
    with pytest.warns(UserWarning, match="given no rng_key or random_key; random masks .* from rng_seed=0"):
        build("static_sparse")
    build("magnitude")  # draws nothing


@pytest.mark.parametrize("shape", SHAPES)
class TestBothShapes:
    """What holds for agents of either shape."""

    def test_random_masks_are_those_of_the_agents_key(self, shape):
        build = SHAPES[shape][0]
        name = {"zoo": "rng_key", "acme": "random_key"}[shape]
        masks = [
            build(updater_of("static_sparse"), **{name: jax.random.PRNGKey(seed)}).sparse_state.masks
            for seed in (0, 0, 1)
        ]
        assert_same_bits(masks[0], masks[1])
        assert (masks[0]["hidden"]["w"] != masks[2]["hidden"]["w"]).any()

    def test_online_and_target_network_are_sparse_after_every_step(self, shape, monkeypatch):
        monkeypatch.setattr(AcmeLearner, "over_devices", staticmethod(functools.partial(jax.pmap, axis_name="data")))
        build, step = SHAPES[shape]
        agent = build(updater_of("rigl"))
        found = [pruned_weights_in_use(agent)]
        for i in range(20):
            step(agent, i)
            found.append(pruned_weights_in_use(agent))
            assert_same_bits(remembered(agent), networks(agent)[0])
        assert found == [[0, 0]] * 21
        assert int(agent.sparse_state.count) == 20
        totals = [core.summarize_sparsity(params)["_total_sparsity"] for params in networks(agent)]
        assert [float(total) for total in totals] == pytest.approx([0.5, 0.5], abs=0.03)

    def test_target_policies(self, shape):
        build, step = SHAPES[shape]
        found = {}
        for policy in ("at_sync", "after_polyak"):
            agent = build(updater_of("magnitude"), target_policy=policy)
            found[policy] = []
            for i in range(14):
                step(agent, i)
                found[policy].append(pruned_weights_in_use(agent)[1])
        assert max(found["at_sync"]) > 0
        assert min(found["at_sync"]) == 0
        # DQN Zoo writes its target network when it is copied, Acme at every step.
        assert max(found["after_polyak"]) == 0 if shape == "acme" else found["after_polyak"] == found["at_sync"]
        dense = networks(build(updater_of("static_sparse"), target_policy="dense"))
        totals = [core.summarize_sparsity(params)["_total_sparsity"] for params in dense]
        assert [float(total) for total in totals] == pytest.approx([0.5, 0.0])

    @pytest.mark.parametrize("policy", ["at_mask_update", "after_polyak"])
    def test_masks_outlive_a_checkpoint(self, shape, policy):
        """After 12 steps masks have changed since the last copy."""
        build, step = SHAPES[shape]
        agent, again = (build(updater_of("set"), target_policy=policy) for _ in range(2))
        for i in range(12):
            step(agent, i)
        if shape == "zoo":
            again.set_state(pickle.loads(pickle.dumps(jax.device_get(agent.get_state()))))
        else:
            again.restore(pickle.loads(pickle.dumps(agent.save())))
        assert_same_bits(again.sparse_state.masks, agent.sparse_state.masks)
        assert_same_bits(networks(again), networks(agent))
        for i, stepped in itertools.product(range(12, 20), (agent, again)):
            step(stepped, i)
        assert_same_bits(again.sparse_state, agent.sparse_state)
        assert_same_bits(networks(again), networks(agent))
        assert pruned_weights_in_use(again) == [0, 0]

    def test_checkpoints_of_others_are_errors_and_change_nothing(self, shape):
        build, _ = SHAPES[shape]
        agent = build(updater_of("set"))
        before = networks(agent)
        saved = (lambda written: written.get_state()) if shape == "zoo" else (lambda written: written.save())
        load = agent.set_state if shape == "zoo" else agent.restore

        def without_masks(state):
            dense = OPTIMIZER.init(before[0])
            return {**state, "opt_state": dense} if shape == "zoo" else state._replace(opt_state=dense)

        for state, message in (
            (without_masks(saved(agent)), "holds no masks: it was written by a dense agent"),
            (saved(build(updater_of("set", 0.75))), r"target sparsities \[0.75, 0.75\], and Sparse.* \[0.5, 0.5\]"),
            (saved(build(updater_of("set"), optimizer=optax.sgd(0.1))), "laid out differently, for example at"),
        ):
            with pytest.raises(ValueError, match=message):
                load(state)
        assert_same_bits(networks(agent), before)

    def test_masks_in_zeros_are_an_error(self, shape):
        with pytest.raises(ValueError, match="where the target network can't find them; use True"):
            SHAPES[shape][0](updater_of("magnitude", use_packed_masks="zeros"))


def test_sparsity_0_is_the_dense_agent_bit_for_bit():
    dense = ZooAgent(ROWS[0].observation, OPTIMIZER, PERIOD, KEY)
    agent = zoo(updater_of("magnitude", 0.0))
    for row in ROWS:
        dense.step(row)
        agent.step(row)
    assert_same_bits(networks(agent), networks(dense))


def test_parameters_that_an_agent_replaces_are_the_ones_it_goes_on_from():
    agent = zoo(updater_of("static_sparse"))
    agent.step(ROWS[0])
    agent._online_params = jax.tree.map(lambda leaf: leaf / 2, agent._online_params)
    assert_same_bits(remembered(agent), agent._online_params)
    agent.step(ROWS[1])
    assert pruned_weights_in_use(agent) == [0, 0]


def test_an_optimizer_that_remembers_serves_a_loop_that_hands_over_nothing():
    tx = haiku.remember_params(updater_of("rigl").wrap_optax(OPTIMIZER))
    params = networks(zoo(updater_of("no_prune")))[0]
    state = tx.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    for seed in range(20):
        params, state = step(params, state, jax.tree.map(lambda leaf, seed=seed: np.cos(9 * leaf + seed), params))
        assert not pruned_in_use(params, core.find_sparse_state(state).masks)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), state.params, params)
    assert_same_bits(haiku.renew_params((state,), params)[0].params, params)


def test_agents_that_cannot_be_served_are_named():
    with pytest.raises(
        TypeError, match="SparseOtherNames has no _target_params, so it can't be made sparse here; wrap"
    ):
        zoo(updater_of("magnitude"), agent_class=OtherNames)
    with pytest.raises(TypeError, match="dict has no get_state, set_state, so"):
        haiku.sparsify_dqn_zoo(dict)
    with pytest.raises(TypeError, match="ZooAgent has no save, restore, so"):
        haiku.sparsify_acme(ZooAgent)
    with pytest.raises(TypeError, match="SparseZooAgent is sparse already"):
        haiku.sparsify_dqn_zoo(haiku.sparsify_dqn_zoo(ZooAgent))


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_both_networks_are_rescaled_at_the_start(shape: str) -> None:
    build, _ = SHAPES[shape]
    rescaled, plain = (build("static_sparse", sparsity=0.5, rescale=rescale) for rescale in (True, False))
    assert_same_bits(networks(rescaled)[0], remembered(rescaled))
    for ours, theirs in zip(networks(rescaled), networks(plain), strict=True):
        assert float(optax.tree.norm(ours)) > 1.2 * float(optax.tree.norm(theirs))


def change_from_outside(agent: Any) -> None:
    """Assigns other parameters and the state of another step."""
    if hasattr(agent, "_state"):
        agent._state = agent._state._replace(params=jax.tree.map(np.ones_like, agent._state.params))
        return
    agent._online_params = jax.tree.map(np.ones_like, agent._online_params)
    for _ in range(2):
        agent._opt_state = jax.tree.map(lambda leaf: leaf, agent._opt_state)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_off_their_masks_are_warned_of_once(shape: str) -> None:
    agent = SHAPES[shape][0](updater_of("static_sparse"))
    with pytest.warns(RuntimeWarning, match="after the first mask update, .* pruned weights of 'hidden/w' are not 0"):
        change_from_outside(agent)
    change_from_outside(agent)


def test_an_agent_of_another_algorithm_is_no_start_unless_that_is_meant() -> None:
    saved = zoo(updater_of("set")).get_state()
    agent = zoo(updater_of("rigl"))
    with pytest.raises(CheckpointMismatchError, match=r"is of a run of SET, .* and this is one of RigL"):
        agent.set_state(saved)
    agent.set_state({name: part for name, part in saved.items() if name != "updater"})


def test_the_line_beside_a_checkpoint_of_acme_tells_the_algorithm() -> None:
    saved = acme("rigl", sparsity=0.8, total_steps=1_000).save()
    rigl, static = (
        core.build_updater("rigl", sparsity=0.8, total_steps=1_000),
        core.build_updater("static_sparse", sparsity=0.8),
    )
    beside = core.identity_of(rigl)
    assert core.check_restored(rigl, saved.params, saved.opt_state, beside) is saved.opt_state
    with pytest.raises(core.CheckpointMismatchError, match=r"of a run of RigL.*, and this is one of StaticRandom"):
        core.check_restored(static, saved.params, saved.opt_state, beside)
