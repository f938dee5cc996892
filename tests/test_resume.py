"""Contract 6: 2N steps are N steps, a checkpoint, a new process and N more, bit for bit."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sparse_plugins import core
from tests.quick import quick_jit

ROOT = Path(__file__).parents[1]
ROWS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("magnitude", "random", "magnitude_ste", "set", "rigl", "gradual_set", "granet", "acdc")},
    **{name: {} for name in ("fisher", "soft_topk_ste")},
    "rigl, masks in zeros": {"use_packed_masks": "zeros"},
    "random_ste, masks in zeros": {"use_packed_masks": "zeros"},
}
HALF_WAY = 5


def make(name: str) -> tuple[core.BaseUpdater, optax.GradientTransformation, Any]:
    window = {"update_freq": 2, "update_start_step": 1, "update_end_step": 9}
    updater = core.create_updater_from_config(
        algorithm=name.split(",")[0], sparsity=0.75, drop_fraction=0.5, **window, **ROWS[name]
    )
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (16, 12)), "b": jnp.ones(12)}
    tx = updater.wrap_optax(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)))
    return updater, tx, params


@functools.cache
def make_step(name: str) -> Any:
    _, tx, _ = make(name)

    def step(number: jax.Array, params: Any, state: Any) -> tuple[Any, Any]:
        inputs = jax.random.normal(jax.random.fold_in(jax.random.key(1), number), (8, 16))
        loss = lambda p: jnp.mean((jnp.tanh(inputs @ p["w"] + p["b"][None]) - inputs[:, :12]) ** 2)  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return quick_jit(step)


def advance(name: str, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
    for number in steps:
        params, state = make_step(name)(jnp.int32(number), params, state)
    return params, state


def start(name: str) -> tuple[Any, Any]:
    _, tx, params = make(name)
    return params, tx.init(params)


def continue_all(folder: Path) -> None:
    """What the new process does: from checkpoints and code alone to the end."""
    with ocp.StandardCheckpointer() as checkpoints:
        for name in ROWS:
            params, state = checkpoints.restore(folder / name, jax.eval_shape(lambda name=name: start(name)))
            core.check_state(params, state)
            end = advance(name, params, state, range(HALF_WAY, 2 * HALF_WAY))
            np.savez(folder / f"{name}.npz", *jax.tree.leaves(end))


def test_a_run_continues_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    ends = {}
    with ocp.StandardCheckpointer() as checkpoints:
        for name in ROWS:
            half = advance(name, *start(name), range(HALF_WAY))
            checkpoints.save(tmp_path / name, half)
            ends[name] = advance(name, *half, range(HALF_WAY, 2 * HALF_WAY))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, env=environment, timeout=300)
    for name in ROWS:
        seen = np.load(tmp_path / f"{name}.npz")
        for leaf, expected in zip(seen.values(), jax.tree.leaves(ends[name]), strict=True):
            assert leaf.tobytes() == np.asarray(expected).tobytes(), name
        assert int(core.find_sparse_state(ends[name]).count) == 2 * HALF_WAY
        assert int(jnp.count_nonzero(ends[name][0]["w"])) == 48


def test_a_dense_checkpoint_cannot_continue_a_sparse_run(tmp_path: Path) -> None:
    updater, tx, params = make("magnitude")
    with ocp.StandardCheckpointer() as checkpoints:
        checkpoints.save(tmp_path / "dense", dense := optax.adam(0.05).init(params))
    with ocp.StandardCheckpointer() as checkpoints:
        restored = checkpoints.restore(tmp_path / "dense", dense)
    with pytest.raises(TypeError, match="A dense checkpoint cannot continue a sparse run"):
        tx.update(params, restored, params)
    for use in (updater.pre_forward_update, core.check_state):
        with pytest.raises(ValueError, match="restored from a dense checkpoint"):
            use(params, restored)


if __name__ == "__main__":
    continue_all(Path(sys.argv[1]))
