"""Every agent of the table, made sparse, against what upstream's agents do."""

import functools
import itertools
from typing import Any

import gin
import jax
import numpy as np
import pytest
from dopamine.jax.agents.dqn import dqn_agent

from sparse_plugins import core
from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.core.masks import is_pruned
from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.rl import Clock, TargetPolicy, dopamine, target_network
from sparse_plugins.rl.dopamine.checkpoints.bundles import check_bundle
from tests.rl.driving import BINDINGS, INHERITED, assert_same_bits, build, drive, observe, outside_masks, reload

AGENTS = sorted(dopamine.AGENTS)
# They inherit all that has to do with checkpoints from DQN, and take long to compile a second time.
GO_ON_AS_DQN = ("full_rainbow", "jax_implicit_quantile", "jax_quantile", "jax_rainbow")
FAMILIES = ["magnitude", "global_magnitude", "random", "static_sparse", "set", "rigl", "granet", "magnitude_ste"]
RAMP = {"update_start_step": 4, "update_end_step": 16, "update_freq": 4}


def updater_of(pruner: str, sparsity: float = 0.8, **options: Any) -> core.BaseUpdater:
    return dopamine.create_updater_from_config(pruner, sparsity=sparsity, **{**RAMP, **options})


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_learns_on_its_masks_and_goes_on_from_a_checkpoint(name, tmp_path):
    agent = build(name, updater=updater_of("magnitude"))
    drive(agent, 100 if name == "ppo" else 60, np.random.default_rng(0))
    assert int(agent.sparse_state.count) > 16, "the schedule has ended"
    total = core.summarize_sparsity(agent.sparse_params, masks=agent.sparse_state.masks)
    assert float(total["_total_sparsity"]) == pytest.approx(0.8, abs=2e-3)
    assert outside_masks(agent.sparse_params, agent.sparse_state) == 0
    if agent.target_sparse_params is not None:
        assert outside_masks(agent.target_sparse_params, agent.sparse_state) == 0

    again = reload(agent, tmp_path / "checkpoint", name, updater=updater_of("magnitude"))
    assert_same_bits(again.optimizer_state, agent.optimizer_state)
    if name in GO_ON_AS_DQN:
        return
    for driven in (agent, again):
        drive(driven, 26, np.random.default_rng(1))
    assert_same_bits(again.optimizer_state, agent.optimizer_state)
    assert_same_bits(again.sparse_params, agent.sparse_params)
    assert_same_bits(again.target_sparse_params, agent.target_sparse_params)


@pytest.mark.parametrize("name", AGENTS)
def test_the_training_step_is_upstreams_own(name):
    ours = {name for cls in dopamine.AGENTS[name].__mro__ if cls.__module__.startswith("sparse") for name in vars(cls)}
    assert not {"_train_step", "begin_episode", "step", "end_episode", "_sync_weights", "_maybe_sync_weights"} & ours


@pytest.mark.parametrize("pruner", FAMILIES)
def test_acting_learning_and_target_network_are_sparse_at_every_step(pruner):
    agent = build("jax_dqn", updater=updater_of(pruner))
    random = np.random.default_rng(0)
    agent.begin_episode(observe(agent, random))
    states = []
    for _ in range(90):
        states.append(agent.sparse_state)
        for params in (agent.sparse_params, agent.target_sparse_params):
            assert outside_masks(params, agent.sparse_state) == 0
        agent.step(float(random.normal()), observe(agent, random))
    assert int(states[-1].count) > 16
    masks = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.masks)]) for state in states]
    changes = sum(not np.array_equal(*pair) for pair in itertools.pairwise(masks))
    assert changes == 0 if pruner == "static_sparse" else changes >= 2


@pytest.mark.parametrize("name", ["jax_dqn", "full_rainbow", "sac", "ppo", "redo_dqn"])
def test_random_masks_are_those_of_the_agents_seed(name, monkeypatch):
    def masks(seed, **options):
        given = {"seed": seed}
        if name == "redo_dqn":  # which leaves the seed to its parent
            monkeypatch.setitem(BINDINGS, name, [*INHERITED, f"JaxDQNAgent.seed = {given.pop('seed')}"])
        agent = build(name, updater=updater_of("static_sparse", **options), **given)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(agent.sparse_state.masks)]
        return np.concatenate([leaf.ravel() for leaf in leaves]).tobytes()

    first, other = masks(0), masks(1)
    assert first != other
    assert masks(0) == first
    assert masks(0, rng_seed=1) not in (first, other)


def test_twin_critics_have_masks_of_their_own():
    agent = build("sac", updater=updater_of("static_sparse"))
    critics = [agent.sparse_params["params"][f"_critic{number}"] for number in (1, 2)]
    for first, second in zip(*map(jax.tree.leaves, critics), strict=True):
        if first.ndim == 2 and first.size > 20:
            assert not np.array_equal(first != 0, second != 0)


@pytest.mark.parametrize("pruner", ["static_sparse", "set", "rigl"])
def test_agents_that_start_sparse_are_sparse_before_the_first_step(pruner):
    """JaxPruner's agent started dense and kept a dense target until the first copy, 8000 steps later."""
    agent = build("jax_dqn", updater=updater_of(pruner))
    for params in (agent.sparse_params, agent.target_sparse_params):
        assert float(core.summarize_sparsity(params)["_total_sparsity"]) == pytest.approx(0.8, abs=2e-3)


@functools.cache
def trained_dense(name: str, steps: int) -> tuple[Any, Any]:
    """Parameters and target of upstream's agent, which every pruner is compared with."""
    dense = build(name, agent_class=next(c for c in dopamine.AGENTS[name].__mro__ if c.__module__[:8] == "dopamine"))
    drive(dense, steps, np.random.default_rng(0))
    if name == "sac":
        return dense.network_params, dense.target_params
    return dense.online_params, dense.target_network_params


@pytest.mark.parametrize(
    ("name", "pruner"),
    [*(("jax_dqn", pruner) for pruner in ("no_prune", *FAMILIES)), ("sac", "magnitude"), ("sac", "rigl")],
)
def test_sparsity_0_is_the_dense_agent_bit_for_bit(name, pruner, full_compilation):
    steps = 1040 if (name, pruner) == ("jax_dqn", "magnitude") else 120
    online, target = trained_dense(name, steps)
    sparse = build(name, updater=updater_of(pruner, sparsity=0.0))
    drive(sparse, steps, np.random.default_rng(0))
    assert int(sparse.sparse_state.count) >= (500 if steps == 1040 else 49)
    assert_same_bits(sparse.sparse_params, online)
    assert_same_bits(sparse.target_sparse_params, target)


def test_an_agent_whose_parameters_are_changed_from_outside_warns_once():
    agent = build("jax_dqn", updater=updater_of("magnitude"))
    state = agent.optimizer_state
    for _ in range(4):  # as after steps 0 to 3; step 4 is the first to prune
        agent.optimizer_state = jax.tree.map(lambda leaf: leaf, state)
    zeros = jax.tree.map(lambda mask: 0 * mask, state.masks)
    agent.optimizer_state = state._replace(masks=zeros)
    with pytest.warns(RuntimeWarning, match="after the first mask update, .* pruned weights of '.*kernel' are not 0"):
        agent.optimizer_state = state
    agent.optimizer_state = state._replace(masks=zeros)


def test_the_checkpoint_of_another_algorithm_is_refused_by_name():
    bundle = {"updater": "SET, Unstructured(), erk(sparsity=0.8)", "optimizer_state": None}
    agent = build("jax_dqn", updater=updater_of("rigl"))
    bundle["optimizer_state"] = agent.optimizer_state
    with pytest.raises(CheckpointMismatchError, match=r"an agent of SET, .*, and SparseJaxDQNAgent is one of RigL"):
        check_bundle(bundle, agent.updater, agent.optimizer_state, type(agent).__name__)
    del bundle["updater"]  # one of before updaters were recorded
    check_bundle(bundle, agent.updater, agent.optimizer_state, type(agent).__name__)


def test_straight_through_acts_sparse_and_trains_pruned_weights():
    agent = build("jax_dqn", updater=updater_of("magnitude_ste", update_start_step=0, update_end_step=0))
    before = agent.sparse_state.dense_params
    drive(agent, 60, np.random.default_rng(0))
    kept = core.unpack_masks(agent.sparse_params, agent.sparse_state.masks)
    moved = jax.tree.map(lambda old, new: np.asarray(old != new), before, agent.sparse_state.dense_params)
    of_pruned_weights = [
        change[np.asarray(mask) == 0]
        for mask, change in zip(jax.tree.leaves(kept), jax.tree.leaves(moved), strict=True)
        if is_pruned(mask)
    ]
    assert sum(map(len, of_pruned_weights)) > 200
    assert np.mean(np.concatenate(of_pruned_weights)) > 0.2
    assert outside_masks(agent.sparse_params, agent.sparse_state) == 0


class TestTargets:
    """What the target network sees under each policy, with Polyak averaging and without."""

    @staticmethod
    def dense_share(agent: Any) -> list[int]:
        random, found = np.random.default_rng(0), []
        agent.begin_episode(observe(agent, random))
        for _ in range(80):
            agent.step(float(random.normal()), observe(agent, random))
            found.append(outside_masks(agent.target_sparse_params, agent.sparse_state))
        return found

    @pytest.mark.parametrize("name", ["jax_dqn", "sac"])
    @pytest.mark.parametrize("pruner", ["magnitude", "rigl"])
    def test_at_mask_update_never_has_weights_outside_the_masks(self, name, pruner):
        assert self.dense_share(build(name, updater=updater_of(pruner))) == [0] * 80

    @pytest.mark.parametrize("name", ["jax_dqn", "redo_dqn"])
    def test_the_device_is_asked_for_its_count_only_where_masks_change(self, name, monkeypatch):
        """And once at first; the state that ReDo's recyclers hand back is no step."""
        updater = updater_of("rigl")
        agent, asked, count = build(name, updater=updater), [], target_network.steps_so_far
        monkeypatch.setattr(target_network, "steps_so_far", lambda state: (asked.append(count(state)), asked[-1])[1])
        drive(agent, 80, np.random.default_rng(0))
        due = [step + 1 for step in range(1, int(agent.sparse_state.count)) if agent.updater.is_refresh_due(step)]
        assert asked == [1, *due]
        assert len(due) >= 2

    def test_at_sync_waits_for_the_copy(self):
        waits = self.dense_share(build("jax_dqn", updater=updater_of("magnitude"), target_policy="at_sync"))
        assert max(waits) > 0
        assert waits[-1] == 0, "the schedule has ended, and a copy was made since"

    def test_polyak_alone_never_becomes_sparse_and_after_polyak_does(self):
        """An average of masks of different times leaves small weights behind (a user's fork of jaxrl)."""
        updater = updater_of("magnitude")
        assert self.dense_share(build("sac", updater=updater, target_policy="at_sync"))[-1] > 0
        assert self.dense_share(build("sac", updater=updater, target_policy="after_polyak")) == [0] * 80

    def test_dense_keeps_the_initial_weights_until_the_first_copy(self):
        updater = updater_of("static_sparse")
        agent = build("jax_dqn", updater=updater, target_policy="dense")
        assert float(core.summarize_sparsity(agent.target_sparse_params)["_total_sparsity"]) == 0.0
        assert float(core.summarize_sparsity(agent.sparse_params)["_total_sparsity"]) == pytest.approx(0.8, abs=2e-3)

    def test_a_target_that_is_masked_when_it_is_written_meets_its_own_masks_in_a_checkpoint(self, tmp_path):
        """Masks have changed since the last copy; DQN puts its target back before its optimizer state."""
        options = {"updater": updater_of("magnitude"), "target_policy": "after_polyak"}
        agent = build("jax_dqn", **options)
        drive(agent, 50, np.random.default_rng(0))
        assert outside_masks(agent.target_sparse_params, agent.sparse_state) > 0
        again = reload(agent, tmp_path / "checkpoint", "jax_dqn", **options)
        assert_same_bits(again.target_sparse_params, agent.target_sparse_params)

    def test_masks_in_zeros_are_an_error(self):
        with pytest.raises(ValueError, match="where the target network can't find them; use True"):
            build("jax_dqn", updater=updater_of("magnitude", use_packed_masks="zeros"))

    def test_an_unknown_policy_is_an_error(self):
        with pytest.raises(ValueError, match="'at_snyc'; allowed are at_mask_update, at_sync, after_polyak, dense"):
            build("jax_dqn", target_policy="at_snyc")


def test_no_agent_compiles_again_after_a_checkpoint(unshared_programs, tmp_path):
    agent = build("jax_dqn", updater=updater_of("magnitude"))
    drive(agent, 40, np.random.default_rng(0))
    compiled = dqn_agent.train._cache_size()
    bundle = agent.bundle_and_checkpoint(str(tmp_path), 0)
    assert agent.unbundle(str(tmp_path), 0, bundle)
    drive(agent, 20, np.random.default_rng(1))
    assert dqn_agent.train._cache_size() == compiled


@pytest.mark.parametrize("name", ["jax_dqn", "sac", "ppo"])
def test_without_a_replay_an_agent_does_not_go_on_and_does_not_look_at_masks(name, tmp_path):
    """As Dopamine's own agents say it."""
    agent = build(name)
    assert agent.unbundle(str(tmp_path), 1729, {}) is False
    assert agent.unbundle(str(tmp_path), 1729, None) is False
    drive(agent, 30, np.random.default_rng(0))
    bundle = agent.bundle_and_checkpoint(str(tmp_path), 1729)
    (tmp_path / "1729" / "replay.npz").unlink()
    before = agent.sparse_params
    assert build(name).unbundle(str(tmp_path), 1729, bundle) is False
    assert_same_bits(agent.sparse_params, before)


def test_a_prioritized_replay_remembers_its_highest_priority(tmp_path):
    """Dopamine's own files do not, and new transitions got another priority after a resume."""
    agent = build("jax_rainbow")
    drive(agent, 60, np.random.default_rng(0))
    agent._replay.update(np.array([3], np.int32), priorities=np.array([7.0]))
    again = reload(agent, tmp_path / "checkpoint", "jax_rainbow")
    trees = [built._replay._sampling_distribution._sum_tree for built in (agent, again)]
    assert [tree.max_recorded_priority for tree in trees] == [7.0, 7.0]
    assert trees[0]._nodes.tobytes() == trees[1]._nodes.tobytes()


def test_the_replay_before_stays_until_the_newest_is_part_of_a_checkpoint(tmp_path):
    """Dopamine's own removes it at once, and a run that is killed then has none."""
    gin.parse_config(["ReplayBuffer.checkpoint_duration = 1"])
    agent = build("jax_dqn")
    drive(agent, 30, np.random.default_rng(0))
    for iteration in (8, 9, 10):
        agent._replay.save(str(tmp_path), iteration)
    assert {path.name for path in tmp_path.iterdir()} == {"9", "10"}


def test_a_forged_sum_tree_is_refused(tmp_path):
    agent = build("jax_rainbow")
    drive(agent, 60, np.random.default_rng(0))
    agent._replay._sampling_distribution._sum_tree._nodes[0] = 1e9
    agent._replay.save(str(tmp_path), 3)
    with pytest.raises(DamagedFileError, match="not the nodes of a sum tree of"):
        build("jax_rainbow")._replay.load(str(tmp_path), 3)


class TestCheckpointsOfOthers:
    """Checkpoints that do not fit are errors, and change nothing."""

    @staticmethod
    def moved(source: Any, target: Any, folder: Any) -> None:
        bundle = source.bundle_and_checkpoint(str(folder), 0)
        before = target.sparse_params
        try:
            target.unbundle(str(folder), 0, bundle)
        finally:
            assert_same_bits(target.sparse_params, before)
            assert target.training_steps == 0

    def test_dense_into_sparse(self, tmp_path):
        dense = build("jax_dqn", agent_class=dqn_agent.JaxDQNAgent)
        drive(dense, 30, np.random.default_rng(0))
        with pytest.raises(ValueError, match=r"holds no masks.*its masks would be drawn anew.*another --base_dir"):
            self.moved(dense, build("jax_dqn", updater=updater_of("rigl")), tmp_path)

    def test_sparse_into_dense_and_other_sparsity(self, tmp_path):
        sparse = build("jax_dqn", updater=updater_of("magnitude"))
        drive(sparse, 30, np.random.default_rng(0))
        with pytest.raises(ValueError, match=r"target sparsities params/final_layer.*NoPruning asks for of no layer"):
            self.moved(sparse, build("jax_dqn", updater=updater_of("no_prune")), tmp_path)
        with pytest.raises(ValueError, match=r"layers_1/kernel: 0.5"):
            self.moved(sparse, build("jax_dqn", updater=updater_of("magnitude", 0.5, dist_type="uniform")), tmp_path)

    def test_another_algorithm_or_optimizer(self, tmp_path):
        sparse = build("jax_dqn", updater=updater_of("magnitude"), optimizer="adam")
        drive(sparse, 30, np.random.default_rng(0))
        for other in ({"updater": updater_of("magnitude_ste")}, {"optimizer": "sgd"}):
            with pytest.raises(ValueError, match="laid out differently"):
                self.moved(sparse, build("jax_dqn", **{"updater": updater_of("magnitude"), **other}), tmp_path)


def test_noise_scales_stay_dense_by_default():
    agent = build("full_rainbow", updater=updater_of("magnitude"))
    plan = agent.describe_plan()
    assert "kernel_sigma" in plan
    for line in plan.splitlines():
        assert ("sigma" in line) <= ("dense" in line)


class WithoutParams(dqn_agent.JaxDQNAgent):
    """Updates as SPR and Tandem DQN do: without parameters."""

    def _train_step(self):
        if self._replay.add_count > self.min_replay_history:
            self.optimizer.update(self.online_params, self.optimizer_state)
        self.training_steps += 1


class OtherNames(dqn_agent.JaxDQNAgent):
    def _build_networks_and_optimizer(self):
        super()._build_networks_and_optimizer()
        self.active_optimizer = self.__dict__.pop("optimizer")


def test_agents_that_cannot_be_served_are_named():
    agent = build("jax_dqn", agent_class=dopamine.sparsify(WithoutParams), updater=updater_of("magnitude"))
    with pytest.raises(ValueError, match="params"):
        drive(agent, 40, np.random.default_rng(0))
    with pytest.raises(TypeError, match="OtherNames keeps an optimizer under none of the names optimizer, network_opt"):
        build("jax_dqn", agent_class=dopamine.sparsify(OtherNames), updater=updater_of("magnitude"))
    with pytest.raises(TypeError, match="has no _build_networks_and_optimizer; give a class derived from"):
        dopamine.sparsify(dict)
    with pytest.raises(TypeError, match="SparseJaxDQNAgent is sparse already"):
        dopamine.sparsify(dopamine.AGENTS["jax_dqn"])


def test_separate_updaters_for_actor_and_critic():
    parts = [("params/_actor/.*", updater_of("magnitude", 0.9)), ("params/_critic.*", updater_of("rigl", 0.5))]
    agent = build("sac", updater=core.PerModule(updaters=parts))
    drive(agent, 80, np.random.default_rng(0))
    flat = core.summarize_sparsity(agent.sparse_params)
    of = lambda part: [float(v) for k, v in flat.items() if part in k and k.endswith("kernel")]  # noqa: E731
    assert min(of("actor")) > 0.5
    assert outside_masks(agent.sparse_params, agent.sparse_state) == 0
    assert outside_masks(agent.target_sparse_params, agent.sparse_state) == 0
    assert np.mean(of("critic")) < np.mean(of("actor"))


def test_schedules_in_environment_steps_and_frames():
    asked = functools.partial(updater_of, "magnitude", update_start_step=180, update_end_step=340, update_freq=80)
    frames = build("jax_dqn", updater=asked(step_unit="frame"), frames_per_step=4)
    schedule = frames.updater.scheduler
    assert (schedule.update_start_step, schedule.update_end_step, schedule.update_freq) == (13, 33, 10)
    assert "first mask change: optimizer step 13 = environment step 46 = frame 184" in frames.describe_plan()
    with pytest.raises(ValueError, match="step_unit is 'round'"):
        build("jax_dqn", updater=asked(step_unit="round"))
    assert build("ppo").clock.period * 6 == 24, "6 updates for 24 environment steps"
    assert TargetPolicy.AT_SYNC == "at_sync"


def test_a_drop_fraction_may_end_within_the_warm_up():
    schedule = core.PeriodicSchedule(100, 0, 900, step_unit="environment step")
    updater = core.SET(scheduler=schedule, drop_fraction_fn=core.CosineDrop(0.3, end_step=900))
    assert Clock(warm_up=1000, period=4).in_optimizer_steps(updater).drop_fraction_fn.end_step == 1
