"""A run of RigL that Orbax restores into a static one is refused by the line of text that was saved beside it."""

from pathlib import Path

import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

from sparse_plugins import core


def test_the_line_beside_a_checkpoint_of_orbax_tells_the_algorithm(tmp_path: Path) -> None:
    params = {"w": jnp.ones((8, 8))}
    saved, wanted = (
        core.sparsify(optax.sgd(0.1), name, sparsity=0.8, total_steps=100) for name in ("rigl", "static_sparse")
    )
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        state, beside = ocp.args.StandardSave(saved.init(params)), ocp.args.JsonSave(core.identity_of(saved))
        manager.save(3, args=ocp.args.Composite(state=state, sparse=beside))
        manager.wait_until_finished()
        state, beside = ocp.args.StandardRestore(wanted.init(params)), ocp.args.JsonRestore()
        found = manager.restore(3, args=ocp.args.Composite(state=state, sparse=beside))
    assert core.check_restored(saved, params, found["state"], found["sparse"]) is found["state"]
    with pytest.raises(core.CheckpointMismatchError, match=r"of a run of RigL.*, and this is one of StaticRandom"):
        core.check_restored(wanted, params, found["state"], found["sparse"])
