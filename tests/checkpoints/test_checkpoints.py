"""Checkpoints: bit for bit, never overwritten, and what damage or the wrong run does."""

import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.checkpoints import CheckpointAccessError, CheckpointMismatchError, Checkpoints
from tests.disks import WAYS, few_open_files, little_space

TREE = {
    "keys": jax.random.split(jax.random.key(3), 2),
    "other": jax.random.key(4, impl="rbg"),
    "params": [{"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3).astype(jnp.bfloat16)}, jnp.float32(jnp.nan)],
    "mask": jnp.array([True, False]),
    "frames": jnp.arange(24, dtype=jnp.uint8).reshape(2, 3, 4),
    "empty": jnp.zeros((0, 3)),
    "count": jnp.int32(7),
    "host": np.arange(3, dtype=np.int64) << 40,
    "nothing": None,
}
DTYPES = ("float32", "bfloat16", "float16", "uint8", "int8", "uint32", "int32", "bool")


def bits(leaf):
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return str(leaf.dtype), np.asarray(leaf).tobytes(), leaf.shape


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    assert [*map(bits, jax.tree.leaves(tree))] == [*map(bits, jax.tree.leaves(expected))]


def abstract(tree):
    is_host = lambda leaf: isinstance(leaf, np.ndarray)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf if is_host(leaf) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_everything_comes_back_as_it_was(tmp_path):
    Checkpoints(tmp_path / "new").save(5, TREE, extra={"curve": [1.5, float("inf")], "name": "ü"})
    for like in (TREE, abstract(TREE)):
        saved = Checkpoints(tmp_path / "new").restore(like)
        assert_same(saved.tree, TREE)
        assert (saved.step, saved.extra) == (5, {"curve": [1.5, float("inf")], "name": "ü"})
    is_numpy_leaf = jax.tree.map(lambda leaf: isinstance(leaf, np.ndarray), saved.tree)
    assert [name for name, is_numpy in is_numpy_leaf.items() if is_numpy is True] == ["host"]
    assert jax.random.bits(saved.tree["other"]) == jax.random.bits(TREE["other"])
    with np.load(tmp_path / "new" / "5.npz") as file:  # an ordinary file
        assert sorted(file.files) == sorted([*map(str, range(len(jax.tree.leaves(TREE)))), "manifest"])
        assert file["2"].tolist() == TREE["frames"].tolist()


@hypothesis.given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=3),
    number=st.integers(-(2**70), 2**70),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=25)
def test_every_type_of_leaf_comes_back_as_it_was(dtype, shape, number, seed, tmp_path_factory):
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(jnp.dtype(dtype)).itemsize), np.uint8)
    array = (bits & 1 if dtype == "bool" else bits).view(jnp.dtype(dtype))[..., 0]
    tree = {
        "device": jnp.asarray(array),
        "host": (array, number, True, 0.1 + seed, np.float64(1 / 3)),
        "key": jax.random.key_data(jax.random.key(seed)),
        "nothing": (None, optax.EmptyState()),
    }
    folder = tmp_path_factory.mktemp("leaves")
    Checkpoints(folder).save(0, tree)
    found = Checkpoints(folder).restore(jax.tree.map(lambda leaf: leaf, tree)).tree
    assert found["host"][1:] == tree["host"][1:]
    assert_same(*(jax.tree.map(np.asarray, there | {"host": there["host"][:1]}) for there in (found, tree)))
    assert [*map(type, jax.tree.leaves(found))] == [*map(type, jax.tree.leaves(tree))]


def test_weak_types_and_places_come_back_as_they_were(tmp_path):
    mesh = jax.sharding.NamedSharding(jax.make_mesh((1,), ("rows",)), jax.sharding.PartitionSpec("rows"))
    tree = {"rate": jnp.asarray(0.1), "count": jnp.int32(4), "rows": jax.device_put(jnp.ones((2, 3)), mesh)}
    tree["keys"] = jax.device_put(jax.random.split(jax.random.key(1), 2), mesh)
    Checkpoints(tmp_path).save(1, tree)
    found = Checkpoints(tmp_path).restore(tree).tree
    assert_same(found, tree)
    for name, leaf in tree.items():
        assert (found[name].sharding, found[name].committed) == (leaf.sharding, leaf.committed)
    assert [found[name].weak_type for name in ("rate", "count")] == [True, False]


def test_the_newest_are_kept_and_never_overwritten(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(TREE) is None
    assert not [*tmp_path.iterdir()], "asking makes nothing"
    for step in (0, 3, 10):
        checkpoints.save(step, {"step": jnp.int32(step)})
    assert checkpoints.steps() == [3, 10]
    assert {path.name for path in tmp_path.iterdir()} == {"3.npz", "10.npz"}
    for step in (3, 10):
        with pytest.raises(FileExistsError, match=f"has a checkpoint of step 10, and step {step} was to be saved"):
            checkpoints.save(step, {"step": jnp.int32(0)})
    assert int(checkpoints.restore({"step": jnp.int32(0)}).tree["step"]) == 10


def test_a_half_written_one_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.ones(3)})
    (tmp_path / "half.partial").write_bytes((tmp_path / "1.npz").read_bytes()[:100])
    assert checkpoints.restore({"a": jnp.zeros(3)}).step == 1
    checkpoints.save(2, {"a": jnp.ones(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.npz", "2.npz"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    Checkpoints(folder).save(1, TREE)
    return (folder / "1.npz").read_bytes()


@hypothesis.settings(max_examples=150)
@hypothesis.given(data=st.data())
def test_damage_is_found_and_the_one_before_is_used(whole, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "1.npz").write_bytes(whole)
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        broken = whole[:place]
    else:
        broken = bytearray(whole)
        broken[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "2.npz").write_bytes(broken)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        saved = Checkpoints(folder).restore(TREE)
    assert_same(saved.tree, TREE)  # also where the bit that changed says nothing, such as a date
    if saved.step == 1:
        assert "step 2" in str(said[0].message)
        assert (folder / "2.damaged").read_bytes() == broken


def test_a_warning_says_what_is_lost(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, TREE)
    (tmp_path / "2.npz").write_bytes(b"")
    with pytest.warns(
        RuntimeWarning, match=r"step 2 in .* is damaged and now called 2\.damaged; .* goes on from step 1"
    ):
        assert checkpoints.restore(TREE).step == 1
    (tmp_path / "1.npz").write_bytes(b"PK")
    with pytest.warns(RuntimeWarning, match="there is no other, so the run starts again"):
        assert checkpoints.restore(TREE) is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": jnp.ones(3), "b": jnp.ones(2)}, r"'b' is missing there and float32\[2\] here"),
        ({"c": jnp.ones(3)}, r"'c' is missing there and float32\[3\] here"),
        ({"a": jnp.ones((3, 1))}, r"'a' is float32\[3\] there and float32\[3, 1\] here"),
        ({"a": jnp.ones(3, jnp.int32)}, r"'a' is float32\[3\] there and int32\[3\] here"),
        ({"a": jnp.ones(3, jnp.bfloat16)}, r"'a' is float32\[3\] there and bfloat16\[3\] here"),
        ({"a": 1}, r"'a' is float32\[3\] there and Python int\[\] here"),
        ({"a": jnp.ones(3), "masks": {"a": jnp.ones(3, jnp.uint8)}}, "of a dense run: it holds no masks"),
        ({}, r"'a' is float32\[3\] there and missing here"),
    ],
)
def test_what_belongs_to_another_run_is_refused(tmp_path, other, message):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.ones(3)})
    with pytest.raises(CheckpointMismatchError, match=message):
        checkpoints.restore(other)
    assert checkpoints.steps() == [1]


def test_what_cannot_be_stored_is_said(tmp_path):
    for leaf in ("text", np.array(["text"]), np.array([{}], object)):
        with pytest.raises(TypeError, match=r"'a/b' is .*: make it one, or give it as extra"):
            Checkpoints(tmp_path).save(1, {"a": {"b": leaf}})
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpoints(tmp_path).save(1, {}, extra=jnp.ones(2))
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)
    assert not [*tmp_path.iterdir()]


def test_memory_is_that_of_one_leaf_at_a_time(tmp_path):
    big = {str(i): np.full(4_000_000, i, np.uint8) for i in range(8)}
    tracemalloc.start()
    Checkpoints(tmp_path).save(1, big)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000  # eight leaves of 4 MB; buffers of zip and NumPy take the rest


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_an_error_that_says_so_and_costs_no_checkpoint(way, tmp_path):
    tree = {"w": np.ones(300_000)}
    with little_space(way, tmp_path / "disk", 1 << 20) as grow:
        checkpoints = Checkpoints(tmp_path / "disk" / "run")
        checkpoints.save(1, {"w": tree["w"][:1000]})
        with pytest.raises(CheckpointAccessError, match=r"step 2 could not be written to .*with space for.*go on"):
            checkpoints.save(2, tree)
        assert [file.name for file in (tmp_path / "disk" / "run").iterdir()] == ["1.npz"], "half of one takes no space"
        assert checkpoints.restore({"w": np.zeros(1000)}).step == 1
        grow()
        checkpoints.save(2, tree)
        assert_same(checkpoints.restore(tree).tree, tree)


def test_a_file_in_place_of_the_folder_is_no_missing_checkpoint(tmp_path):
    (tmp_path / "run").write_text("")
    for call in (lambda it: it.save(1, TREE), lambda it: it.restore(TREE), lambda it: it.steps()):
        with pytest.raises(NotADirectoryError):
            call(Checkpoints(tmp_path / "run"))
    with pytest.raises(CheckpointAccessError, match="step 1 could not be written"):
        Checkpoints(tmp_path / "run" / "below").save(1, TREE)


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
        MemoryError(),
        OSError(5, "Input/output error"),
    ],
    ids=repr,
)
def test_reasons_outside_a_checkpoint_set_none_aside(error, tmp_path, monkeypatch):
    for step in (1, 2):
        Checkpoints(tmp_path).save(step, TREE)

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_put", fail)
        with pytest.raises(CheckpointAccessError, match=rf"step 2 in .* can't be read now.*{type(error).__name__}"):
            Checkpoints(tmp_path).restore(abstract(TREE))
    assert Checkpoints(tmp_path).steps() == [1, 2]
    assert_same(Checkpoints(tmp_path).restore(TREE).tree, TREE)


def test_too_many_open_files_set_no_checkpoint_aside(tmp_path):
    Checkpoints(tmp_path).save(1, TREE)
    with few_open_files(), pytest.raises(OSError, match="Too many open files"):
        Checkpoints(tmp_path).restore(TREE)
    assert Checkpoints(tmp_path).restore(TREE).step == 1


def test_odd_names_beside_checkpoints_are_ignored(tmp_path):
    Checkpoints(tmp_path).save(5, TREE)
    for name in ("007.npz", "\u0666.npz", "6.5.npz", "-7.npz", "8", "9.npz.partial", "1_0.npz"):
        shutil.copy(tmp_path / "5.npz", tmp_path / name)
    (tmp_path / "99.npz").mkdir()
    assert Checkpoints(tmp_path).steps() == [5]
    assert Checkpoints(tmp_path).restore(TREE).step == 5
    Checkpoints(tmp_path).save(6, TREE)
    assert Checkpoints(tmp_path).steps() == [5, 6]


def reseal(path, manifest=None, **arrays):
    """Writes a checkpoint anew with other arrays or another manifest, and checksums that fit."""
    with np.load(path) as stored:
        members = dict(stored) | arrays
    if isinstance(manifest, dict):
        manifest = json.dumps(json.loads(members["manifest"].tobytes()) | manifest).encode()
    if manifest is not None:
        members["manifest"] = np.frombuffer(manifest, np.uint8)
    np.savez(path, **members)


@pytest.mark.parametrize(
    "change",
    [
        {"0": np.ones(1, np.float32)},
        {"0": np.zeros(3, np.float32)},
        {"0": np.ones((1, 3), np.float32)},
        {"0": np.ones(3, np.float64)},
        {"0": np.array([{}] * 3, object)},
        {"1": np.zeros(4, np.uint32)},
        {"manifest": {"leaves": [["n", "Python int", [], "7"]]}},
        {"manifest": {"leaves": [["a", "float32", [3], 7]]}},
        {"manifest": {"leaves": [[1, 2, 3]]}},
        {"manifest": {"leaves": [["a", "float32"]]}},
        {"manifest": {"leaves": 3}},
        {"manifest": b"[[[[[["},
        {"manifest": b"[" * 100_000},
    ],
    ids=lambda change: repr(change)[:60],
)
def test_a_forged_checkpoint_is_set_aside_and_nothing_of_it_is_used(change, tmp_path):
    like = {"a": jnp.ones(3), "key": jax.random.key(1)}
    Checkpoints(tmp_path).save(1, like)
    reseal(tmp_path / "1.npz", **change)
    with pytest.warns(RuntimeWarning, match=r"step 1 .* is damaged and now called 1\.damaged"):
        assert Checkpoints(tmp_path).restore(like) is None


def test_a_small_file_takes_no_large_memory(tmp_path):
    Checkpoints(tmp_path).save(1, {"a": np.ones(3)})
    with zipfile.ZipFile(tmp_path / "1.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        np.lib.format.write_array(file := io.BytesIO(), np.full(50_000_000, ord(" "), np.uint8))
        archive.writestr("manifest.npy", file.getvalue())
    del file
    assert (tmp_path / "1.npz").stat().st_size < 100_000
    tracemalloc.start()
    with pytest.warns(RuntimeWarning, match="its members are larger than itself"):
        assert Checkpoints(tmp_path).restore({"a": np.ones(3)}) is None
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
    program = (
        "import numpy as np, sys\n"
        "from sparse_plugins.checkpoints import Checkpoints\n"
        "checkpoints = Checkpoints(sys.argv[1])\n"
        "found = checkpoints.restore({'w': np.zeros(10**6)})\n"
        "start = found.step + 1 if found else 1\n"
        "for number in range(start, 10**6):\n"
        "    checkpoints.save(number, {'w': np.full(10**6, 1.0 * number)})\n"
        "    number == start and print('saved', flush=True)\n"
    )
    reached = 0
    for wait in (0.5, 0.05, 0.3):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", program, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout.readline() == b"saved\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(wait)
            process.kill()
        found = Checkpoints(tmp_path).restore({"w": np.zeros(10**6)})
        assert (found.tree["w"] == found.step).all()
        assert found.step > reached
        reached = found.step


def state_of(algorithm: str, sparsity: float) -> tuple[core.BaseUpdater, Any]:
    """An updater of an algorithm, and its first state of a small layer."""
    updater = core.build_updater(algorithm, sparsity=sparsity, total_steps=9)
    return updater, {"opt_state": updater.wrap_optax(optax.sgd(0.1)).init({"w": jnp.ones((10, 10))})}


def test_a_checkpoint_of_another_algorithm_or_sparsity_is_refused_or_changed_on_purpose(tmp_path: Path) -> None:
    rigl, tree = state_of("rigl", 0.8)
    static, like = state_of("static_sparse", 0.8)
    Checkpoints(tmp_path, updater=rigl.wrap_optax(optax.sgd(0.1))).save(3, tree)
    asked = Checkpoints(tmp_path, updater=static)
    message = (
        r"step 3 .* of a run of RigL, Unstructured\(\), erk\(sparsity=0.8\), and this is one of StaticRandomSparse"
    )
    with pytest.raises(CheckpointMismatchError, match=message):
        asked.restore(jax.eval_shape(lambda: like))
    assert asked.restore(like, keep_targets=False).step == 3
    assert Checkpoints(tmp_path, updater=rigl).restore(tree).step == 3
    assert Checkpoints(tmp_path).restore(like).step == 3, "nobody says which updater it is"
    with pytest.raises(CheckpointMismatchError, match=r"'w' ends at sparsity 0.8, and here it is 0.9: .*keep_t"):
        Checkpoints(tmp_path).restore(state_of("rigl", 0.9)[1])
    other = Checkpoints(tmp_path).restore(state_of("rigl", 0.9)[1], keep_targets=False)
    assert float(other.tree["opt_state"].target_sparsities["w"]) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="no updaters in this"):
        Checkpoints(tmp_path, updater=optax.sgd(0.1))
