import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.checkpoints import CheckpointMismatchError, Checkpoints, SettingsMismatchError
from sparse_plugins.rl import haiku
from sparse_plugins.rl.loops.config import FusedConfig
from sparse_plugins.rl.loops.fused import FusedMetrics, FusedTrainer
from sparse_plugins.rl.loops.fused_runs import _described, _Run, train
from sparse_plugins.rl.loops.runs import _check_settings, to_the_end
from tests.rl_haiku.tiny import LIMIT, UPDATER, Corridor, learner

CONFIG = FusedConfig(
    num_envs=2, capacity=64, batch_size=8, n_step=2, warm_up=16, vector_steps=3, updates=2, epsilon_decay=200,
    prioritized=True,
)  # fmt: skip
KEYS = jax.random.split(jax.random.key(0), 3)
HYPER = {"lr": jnp.array([0.01, 0.01, 0.0])}
CHUNK = 20


@pytest.fixture(scope="module")
def trainer():
    return FusedTrainer(Corridor(), lambda hyper: learner(hyper["lr"]), CONFIG)


@pytest.fixture(scope="module")
def trained(trainer):
    """After 20, 40, ... 200 iterations; the last state alone can be gone on from."""
    state, metrics = trainer.init(KEYS, HYPER), []
    for _ in range(10):
        state, found = trainer.run(state, CHUNK)
        metrics.append(found)
    return state, metrics


def words(state):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in jax.tree.leaves(state)]


def assert_same(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, words(tree), words(expected))


def test_a_walk_is_learnt_where_the_learning_rate_allows(trainer, trained):
    state, metrics = trained
    returns = trainer.evaluate(state, 20, jax.random.key(1), longest=LIMIT + 1)
    assert returns.shape == (3, 20)
    # The goal is three or four steps away.
    assert np.isin(returns[:2], [2 - 0.125 * 3, 2 - 0.125 * 2]).all()
    assert trainer.environment_steps(state) == 16 + 200 * 3 * 2 == CONFIG.environment_steps(200)
    assert CONFIG.iterations(16 + 1200) == 200
    late = metrics[-1]
    assert (late.mean_return[:2] > 1.4).all()
    assert (late.episodes[:2] > 25).all()
    assert np.isfinite(np.asarray(late.loss)).all()


def test_every_seed_has_its_own_masks_at_its_updaters_sparsity(trained):
    state, _ = trained
    masks = core.unpack_masks(
        {"in": np.zeros((5, 16)), "out": np.zeros((16, 2))},
        jax.tree.map(lambda mask: mask[0], state.learner.sparse_state.masks),
    )
    assert int(masks["in"].sum()) == 40
    weights = np.asarray(state.learner.params["in"])
    assert ((weights != 0).sum(axis=(1, 2)) <= 40).all()
    assert np.asarray(state.learner.steps).tolist() == [400] * 3
    for seed, other_seed in ((0, 1), (0, 2), (1, 2)):
        assert ((weights[seed] != 0) != (weights[other_seed] != 0)).any()


def test_steps_beyond_an_int32_play_and_learn_as_few_do(trainer):
    length = CONFIG.capacity // CONFIG.num_envs
    few = 5 * length + 8  # past the decay of exploration, and at the place where 2**31 - 24 is
    many = 2**31 - length + 8
    results = []
    for steps in (few, many):
        state = trainer.init(KEYS, HYPER)
        state = state._replace(replay=state.replay._replace(steps=jnp.int32(steps)))
        results.append(trainer.run(state, CHUNK))
    (early, metrics), (late, later_metrics) = results
    assert_same(metrics, later_metrics)
    early_state, late_state = (state._replace(replay=state.replay._replace(steps=0)) for state in (early, late))
    jax.tree.map(
        np.testing.assert_array_equal, *(words(jax.tree.map(jnp.asarray, state)) for state in (early_state, late_state))
    )
    assert trainer.environment_steps(early) == 2 * (few + 3 * CHUNK)
    with pytest.raises(OverflowError, match=r"it counts no further; use config.environment_steps\(iterations\)"):
        trainer.environment_steps(late)


def test_a_training_counts_on_where_its_state_cannot(trainer):
    run = _Run(trainer, KEYS, HYPER)
    run.begin()
    state, steps = run.save()
    assert steps == 16
    restored = _Run(trainer, KEYS, HYPER)
    restored.restore(jax.tree.map(jnp.copy, state), None)  # of a checkpoint without a count
    assert restored.save()[1] == 16
    many = state._replace(replay=state.replay._replace(steps=jnp.int32(2**31 - 1)))
    restored.restore(many, 3 * 10**10)
    assert restored.advance(CHUNK).environment_steps == 3 * 10**10 + CHUNK * 3 * 2


def test_parameters_off_their_masks_are_warned_of():
    whole = learner()
    state = jax.tree.map(lambda leaf: leaf[None], whole.init(jax.random.key(0), jnp.ones((1, 5))))
    dense = state._replace(params=jax.tree.map(jnp.ones_like, state.params))
    metrics = FusedMetrics(*[jnp.ones(1)] * len(FusedMetrics._fields))
    after = types.SimpleNamespace(learner=dense)
    run = _Run(types.SimpleNamespace(learner_of=whole, config=CONFIG, run=lambda *_: (after, metrics)), KEYS, None)
    run.restore(after, 16)
    with pytest.warns(RuntimeWarning, match="after the first mask update, 40 of the 40 pruned weights of 'in' are not"):
        run.advance(CHUNK)
    run.advance(CHUNK)


def test_a_learning_rate_of_0_changes_nothing_but_masks(trainer, trained):
    start = trainer.init(KEYS, HYPER).learner.params
    after = trained[0].learner.params
    is_kept = np.asarray((after["in"] != 0) & (start["in"] != 0))
    assert (np.asarray(start["in"])[2][is_kept[2]] == np.asarray(after["in"])[2][is_kept[2]]).all()
    assert (np.asarray(start["in"])[0][is_kept[0]] != np.asarray(after["in"])[0][is_kept[0]]).any()


def test_the_replay_holds_what_was_played(trained):
    rows = jax.tree.map(np.asarray, trained[0].replay.rows)
    place = rows.frame.argmax(axis=-1)
    begin = int(trained[0].replay.steps) % rows.action.shape[1]
    in_order = lambda column: np.roll(column, -begin, axis=1)  # noqa: E731
    after, opened = in_order(place)[:, 1:], in_order(rows.first)[:, 1:]
    rows, place = jax.tree.map(lambda column: in_order(column)[:, :-1], (rows, place))
    reached = np.clip(place + 2 * rows.action - 1, 0, 4)
    assert (rows.terminated == (reached == 4)).all()
    assert (rows.reward == np.where(rows.terminated, 2.0, -0.125)).all()
    goes_on = rows.usable & ~rows.terminated
    assert (after[goes_on] == reached[goes_on]).all()
    assert (opened == (rows.terminated | ~rows.usable)).all()


def test_a_lane_is_what_the_seed_alone_would_be(trainer, trained):
    alone = trainer.init(KEYS[1:2], {"lr": HYPER["lr"][1:2]})
    for _ in range(10):
        alone, _ = trainer.run(alone, CHUNK)
    for lanes, lane in zip(words(trained[0].learner.params), words(alone.learner.params), strict=True):
        np.testing.assert_allclose(lanes[1], lane[0], rtol=1e-4, atol=1e-5)


def test_mask_changes_stay_branches_under_vmap(trainer):
    """A batched condition would be a select: no branch would be left."""
    shapes = trainer.template(KEYS, HYPER)
    jaxpr = str(jax.make_jaxpr(lambda state: trainer._iterate(state, 5))(shapes))
    assert jaxpr.count("cond[") >= 3  # new masks, their copy to the target, and its turn to be synced


def test_rewards_are_clipped_for_the_learner_alone():
    config = FusedConfig(num_envs=2, capacity=64, batch_size=4, warm_up=32, clip_rewards=True, epsilon_decay=0)
    clipped = FusedTrainer(Corridor(), learner(updater=core.NoPruning()), config)
    state, metrics = clipped.run(clipped.init(KEYS[:1]), 200)
    assert float(state.replay.rows.reward.max()) == 1.0
    assert 1.0 < metrics.mean_return[0] < 2.0


def test_epsilon_falls_after_the_warm_up():
    config = FusedConfig(num_envs=4, warm_up=400, epsilon_start=0.9, epsilon_end=0.1, epsilon_decay=800)
    steps = [0, 100, 200, 300, 1000]
    np.testing.assert_allclose([config.epsilon(step) for step in steps], [0.9, 0.9, 0.5, 0.1, 0.1], rtol=1e-6)
    schedule = core.PeriodicSchedule(100, 600, 1000, step_unit="environment step")
    converted = config.clock.in_optimizer_steps(core.RigL(scheduler=schedule)).scheduler
    assert (converted.update_freq, converted.update_start_step, converted.update_end_step) == (25, 50, 150)


def test_what_is_restored_goes_on_bit_for_bit(trainer, trained, tmp_path):
    half = trainer.init(KEYS, HYPER)
    for _ in range(5):
        half, _ = trainer.run(half, CHUNK)
    Checkpoints(tmp_path).save(100, half)
    again = FusedTrainer(Corridor(), lambda hyper: learner(hyper["lr"]), CONFIG)
    state = Checkpoints(tmp_path).restore(again.template(KEYS, HYPER)).tree
    for _ in range(5):
        state, _ = again.run(state, CHUNK)
    assert_same(state, trained[0])


WORKER = """
import jax, sys
from tests.rl_haiku.test_fused import CONFIG, KEYS, HYPER, Corridor, FusedTrainer, learner, train
trainer = FusedTrainer(Corridor(), lambda hyper: learner(hyper["lr"]), CONFIG)
run = train(trainer, KEYS, 10**9, sys.argv[1], hyper=HYPER, chunk_iterations=20, checkpoint_chunks=2,
            settings={"algorithm": "rigl"}, report=lambda chunk: print(chunk.environment_steps, flush=True))
sys.exit(0 if run.is_finished else 143)
"""


def test_a_signal_saves_and_stops_and_a_new_process_goes_on(trainer, trained, tmp_path, capsys):
    folder = tmp_path / "run"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_NUMPY_RANK_PROMOTION": "raise"}
    command = [sys.executable, "-c", WORKER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as worker:
        assert int(worker.stdout.readline()) == CONFIG.environment_steps(20)
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60)
    assert worker.returncode == 143
    done = Checkpoints(folder / "checkpoints").steps()[-1]
    total = CONFIG.environment_steps(max(200, done + 20))
    options = {"hyper": HYPER, "chunk_iterations": CHUNK, "settings": {"algorithm": "rigl"}}
    run = train(trainer, KEYS, total, folder, **options)
    assert run.is_finished
    end = f"{total:,} environment steps; mean return "
    assert repr(run).startswith(f"FusedRun finished: {end}")
    assert f"{end}{np.nanmean(run.curve[-1].mean_return):.4g}, loss " in capsys.readouterr().err
    assert [point.environment_steps for point in run.curve] == [
        *range(CONFIG.environment_steps(20), total + 1, 6 * CHUNK)
    ]
    if CONFIG.iterations(total) == 200:
        assert_same(run.state, trained[0])
        assert [point.episodes for point in run.curve] == [found.episodes.tolist() for found in trained[1]]
    # Nothing is left to do, and nobody else's run is continued or overwritten.
    again = train(trainer, KEYS, total, folder, **options)
    assert_same(again.state, run.state)
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    for change, message in (
        ({"settings": {"algorithm": "set"}}, r"settings\.algorithm is 'rigl' there and 'set' here"),
        ({"hyper": {"lr": HYPER["lr"] * 2}}, r"hyper\.lr is"),
    ):
        with pytest.raises(SettingsMismatchError, match=message):
            train(trainer, KEYS, total, folder, **{**options, **change})
    wider = FusedTrainer(Corridor(), lambda hyper: learner(hyper["lr"], updater=core.NoPruning()), CONFIG)
    with pytest.raises(CheckpointMismatchError, match=r"to another model, .*: 'learner/optimizer_state/masks/in' is"):
        train(wider, KEYS, total, folder, **options)
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_of_something_else_is_left_alone(trainer, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsMismatchError, match=r"is not empty and has no settings\.json"):
        train(trainer, KEYS, 100, tmp_path, hyper=HYPER)
    (tmp_path / "settings.json").write_text(json.dumps({"environment": "chess"}))
    with pytest.raises(SettingsMismatchError, match="is that of another run"):
        train(trainer, KEYS, 100, tmp_path, hyper=HYPER)
    for damaged in ("", "{", "[1]", "\ud800"):
        (tmp_path / "settings.json").write_text(damaged, errors="surrogatepass")
        with pytest.raises(SettingsMismatchError, match=r"settings\.json is damaged and does not tell to which run"):
            train(trainer, KEYS, 100, tmp_path, hyper=HYPER)


def test_the_folder_of_another_algorithm_is_refused_unless_its_file_is_changed(tmp_path):
    whole = FusedTrainer(Corridor(), learner(), CONFIG)
    described = _described(whole, KEYS, None, {})
    assert described["updater"] == "RigL, Unstructured(), uniform(sparsity=0.5)"
    old = {name: value for name, value in described.items() if name != "updater"}
    (tmp_path / "settings.json").write_text(json.dumps(old))  # of before updaters were recorded
    _check_settings(tmp_path, described)
    (tmp_path / "settings.json").write_text(json.dumps(described))
    other = {**described, "updater": "SET, Unstructured(), uniform(sparsity=0.5)"}
    with pytest.raises(CheckpointMismatchError, match=r"updater is 'RigL.*' there and 'SET.*write the new value into"):
        _check_settings(tmp_path, other)
    (tmp_path / "settings.json").write_text(json.dumps(other))
    _check_settings(tmp_path, other)


def test_a_folder_that_was_left_before_its_settings_were_written_is_begun(trainer, tmp_path):
    (tmp_path / "settings.partial").write_text("{")
    run = train(trainer, KEYS, 20, tmp_path, hyper=HYPER, chunk_iterations=CHUNK)
    assert run.is_finished
    assert json.loads((tmp_path / "settings.json").read_text())["environment"]


def test_a_checkpoint_that_the_run_cannot_go_on_from_is_no_result_of_it(tmp_path):
    class Broken:
        template, begin, advance = dict, None, None

        def restore(self, tree, extra):
            raise ValueError("the emulator shows other frames")

    Checkpoints(tmp_path / "checkpoints").save(3, {}, extra={"curve": [], "run": None})
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(CheckpointMismatchError, match=r"step 3 in .* is whole, but .*the emulator shows other frames"):
        to_the_end(Broken(), 5, tmp_path, {}, chunk_iterations=1, checkpoint_chunks=1)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3]


def test_seeds_and_hyper_parameters_are_checked(trainer):
    twice = KEYS[jnp.array([0, 1, 0])]
    with pytest.raises(ValueError, match="seeds 0 and 2 are the same"):
        trainer.init(twice, {"lr": jnp.full(3, 0.1)})
    trainer.template(twice, HYPER)  # another learning rate makes it another run
    with pytest.raises(ValueError, match=r"hyper-parameters have shapes \[\(2,\)\]; each needs one entry per seed, 3"):
        trainer.init(KEYS, {"lr": jnp.ones(2)})
    with pytest.raises(ValueError, match="give both or neither"):
        trainer.init(KEYS)
    with pytest.raises(ValueError, match="give both or neither"):
        FusedTrainer(Corridor(), learner(), CONFIG).init(KEYS, HYPER)
    with pytest.raises(ValueError, match=r"keys have shape \(\); give one per seed"):
        trainer.init(KEYS[0], HYPER)
    with pytest.raises(TypeError, match="keys is 3; give an array of JAX keys"):
        trainer.init(3, HYPER)
    with pytest.raises(TypeError, match="learner_of is 'dqn'; give a SparseLearner"):
        FusedTrainer(Corridor(), "dqn", CONFIG)
    with pytest.raises(TypeError, match=r"config is 8; give an rl\.FusedConfig"):
        FusedTrainer(Corridor(), learner(), 8)


def test_what_cannot_be_done_is_said(trainer, trained):
    with pytest.raises(ValueError, match="iterations is 0; give 1 or more"):
        trainer.run(trained[0], 0)
    with pytest.raises(ValueError, match="60 of 60 episodes of corridor have not ended after 2 steps; give a larger"):
        trainer.evaluate(trained[0], 20, jax.random.key(0), longest=2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_envs", 0, "num_envs is 0; the smallest allowed value is 1"),
        ("warm_up", 15, "warm_up is 15; give a multiple of num_envs=2, such as 16"),
        ("warm_up", 4, "warm_up is 4; the smallest allowed value is 6"),
        ("epsilon_end", 1.2, r"epsilon_end is 1\.2"),
        ("capacity", 5, "capacity is 5, 2 rows for each of 2 environments"),
        ("epsilon_decay", 2**32, f"are 16 and {2**32}; steps are counted to {2 * (2**31 - 32)}, so give fewer"),
    ],
)
def test_configurations_are_checked(field, value, message):
    allowed = {"num_envs": 2, "capacity": 64, "n_step": 2, "warm_up": 16}
    with pytest.raises(ValueError, match=message):
        FusedConfig(**{**allowed, field: value})


def test_more_steps_than_are_counted_are_an_error():
    with pytest.raises(ValueError, match=r"2,147,483,648 optimizer steps, and an optimizer counts 2,147,483,646; give"):
        CONFIG.check_iterations(2**30)
    with pytest.raises(ValueError, match=f"iterations is {2**31}; give 1 or more, and {(2**31 - 1) // 6} at most"):
        FusedTrainer(Corridor(), learner(), CONFIG).run(None, 2**31)


def test_exploration_decays_over_more_steps_than_an_int32_holds():
    config = FusedConfig(num_envs=64, warm_up=128, epsilon_decay=10**10, epsilon_end=0.0)
    for step in (0, 2, 2 + 10**7, 2 + 10**8, 2**31 - 1):
        slow = 1.0 - min(max((step * 64 - 128) / 10**10, 0.0), 1.0)
        assert float(jax.jit(config.epsilon)(jnp.int32(step))) == pytest.approx(slow, abs=1e-6)


def test_types_in_configurations_are_checked():
    with pytest.raises(TypeError, match="prioritized is 'no'; give True or False"):
        FusedConfig(prioritized="no")
    assert UPDATER.rng_seed == 0


def test_a_network_that_does_not_fit_the_game_is_an_error_before_anything_is_compiled():
    def dqn(hyper):
        torso, optimizer = haiku.mlp_torso((4,)), optax.adam(hyper["lr"])
        return haiku.SparseDQN(num_actions=6, torso=torso, optimizer=optimizer, updater=core.NoPruning())

    for learner_of, hyper in ((dqn({"lr": 0.1}), None), (dqn, HYPER)):
        with pytest.raises(ValueError, match=r"corridor has 2 actions, the network gives values for 6; build it for 2"):
            FusedTrainer(Corridor(), learner_of, CONFIG).init(KEYS, hyper)


def test_a_warm_up_longer_than_the_replay_is_refused() -> None:
    config = FusedConfig(num_envs=2, capacity=64, warm_up=66)
    with pytest.raises(ValueError, match="the first 2 steps would be gone from the replay"):
        FusedTrainer(Corridor(), learner(), config)


def test_a_run_warns_of_a_schedule_that_it_is_too_short_for(tmp_path: Path) -> None:
    late = core.MagnitudePruning(
        sparsity_distribution_fn=lambda params: jax.tree.map(lambda leaf: 0.5 if leaf.ndim > 1 else None, params),
        scheduler=core.OneShotSchedule(1_000),
    )
    with pytest.warns(UserWarning, match="changes no mask in a run of 10 optimizer steps"):
        train(FusedTrainer(Corridor(), learner(updater=late), CONFIG), KEYS[:1], CONFIG.environment_steps(5), tmp_path)
