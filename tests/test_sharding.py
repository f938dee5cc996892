"""Contract 1 under sharding: eight devices give the bits of one, and parameters stay where they are."""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from sparse_plugins import core

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ROOT = Path(__file__).parents[1]
# Both axes, one axis, the other, a stack of layers; the first is large enough for the one-device form of counting.
SPECS = {
    "a": ((512, 160), PartitionSpec("x", "y")),
    "b": ((64, 32), PartitionSpec(None, "x")),
    "c": ((32, 48), PartitionSpec(("x", "y"))),
    "d": ((4, 16, 24), PartitionSpec("x", None, "y")),
    "e": ((24,), PartitionSpec()),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {"algorithm": "magnitude", "sparsity": 0.9},
    "erk": {"algorithm": "magnitude", "dist_type": "erk", "sparsity": 0.9},
    "global": {"algorithm": "global_magnitude", "use_normalization": False, "sparsity": 0.9},
    "2:4": {"algorithm": "magnitude", "sparsity_type": "2:4"},
    "random": {"algorithm": "random", "sparsity": 0.9},
    "rigl": {"algorithm": "rigl", "sparsity": 0.9, "drop_fraction": 0.5},
    "granet": {"algorithm": "granet", "sparsity": 0.9, "drop_fraction": 0.5},
    "in zeros": {"algorithm": "set", "sparsity": 0.9, "drop_fraction": 0.5, "use_packed_masks": "zeros"},
    "fan-in": {"algorithm": "magnitude", "sparsity": 0.9, "sparsity_type": "fan_in_-1"},
}


def parameters(seed: int) -> Any:
    """Layers "a" and "c" have nine values and so many ties, which their shards share."""
    generator = np.random.default_rng(seed)
    draw = lambda name, shape: generator.integers(-4, 5, shape) if name in "ac" else generator.normal(size=shape)  # noqa: E731
    return {name: np.float32(draw(name, shape)) for name, (shape, _) in SPECS.items()}


def programs() -> Iterator[tuple[str, Any, Any]]:
    for name, settings in SETTINGS.items():
        updater = core.create_updater_from_config(settings, update_freq=1, update_start_step=0, update_end_step=4)
        tx = updater.wrap_optax(optax.sgd(0.5, momentum=0.9))
        yield name, *(quick_jit(function) for function in (tx.init, functools.partial(take_step, tx)))


def take_step(tx: optax.GradientTransformation, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def run(step: Any, params: Any, state: Any, grads: Any) -> list[Any]:
    for _ in range(2):
        params, state = step(params, state, grads)
    return jax.tree.leaves((params, state.masks))


def on_eight_devices(folder: Path) -> None:
    """What the process with eight devices does: the same runs, and a list of what its devices told each other."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = {name: NamedSharding(mesh, spec) for name, (_, spec) in SPECS.items()}
    params, grads = (jax.device_put(parameters(seed), place) for seed in (0, 1))
    for name, init, step in programs():
        np.savez(folder / f"{name}.npz", *run(step, params, init(params), grads))
        program = step.lower(params, init(params), grads).compile().as_text()
        said = re.findall(r"= (.+?) (all-[\w-]+|reduce-scatter|collective-[\w-]+)\(", program)
        (folder / f"{name}.txt").write_text("\n".join(sorted({f"{kind} {shape}" for shape, kind in said})))


def test_eight_devices_give_the_bits_of_one(tmp_path: Path) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(tmp_path)]
    subprocess.run(command, env={**os.environ, **flags}, timeout=500, check=True)
    params, grads = parameters(0), parameters(1)
    for name, init, step in programs():
        seen, expected = np.load(tmp_path / f"{name}.npz"), run(step, params, init(params), grads)
        for one, other in zip(seen.values(), expected, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
        said = (tmp_path / f"{name}.txt").read_text()
        print(f"{name}: {said}")
        # Counts (for fan-in one per output), whether a search goes on, and bytes of a mask where eight rows lie on two
        # devices; never parameters or scores.
        assert re.fullmatch(r"(all-reduce (\(?s32\[\d*\].*|pred\[\]|u8\[1,48\].*)\n?)*", said), name


if __name__ == "__main__":
    on_eight_devices(Path(sys.argv[1]))
