"""Run folders from strangers: nothing in them runs, and what they can't have is refused by name."""

import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
import snappy
from hypothesis import strategies as st

from sparse_plugins.core.storage.array_files import StoredArray, open_values, write_values
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.rl.dopamine.checkpoints import run_folder
from tests.rl import resume_worker

ROOT = Path(__file__).parents[2]
LAST = 2
MOST_MEMORY = 64 << 20
SETTINGS = (f"Runner.num_iterations = {LAST + 1}", "Runner.use_legacy_logger = True")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which the last checkpoints will be forged."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with jax.numpy_rank_promotion("allow"):
        resume_worker.start(folder, *SETTINGS).run_experiment()
    return folder


@pytest.fixture(scope="module")
def runner(whole: Path) -> Any:
    """One that is to go on from them."""
    return resume_worker.start(whole, *SETTINGS)


def values_of(path: Path) -> Any:
    """All that is in a file, in memory."""

    def read(value: Any) -> Any:
        if isinstance(value, StoredArray):
            return value.read()
        if isinstance(value, list):
            return [read(part) for part in value]
        return {name: read(part) for name, part in value.items()} if isinstance(value, dict) else value

    with open_values(path) as values:
        return read(values)


def seal(checkpoints: Path) -> None:
    """Makes the checksum of the last replay right again, as any stranger can."""
    values = values_of(checkpoints / f"ckpt.{LAST}")
    values["replay_checksum"] = run_folder._checksum(checkpoints / str(LAST) / "replay.npz")
    write_values(checkpoints / f"ckpt.{LAST}", values)


def goes_on_from(runner: Any, folder: Path) -> tuple[int | None, list[str]]:
    """Where the runner goes on with the checkpoints of a folder, and what it says."""
    runner._checkpoint_dir = str(folder / "checkpoints")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = run_folder.SealedCheckpointer(runner._checkpoint_dir).restore_newest(runner._restore)
    assert runner._checkpoint_dir == str(folder / "checkpoints")
    return found, [str(warning.message) for warning in said]


def run_of(values: Any) -> Any:
    return values["run"]["run"]


def layer(values: Any, name: str) -> Any:
    return next(state["own"] for found, state in run_of(values)["environment"] if found == name)


def set_in(container: Any, key: Any, value: Any) -> None:
    container[key] = value


FORGED: dict[str, tuple[Callable[[Any], None], str]] = {
    "an attribute beside the episode's": (
        lambda v: set_in(run_of(v), "episode", {"action": 1, "episode_ended": True, "_checkpoint_dir": "/tmp/x"}),
        "the episode has or lacks '_checkpoint_dir'",
    ),
    "an attribute of the run": (lambda v: set_in(run_of(v), "_agent", 1), "the run has or lacks '_agent'"),
    "an attribute of the environment": (
        lambda v: set_in(layer(v, "CartPoleEnv"), "gravity", 0),
        "CartPoleEnv has or lacks 'gravity'",
    ),
    "an object in the environment": (
        lambda v: set_in(layer(v, "CartPoleEnv"), "state", "text"),
        r"CartPoleEnv\.state is 'text'",
    ),
    "a large array in the environment": (
        lambda v: set_in(layer(v, "CartPoleEnv"), "steps_beyond_terminated", np.zeros(1000)),
        r"steps_beyond_terminated is float64\[1000\]; allowed is at most 64",
    ),
    "another environment": (lambda v: set_in(run_of(v)["environment"][0], 0, "Other"), "the snapshot is of Other"),
    "random numbers out of range": (
        lambda v: set_in(layer(v, "CartPoleEnv")["np_random"], "state", 1 << 128),
        "np_random/state is 3402",
    ),
    "other random numbers": (
        lambda v: set_in(layer(v, "CartPoleEnv")["np_random"], "bits", "MT19937"),
        "np_random/bits is 'MT19937'; allowed is PCG64",
    ),
    "another field of the agent": (lambda v: set_in(v["run"]["agent"], "updater", 1), "has or lacks 'updater'"),
    "a larger leaf": (
        lambda v: set_in(v["run"]["agent"]["online_params"][0], 1, np.zeros(1 << 20, np.float32)),
        r"is float32\[1048576\]; allowed is float32\[2\]",
    ),
    "objects for a leaf": (
        lambda v: set_in(v["run"]["agent"]["online_params"][0], 1, ["a"]),
        r"is \['a'\]; allowed is float32",
    ),
    "a leaf less": (lambda v: v["run"]["agent"]["optimizer_state"].pop(), "does not have the leaves"),
    "a state of another shape": (
        lambda v: set_in(v["run"]["agent"], "state", np.zeros((4096, 4, 1, 1))),
        r"state is float64\[4096, 4, 1, 1\]",
    ),
    "steps that are none": (lambda v: set_in(run_of(v), "steps", -1), "steps is -1; allowed is a whole number"),
    "the number of another": (
        lambda v: set_in(v, "iteration", 77),
        "iteration is 77; allowed is a whole number from 2",
    ),
    "logs beyond their index": (
        lambda v: set_in(v["run"]["logs"], "numbers", np.zeros(5000)),
        "numbers beyond their index",
    ),
    "the checksum of another replay": (lambda v: set_in(v, "replay_checksum", 1), "missing or changed replay memory"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_field_is_refused_by_name(forgery: str, whole: Path, runner: Any, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / f"ckpt.{LAST}"
    forge, problem = FORGED[forgery]
    values = values_of(file)
    forge(values)
    write_values(file, values)
    found, said = goes_on_from(runner, tmp_path / "run")
    assert found == LAST - 1
    (message,) = said
    assert re.search(problem, message), message


def packed(values: Any, name: str = "state") -> Any:
    return values["elements"][name]


def snappy_bomb(values: Any) -> None:
    """A state that says it has 4 GiB."""
    bomb = b"\xff\xff\xff\xff\x0f" + b"\x00" * 27
    sizes = packed(values)["sizes"]
    rest = packed(values)["data"][sizes[0] :]
    packed(values)["data"] = np.concatenate([np.frombuffer(bomb, np.uint8), rest])
    sizes[0] = len(bomb)


FORGED_REPLAYS: dict[str, tuple[Callable[[Any], None], str]] = {
    "a bomb for a state": (snappy_bomb, "can't be unpacked to 16 bytes"),
    "a state that does not unpack": (lambda v: set_in(packed(v)["data"], slice(0, 9), 255), "can't be unpacked"),
    "states of another shape": (lambda v: set_in(packed(v), "shape", [1 << 16, 1 << 16]), "allowed is .4, 1, 1."),
    "states of objects": (lambda v: set_in(packed(v), "dtype", "|O"), "the dtype of the replay's states is '|O'"),
    "sizes that lie": (lambda v: set_in(packed(v)["sizes"], 0, 1 << 40), "compressed to more than"),
    "more elements than there is room for": (
        lambda v: set_in(v, "keys", np.arange(1 << 20)),
        r"allowed is int64\['up to",
    ),
    "keys in disorder": (lambda v: set_in(v, "keys", v["keys"][::-1].copy()), "not in the order"),
    "a sampler of other keys": (lambda v: set_in(v["key_by_index"], 0, 1 << 40), "sampler's keys are not those"),
    "priorities of another sampler": (lambda v: set_in(v, "priorities", [np.zeros(8), 1.0]), "priorities is"),
    "fewer rewards": (lambda v: set_in(v["elements"], "reward", np.zeros(2)), r"reward is float64\[2\]"),
    "a longer trajectory": (
        lambda v: v["trajectory"].update(dict.fromkeys(v["trajectory"], np.zeros((5000, 4, 1)))),
        "trajectory has more than 2 rows",
    ),
    "another field": (lambda v: set_in(v, "_max_capacity", 1), "has or lacks '_max_capacity'"),
}


@pytest.mark.parametrize("forgery", FORGED_REPLAYS)
def test_a_forged_replay_is_refused_by_name(forgery: str, whole: Path, runner: Any, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / str(LAST) / "replay.npz"
    forge, problem = FORGED_REPLAYS[forgery]
    values = values_of(file)
    forge(values)
    write_values(file, values)
    seal(file.parents[1])
    tracemalloc.start()
    found, said = goes_on_from(runner, tmp_path / "run")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found, most < MOST_MEMORY) == (LAST - 1, True)
    (message,) = said
    assert re.search(problem, message), message


class Trap:
    """Its pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# A dtype of objects that says it has none; eight bytes then become the address of an object, which is called.
TYPE_CONFUSION = (
    b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR"
    b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbS'AAAAAAAA'\ntR(tR."
)
PATCH_OF_A_CLASS = b"csparse_plugins.core.state\nSparseState\n(N(dS'count'\nI7\nstb."
PICKLES: dict[str, Callable[[Path], bytes]] = {
    "a function to call": lambda sprung: pickle.dumps({"run": Trap(sprung)}),
    "an address to call": lambda _: b"\x80\x02" + TYPE_CONFUSION,
    "a class to patch": lambda _: b"\x80\x02" + PATCH_OF_A_CLASS,
    "memory to take": lambda _: b"\x80\x02c__builtin__\nbytearray\n(L8589934592L\ntR.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_never_read_though_its_digest_is_right(name: str, whole: Path, runner: Any, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    content, count = PICKLES[name](tmp_path / "sprung"), vars(SparseState)["count"]
    file = tmp_path / "run" / "checkpoints" / f"ckpt.{LAST}"
    file.write_bytes(content + b"sparse-plugins sha256 " + hashlib.sha256(content).digest())
    tracemalloc.start()
    found, said = goes_on_from(runner, tmp_path / "run")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found, most < MOST_MEMORY) == (LAST - 1, True)
    assert "is a pickle of an earlier version" in said[0]
    assert "convert_old_run" in said[0]
    assert vars(SparseState)["count"] is count
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(run_folder.CheckpointError, match="would unpickle it"):
        runner._checkpointer.load_checkpoint(0)


TELLING_WHAT_IT_LOADED = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules))
runpy.run_module("sparse_plugins.rl.train", run_name="__main__", alter_sys=True)
"""


def test_the_command_goes_on_from_the_checkpoint_before(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    content = pickle.dumps({"run": Trap(tmp_path / "sprung")})
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / f"ckpt.{LAST}").write_bytes(content + b"sparse-plugins sha256 " + hashlib.sha256(content).digest())
    (checkpoints / str(LAST) / "replay").mkdir()
    (checkpoints / str(LAST) / "replay" / "checkpoint.msgpack").write_bytes(content)
    bindings = [*resume_worker.BINDINGS, *SETTINGS]
    command = [sys.executable, "-c", TELLING_WHAT_IT_LOADED, f"--base_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*command, *(f"--gin_bindings={binding}" for binding in bindings)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"from iteration {LAST} on" in done.stdout
    assert "is a pickle of an earlier version" in done.stderr
    assert not (tmp_path / "sprung").exists()
    loaded = done.stdout.splitlines()[-1].split()
    assert "sparse_plugins.rl.dopamine.runners" in loaded
    assert "sparse_plugins.rl.dopamine.convert_old_run" not in loaded, "it runs what is in pickles"
    name = f"{LAST}/replay.npz"
    assert (checkpoints / name).read_bytes() == (whole / "checkpoints" / name).read_bytes(), "the same bits"
    agents = [values_of(folder / f"ckpt.{LAST}")["run"]["agent"] for folder in (checkpoints, whole / "checkpoints")]
    jax.tree.map(np.testing.assert_array_equal, *agents)


def compressed(path: Path) -> None:
    """A megabyte on disk that becomes a gigabyte in memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("manifest.npy", "w") as member:
        for _ in range(1 << 10):
            member.write(bytes(1 << 20))


def with_another_header(path: Path) -> None:
    """An array that says in the manifest that it has 8 GiB."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"<f4", [2]', b'"<f4", [2147483648]'))


ARCHIVES = {"compressed": compressed, "with another header": with_another_header}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_takes_no_more_memory_than_it_has(name: str, whole: Path, runner: Any, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    ARCHIVES[name](tmp_path / "run" / "checkpoints" / f"ckpt.{LAST}")
    tracemalloc.start()
    found, said = goes_on_from(runner, tmp_path / "run")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found, most < MOST_MEMORY) == (LAST - 1, True)
    assert f"checkpoint of iteration {LAST}" in said[0]


ODD = [None, True, -1, 1 << 62, 1 << 200, 0.5, float("nan"), float("inf"), "", "text", [], [[]], {}, {"a": 1}]


@st.composite
def odd_values(draw: Any) -> Any:
    if draw(st.booleans()):
        return draw(st.sampled_from(ODD))
    dtype = draw(st.sampled_from(["?", "u1", "i4", "i8", "f4", "f8", "c8"]))
    return np.full(draw(st.sampled_from([(), (0,), (3,), (4, 1), (50, 50)])), draw(st.integers(0, 1)), dtype)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in nested values."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@hypothesis.settings(
    max_examples=120, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_no_change_of_a_file_ends_the_process(data: Any, whole: Path, runner: Any, tmp_path_factory: Any) -> None:
    """It is refused, or what it says is possible; in time, and in little memory."""
    folder = tmp_path_factory.mktemp("mutated") / "run"
    shutil.copytree(whole / "checkpoints", folder / "checkpoints")
    is_replay = data.draw(st.booleans(), "of the replay")
    file = folder / "checkpoints" / (f"{LAST}/replay.npz" if is_replay else f"ckpt.{LAST}")
    if data.draw(st.booleans(), "in the bytes"):
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(content[: data.draw(st.sampled_from([len(content)] * 4 + [len(content) // 2]))])
    else:
        values = values_of(file)
        container, key = data.draw(st.sampled_from(places(values)))
        container[key] = data.draw(odd_values())
        write_values(file, values)
    if is_replay:
        seal(folder / "checkpoints")
    tracemalloc.start()
    began = time.monotonic()
    try:
        found, said = goes_on_from(runner, folder)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (most < MOST_MEMORY, time.monotonic() - began < 30) == (True, True)
    assert found == LAST or (found == LAST - 1 and f"checkpoint of iteration {LAST}" in said[0])


def test_odd_names_beside_checkpoints_are_left_alone(whole: Path, runner: Any, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    names = ["sentinel_checkpoint_complete.²", "sentinel_checkpoint_complete.007", "٣", "ckpt.copy", "notes.txt"]
    for name in names:
        (tmp_path / "run" / "checkpoints" / name).touch()
    assert goes_on_from(runner, tmp_path / "run") == (LAST, [])
    assert all((tmp_path / "run" / "checkpoints" / name).exists() for name in names)


def test_a_state_packs_as_dopamine_packs_it(whole: Path, runner: Any) -> None:
    goes_on_from(runner, whole)
    element = next(iter(runner._agent._replay._memory.values()))
    assert snappy.uncompress(element.state["data"].tobytes()) == element.unpack().state.tobytes()
