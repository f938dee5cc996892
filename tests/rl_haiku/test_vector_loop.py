"""The loop for vector environments of the host, on a corridor of NumPy and on Pong itself."""

import base64
import dataclasses
import functools
import io
import os
import signal
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core
from sparse_plugins.checkpoints import SettingsMismatchError
from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.rl import (
    Checkpoints,
    EnvironmentFailure,
    FusedConfig,
    Group,
    VectorConfig,
    VectorStep,
    VectorTrainer,
    atari,
    haiku,
    train_vector,
)
from tests.rl_haiku import tiny

LIMIT = 9
CONFIG = VectorConfig(
    num_envs=4, capacity=80, batch_size=8, n_step=2, warm_up=16, updates=3, vector_steps=2, stack=None, epsilon_decay=60
)


class Corridors:
    """Walks as in `tiny.Corridor`, stepped together; an episode that has ended is followed at the next step."""

    name, num_actions, frame_shape, frame_dtype, resumes_exactly = "corridor", 2, (tiny.LENGTH,), np.dtype(bool), True

    def __init__(self, seed: int, first: int, size: int, breaks_after: int | None = None) -> None:
        self.num_envs, self.breaks_after, self.log = size, breaks_after, []
        self.place = (seed + first + np.arange(size)) % 3
        self.time, self.over, self.steps = np.zeros(size, int), np.zeros(size, bool), 0

    def reset(self) -> VectorStep:
        return self._show(np.zeros(self.num_envs), ~self.over, self.over)

    def send(self, actions: np.ndarray) -> None:
        self.actions = np.array(actions)

    def recv(self) -> VectorStep:
        self.steps += 1
        if self.steps == self.breaks_after:
            raise EnvironmentFailure("the corridor collapsed")
        first = self.over
        self.place = np.where(first, self.steps % 2, np.clip(self.place + 2 * self.actions - 1, 0, tiny.LENGTH - 1))
        self.time = np.where(first, 0, self.time + 1)
        terminated = ~first & (self.place == tiny.LENGTH - 1)
        self.over = terminated | (~first & (self.time >= LIMIT))
        return self._show(np.where(first, 0.0, np.where(terminated, 2.0, -0.125)), first, terminated)

    def save(self) -> dict[str, np.ndarray]:
        state = {name: getattr(self, name) for name in ("place", "time", "over", "steps")}
        return {**state, **{f"shown_{name}": array for name, array in self.log[-1]._asdict().items()}}

    def restore(self, saved: dict[str, np.ndarray]) -> VectorStep:
        self.place, self.time, self.over, self.steps = (saved[n] for n in ("place", "time", "over", "steps"))
        self.log.append(VectorStep(*(saved[f"shown_{name}"] for name in VectorStep._fields)))
        return self.log[-1]

    def close(self) -> None:
        self.place = None

    def _show(self, rewards, first, terminated) -> VectorStep:
        frames = np.arange(tiny.LENGTH)[None] == self.place[:, None]
        step = VectorStep(frames, rewards.astype(np.float32), terminated, self.over & ~terminated, first)
        self.log.append(step)
        return step


def trainer_of(groups, config=CONFIG, make=Corridors) -> VectorTrainer:
    return VectorTrainer(make, groups, config)


def test_seeds_of_a_run_draw_masks_of_their_own_alone_or_together():
    updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
    agent, seeds = tiny.learner(updater=updater), (0, 1, 7)
    masks_of = lambda *seeds: trainer_of([Group("one", agent, seeds)]).states[0].learner.sparse_state.masks  # noqa: E731
    together = masks_of(*seeds)
    for i, seed in enumerate(seeds):
        jax.tree.map(
            lambda many, single, i=i: np.testing.assert_array_equal(many[i], single[0]), together, masks_of(seed)
        )
        assert (together["in"][i] != together["in"][i - 1]).any()


@pytest.fixture(scope="module")
def agent():
    return tiny.learner()


def test_the_replay_holds_what_the_environments_showed_and_the_agent_did(agent):
    made = []

    def recorded(*where):
        made.append(Corridors(*where))
        made[-1].acts = []
        send = made[-1].send
        made[-1].send = functools.partial(
            lambda corridors, send, actions: (corridors.acts.append(actions), send(actions)), made[-1], send
        )
        return made[-1]

    trainer = trainer_of([Group("one", agent, (0,))], make=recorded)
    episodes = trainer.advance(8)
    rows = jax.tree.map(lambda ring: np.asarray(ring)[0], trainer.states[0].replay.rows)
    assert int(trainer.states[0].replay.steps) == 16
    for half, corridors in enumerate(made):
        columns = slice(2 * half, 2 * half + 2)
        for t in range(15):  # row t + 1: the first completes what never began
            row = jax.tree.map(lambda ring, t=t, c=columns: ring[t + 1, c], rows)
            shown, after = corridors.log[t], corridors.log[t + 1]
            np.testing.assert_array_equal(row.frame, shown.frames)
            np.testing.assert_array_equal(row.first, shown.first)
            np.testing.assert_array_equal(row.action, corridors.acts[t])
            np.testing.assert_array_equal(row.reward, after.rewards)
            np.testing.assert_array_equal(row.terminated, after.terminated)
            np.testing.assert_array_equal(row.usable, ~(shown.terminated | shown.truncated))
        assert not rows.usable[0, columns].any()
    ended = [step.terminated | step.truncated for corridors in made for step in corridors.log[:-1]]
    assert len(episodes) == np.sum(ended) > 3
    for episode in episodes:
        assert episode.score in (2.0 - 0.125 * (episode.length - 1), -0.125 * LIMIT)


def test_learning_begins_after_the_warm_up_and_is_spread_over_the_turns(agent):
    assert [CONFIG.updates_in_turn(turn) for turn in range(CONFIG.turns)] == [0, 1, 1, 1]
    trainer = trainer_of([Group("one", agent, (0,))])
    trainer.advance(2)
    assert trainer.environment_steps == CONFIG.warm_up
    assert int(trainer.states[0].learner.steps[0]) == 0
    trainer.advance(10)
    assert int(trainer.states[0].learner.steps[0]) == 30
    assert trainer.environment_steps == CONFIG.clock.environment_step(30)


def test_parameters_off_their_masks_are_warned_of_once(agent):
    trainer = trainer_of([Group("one", agent, (0, 1))])
    trainer.iterations = 10
    (state,) = trainer.states
    dense = jax.tree.map(jnp.ones_like, state.learner.params)
    trainer.states = [state._replace(learner=state.learner._replace(params=dense))]
    with pytest.warns(RuntimeWarning, match="after the first mask update, 40 of the 40 pruned weights of 'in' are not"):
        trainer.advance(0)
    trainer.advance(0)


def test_groups_do_not_meet_and_seeds_differ(agent):
    other = tiny.learner(updater=core.NoPruning())
    alone = trainer_of([Group("rigl", agent, (0, 1))])
    beside = trainer_of([Group("dense", other, (5,)), Group("rigl", agent, (0, 1))])
    for trainer in (alone, beside):
        trainer.advance(12)
    jax.tree.map(assert_same, alone.states[0], beside.states[1])
    masks = [np.asarray(leaf) for leaf in jax.tree.leaves(alone.states[0].learner.sparse_state.masks)]
    assert any((leaf[0] != leaf[1]).any() for leaf in masks)
    for run in range(2):
        learner = jax.tree.map(lambda leaf, run=run: leaf[run], alone.states[0].learner)
        kept = core.unpack_masks(learner.params, learner.sparse_state.masks)
        assert {int(mask.sum()) * 2 == mask.size for mask in jax.tree.leaves(kept)} == {True}


def test_it_goes_on_from_a_checkpoint_in_mid_episode(agent, tmp_path):
    groups = [Group("one", agent, (0, 1))]
    whole, first = trainer_of(groups), trainer_of(groups)
    early = whole.advance(5)
    assert first.advance(5) == early
    Checkpoints(tmp_path).save(5, *first.save())
    second = trainer_of(groups)
    found = Checkpoints(tmp_path).restore(like=second.template())
    second.restore(found.tree, found.extra)
    assert second.environment_steps == 40
    assert whole.advance(5) == second.advance(5)
    jax.tree.map(assert_same, whole.states, second.states)


def bomb() -> str:
    """A kilobyte that becomes a gigabyte."""
    with (
        zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as member,
    ):
        for _ in range(1 << 10):
            member.write(bytes(1 << 20))
    return base64.b64encode(file.getvalue()).decode()


def with_header(header: bytes) -> str:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8))
    return base64.b64encode(file.getvalue()).decode()


FORGED_EXTRA = {
    "a bomb": (lambda: {"played": [bomb()]}, "take 1,073,741,824 bytes; 268,435,456 are allowed here"),
    "objects": (
        {"played": [with_header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")]},
        "which is no array of numbers or text",
    ),
    "an array that is larger": (
        {"played": [with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (8589934592,), }")]},
        "a has 8 bytes of data; float64",
    ),
    "no archive": ({"played": ["text"]}, "BadZipFile"),
    "no text": ({"played": [3]}, "TypeError"),
    "fewer groups": ({"played": []}, "are not those of this run's groups"),
    "other environments": ({"environments": []}, "are not those of this run's groups"),
    "iterations that are none": ({"iterations": -1}, "allowed is a whole number"),
    "another field": ({"config": 1}, "has or lacks 'config'"),
}


@pytest.mark.parametrize("name", FORGED_EXTRA)
def test_a_forged_state_is_refused_and_takes_no_memory(name, agent):
    trainer = trainer_of([Group("one", agent, (0, 1))])
    trainer.advance(1)
    tree, extra = trainer.save()
    change, problem = FORGED_EXTRA[name]
    change = change() if callable(change) else change  # a bomb takes seconds to make
    tracemalloc.start()
    with pytest.raises(DamagedFileError, match=problem):
        trainer.restore(tree, extra | change)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:RigL still changes masks:UserWarning")  # a part of a longer run
def test_a_run_whose_environment_breaks_goes_on_from_its_last_checkpoint(agent, tmp_path):
    groups, options = [Group("one", agent, (0,))], {"chunk_iterations": 2, "checkpoint_chunks": 2}
    with pytest.raises(EnvironmentFailure, match="collapsed"):
        train_vector(trainer_of(groups, make=functools.partial(Corridors, breaks_after=13)), 80, tmp_path, **options)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]
    seen, again, whole = [], trainer_of(groups), trainer_of(groups)
    run = train_vector(again, 80, tmp_path, report=lambda step, episodes: seen.append(step), **options)
    assert run.is_finished
    assert seen == [48, 64, 80]
    assert run.episodes == whole.advance(10)
    jax.tree.map(assert_same, whole.states, again.states)
    with pytest.raises(SettingsMismatchError, match=r"seeds.one is \[0\] there and \[1\] here"):
        train_vector(trainer_of([Group("one", agent, (1,))]), 80, tmp_path)


@pytest.mark.filterwarnings("ignore:RigL still changes masks:UserWarning")  # a part of a longer run
def test_a_signal_stops_after_the_chunk_with_a_checkpoint_and_lines_say_how_far_it_is(agent, tmp_path, capsys):
    groups, trainers, runs = [Group("one", agent, (0,))], [], []
    stop = lambda step, episodes: os.kill(os.getpid(), signal.SIGINT) if step == 32 else None  # noqa: E731
    for report in (stop, None):
        trainers.append(trainer_of(groups))
        runs.append(train_vector(trainers[-1], 64, tmp_path, chunk_iterations=2, report=report))
    assert [run.is_finished for run in runs] == [False, True]
    assert [trainer.environment_steps for trainer in trainers] == [32, 64]
    lines = [line for line in capsys.readouterr().err.splitlines() if "environment steps" in line]
    ended = [episode.score for episode in runs[1].episodes if episode.step >= 48]
    assert lines[-1] == (f"64 of 64 environment steps; one: {len(ended)} episodes, mean score {np.mean(ended):.4g}")
    scores = [episode.score for episode in runs[1].episodes]
    assert repr(runs[1]) == (
        f"VectorRun finished: {len(scores)} episodes; one 0: last {len(scores)} episodes, "
        f"mean score {np.mean(scores):.4g}"
    )


def test_a_run_hands_out_its_parameters_and_biases_of_many_seeds_are_not_prunable():
    agent = haiku.SparseDQN(
        num_actions=2,
        torso=haiku.mlp_torso((16,)),
        optimizer=optax.adam(1e-3),
        updater=core.build_updater("static_sparse", sparsity=0.75),
    )
    trainer = trainer_of([Group("one", agent, (3, 5))])
    assert float(trainer.summarize()["one"]["_total_sparsity"]) == 0.75
    assert int(trainer.summarize()["one"]["_nparams"]) == 2 * (5 * 16 + 16 * 2)
    for place, seed in enumerate((3, 5)):
        learner = trainer.learner("one", seed)
        jax.tree.map(
            lambda single, many, place=place: np.testing.assert_array_equal(single, many[place]),
            learner.params,
            trainer.states[0].learner.params,
        )
        summary = learner.summarize()
        assert float(summary["_total_sparsity"]) == 0.75
        assert int(summary["_nparams"]) == 5 * 16 + 16 * 2
    with pytest.raises(KeyError, match=r"no run of 'one' with seed 4; there are {'one': \(3, 5\)}"):
        trainer.learner("one", 4)


def test_what_can_not_be_trained_is_an_error(agent):
    with pytest.raises(ValueError, match=r"seeds of 'one' are \[1, 1\]; give one or more, each once"):
        trainer_of([Group("one", agent, (1, 1))])
    with pytest.raises(ValueError, match=r"groups are called \['one', 'one'\]"):
        trainer_of([Group("one", agent, (1,)), Group("one", agent, (2,))])
    with pytest.raises(TypeError, match=r"groups is Group\(name='one'.*give a list"):
        trainer_of(Group("one", agent, (1,)))
    with pytest.raises(TypeError, match="seeds of 'one' are 0; give a tuple"):
        trainer_of([Group("one", agent, 0)])
    with pytest.raises(TypeError, match=r"config is FusedConfig.*; give an rl.VectorConfig"):
        trainer_of([Group("one", agent, (0,))], FusedConfig())
    with pytest.raises(TypeError, match=r"gave int, which is no VectorEnvironment: it lacks close, .*gymnasium_vector"):
        trainer_of([Group("one", agent, (0,))], make=lambda *where: 7)
    with pytest.raises(ValueError, match=r"first=0, size=2\) gave 4 environments; .* use its argument `size`"):
        trainer_of([Group("one", agent, (0,))], make=lambda seed, first, size: Corridors(seed, first, 4))
    with pytest.raises(ValueError, match="num_envs is 3; give a multiple of num_halves=2"):
        VectorConfig(num_envs=3, warm_up=9)
    with pytest.raises(ValueError, match="warm_up is 9000 and capacity 5000: the first 4000 steps would be gone"):
        VectorTrainer(None, [Group("one", agent, (0,))], VectorConfig(capacity=5_000, warm_up=9_000))
    with pytest.raises(ValueError, match="stack is '4'; give an int from 1"):
        VectorConfig(stack="4")
    pixels = haiku.SparseDQN(
        num_actions=2, torso=haiku.nature_torso(), optimizer=optax.adam(1e-3), updater=core.NoPruning()
    )
    with pytest.raises(ValueError, match=r"corridor gives observations bool\[2, 5\], which the network can't take"):
        trainer_of([Group("one", pixels, (0,))])
    three = haiku.SparseDQN(
        num_actions=3, torso=haiku.mlp_torso((8,)), optimizer=optax.adam(1e-3), updater=core.NoPruning()
    )
    with pytest.raises(ValueError, match="corridor has 2 actions, the network gives values for 3"):
        trainer_of([Group("one", three, (0,))])


def test_vectors_are_not_stacked_and_images_are(agent):
    trainer = trainer_of([Group("one", agent, (0,))], dataclasses.replace(CONFIG, stack="auto"))
    assert trainer.config == CONFIG
    assert VectorConfig().for_frames((84, 84)).stack == 4
    assert VectorConfig(stack=2).for_frames((5,)).stack == 2


def test_pong_is_played_learnt_and_resumed_with_stacks(tmp_path):
    """Real frames, a prioritized replay, C51 and a sparse network."""
    updater = core.MagnitudePruning(
        sparsity_distribution_fn=functools.partial(core.erk, sparsity=0.9),
        scheduler=core.PolynomialSchedule(update_freq=2, update_start_step=2, update_end_step=8),
    )
    agent = haiku.SparseDQN(
        num_actions=6,
        torso=haiku.mlp_torso((4,)),
        atoms=5,
        v_min=-1,
        v_max=1,
        optimizer=optax.adam(1e-3),
        updater=updater,
    )
    config = VectorConfig(
        num_envs=4, capacity=160, batch_size=4, warm_up=40, prioritized=True, clip_rewards=True, n_step=3
    )
    pong = lambda seed, first, size: atari.AtariVector("Pong", size, seed=seed, first_slot=first)  # noqa: E731
    whole, half = (VectorTrainer(pong, [Group("c51", agent, (3,))], config) for _ in range(2))
    for trainer in (whole, half):
        trainer.advance(16)
    tree, extra = half.save()
    again = VectorTrainer(pong, [Group("c51", agent, (3,))], config)
    again.restore(tree, extra)
    for trainer in (whole, again):
        trainer.advance(4)
    jax.tree.map(assert_same, whole.states, again.states)
    state = whole.states[0]
    learner = jax.tree.map(lambda leaf: leaf[0], state.learner)
    assert int(learner.steps) > 8
    assert float(core.summarize_sparsity(learner.params)["_total_sparsity"]) == pytest.approx(0.9, abs=2e-3)
    rows = state.replay.rows
    stack = np.asarray(state.halves[1].observation)[0]
    for back in range(4):  # the newest frame of the other half waits for its action
        frame = rows.frame[0, int(state.replay.steps) - back, 2:] if back else stack[..., 3]
        np.testing.assert_array_equal(stack[..., 3 - back], frame)
    for trainer in (whole, half, again):
        trainer.close()


def assert_same(left, right):
    if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
        left, right = jax.random.key_data(left), jax.random.key_data(right)
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
