"""A T5X train state on eight devices: bits of one, nothing gathered but masks, a checkpoint for another mesh."""

import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.eight_devices import collectives, run_on_eight_devices
from tests.quick import quick_jit
from tests.t5.t5x_stand_in import PjitPartitioner, install
from tests.t5.tiny import CASES, RULES, create, run, train_state_shape, train_step

SHARDED = ("rigl, Adafactor", "magnitude_ste, momentum")
TWO_DIMENSIONAL = {**RULES, "embed": "data"}


def place(optimizer_def: Any, mesh: Mesh, rules: dict[str, str | None]) -> Any:
    """Where T5X puts every array of a train state."""
    axes = PjitPartitioner(rules).get_mesh_axes(train_state_shape(optimizer_def))
    is_spec = lambda node: node is None or isinstance(node, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec or PartitionSpec()), axes, is_leaf=is_spec)


def mesh_of(data: int, model: int) -> Mesh:
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def on_eight_devices(folder: Path) -> None:
    """What the process with eight devices does."""
    for case in SHARDED:
        optimizer_def = CASES[case]()
        shardings = place(optimizer_def, mesh_of(4, 2), RULES)
        other_shardings = place(optimizer_def, mesh_of(2, 4), TWO_DIMENSIONAL)
        state = quick_jit(create, static_argnums=0, out_shardings=shardings)(optimizer_def)
        jitted = quick_jit(train_step.__wrapped__, in_shardings=(shardings,), out_shardings=shardings)
        step = jitted.lower(state).compile()
        (folder / f"{case}.txt").write_text(collectives(step.as_text()))
        states = [state]
        for _ in range(4):
            states.append(jax.block_until_ready(step(states[-1])))
        np.savez(folder / f"{case}.npz", *[leaf for state in states for leaf in jax.tree.leaves(state)])
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / case / "steps_3", states[3].state_dict())
            checkpointer.wait_until_finished()
            abstract = jax.tree.map(
                lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state, other_shardings
            )
            restored = state.restore_state(checkpointer.restore(folder / case / "steps_3", abstract.state_dict()))
        kernel = restored.params["encoder"]["attention"]["query"]["kernel"]
        assert kernel.sharding.spec == PartitionSpec("data", "model")
        np.savez(folder / f"{case}, restored.npz", *jax.tree.leaves(restored))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_eight_devices(__file__, tmp_path_factory.mktemp("eight_devices"))


def assert_same(file: Path, case: str, states: list[Any]) -> None:
    """Bit for bit; where Adafactor makes floats of means, which sharded sums round differently, masks only."""
    rounds = "Adafactor" in case
    with np.load(file) as seen:
        for leaf, expected in zip(seen.values(), jax.tree.leaves(states), strict=True):
            if rounds and expected.dtype == np.float32:
                np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize("case", SHARDED)
def test_eight_devices_give_the_masks_and_updates_of_one(folder, case):
    assert_same(folder / f"{case}.npz", case, run(case))


@pytest.mark.parametrize("case", SHARDED)
def test_a_mask_change_gathers_no_parameters(folder, case):
    said = (folder / f"{case}.txt").read_text()
    print(f"{case}: {said}")
    assert not re.search(r"^all-gather (?!u8)", said, flags=re.MULTILINE), said


@pytest.mark.parametrize("case", SHARDED)
def test_a_checkpoint_comes_back_on_another_mesh_masks_included(folder, case):
    assert_same(folder / f"{case}, restored.npz", case, run(case)[3:4])


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patches:
        install(patches)
        on_eight_devices(Path(sys.argv[1]))
