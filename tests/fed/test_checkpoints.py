"""Checkpoints: bit for bit, never overwritten, and what damage or the wrong model does."""

import json
import os
import shutil
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_plugins import fed
from sparse_plugins.fed import checkpoints as module
from sparse_plugins.fed.checkpoints import CheckpointAccessError, CheckpointMismatchError, Checkpoints
from tests.disks import WAYS, few_open_files, little_space
from tests.fed.toy import CLIENT, GRADIENT, MODEL, TRAIN, clients_of_a_round, updater_of

DTYPES = ("float32", "bfloat16", "float16", "uint8", "int8", "uint32", "int32", "bool")


def algorithm_of(name: str, ledger=None):
    return fed.sparse_federated_averaging(GRADIENT, CLIENT, optax.adam(0.01), updater_of(name), TRAIN, ledger=ledger)


def state_after(rounds: int, name: str = "rigl"):
    algorithm = algorithm_of(name)
    state = algorithm.init(MODEL.init(jax.random.PRNGKey(0)))
    for number in range(rounds):
        state, _ = algorithm.apply(state, clients_of_a_round(number))
    return state


def assert_same_bits(ours, theirs) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert type(one) is type(other)
        assert np.shape(one) == np.shape(other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("name", ["rigl", "static_sparse", "magnitude_ste", "no_prune"])
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    state, algorithm = state_after(2, name), algorithm_of(name)
    Checkpoints(tmp_path).save(2, state, extra={"ledger": "round,client\n", "rows": [1.5, None]})
    found = Checkpoints(tmp_path).restore(like=algorithm.init(MODEL.init(jax.random.PRNGKey(1))))
    assert (found.round, found.extra) == (2, {"ledger": "round,client\n", "rows": [1.5, None]})
    assert_same_bits(found.state, state)
    assert type(found.state.round) is int
    ends = [algorithm.apply(start, clients_of_a_round(2))[0] for start in (state, found.state)]
    assert_same_bits(*ends)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=3),
    number=st.integers(-(2**62), 2**62),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_kind_of_leaf_keeps_its_bits(dtype, shape, number, seed, tmp_path_factory):
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(jnp.dtype(dtype)).itemsize), np.uint8)
    array = (bits & 1 if dtype == "bool" else bits).view(jnp.dtype(dtype))[..., 0]
    state = {
        "device": jnp.asarray(array),
        "host": (array, number, True, 0.1 + seed, np.float64(1 / 3)),
        "key": jax.random.key_data(jax.random.key(seed)),
        "nothing": (None, optax.EmptyState()),
    }
    folder = tmp_path_factory.mktemp("leaves")
    Checkpoints(folder).save(0, state)
    assert_same_bits(Checkpoints(folder).restore(jax.tree.map(lambda x: x, state)).state, state)


def test_typed_keys_and_weak_types_come_back_as_they_were(tmp_path):
    state = {"key": jax.random.key(3, impl="rbg"), "rate": jnp.asarray(0.1), "count": jnp.int32(4)}
    Checkpoints(tmp_path).save(1, state)
    found = Checkpoints(tmp_path).restore(state).state
    assert found["key"].dtype == state["key"].dtype
    assert (jax.random.key_data(found["key"]) == jax.random.key_data(state["key"])).all()
    assert found["rate"].weak_type
    assert not found["count"].weak_type
    assert found["rate"] == state["rate"]


def test_the_newest_few_are_kept_and_none_is_overwritten(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder", keep=2)
    assert checkpoints.restore({"w": 0}) is None
    assert not (tmp_path / "new").exists(), "asking makes nothing"
    for number in (1, 4, 6):
        checkpoints.save(number, {"w": number})
    assert checkpoints.rounds() == [4, 6]
    for number in (6, 5):
        with pytest.raises(FileExistsError, match=f"has a checkpoint of round 6, and round {number} was to be saved"):
            checkpoints.save(number, {"w": -1})
    assert checkpoints.restore({"w": 0}).state == {"w": 6}


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["cut off", "bit flipped", "deleted"])
def test_any_damage_is_found_or_harmless(damage, tmp_path):
    """Whatever file it hits: what comes back is one of the states saved, and if it is the older one, it is said."""
    states = {number: {"w": jnp.arange(5000.0) * number, "round": number} for number in (3, 5)}
    fallbacks = 0
    for place in range(100):
        checkpoints = Checkpoints(tmp_path / str(place))
        for number, state in states.items():
            checkpoints.save(number, state)
        files = sorted(file for file in (tmp_path / str(place) / "5").rglob("*") if file.is_file())
        if place >= len(files):  # their number differs from save to save
            break
        damage(files[place])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = checkpoints.restore({"w": jnp.zeros(5000), "round": 0})
        assert_same_bits(found.state, states[found.round])
        if found.round == 3:
            assert "checkpoint of round 5 in" in str(told[0].message)
            assert "called 5.damaged; the next is that of round 3, and rounds after it are lost" in str(told[0].message)
            assert checkpoints.rounds() == [3]
            checkpoints.save(5, states[5])  # the run goes on and comes here again
            assert checkpoints.restore({"w": jnp.zeros(5000), "round": 0}).round == 5
            fallbacks += 1
        else:
            assert not told
    assert place >= len(files) >= 5, "every file had its turn"
    assert fallbacks >= 3, "arrays, their directory and the record can't be read any more"


def test_without_a_readable_one_the_run_starts_again_and_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(8, {"w": 1})
    record = json.loads((tmp_path / "8" / "record" / "metadata").read_text())
    record["text"] = record["text"].replace('"extra": null', '"extra": 1')
    (tmp_path / "8" / "record" / "metadata").write_text(json.dumps(record))
    with pytest.warns(RuntimeWarning, match=r"8\.damaged; there is no other, so the run starts again.*checksum"):
        assert checkpoints.restore({"w": 1}) is None


def test_a_dense_checkpoint_is_no_start_of_a_sparse_run(tmp_path):
    Checkpoints(tmp_path).save(1, state_after(1, "no_prune"))
    with pytest.raises(CheckpointMismatchError, match="of a dense run: it holds no masks"):
        Checkpoints(tmp_path).restore(state_after(0, "rigl"))
    assert Checkpoints(tmp_path).rounds() == [1], "it is not taken for a damaged one"


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros((2, 3)), "round": 0}, r"'w' is float32\[3, 2\] there and float32\[2, 3\] here"),
        ({"w": jnp.zeros((3, 2), jnp.bfloat16), "round": 0}, r"'w' is float32\[3, 2\] there and bfloat16\[3, 2\] here"),
        ({"w": jnp.zeros((3, 2))}, r"'round' is int\[\] there and missing here"),
        ({"w": jnp.zeros((3, 2)), "round": 0, "b": jnp.zeros(1)}, r"'b' is missing there and float32\[1\] here"),
    ],
)
def test_another_model_is_a_named_error(like, message, tmp_path):
    Checkpoints(tmp_path).save(1, {"w": jnp.zeros((3, 2)), "round": 1})
    with pytest.raises(CheckpointMismatchError, match=message):
        Checkpoints(tmp_path).restore(like)


def test_what_can_not_be_saved_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="this one has a str: 'text'"):
        Checkpoints(tmp_path).save(1, {"w": "text"})
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(tmp_path).save(1, {"w": 1}, extra=object())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_an_error_that_says_so_and_costs_no_checkpoint(way, tmp_path):
    state = {"w": np.random.default_rng(0).standard_normal(200_000)}
    with little_space(way, tmp_path / "disk", 1 << 20) as grow:
        checkpoints = Checkpoints(tmp_path / "disk" / "run")
        checkpoints.save(1, {"w": state["w"][:1000]})
        with pytest.raises(CheckpointAccessError, match=r"round 2 could not be written to .*with space for.*go on"):
            checkpoints.save(2, state)
        assert [file.name for file in (tmp_path / "disk" / "run").iterdir()] == ["1"], "half of one takes no space"
        assert checkpoints.restore({"w": np.zeros(1000)}).round == 1
        grow()
        checkpoints.save(2, state)
        assert_same_bits(checkpoints.restore(state).state, state)


def test_a_file_in_place_of_the_folder_is_no_missing_checkpoint(tmp_path):
    (tmp_path / "run").write_text("")
    for call in (lambda it: it.save(1, {"w": 1}), lambda it: it.restore({"w": 1}), lambda it: it.rounds()):
        with pytest.raises(NotADirectoryError):
            call(Checkpoints(tmp_path / "run"))
    with pytest.raises(CheckpointAccessError, match="round 1 could not be written"):
        Checkpoints(tmp_path / "run" / "below").save(1, {"w": 1})


@pytest.fixture
def saved(tmp_path):
    for number in (3, 5):
        Checkpoints(tmp_path / "run").save(number, {"w": jnp.full(4, number)})
    return Checkpoints(tmp_path / "run")


def raising(error):
    def fail(*arguments, **options):
        raise error

    return fail


REASONS = {
    "no Orbax": (ImportError("no orbax"), "_orbax", ImportError),
    "a broken Orbax": (AttributeError("no Composite"), "_orbax", CheckpointAccessError),
    "no memory": (MemoryError(), "_digest", CheckpointAccessError),
    "no memory on the device": (OUT_OF_MEMORY, "_as", CheckpointAccessError),
    "no memory while reading": (OUT_OF_MEMORY, "_digest", CheckpointAccessError),
    "Orbax out of files": (ValueError("RESOURCE_EXHAUSTED: OS error 24: EMFILE"), "_orbax", CheckpointAccessError),
    "a device that fails": (OSError(5, "Input/output error"), "_orbax", CheckpointAccessError),
    "no permission": (PermissionError(13, "Permission denied"), "_sum_of", CheckpointAccessError),
}


@pytest.mark.parametrize("reason", REASONS)
def test_reasons_outside_a_checkpoint_set_none_aside(reason, saved, monkeypatch, tmp_path):
    error, place, kind = REASONS[reason]
    with monkeypatch.context() as patch:
        patch.setattr(module, place, raising(error))
        if place == "_sum_of":
            patch.setattr(module, "_orbax", raising(ValueError("anything")))
        with pytest.raises(kind):
            saved.restore({"w": jnp.zeros(4, int)})
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["3", "5"]
    assert saved.restore({"w": jnp.zeros(4, int)}).round == 5


def test_too_many_open_files_set_no_checkpoint_aside(saved, tmp_path):
    with few_open_files(), pytest.raises(OSError, match="Too many open files"):
        saved.restore({"w": jnp.zeros(4, int)})
    assert saved.restore({"w": jnp.zeros(4, int)}).round == 5


def test_a_checkpoint_without_digests_is_read_and_not_set_aside_unseen(saved, tmp_path):
    """As version 0.1.0 wrote them."""
    (tmp_path / "run" / "5" / "sha256.json").unlink()
    assert saved.restore({"w": jnp.zeros(4, int)}).round == 5
    shutil.rmtree(tmp_path / "run" / "5" / "state")
    with pytest.raises(CheckpointAccessError, match="move its folder away to go on from the one before"):
        saved.restore({"w": jnp.zeros(4, int)})
    shutil.move(tmp_path / "run" / "5", tmp_path / "5")
    assert saved.restore({"w": jnp.zeros(4, int)}).round == 3


def test_odd_names_beside_checkpoints_are_ignored(saved, tmp_path):
    folder = tmp_path / "run"
    for name in ("007", "09", "\u0666", "6.5", "-7", "8x", " 8", "1_0", "6.npz"):
        shutil.copytree(folder / "5", folder / name)
    (folder / "99").write_text("a file")
    assert saved.rounds() == [3, 5]
    assert saved.restore({"w": jnp.zeros(4, int)}).round == 5
    saved.save(6, {"w": jnp.full(4, 6)})
    assert saved.rounds() == [5, 6]
    assert (folder / "007").is_dir()


def test_arrays_that_are_not_those_of_the_record_are_refused(saved, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # with digests that fit, as a stranger would make them
        described = module._described
        patch.setattr(module, "_described", lambda state: [[*leaf[:2], [4]] for leaf in described(state)])
        saved.save(6, {"w": jnp.zeros(1, int)})
    with pytest.raises(CheckpointMismatchError, match=r"round 6 in .* holds other arrays than its record says"):
        saved.restore({"w": jnp.zeros(4, int)})


@pytest.mark.parametrize("text", ["", "[", "3", "{}", '{"leaves": [[1, 2, 3]]}', '{"leaves": 3, "digest": 1}'])
def test_a_forged_record_is_set_aside(text, saved, tmp_path):
    path = tmp_path / "run" / "5" / "record" / "metadata"
    path.write_text(json.dumps({"text": text, "checksum": zlib.crc32(text.encode())}))
    (tmp_path / "run" / "5" / "sha256.json").unlink()
    module._write_sums(tmp_path / "run" / "5")
    with pytest.warns(RuntimeWarning, match=r"round 5 .* is damaged and now called 5\.damaged"):
        assert saved.restore({"w": jnp.zeros(4, int)}).round == 3


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
    program = (
        "import numpy as np, sys\n"
        "from sparse_plugins.fed.checkpoints import Checkpoints\n"
        "checkpoints = Checkpoints(sys.argv[1])\n"
        "found = checkpoints.restore({'w': np.zeros(10**6)})\n"
        "start = found.round + 1 if found else 1\n"
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
        assert (found.state["w"] == found.round).all()
        assert found.round > reached
        reached = found.round
