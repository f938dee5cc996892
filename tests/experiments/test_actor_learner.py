"""Actors in processes of their own, for a moment; whether they learn to play is seen where it is run for long."""

import numpy as np
import pytest

from experiments.demos import actor_learner


def test_batches_come_back_from_bytes() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(2, 12)
    version, back, finished = actor_learner.unpacked(actor_learner.packed(7, rows, [9.0, 11.0]))
    assert (version, finished.tolist()) == (7, [9, 11])
    np.testing.assert_array_equal(back, rows)
    batch = actor_learner.batch_of(rows)
    assert (batch.action.tolist(), batch.reward.tolist(), batch.weight.tolist()) == ([4, 16], [5, 17], [11, 23])
    assert batch.next_observation[1].tolist() == [19, 20, 21, 22]


def test_actors_play_with_the_weights_of_the_learner(capsys: pytest.CaptureFixture) -> None:
    actor_learner.main(["--actors=1", "--batches=12", "--sparsities=0.9", "--dtypes=bfloat16"])
    *_, row = capsys.readouterr().out.splitlines()
    sparsity, dtype, episode, versions, deltas, _, _, snapshots, share, mean, most = row.strip("| ").split(" | ")
    assert (sparsity.strip(), dtype.strip(), int(versions), int(snapshots)) == ("90%", "bfloat16", 6, 1)
    assert float(episode) > 5
    assert 1 <= int(deltas) <= 5
    assert float(share.strip(" %")) < 100
    assert 0 <= float(mean) <= int(most) <= 40
