"""Contract 1 under sharding: eight devices give the bits of one, and parameters stay where they are.

What needs eight devices is done by this file as a program, in a process that has them; the tests compare.
"""

import functools
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparse_plugins import core
from tests.eight_devices import collectives, run_on_eight_devices
from tests.quick import quick_jit

# Both axes, one axis, the other, a stack of layers; the first is large enough for the one-device form of counting.
SPECS = {
    "a": ((512, 160), PartitionSpec("x", "y")),
    "b": ((64, 32), PartitionSpec(None, "x")),
    "c": ((32, 48), PartitionSpec(("x", "y"))),
    "d": ((4, 16, 24), PartitionSpec("x", None, "y")),
    "e": ((24,), PartitionSpec()),
}
BLOCKS = core.ByPath([("[abc]", core.Block((4, 4)))], default=core.Block((1, 4, 4)))
SETTINGS: dict[str, dict[str, Any]] = {
    "magnitude": {"algorithm": "magnitude", "dist_type": "erk", "sparsity": 0.9},
    "global": {"algorithm": "global_magnitude", "use_normalization": False, "sparsity": 0.9},
    "2:4": {"algorithm": "magnitude", "sparsity_type": core.NByM(2, 4, axis=-2)},
    "4x4": {"algorithm": "magnitude", "sparsity_type": BLOCKS, "sparsity": 0.9},
    "channel": {"algorithm": "magnitude", "sparsity_type": "channel_-1", "sparsity": 0.5},
    "fan-in": {"algorithm": "magnitude", "sparsity": 0.9, "sparsity_type": "fan_in_-1"},
    "random": {"algorithm": "random", "sparsity": 0.9},
    "rigl": {"algorithm": "rigl", "sparsity": 0.9, "drop_fraction": 0.5},
    "rigl channel": {"algorithm": "rigl", "sparsity_type": "channel_-1", "sparsity": 0.5, "drop_fraction": 0.5},
    "granet": {"algorithm": "granet", "sparsity": 0.9, "drop_fraction": 0.5},
    "in zeros": {"algorithm": "set", "sparsity": 0.9, "drop_fraction": 0.5, "use_packed_masks": "zeros"},
    "ste": {"algorithm": "magnitude_ste", "sparsity": 0.9},
}
LOCAL = (*SETTINGS, "rigl and ste")
# "d" as four layers, which lie on different devices.
LAYERS = core.describe_layers(
    {name: jax.ShapeDtypeStruct(shape, np.float32) for name, (shape, _) in SPECS.items()},
    [
        ("d", core.Axes(stack=0, inputs=1, outputs=2)),
        ("e", core.Axes(elementwise=0)),
        (".*", core.Axes(inputs=0, outputs=1)),
    ],
)
SETTINGS["stacked"] = SETTINGS["rigl"] | {"layers": LAYERS}
SETTINGS["stacked 2:4"] = {"algorithm": "magnitude", "sparsity_type": "2:4", "layers": LAYERS}
# What devices may tell each other: counts, whether a search goes on, and bytes of a mask where eight rows lie on two
# devices. For fan-in a count for each output; for channels their sums as well and whether one is in use, of which layer
# "a" has most; of a stack a count for each of its layers that a device holds.
SAID = r"s32\[\]|pred\[\]|u8\[1,48\]"
SAID_OF = {
    "stacked": r"|s32\[1\]",
    "fan-in": r"|s32\[(12|48|80)\]",
    **dict.fromkeys(("channel", "rigl channel"), r"|(f32|pred)\[(12|48|80)\]"),
}


def parameters(seed: int) -> Any:
    """Layers "a" and "c" have nine values and so many ties, which their shards share.

    The columns of "b" and the channels of "d" hold the same values each in another order: their sums tie as well.
    """
    generator = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name in "ac":
            return generator.integers(-4, 5, shape)
        if name == "e":
            return generator.normal(size=shape)
        columns = np.repeat(generator.normal(size=(int(np.prod(shape[:-1])), 1)), shape[-1], axis=1)
        return generator.permuted(columns, axis=0).reshape(shape)

    return {name: np.float32(draw(name, shape)) for name, (shape, _) in SPECS.items()}


def updater_of(name: str) -> core.BaseUpdater:
    window = {"update_freq": 1, "update_start_step": 0, "update_end_step": 4, "skip_gradients": False}
    if name != "rigl and ste":
        return core.create_updater_from_config(SETTINGS[name], **window)
    make = functools.partial(core.create_updater_from_config, sparsity=0.9, **window)
    return core.PerModule([("[ad]", make(algorithm="rigl")), (".*", make(algorithm="magnitude_ste"))])


def optimizer(name: str) -> optax.GradientTransformation:
    return updater_of(name).wrap_optax(optax.sgd(0.5, momentum=0.9))


def take_steps(name: str, params: Any, state: Any, grads: Any, steps: int = 2) -> tuple[Any, Any]:
    tx = optimizer(name)

    def step(_: Any, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        params, state = pair
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, step, (params, state))


def run(name: str, params: Any, grads: Any) -> tuple[Any, Any]:
    return take_steps(name, params, optimizer(name).init(params), grads)


def trained(name: str, params: Any, grads: Any) -> Any:
    return run(name, params, grads)[0]


def mesh_of(shape: tuple[int, int], axis_type: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh(shape, ("x", "y"), axis_types=(axis_type, axis_type))


def placed(mesh: Mesh) -> list[Any]:
    place = {name: NamedSharding(mesh, spec) for name, (_, spec) in SPECS.items()}
    return [jax.device_put(parameters(seed), place) for seed in (0, 1)]


def keep(path: Path, tree: Any) -> None:
    np.savez(path, *jax.tree.leaves(tree))


def every_setting(folder: Path) -> None:
    """The runs, and a list of what the devices told each other."""
    arguments = placed(mesh_of((4, 2)))
    for name in SETTINGS:
        compiled = quick_jit(functools.partial(run, name)).lower(*arguments).compile()
        keep(folder / f"{name}.npz", compiled(*arguments))
        (folder / f"{name}.txt").write_text(collectives(compiled.as_text()))


def two_meshes(folder: Path) -> None:
    """Two steps on 4 by 2 devices, a checkpoint, two more on 2 by 4."""
    name, (params, grads) = "rigl and ste", placed(mesh_of((4, 2)))
    half = quick_jit(functools.partial(run, name))(params, grads)
    with ocp.StandardCheckpointer() as checkpoints:
        checkpoints.save(folder / "half", half)
    params, grads = placed(mesh_of((2, 4)))
    on_mesh = quick_jit(functools.partial(run, name)).lower(params, grads).compile()
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    like = jax.tree.map(place, half, on_mesh.output_shardings)
    with ocp.StandardCheckpointer() as checkpoints:
        params, state = checkpoints.restore(folder / "half", like)
    assert params["a"].sharding.mesh.shape == {"x": 2, "y": 4}
    assert state.masks["a"].sharding.spec == params["a"].sharding.spec
    keep(folder / "end.npz", quick_jit(functools.partial(take_steps, name))(params, state, grads))


def explicit_axes(folder: Path) -> None:
    """Whole parameters as they are; sharded ones are refused, and work where the axes are made automatic."""
    mesh = mesh_of((4, 2), AxisType.Explicit)
    with jax.set_mesh(mesh):
        whole = [jax.device_put(parameters(seed), NamedSharding(mesh, PartitionSpec())) for seed in (0, 1)]
        step = functools.partial(run, "magnitude")
        keep(folder / "whole.npz", quick_jit(step)(*whole))
        sharded = placed(mesh)
        try:
            jax.eval_shape(step, *sharded)
        except ValueError as error:
            (folder / "refused.txt").write_text(str(error))
        specs = jax.tree.map(lambda leaf: PartitionSpec(), jax.eval_shape(step, *whole))
        keep(folder / "automatic.npz", quick_jit(jax.sharding.auto_axes(step, out_sharding=specs))(*sharded))


def shards_of(seed: int) -> list[Any]:
    """Parameters of each of eight devices; small, for they are compiled anew for each setting."""
    shapes = {"a": (16, 12), "b": (8, 8), "c": (8,)}
    draw = lambda i, shape: np.float32(np.random.default_rng([seed, i]).integers(-9, 10, shape))  # noqa: E731
    return [{name: draw(i, shape) for name, shape in shapes.items()} for i in range(8)]


def refresh_first_masks(params: Any, grads: Any) -> Any:
    """The masks of the first device's parameters, refreshed with one's own."""
    updater = updater_of("rigl and ste")
    return updater.refresh(updater.init_state(shards_of(0)[0]), params, grads).masks


def local_shards(folder: Path) -> None:
    """Every device prunes what it holds, as its own model would be, under `shard_map` with its checks."""
    split, mesh = PartitionSpec(("x", "y")), mesh_of((4, 2))
    arguments = [jax.tree.map(lambda *parts: np.concatenate(parts), *shards_of(seed)) for seed in (0, 1)]
    for name in LOCAL:
        of_device = jax.shard_map(functools.partial(trained, name), mesh=mesh, in_specs=split, out_specs=split)
        keep(folder / f"local {name}.npz", quick_jit(of_device)(*arguments))
    refreshed = jax.shard_map(refresh_first_masks, mesh=mesh, in_specs=split, out_specs=split)
    keep(folder / "local refresh.npz", quick_jit(refreshed)(*arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What eight devices left."""
    return run_on_eight_devices(__file__, tmp_path_factory.mktemp("eight_devices"))


@functools.cache
def on_single_device(name: str) -> Any:
    return quick_jit(functools.partial(run, name))(parameters(0), parameters(1))


def assert_same_bits(path: Path, expected: Any) -> None:
    for leaf, wanted in zip(np.load(path).values(), jax.tree.leaves(expected), strict=True):
        assert leaf.tobytes() == np.asarray(wanted).tobytes(), path.name


@pytest.mark.parametrize("name", SETTINGS)
def test_eight_devices_give_the_bits_of_one(name: str, folder: Path) -> None:
    assert_same_bits(folder / f"{name}.npz", on_single_device(name))


@pytest.mark.parametrize("name", SETTINGS)
def test_devices_exchange_counts_but_no_parameters_or_scores(name: str, folder: Path) -> None:
    lines = (folder / f"{name}.txt").read_text().splitlines()
    assert lines or name not in ("magnitude", "global")  # which cannot rank shards without a word
    for line in lines:
        operation, shapes = line.split(" ", 1)
        assert operation == "all-reduce", name
        for shape in re.findall(r"\w+\[[\d,]*\]", shapes):
            assert re.fullmatch(SAID + SAID_OF.get(name, ""), shape), line


def test_a_checkpoint_goes_on_on_other_meshes(folder: Path) -> None:
    half = on_single_device("rigl and ste")
    with ocp.StandardCheckpointer() as checkpoints:
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), half)
        restored = checkpoints.restore(folder / "half", like)
    jax.tree.map(np.testing.assert_array_equal, restored, half)
    core.check_state(*restored)
    end = quick_jit(functools.partial(take_steps, "rigl and ste"))(*restored, parameters(1))
    changed = jax.tree.map(lambda new, old: bool((new != old).any()), end[1].masks, half[1].masks)
    assert any(jax.tree.leaves(changed))
    assert_same_bits(folder / "end.npz", end)


def test_explicit_axes_work_or_say_what_to_do(folder: Path) -> None:
    for name in ("whole", "automatic"):
        assert_same_bits(folder / f"{name}.npz", on_single_device("magnitude"))
    message = (folder / "refused.txt").read_text()
    assert re.match(r"parameter 'a' is sharded as P.*'x', 'y'.* over explicit axes of its mesh", message)
    assert "axis_types=(jax.sharding.AxisType.Auto,) * n" in message
    assert "jax.sharding.auto_axes" in message


@pytest.mark.parametrize("name", LOCAL)
def test_local_shards_are_models_of_their_own(name: str, folder: Path) -> None:
    of_device = quick_jit(functools.partial(trained, name))
    alone = [of_device(*pair) for pair in zip(shards_of(0), shards_of(1), strict=True)]
    assert_same_bits(folder / f"local {name}.npz", jax.tree.map(lambda *parts: np.concatenate(parts), *alone))


def test_masks_that_all_devices_share_are_refreshed_for_each(folder: Path) -> None:
    """Those of an init outside, which differ over no axis of the mesh."""
    masks = [quick_jit(refresh_first_masks)(*pair) for pair in zip(shards_of(0), shards_of(1), strict=True)]
    assert_same_bits(folder / "local refresh.npz", jax.tree.map(lambda *parts: np.concatenate(parts), *masks))


if __name__ == "__main__":
    for work in (every_setting, two_meshes, explicit_axes, local_shards):
        work(Path(sys.argv[1]))
