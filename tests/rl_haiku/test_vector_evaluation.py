import jax
import numpy as np
import pytest

from sparse_plugins.rl import Group
from sparse_plugins.rl.loops.vector_evaluation import evaluate
from tests.rl_haiku import tiny
from tests.rl_haiku.test_vector_loop import Corridors, assert_same, trainer_of


@pytest.fixture(scope="module")
def trainer():
    trained = trainer_of([Group("one", tiny.learner(), (0, 4))])
    trained.advance(12)
    return trained


def played_alone(learner, seed: int, episodes: int, slots: int) -> list[float]:
    """Game after game of each slot, greedily, with nothing but arithmetic of NumPy."""
    params = jax.tree.map(np.asarray, learner.params)
    corridor = Corridors(seed, 100, slots)
    step, running, scores = corridor.reset(), np.zeros(slots), [[] for _ in range(slots)]
    while min(map(len, scores)) * slots < episodes:
        values = np.maximum(step.frames.astype(np.float32) @ params["in"], 0) @ params["out"]
        corridor.send(np.argmax(values, axis=1))
        step = corridor.recv()
        running = np.where(step.first, 0, running + step.rewards)
        for slot in np.flatnonzero(step.terminated | step.truncated):
            scores[slot].append(running[slot])
    rounds = [slot_scores[game] for game in range(-(-episodes // slots)) for slot_scores in scores]
    return rounds[:episodes]


def test_scores_are_those_of_playing_by_hand_and_training_does_not_notice(trainer):
    before = jax.tree.map(np.copy, trainer.states[0].learner._replace(key=None))
    make = lambda seed, first, size: Corridors(seed, 100 + first, size)  # noqa: E731
    scores = evaluate(trainer, make, 7, epsilon=0.0, at_once=4)["one"]
    assert scores.shape == (2, 7)
    for run, seed in enumerate((0, 4)):
        learner = jax.tree.map(lambda leaf, run=run: leaf[run], trainer.states[0].learner)
        assert scores[run].tolist() == played_alone(learner, seed, 7, 4)
    jax.tree.map(assert_same, before, trainer.states[0].learner._replace(key=None))
    trainer.advance(1)


def test_episodes_must_end(trainer):
    with pytest.raises(ValueError, match="episodes of corridor have not ended in time; give a larger `longest`"):
        evaluate(trainer, Corridors, 400, epsilon=0.0, longest=1, at_once=4)
    with pytest.raises(ValueError, match="episodes"):
        evaluate(trainer, Corridors, 0)
